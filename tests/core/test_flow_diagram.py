"""docs/how-it-works.md shows the flow of a call as it is: each step, and each step after it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

from support.docs_blocks import ROOT, blocks
from support.pool import INFO, STREAMED, Rig, key
from support.replies import (
    MODEL,
    Chunks,
    GoogleError,
    bad,
    capacity,
    failure,
    invalid,
    minute,
    overloaded,
)

from keyrot_middleware.core.commands import (
    Acquire,
    Command,
    Done,
    GetOwner,
    GetTime,
    Refresh,
    RefreshAll,
    RelayStream,
    Send,
    Sleep,
    StreamEnd,
    StreamOpened,
)
from keyrot_middleware.core.flow import Exhausted, OwnerSearches, call_flow
from keyrot_middleware.core.model import Block, CallInfo, Lease, Unavailable

PAGE = ROOT / "docs" / "how-it-works.md"
START, END = "start", "end"
DEPTH = 5
"""Choices of one history: two attempts that fail, and what follows them. More find nothing new."""

GET = CallInfo(MODEL, "get", resources=("files/one",), bound_to_owner=True, idempotent=True)
CREATE = CallInfo(MODEL, "cachedContents", bound_to_owner=True)
KEYS = (key("a"), key("b"))


def replies(command: Any, info: CallInfo, now: float) -> list[Any]:
    """Return what a driver may answer to a command."""
    match command:
        case GetTime():
            return [(now, 0.5)]
        case GetOwner():
            return [None, ("a", "a")]
        case Acquire():
            first = command.candidates[0][1]
            ids = [candidate.key_id for _, candidate in command.candidates]
            whose = first.key_id, first.project, first.billing_account
            lease = Lease(*whose, MODEL, info.verb, 10, 1, now)
            return [
                lease,
                *([lease._replace(probe=True)] if info.stream else []),
                Unavailable(now, {one: Block("rpm", now + 20.0, waitable=True) for one in ids}),
                Unavailable(now, {one: Block("key_invalid", now + 900.0) for one in ids}),
            ]
        case Send():
            stream = [StreamOpened(Chunks("chunk"))] if info.stream else [Done("answer")]
            failed = [minute(), invalid(), capacity(), overloaded(), bad(), failure(404)]
            return stream + failed
        case RelayStream():
            return [StreamEnd(), StreamEnd(failed=capacity())]
        case Refresh() | RefreshAll():
            return [False, True]
        case Sleep():
            return [(now, now + command.seconds)]
        case _:
            return [None]


def run(info: CallInfo, choices: tuple[int, ...]) -> tuple[list[str], int]:
    """Run a call whose driver chooses its replies by *choices*, and stop where these end.

    Returns:
        The steps, and how many replies there are to the last one; 0 if the call has ended.
    """
    rig = Rig(*KEYS, max_retries=1)
    call = rig.make(info, KEYS[0] if info.bound_to_owner else None)
    call.searches = OwnerSearches()
    flow, steps, left = call_flow(call), [START], list(choices)
    reply: Any = None
    now = rig.clock.time()
    while True:
        try:
            command = flow.send(reply)
        except (StopIteration, Exhausted, GoogleError):
            return [*steps, END], 0
        if not isinstance(command, GetTime):
            steps.append(type(command).__name__)
        offered = replies(command, info, now)
        if isinstance(command, Sleep):
            now += command.seconds
        if len(offered) > 1 and not left:
            flow.close()
            return steps, len(offered)
        reply = offered[left.pop(0) if len(offered) > 1 else 0]


def histories(info: CallInfo) -> Iterator[list[str]]:
    """Yield the steps of each history of a call, up to the depth."""
    untried: list[tuple[int, ...]] = [()]
    while untried:
        choices = untried.pop()
        steps, offered = run(info, choices)
        yield steps
        if len(choices) < DEPTH:
            untried += [(*choices, number) for number in range(offered)]


def test_the_page_shows_each_step_and_what_follows() -> None:
    """The table has the commands of the code, and the transitions that calls really take."""
    (picture,) = (block.code for block in blocks(PAGE) if "GetOwner" in block.code)
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    shown = {(before, after) for before, text in rows for after in re.findall(r"`(\w+)`", text)}
    taken = {
        pair
        for info in (INFO, STREAMED, GET, CREATE)
        for steps in histories(info)
        for pair in pairwise(steps)
    }
    names = {command.__name__ for command in get_args(Command)} - {"GetTime"}
    assert {before for before, _ in shown} == names | {START}
    assert shown == taken
    assert names | {START, END} <= set(re.findall(r"\w+", picture))
