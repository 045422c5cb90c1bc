"""Run everything and write RESULTS.md: `make bench`."""

from __future__ import annotations

from pathlib import Path

from support.servers import BINARIES, Server

from keyrot_middleware.errors import PoolEvent

from . import call_path, crowd, decision, door_path, file_state, serve
from .calls import (
    PER_ROUND,
    PLAIN,
    ROUNDS,
    Variant,
    added,
    async_calls,
    format_added,
    sync_calls,
)
from .http_libraries import http_libraries
from .page import Row, page
from .program import HEAVY, import_time, install_time, three_keys
from .redis_state import over_two_scripts, redis_acquire_times, redis_memory_per_key
from .state import acquire_times, memory_per_key
from .status_page import KEYS, SHOWN, request_ms, shown_s
from .telemetry import (
    recording,
    traced,
    untraced,
    without_sdk,
)

ADDED = (
    ("pool", "memory state, no tracing", "≤ 12 % of a plain call (≤ 100 µs on a quiet machine)"),
    ("traced", "memory state, spans, batch processor", "–"),
    ("redis", "state in Redis, no tracing", "≤ 600 µs"),
)
"""The variant, its description, and the bar."""
PARTS = (
    ("traced", "spans, batch processor, over the untraced call", "pool", "–"),
    ("alerts", "alerts are used, over the pool alone", "pool", "≤ 15 µs"),
    ("redis", "state in Redis, over the state in memory", "pool", "–"),
)
"""The variant, its description, its baseline, and the bar."""
LAST_SETTLE_S = 0.01
"""A turn's last call is recorded after it has returned."""


def ignore(_event: PoolEvent) -> None:
    """Ignore an event of the pool."""


def calls(redis: Server) -> list[Row]:
    """Measure the added time of a call; all variants take turns in one run."""
    variants = {
        "plain": PLAIN,
        "pool": Variant({"state_url": "memory://"}, untraced),
        "traced": Variant({"state_url": "memory://"}, traced),
        "alerts": Variant({"state_url": "memory://", "on_event": ignore}, untraced),
        "redis": Variant({"state_url": redis.strict_url}, untraced, rest_s=LAST_SETTLE_S),
    }
    rows: list[Row] = []
    measured = {"sync": sync_calls(variants), "async": async_calls(variants)}
    for kind, samples in measured.items():
        rows += [
            (f"added per call, {what}, {kind}, p50", bar, format_added(samples, name))
            for name, what, bar in ADDED
        ]
        for name, what, over, bar in PARTS:
            micros = added(samples, name, over)[0]
            rows.append((f"{what}, {kind}, p50", bar, f"{micros:.0f} µs"))
    return rows


def telemetry() -> list[Row]:
    """Measure telemetry in a loop: in a program without an SDK, and in one with an SDK."""
    return [
        ("in a loop, no SDK: what observers cost", "≤ 3 µs", f"{without_sdk():.1f} µs"),
        ("in a loop: a call recorded, counted and priced", "≤ 10 µs", f"{recording():.1f} µs"),
    ]


def pool() -> list[Row]:
    """Measure how the number of keys affects time and memory."""
    return [
        ("acquire and settle with 10,000 keys against 10", "≤ 1.5 ×", _against(acquire_times())),
        ("memory per key, 10,000 used keys", "≤ 1 KB", f"{memory_per_key():.0f} bytes"),
    ]


def shared(redis: Server) -> list[Row]:
    """Measure the state in Redis."""
    memory = redis_memory_per_key(redis)
    return [
        (
            "acquire and settle in Redis with 10,000 keys against 10",
            "≤ 1.5 ×",
            _against(redis_acquire_times(redis)),
        ),
        (
            "Redis memory per key and model in use, 2,000 used keys",
            "≤ 1 KB",
            f"{memory:.0f} bytes",
        ),
        *(
            (
                f"acquire and settle in Redis, 8 candidates, over two bare EVALSHA, {kind}, p50",
                "≤ 1.5 ×",
                f"{took:.0f} µs over {floor:.0f} µs, {took / floor:.2f} ×",
            )
            for kind, (took, floor) in over_two_scripts(redis).items()
        ),
    ]


def status_page() -> list[Row]:
    """Measure the page: a request, and an open page in Chromium."""
    shown = shown_s()
    return [
        (
            f"the page's request for {SHOWN} of {KEYS:,} keys, CPU time, p50",
            "≤ 200 ms",
            f"{request_ms():.0f} ms",
        ),
        (
            "an open page shows a change after, p50",
            "≤ 3 s",
            "not measured: no chromium (tools/ci_packages.sh)"
            if shown is None
            else f"{shown:.1f} s",
        ),
    ]


def program() -> list[Row]:
    """Measure the import, and the main job."""
    millis, heavy = import_time()
    with_it = ", ".join(heavy) or "none of " + ", ".join(HEAVY)
    sent, failed = three_keys()
    counts = f"A {sent['A']}, B {sent['B']}, C {sent['C']}; {failed} failed"
    return [
        ("`import keyrot_middleware`", "≤ 50 ms", f"{millis:.0f} ms; imports {with_it}"),
        ("`install()` behind the import of google-genai", "–", f"{install_time():.0f} ms"),
        ("A = 429, B = invalid, C = good, 60 calls", "A 1, B 1, C 60; 0 failed", counts),
    ]


def _against(times: dict[int, float]) -> str:
    few, many = times[10], times[10_000]
    return f"{many / few:.2f} × ({many:.1f} µs against {few:.1f} µs)"


def table(redis: Server) -> list[Row]:
    """Measure every row: what, the bar, the result."""
    return [
        *calls(redis),
        *http_libraries(),
        *telemetry(),
        *pool(),
        *shared(redis),
        *file_state.rows(),
        *status_page(),
        *program(),
        *decision.rows(redis),
        *call_path.rows(),
        *door_path.rows(),
        *serve.rows(),
    ]


def main() -> None:
    """Write the table with the machine and the command."""
    redis = Server(BINARIES["valkey"])
    try:
        rows = table(redis)
    finally:
        redis.remove()
    clients = crowd.section()
    how = (
        f"The plain SDK and the pool take turns of {PER_ROUND} calls, {ROUNDS} times, against a "
        "loopback server in a process of its own; Redis is a Valkey on loopback. Added is the "
        "median over the rounds of the difference at p50. How long the same instructions take "
        "depends on other load of the machine: compare a row with the plain call beside it. A call "
        "of google-genai adds less than one of httpx, since the pool repeats in place of the SDK's "
        "own retries."
    )
    results = page("Results", "make bench", how, ("what", "bar", "measured"), rows)
    text = f"{results}\n{clients}"
    (Path(__file__).parent / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
