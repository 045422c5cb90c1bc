"""Would a call be served now? The one judgement that page, status, alerts, logs and errors word.

It is made from values: the keys in the order of the call, what blocks them (of a call that was
made, or of one that nobody made), which of them were rejected, and how the last calls ended. The
answers, worst first:

- *no*: no key can serve it, and waiting does not help in time;
- *failing*: there is a key, but the last calls of the model failed, whatever the key;
- *due*: all that is left is a rejected key, which the next call tries again;
- *waits*: it waits for a known time that its limit allows;
- *busy*: it waits until another call ends;
- *served*: a key is available.

*due* and *busy* promise nothing. What only a person ends is no key again before a success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Literal, NamedTuple, get_args

from .chains import ABOUT_THE_MODEL
from .failures import ENDED_BY_PERSON, KEY_REJECTIONS, OVERLOADED, REJECTIONS
from .model import (
    IN_USE,
    LIMITED,
    OTHER_PLATFORM,
    OTHER_PROJECT,
    OTHER_TIER,
    Block,
    CallInfo,
    Candidate,
)
from .text import utc

Answer = Literal["no", "failing", "due", "waits", "busy", "served"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
"""The worst first."""
EndsBy = Literal["time", "guess", "success", "person"]
"""What ends it: a time that the provider or our own window names, a time that we try it again, a
call that succeeds, or a person."""

DISABLED_BY_HAND = "disabled"
"""The reason of a cooldown that an operator began, to keep a key from being used."""

_NOT_ALLOWED = {
    OTHER_TIER: "not one that this call may use (KEYROT_TIERS, workload)",
    OTHER_PROJECT: "not the one that this call may use (project)",
    OTHER_PLATFORM: "not that of this call",
}
REASONS = {
    "concurrency": "all requests that max_concurrency allows are under way",
    "usd_10m": "the budget of ten minutes is spent",
    "usd": "the budget of the day is spent",
    "usd_month": "the budget of the month is spent",
    "usd_reserved": "requests under way may spend the rest of a budget",
    "probe": "one request is under way to see whether the key works again",
}
"""Of reasons that are no failure class and no window."""
_BY_PERSON = ENDED_BY_PERSON | REJECTIONS | _NOT_ALLOWED.keys()
_BY_TIME = (LIMITED - IN_USE) | {"quota_day", DISABLED_BY_HAND}


class Run(NamedTuple):
    """The last calls of a model, which failed one after the other, whatever the key."""

    failure: str
    """The class of the last one, such as `overloaded`."""
    code: int | None
    """Its HTTP status; None where there was no response."""
    since: float
    """When the first one ended, epoch seconds."""
    calls: int


class Judgement(NamedTuple):
    """Whether a call of a model and a workload would be served now."""

    model: str
    workload: str | None
    """None: a call of none that is named."""
    answer: Answer
    able: int
    """How many keys could serve it now; of a large pool at least so many."""
    keys: int
    """How many it may use."""
    key_id: str | None = None
    """Of the others (or of its own, if it is spare): the one that is expected back first."""
    block: Block | None = None
    """What blocks that; None: nothing does, or it is rejected and due."""
    ends_by: EndsBy | None = None
    """What ends that, or what ends *failing*; None: there is nothing to end."""
    run: Run | None = None
    is_spare: bool = False
    """Keys of others serve it, since its workload's own are out, or the next model does."""
    is_own: bool = False
    """What its workload may use is among what blocks it: others may be served."""

    @property
    def is_trouble(self) -> bool:
        """Return whether somebody should know."""
        return self.answer in ("no", "failing") or self.is_spare


