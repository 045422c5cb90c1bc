"""The whole policy of one call, as one generator.

`call_flow` yields commands (commands.py) and is sent their replies; a driver performs them,
synchronously or not, and decides nothing. Read from the top of `call_flow` it is the story of a
call: borrow a key, send, settle; on failure let the verdict of failures.py say whether another
key may serve, the same request may be sent again, or the error is the caller's.

Three budgets that do not mix:

- *walking*: keys that failed by themselves are excluded, each at most once (`max_attempts`);
- *retrying*: 5xx and lost connections blame no key and are few (`max_retries`), with back-off;
- *waiting*: only while no key can serve now, at most `max_wait_s` in all, and only for a time
  that is known: a full minute of our own counting, or one that the server named.

Failures of Send come back as values. Anything else (cancellation, Ctrl-C) is thrown in, and
`_attempt` books the lease as abandoned on its way out. A flow that is closed instead (its stream
was dropped, its loop is gone) can yield nothing more: its driver books the lease.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any

from .commands import (
    Acquire,
    Command,
    Done,
    Failed,
    GetOwner,
    GetTime,
    Refresh,
    RefreshAll,
    RelayStream,
    ReportServing,
    Send,
    Settle,
    Sleep,
    StreamEnd,
    StreamOpened,
)
from .failures import REJECTIONS, classify, describe
from .model import (
    HOME,
    NO_USAGE,
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Scope,
    Unavailable,
    Usage,
    Verdict,
)
from .selection import RankedCandidates, Selector
from .text import utc
from .tokens import TokenScale
from .waiting import STALL_S, Claims, Ticket, WaitingLines

__all__ = [
    "CALLS",
    "REST_S",
    "CallState",
    "Exhausted",
    "FailedAttempt",
    "Overload",
    "attempt_note",
    "call_flow",
    "may_use_other_project",
    "owner_candidates",
]

# The breaker of a model: while it serves nobody, its calls are sent once and not repeated ------
#
# A 503 is about the model, for every key of everyone (GEMINI.md A13). One call that meets it is
# sent
# again a little later. But when call after call ends with it, to repeat each of them only adds to
# the load, and keeps programs waiting for an answer that will not come. Calls are still sent: the
# first that is served shows that the model is back.


CALLS = 3
"""So many calls in a row that ended with a 503, retries and all, open the breaker."""
REST_S = 30.0
"""It closes by itself when none has been met for so long."""
_MODELS = 256


class Overload:
    """Which models serve nobody at the moment, as far as this process knows.

    Not locked: threads that fail at once may count one call less, nothing else.
    """

    __slots__ = ("models",)

    def __init__(self) -> None:
        self.models: dict[str, tuple[int, float]] = {}
        """Of each the calls in a row that ended so, and when the last did, epoch seconds."""

    def failed(self, model: str, now: float) -> None:
        """Take note of a call that ended with a 503."""
        calls, last = self.models.get(model, (0, now))
        if len(self.models) >= _MODELS:
            self.models = {}
        self.models[model] = (calls + 1 if now - last < REST_S else 1, now)

    def served(self, model: str) -> None:
        """Take note of a call that was served."""
        self.models.pop(model, None)

    def open(self, model: str, now: float) -> bool:
        """Tell whether a call to this model should not be repeated."""
        calls, last = self.models.get(model, (0, now))
        return calls >= CALLS and now - last < REST_S


# One send that failed, and what is written about it on the exception that comes out ------------


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One send that failed."""

    key_id: str
    verdict: Verdict
    until: float | None


def attempt_note(number: int, attempt: FailedAttempt, hint: str | None = None) -> str:
    """Write one attempt down for a person: which key, why it failed, until when it cools down.

    Args:
        number: From 1.
        attempt: The attempt.
        hint: What may be behind the rejection of its key.
    """
    text = f"keyrot: attempt {number} with key {attempt.key_id}: {describe(attempt.verdict)}"
    if attempt.until is None:
        return text
    at = f"{utc(attempt.until):%Y-%m-%d %H:%M:%SZ}"
    if attempt.verdict.rejected:
        why = f". {hint}" if hint else ""
        return f"{text}, rejected; replace its value; tried again at {at}{why}"
    return f"{text}, cooling down until {at}"


# One call on its way: what was asked, and what was tried so far --------------------------------


class Exhausted(Exception):  # noqa: N818 - never reaches a caller; becomes KeyPoolExhausted
    """Nothing could be sent: no key is free, and none will be soon enough."""

    def __init__(self, unavailable: Unavailable) -> None:
        super().__init__("no key can serve")
        self.unavailable = unavailable


