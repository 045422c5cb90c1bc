"""What the page, `keyrot status` and a notebook say of a pool first.

Can calls be served, and when again? Which calls failed? The sentences are the same everywhere; a
time is written in the way of its place: the page counts down to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict

from ..core.text import plural

__all__ = ["Headline", "Sentence", "available_of", "headline_of", "lines_of"]

MODELS = 4
"""Models that it names."""
_UNKNOWN = "Not known while the shared state cannot be reached."
_NO_CALL = "No call was made."


class Sentence(TypedDict):
    """A sentence, and when the first key is available."""

    sentence: str
    key_id: str | None
    available_at: str | None
    """ISO 8601 in UTC; None: a key is available, or it is not known when one will be."""


class Headline(TypedDict):
    """What is said first."""

    keys: Sentence
    models: list[Sentence]
    """Of models in use without an available key, while other models have one."""
    calls: str
    """How many failed in the last hour."""
    requests: str
    """Likewise; a call may send several."""


def headline_of(summary: Mapping[str, Any]) -> Headline:
    """Return the headline of a pool.

    Args:
        summary: The other fields of its `summary`; docs/page.md lists them.
    """
    keys, available, hour = summary["keys"], summary["available"], summary["last_hour"]
    text = f"{available_of(available, keys)}."
    first: Sentence = {"sentence": text, "key_id": None, "available_at": None}
    if not keys:
        first["sentence"] = "This pool has no key."
    elif not available:
        first = _until("No key is available.", summary["next"])
    without = [
        _until(f"No key is available for {name}.", some["next"])
        for name, some in summary["models"].items()
        if available and not some["available"]
    ]
    return {
        "keys": first,
        "models": without[:MODELS],
        "calls": _calls(hour),
        "requests": _requests(hour),
    }


def lines_of(headline: Headline, when: Callable[[str], str]) -> Iterator[str]:
    """Yield the lines of a headline.

    Args:
        headline: The headline.
        when: Writes an ISO time, such as `in 5 min`.
    """
    for one in (headline["keys"], *headline["models"]):
        at = one["available_at"]
        said = one["sentence"]
        yield said if at is None else f"{said} {one['key_id']} {when(at)}."
    calls, requests = headline["calls"], headline["requests"]
    yield f"Last hour: {calls}{'' if calls in (_UNKNOWN, _NO_CALL) else f' {requests}'}"


def _until(text: str, first: Mapping[str, Any]) -> Sentence:
    if first["available_at"] is None:
        text += " It is not known when one will be."
    return {"sentence": text, "key_id": first["key_id"], "available_at": first["available_at"]}


def _calls(hour: Mapping[str, Any]) -> str:
    if hour["calls"] is None:
        return _UNKNOWN
    if not hour["calls"]:
        return _NO_CALL
    waits = f"; {hour['waits']:,} waited for a key" if hour["waits"] else ""
    return f"{hour['failed_calls']:,} of {plural(hour['calls'], 'call')} failed{waits}."


def _requests(hour: Mapping[str, Any]) -> str:
    if hour["requests"] is None:
        return _UNKNOWN
    if not hour["requests"]:
        return "No request was sent."
    more = "; a call goes on with another key" if hour["failures"] else ""
    return f"{hour['failures']:,} of {plural(hour['requests'], 'request')} failed{more}."


def available_of(available: int, keys: int) -> str:
    """Return `1 of 2 keys is available`."""
    verb = "is" if available == 1 else "are"
    return f"{available:,} of {plural(keys, 'key')} {verb} available"
