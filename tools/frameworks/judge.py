"""Check what a program's user got."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from answers import OK
from cases import Case

__all__ = ["problems"]

AT_ONCE_S = 30.0
"""More than the pauses between DSPy's own retries. The first call is not timed: frameworks import
much in it."""


def problems(case: Case, results: list[dict[str, Any]], sent: dict[str, int]) -> list[str]:
    """List the problems; an empty list is success.

    Args:
        case: What was tried.
        results: The result of each call, from probe.py.
        sent: How many requests came with each key.
    """
    if len(results) != case.pool.calls:
        return [f"the program ended after {len(results)} of {case.pool.calls} calls"]
    judge = failing_call if case.pool.fails else good_call
    found = dict.fromkeys(problem for call in results for problem in judge(case, call))
    slow = [call["seconds"] for call in results[1:] if call["seconds"] > AT_ONCE_S]
    waits = [f"took {seconds:.1f} s" for seconds in slow]
    return [*found, *waits, *wrong_counts(case, sent)]


def good_call(case: Case, call: dict[str, Any]) -> Iterator[str]:
    """Check a call that had a good key."""
    if "failure" in call:
        yield f"failed: {call['failure']['texts'][0]}"
        return
    if call["answer"] != OK:
        yield f"answered {call['answer']!r}"
    if call["tool_runs"] != ("tool" in case.way):
        yield f"the tool ran {call['tool_runs']} times"


def failing_call(case: Case, call: dict[str, Any]) -> Iterator[str]:
    """Check a call without an available key: its user must see the framework's own error."""
    if "answer" in call:
        yield f"answered {call['answer']!r}"
        return
    classes, text = call["failure"]["classes"][0], call["failure"]["texts"][0]
    if case.error not in classes:
        yield f"raised {classes[0]}, no {case.error}"
    yield from (f"no {word!r} in: {text}" for word in case.words if word not in text)


def wrong_counts(case: Case, sent: dict[str, int]) -> Iterator[str]:
    """Check the requests: one for each bad key in all, and the expected number for the good one."""
    for key_id, wanted in case.pool.sent(case.way).items():
        if sent[key_id] != wanted:
            yield f"key {key_id} got {sent[key_id]} requests, not {wanted}"