@dataclass(slots=True)
class CallState:
    """One call on its way: what was asked, and what was tried so far."""

    info: CallInfo
    roster: Selector
    policy: RetryPolicy
    scale: TokenScale
    home: Candidate | None = None
    """The client's own key, for calls that touch stored things."""
    moment: tuple[float, float] | None = None
    """The time when it was asked for, epoch seconds, and a random number in [0, 1)."""
    overload: Overload = field(default_factory=Overload)
    lines: WaitingLines = field(default_factory=WaitingLines)
    """Of the pool: who waits for a key."""
    max_wait_s: float = inf
    """The call's own bound, beside the policy's."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """Of the pool: what may be behind the rejection of a key, for the notes."""
    excluded: dict[str, float] = field(default_factory=dict)
    """Keys that failed this call, and until when (`inf`: for the rest of it)."""
    attempts: list[FailedAttempt] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Rejected keys whose store was asked for another value."""
    refreshed: set[str] = field(default_factory=set)
    """Keys whose value was replaced during this call; once each."""
    exceeded_tiers: set[str | None] = field(default_factory=set)
    """Tiers of which a key's whole limit was smaller than the request."""
    failed_at: float = 0.0
    """When the last send failed, epoch seconds."""
    looked_up: bool = False
    """The values of all keys were looked up, since each of them is rejected."""
    retries: int = 0
    waited_s: float = 0.0
    """Real seconds from the beginning of each wait to its end."""
    waited_until: float = 0.0
    """When the last sleep of a wait ended, by the driver's monotonic clock."""
    ticket: Ticket | None = None
    """Its place in line, once it had to wait."""
    seen: int = 0
    """The version of the lines when the call last began to look for a key."""
    sends: int = 0
    last: Failed | None = None

    @property
    def budget_s(self) -> float:
        """Tell how long the call may wait for keys, in all."""
        return min(self.policy.max_wait_s, self.max_wait_s)

    def leave_line(self) -> None:
        """Wait no more: a key was found, or the call is over."""
        if self.ticket is not None:
            self.lines.leave(self.ticket)

    def drop_ticket(self) -> None:
        """Wait no more, without a lock: the garbage collector may be what closes the flow."""
        if self.ticket is not None:
            self.ticket.gone = True


# With which keys a call that touches stored things may go (ADR 0005) ---------------------------


ONE_KEY = ("continuation:", "page:")
"""All hops of one answer, and all pages of one list, go with the very key of the first."""

_NOT_CREATING = ("delete", "get", "list", "patch")

NEW_CACHE = "cachedContents"
"""The method that makes cached content."""

CACHE_STORAGE = "cache_storage"
"""The failure class that is about a project's room for cached content."""


def owner_candidates(call: CallState) -> Generator[Command, Any, tuple[Candidate, ...]]:
    """Find whose stored things the call names; unknown and new ones are of its home project."""
    home, names = call.home, call.info.resources
    owner: tuple[str, str] | None = (yield GetOwner(names)) if names else None
    key, project = home, home.project if home is not None else ""
    if owner is not None:
        key, project = call.roster.keys.get(owner[0]), owner[1]
    one_key = any(name.startswith(ONE_KEY) for name in names)
    same = () if one_key else call.roster.find_project_keys(project)
    fixed = ([key] if key is not None else []) + [k for k in same if k is not key]
    return tuple(fixed) or ((home,) if home is not None else ())


def may_use_other_project(
    call: CallState, fixed: Sequence[Candidate], blocks: Mapping[str, Block]
) -> bool:
    """Say whether a call that creates something may go with any key, for its home never can.

    It names nothing stored, so any project may have what it makes, and its owner is known
    afterwards. A project's keys that are rejected, or have no room for a cache, may stay so.
    """
    if call.info.resources or call.info.verb in _NOT_CREATING:
        return False
    why = {attempt.key_id: attempt.verdict.failure for attempt in call.attempts}
    why |= {key_id: block.reason for key_id, block in blocks.items()}
    found = {why.get(key.key_id) for key in fixed}
    stranger = any(key.key_id.startswith(HOME) for key in fixed)
    never = frozenset() if stranger else REJECTIONS
    if call.info.verb == NEW_CACHE:
        never |= {CACHE_STORAGE}
    return bool(found) and found <= never