def judge(
    info: CallInfo,
    keys: Sequence[Candidate],
    blocks: Mapping[str, Block],
    *,
    now: float,
    rejected: Mapping[str, str],
    run: Run | None = None,
    wait_s: float = 0.0,
    next_model: Judgement | None = None,
) -> Judgement:
    """Judge whether a call would be served now.

    Args:
        info: The call.
        keys: Those that it may use.
        blocks: Why keys cannot serve it; the rest can.
        now: Epoch seconds.
        rejected: In which class keys were cut off by what only a person ends, by id, if no request
            has succeeded since.
        run: The last calls of its model, if they failed whatever the key.
        wait_s: How long it may wait.
        next_model: The judgement of the model that such a call goes on to.
    """
    able = {key.key_id for key in keys} - blocks.keys() - rejected.keys()
    own = {key.key_id: key for key in keys if info.workload and key.workload == info.workload}
    is_spare = bool(own and able) and able.isdisjoint(own)
    out = {i: one for i, one in blocks.items() if not is_spare or i in own}
    due = [i for i in (own if is_spare else [key.key_id for key in keys]) if i in rejected]
    due = [i for i in due if i not in out or out[i].reason in IN_USE]
    # What ends while a key is rejected does not bring it back.
    out |= {i: Block(rejected[i], out[i].until) for i in out.keys() & rejected.keys()}
    first = min(out, key=lambda i: _turn(out[i]), default=None)
    block = None if first is None else out[first]
    end: EndsBy | None = "person" if block is None and not keys else None
    end = end if block is None else ends_by(block)
    if due and end in (None, "person"):
        first, block, end = due[0], None, "success"
    answer: Answer = "no"
    if able:
        answer = "served"
    elif any(one.reason in IN_USE for one in out.values()):
        answer = "busy"
    elif any(one.waitable and one.until - now <= wait_s for one in out.values()):
        answer = "waits"
    elif due:
        answer = "due"
    goes_on = answer == "no" and any(one.reason in ABOUT_THE_MODEL for one in blocks.values())
    if run is not None and answer != "no":
        answer, end, goes_on = "failing", "success", run.failure == OVERLOADED
    if goes_on and next_model and ANSWERS.index(next_model.answer) > ANSWERS.index(answer):
        answer, is_spare = next_model.answer, True
    found = info.model, info.workload, answer, len(able), len(keys)
    is_own = any(one.note for one in out.values())
    return Judgement(*found, first, block, end, run, is_spare, is_own)


def ends_by(block: Block) -> EndsBy:
    """Return what ends a block: *guess* where it is tried again at a time that nobody named."""
    if block.reason in _BY_PERSON:
        return "person"
    is_named = block.reason in _BY_TIME or (block.waitable and block.reason not in IN_USE)
    return "time" if block.until < inf and is_named else "guess"


def _turn(block: Block) -> tuple[bool, bool, float, bool]:
    """Return in which order blocks are expected to end; of two at once, the one with a note."""
    return block.until == inf, ends_by(block) == "person", block.until, not block.note


def describe_block(block: Block) -> str:
    """Say why a key cannot serve, and until when: `quota_day until 2026-01-02 08:00:00Z`."""
    if block.reason in _NOT_ALLOWED:
        return f"{block.reason}: {_NOT_ALLOWED[block.reason]}"
    why = block.note or REASONS.get(block.reason, block.reason)
    if block.until == inf or block.reason in IN_USE:
        return why
    at = f"{utc(block.until):%Y-%m-%d %H:%M:%SZ}"
    if block.reason in REJECTIONS:
        return f"{why}, rejected; replace its value; tried again at {at}"
    return f"{why} until {at}" if ends_by(block) == "time" else f"{why}; tried again at {at}"


# The state of a key ------------------------------------------------------------------------------

KeyState = Literal["available", "limited", "cooling_down", "rejected", "unresolved", "disabled"]
KEY_STATES: tuple[KeyState, ...] = get_args(KeyState)
"""The state of a key, in the words of status(), the CLI, metrics and the docs."""


class Availability(NamedTuple):
    """Whether a key can be leased now."""

    state: KeyState
    at: float | None = None
    """When it is available again, epoch seconds; None: it is, or the time is unknown."""
    reason: str | None = None
    """That of the `Block`."""
    note: str = ""
    """Likewise."""
    ends_by: str | None = None
    """What ends it; see judgement.py."""


AVAILABLE = Availability("available")


def availability(block: Block | None) -> Availability:
    """Return what a block means; None stands for none."""
    if block is None:
        return AVAILABLE
    known = isfinite(block.until) and block.reason not in IN_USE
    state: KeyState = "cooling_down"
    if block.reason in LIMITED:
        state = "limited"
    elif block.reason == DISABLED_BY_HAND:
        state = "disabled"
    elif block.reason in KEY_REJECTIONS:
        state = "rejected"
    return Availability(state, block.until if known else None, block.reason, block.note)
