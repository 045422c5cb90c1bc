"""Which share of the possible requests a pool gets served, counting clock minutes.

`make goodput` runs callers, pool and service in simulated time (tests/support/simulation.py).
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from support.simulation import simulate

from keyrot_middleware.testing.keys import Limits

from .page import Row, page

KEYS, CALLERS, SECONDS = 5, 8, 180.0
LIMITS = {"10 requests": Limits(rpm=10), "3,000 tokens": Limits(tpm=3_000)}
HEAD = (
    "limit of each key",
    "possible",
    "served",
    "of what is possible (≥ 100 %)",
    "429s per key",
    "failed calls",
    "longest call",
)


def row(limit: str, known: bool) -> Row:
    """Run a case that begins at :10 of a minute.

    Raises:
        AssertionError: A call failed, or too little was served.
    """
    found = simulate(
        LIMITS[limit], known=known, keys=KEYS, callers=CALLERS, start_s=10.0, seconds=SECONDS
    )
    assert found.failed == 0, (limit, known, found)
    assert found.share >= 1.0, (limit, known, found)
    assert not known or not any(found.refused.values()), found
    refused = [found.refused.get(f"key_{n}", 0) for n in range(KEYS)]
    return (
        f"{limit} a minute, {'configured' if known else 'learned'}",
        str(found.possible),
        str(found.served),
        f"{found.share:.1%}",
        f"{sum(refused) / KEYS:.1f}, at most {max(refused)}",
        str(found.failed),
        f"{found.longest_s:.0f} s",
    )


def main() -> None:
    """Run all, print and write the page."""
    how = (
        f"{CALLERS} callers without pause for three minutes over {KEYS} keys; the pool "
        "counts clock minutes. `possible` is what a caller that knows the limits "
        "gets served, the start of the first window included."
    )
    rows = [row(limit, known) for limit, known in product(LIMITS, (True, False))]
    text = page("Goodput", "make goodput", how, HEAD, rows)
    print(text)
    Path(__file__).with_name("GOODPUT.md").write_text(text)


if __name__ == "__main__":
    main()