BACKOFF_BASE_S = 0.5
BACKOFF_MAX_S = 8.0
JITTER_S = 0.5
"""The processes that wait for one minute's edge must not all come back in the same instant."""
LEAST_PAUSE_S = 0.05
"""No wait is shorter, whatever times are named: clocks differ, and a time may be over already."""
RESEND_S = 1.0
"""A key that has failed a call is not used again by it before so long."""
SENDS_PER_KEY = 5
"""So often may one call fail with one key."""

OVERLOADED = "overloaded"
"""The failure class that is about the whole model."""


def call_flow(call: CallState) -> Generator[Command, Any, Any]:
    """Carry one call through: commands out, replies in, the response returned.

    Returns:
        The SDK's response; for a stream None, once it was relayed to its end.

    Raises:
        Exhausted: Nothing was sent, since no key can serve.
        BaseException: The SDK's last exception, with a note per failed attempt.
    """
    fixed = (yield from owner_candidates(call)) if call.info.bound_to_owner else None
    try:
        while True:
            now, draw = call.moment or (yield GetTime())
            call.moment = None
            call.seen = call.lines.version
            excluded = _excluded(call, now)
            blocks: dict[str, Block] = {}
            spread = call.roster.spread and fixed is None
            for candidates in _shortlists(call, fixed, excluded, now, draw):
                lease: Lease | Unavailable = yield Acquire(call.info, candidates, spread)
                if isinstance(lease, Lease):
                    break
                _pass_by(call, fixed, lease, blocks)
                now = max(now, lease.at)  # by which the blocks are reported
            else:
                if fixed is not None and may_use_other_project(call, fixed, blocks):
                    fixed = None
                    continue
                yield from _none_could(call, _none_free(call, fixed, excluded, blocks, now))
                continue
            call.leave_line()
            reply = yield from _attempt(call, lease)
            if isinstance(reply, Done):
                return reply.response
            if isinstance(reply, StreamEnd):
                if reply.failed is None:
                    return None
                raise _noted(call)  # its chunks went out: never restarted
            if not (yield from _go_on(call, lease)):
                raise _noted(call)
    finally:
        call.drop_ticket()


def _none_could(call: CallState, none_free: Unavailable) -> Generator[Command, Any, None]:
    """Wait for another value of a refused key, or for a key; raise where neither helps."""
    if (yield from _replaced(call, none_free)) or (yield from _wait(call, none_free)):
        return
    call.leave_line()
    raise _noted(call) if call.last is not None else Exhausted(none_free)


def _excluded(call: CallState, now: float) -> Mapping[str, object] | Claims:
    """Tell which keys not to ask for: those that failed, and those that earlier calls wait for."""
    if call.ticket is not None:
        call.ticket.woken = False
    if not call.lines.lines:
        return call.excluded
    return call.lines.ahead(call.info, call.ticket, call.excluded, now)


def _shortlists(
    call: CallState,
    fixed: tuple[Candidate, ...] | None,
    excluded: Mapping[str, object] | Claims,
    now: float,
    draw: float,
) -> Iterable[RankedCandidates]:
    """Give the keys to ask for, a handful at a time."""
    if fixed is None:
        return call.roster.candidate_batches(call.info, excluded, now, draw)
    offer = tuple((0, key) for key in fixed if key.key_id not in excluded)
    return (offer,) if offer else ()


def _pass_by(
    call: CallState,
    fixed: tuple[Candidate, ...] | None,
    unavailable: Unavailable,
    blocks: dict[str, Block],
) -> None:
    """Take note of keys that cannot serve now, so that the next calls do not ask for them."""
    blocks.update(unavailable.blocks)
    if fixed is None:
        call.roster.defer(call.info, unavailable.blocks, unavailable.at)


def _none_free(
    call: CallState,
    fixed: tuple[Candidate, ...] | None,
    excluded: Mapping[str, object] | Claims,
    blocks: dict[str, Block],
    now: float,
) -> Unavailable:
    """Sum up why no key can serve: those that were asked for, and those that were not offered."""
    deferred = {} if fixed is not None else call.roster.deferred(call.info)
    claimed = excluded.found if isinstance(excluded, Claims) else {}
    return Unavailable(now, {**deferred, **claimed, **blocks})


def _attempt(call: CallState, lease: Lease) -> Generator[Command, Any, Done | StreamEnd | Failed]:
    """Send once with *lease*, and settle it exactly once, whatever happens."""
    call.sends += 1
    stream: Any = None
    names: tuple[str, ...] = ()
    try:
        reply: Any = yield Send(lease, call.sends, len(call.excluded))
        if isinstance(reply, StreamOpened):
            stream = reply.stream
            if lease.probe:  # others need not wait for its end
                yield ReportServing(lease)
            reply = yield RelayStream(lease, stream)
        failed = reply if isinstance(reply, Failed) else reply.failed
        if failed is None:
            outcome, names = Outcome(LeaseOutcome.SUCCESS, None, reply.usage), reply.names
            call.scale.learn(call.info.model, call.info.estimate, reply.usage.input_tokens or 0)
            if call.overload.models:
                call.overload.served(call.info.model)
        else:
            outcome = yield from _judge(call, lease, failed, getattr(reply, "usage", NO_USAGE))
    except GeneratorExit:
        raise  # closed, it can yield no Settle: who drives it settles its lease
    except BaseException:
        # Of a stream that is cancelled half-way, what it has used so far is booked.
        end = stream.end(None) if stream is not None else StreamEnd()
        yield from _settle(call, lease, Outcome(LeaseOutcome.ABANDONED, None, end.usage), end.names)
        raise
    yield from _settle(call, lease, outcome, names)
    return reply  # type: ignore[no-any-return]


def _settle(
    call: CallState, lease: Lease, outcome: Outcome, names: tuple[str, ...]
) -> Generator[Command, Any, None]:
    error = call.last.error if outcome.verdict and call.last else None
    until: float | None = yield Settle(lease, outcome, names, error)
    if call.roster.had_full_window or call.lines.lines:
        _relieve(call, lease, outcome)
    if outcome.verdict is not None:
        call.attempts.append(FailedAttempt(lease.key_id, outcome.verdict, until))


def _relieve(call: CallState, lease: Lease, outcome: Outcome) -> None:
    """Offer a key with a full window again, if some of what was reserved is given back."""
    used = outcome.usage.input_tokens
    gave_back = outcome.kind is LeaseOutcome.UNSENT or (used is not None and used < lease.tokens)
    if gave_back:
        call.roster.release(lease.key_id)
    call.lines.released(lease.key_id, gave_back=gave_back)


def _judge(
    call: CallState, lease: Lease, failed: Failed, usage: Usage
) -> Generator[Command, Any, Outcome]:
    now, _ = yield GetTime()
    call.failed_at = now
    verdict = classify(failed.facts, call.info, now, lease.at)
    if lease.key_id.startswith(HOME):
        verdict = replace(verdict, scope=Scope.NONE)  # a stranger's key: nobody's to manage
    call.last = failed
    return Outcome(LeaseOutcome.FAILURE if verdict.sent else LeaseOutcome.UNSENT, verdict, usage)


def _go_on(call: CallState, lease: Lease) -> Generator[Command, Any, bool]:
    """After a failure: may the call be sent again, with another key or (nobody's fault) any?"""
    verdict = call.attempts[-1].verdict
    if verdict.retry:
        return (yield from _retry(call, verdict))
    if not verdict.rotate:
        return False
    if verdict.rejected:
        replaced: bool = yield Refresh(lease.key_id, wait=False)
        if lease.key_id not in call.refreshed:
            if replaced:
                call.refreshed.add(lease.key_id)
                return True
            call.refused.append(lease.key_id)
    _exclude(call, lease, verdict)
    same = sum(attempt.verdict.failure == verdict.failure for attempt in call.attempts)
    if verdict.max_rotations is not None and same > verdict.max_rotations:
        return False
    walked = sum(attempt.verdict.rotate for attempt in call.attempts)
    return not 0 < call.policy.max_attempts <= walked


def _replaced(call: CallState, none_free: Unavailable) -> Generator[Command, Any, bool]:
    """Wait for the stores of rejected keys, now that no other key can serve."""
    while call.refused:
        key_id = call.refused.pop()
        replaced: bool = yield Refresh(key_id, wait=True)
        if replaced:
            call.refreshed.add(key_id)
            del call.excluded[key_id]
            return True
    blocks = none_free.blocks.values()
    if call.attempts or call.looked_up or not blocks:
        return False
    if not all(block.reason in REJECTIONS for block in blocks):
        return False
    call.looked_up = True
    found: bool = yield RefreshAll()
    return found


def _exclude(call: CallState, lease: Lease, verdict: Verdict) -> None:
    until = (
        verdict.until
        if verdict.has_known_end and verdict.may_wait and verdict.until is not None
        else inf
    )
    failed = sum(a.key_id == lease.key_id and a.verdict.rotate for a in call.attempts)
    if failed >= SENDS_PER_KEY:
        until = inf
    # A server that names a few milliseconds each time must not be asked hundreds of times.
    call.excluded[lease.key_id] = max(until, call.failed_at + RESEND_S)
    # Our count of tokens is an estimate: that a request is too large two keys must say.
    too_large = verdict.exceeds_limit and lease.tier in call.exceeded_tiers
    if verdict.exceeds_limit:
        call.exceeded_tiers.add(lease.tier)
    if too_large or not verdict.any_tier:
        for key in call.roster.keys.values():
            if key.tier == lease.tier:
                call.excluded[key.key_id] = inf


def _retry(call: CallState, verdict: Verdict) -> Generator[Command, Any, bool]:
    """Send the same again after a while, unless the program or the request forbids it."""
    limit = call.policy.max_retries if verdict.max_retries is None else verdict.max_retries
    harmless = call.info.idempotent or not verdict.sent
    now, draw = yield GetTime()
    spent = call.retries >= min(limit, call.policy.max_retries)
    over = verdict.failure == OVERLOADED and call.overload.open(call.info.model, now)
    pause = min(BACKOFF_BASE_S * 2.0**call.retries, BACKOFF_MAX_S) * (0.5 + draw / 2)
    named = (
        verdict.retry_delay_s
        if verdict.retry_delay_s is not None and verdict.retry_delay_s > pause
        else 0.0
    )
    late = named > call.budget_s - call.waited_s
    if call.info.sdk_retries or not harmless or spent or over or late:
        if verdict.failure == OVERLOADED:
            call.overload.failed(call.info.model, now)
        return False
    call.retries += 1
    began, ended = yield Sleep(max(pause, named), "retry")
    if named:  # which is a wait, and counts as one
        call.waited_s += ended - began
    return True


def _wait(call: CallState, unavailable: Unavailable) -> Generator[Command, Any, bool]:
    """Wait for the soonest key, if its time is known and within what is left of the budget.

    Of keys that calls before this one wait for, it waits for its turn.
    """
    now, left = unavailable.at, call.budget_s - call.waited_s
    blocks = _waited_for(call, unavailable)
    ahead = call.lines.ahead(call.info, call.ticket, {}, now) if call.lines.lines else None
    soonest, due = ahead.split(blocks) if ahead is not None else (_soonest(blocks), inf)
    front = soonest <= due
    pause = max(soonest - now, LEAST_PAUSE_S)
    stall = max(due - now, 0.0) + JITTER_S + STALL_S
    if not front:
        pause = min(pause, stall, left)
    if left <= 0 or not isfinite(pause) or pause > left:
        return False
    _, draw = yield GetTime()
    if front:
        pause += draw * min(JITTER_S, pause, left - pause)
    starts_wait = call.ticket is None or not call.ticket.queued
    ticket = call.lines.join(
        call.ticket, call.info, blocks, min(soonest, due), version=call.seen, now=now
    )
    call.ticket = ticket
    try:
        began, ended = yield Sleep(pause, "key", ticket, front, starts_wait)
    except GeneratorExit:
        raise
    except BaseException:  # cancelled, interrupted: the next one need not wait to find out
        call.leave_line()
        raise
    call.waited_s += ended - (began if starts_wait else call.waited_until)
    call.waited_until = ended
    call.moment = yield GetTime()
    reached = call.moment[0]
    if not ticket.woken:
        reached = max(reached, now + pause)
        if ahead is not None and pause == stall:
            ahead.pass_stalled(reached)
    for key_id in [k for k, until in call.excluded.items() if until <= reached]:
        del call.excluded[key_id]
    return True


def _soonest(blocks: Mapping[str, Block]) -> float:
    return min((block.until for block in blocks.values()), default=inf)


def _waited_for(call: CallState, unavailable: Unavailable) -> dict[str, Block]:
    """List the keys that the call may wait for: those with a time that is known."""
    blocks = {
        key_id: block
        for key_id, block in unavailable.blocks.items()
        if block.waitable and key_id not in call.excluded
    }
    for key_id, until in call.excluded.items():
        if isfinite(until):
            blocks[key_id] = Block("failed", until, waitable=True)
    return blocks


def _noted(call: CallState) -> BaseException:
    """Give the SDK's last exception, with what was tried written on it."""
    assert call.last is not None  # noqa: S101 - narrows the type; every caller has just failed
    error = call.last.error
    for number, attempt in enumerate(call.attempts, 1):
        error.add_note(attempt_note(number, attempt, call.hints.get(attempt.key_id)))
    return error
