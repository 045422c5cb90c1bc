"""The whole policy of one call.

`open_call` runs a call up to its response, or to the first chunk of its stream; `end_stream` does
the rest. It acquires a lease, sends and settles it; after a failure the verdict of failures.py
decides whether to try another key, to retry the same request, or to raise. A driver
(commands.Driver) performs what it awaits, in a thread or in a task, and decides nothing: in a
thread nothing that is awaited ever suspends.

Three separate budgets:

- *rotation*: a failed key is excluded and another one is tried (`max_attempts`);
- *retries*: after 5xx and connection errors, which penalize no key (`max_retries`), with backoff;
- *waiting*: only while no key is available, at most `max_wait_s` in total, and only for a known
  time: a full minute of our own count, or a time from the server.

Failures of a send are returned as values. What is raised instead (cancellation, Ctrl-C) settles the
lease as abandoned. A call that is closed (its stream was dropped, its loop is gone) cannot await:
its driver settles the lease.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf, isfinite
from typing import Protocol

from .affinity import is_certain
from .commands import (
    Acquire,
    Done,
    Driver,
    Failed,
    Refresh,
    Send,
    SendResult,
    Settle,
    Sleep,
    StreamEnd,
    StreamOpened,
)
from .counting import TokenScale
from .evidence import Evidence, Refusal, guess
from .failures import (
    MODEL_REFUSALS,
    REJECTIONS,
    SLOW,
    UNKNOWN_LIMIT,
    UNKNOWN_REFUSAL,
    Classify,
    describe,
    remedy,
)
from .model import (
    FULL,
    HOME,
    OTHER_PROJECT,
    OTHER_TIER,
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Scope,
    Strategy,
    Unavailable,
    Usage,
    Verdict,
)
from .selection import RankedCandidates, Selector
from .waiting import LATE_S, Ticket, WaitingLines
from .wording import utc

# Failed attempts, and the notes about them on the exception that is raised ----------------------


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One send that failed."""

    key_id: str
    verdict: Verdict
    until: float | None


def attempt_note(number: int, attempt: FailedAttempt) -> str:
    """Describe one attempt: which key, why it failed, until when it is cooling down."""
    text = f"keyrot: attempt {number} with key {attempt.key_id}: {describe(attempt.verdict)}"
    if attempt.until is None:
        return text
    at = f"{utc(attempt.until):%Y-%m-%d %H:%M:%SZ}"
    if attempt.verdict.rejected:
        return f"{text}, rejected; {remedy(attempt.verdict.failure)}; tried again at {at}"
    is_named = attempt.verdict.has_known_end
    return f"{text}, cooling down until {at}" if is_named else f"{text}; tried again at {at}"


# The state of one call -------------------------------------------------------------------------


class Exhausted(Exception):  # noqa: N818 - never reaches a caller; becomes KeyPoolExhausted
    """No key could serve the call: none is available in time, or each that was tried failed."""

    def __init__(
        self,
        unavailable: Unavailable,
        last: BaseException | None = None,
        *,
        model: str = "",
        has_untried_keys: bool = False,
    ) -> None:
        super().__init__("no key is available")
        self.unavailable = unavailable
        self.model = model
        self.last = last
        """The exception of the last attempt; None: nothing was sent."""
        self.has_untried_keys = has_untried_keys
        """A limit on the attempts ended the call; another key may be available."""


class Running(Protocol):
    """A time that runs, and can be ended before it is over."""

    def cancel(self) -> object:
        """End it."""


@dataclass(slots=True)
class CallState:
    """One call: the request, and what was tried so far."""

    info: CallInfo
    selector: Selector
    policy: RetryPolicy
    scale: TokenScale
    classify: Classify
    """That of its provider."""
    home: Candidate | None = None
    """The home key of the client, for calls that use stored resources."""
    waiting_lines: WaitingLines = field(default_factory=WaitingLines)
    """The pool's waiting calls."""
    evidence: Evidence = field(default_factory=Evidence)
    """What the pool has seen of its keys."""
    wait_limit_s: float = inf
    """How long the timeout of the call allows it to wait, seconds; see `budget_s`."""
    excluded: dict[str, float] = field(default_factory=dict)
    """Keys that failed this call, and until when (`inf`: for the rest of it)."""
    not_tried: dict[str, Block] = field(default_factory=dict)
    """Rejected keys that a later call tries again."""
    attempts: list[FailedAttempt] = field(default_factory=list)
    unresolved_rejections: list[str] = field(default_factory=list)
    """Rejected keys whose store has not answered yet."""
    refreshed: set[str] = field(default_factory=set)
    """Keys whose value was replaced during this call; once each."""
    exceeded_tiers: set[str | None] = field(default_factory=set)
    """Tiers in which a key's whole limit was smaller than the request."""
    unknown: list[Refusal] = field(default_factory=list)
    """Attempts that were refused in words that no row knows."""
    full: tuple[str, ...] = ()
    """Keys that it did not get, since by the pool's count a limit of theirs was full."""
    spared: set[str] = field(default_factory=set)
    """Keys that are excluded only while another one can serve the call."""
    asked_at: float = 0.0
    """When the key of the current attempt was asked for, epoch seconds."""
    failed_at: float = 0.0
    """When the last send failed, epoch seconds."""
    looked_up: bool = False
    """The values of all keys were looked up, since all of them are rejected."""
    retries: int = 0
    waited_s: float = 0.0
    """Real seconds spent in waits."""
    ticket: Ticket | None = None
    """Set once the call had to wait."""
    lines_version: int = 0
    """The version of the waiting lines when the call last started to look for a key."""
    sends: int = 0
    last: Failed | None = None
    owner_is_known: bool = False
    """The owner of a resource that it names is recorded."""
    delivered: bool = False
    """The first chunk of a stream is here."""
    unavailable: Unavailable | None = None
    """Why no key was available, for a call that ended so."""
    home_is_own: bool = True
    """The client was made with its home key; else that is only the first key of the pool."""
    not_allowed: tuple[Candidate, ...] = ()
    """The keys of the owner of its stored resources that it may not use."""
    first_token_s: float | None = None
    """How long an attempt may show nothing; `inf`: that is only measured; None: not even that."""
    next_info: CallInfo | None = None
    """The same call to the next model of its chain, for calls with a deadline."""
    cut_off_s: float | None = None
    """How long the current attempt may show nothing, likewise."""
    retries_model: bool = True
    """Its model is asked again after a failure of the service, not the next one of its chain."""
    goes_on: bool = False
    """Cut off, it goes to the next model: there a key is available, here none is."""
    deadline: Running | None = None
    """What runs until the first event of the current attempt, for what reads its response."""

    @property
    def budget_s(self) -> float:
        """Return how long the call may wait for keys in total, seconds."""
        return min(self.policy.max_wait_s, self.wait_limit_s)

    def note_full(self, blocks: Mapping[str, Block]) -> None:
        """Note which keys are blocked by a full limit."""
        some = islice(blocks.items(), MOST_NOTED)
        full = [key_id for key_id, block in some if block.reason in FULL]
        self.full = tuple(dict.fromkeys((*self.full, *full)))

    def leave_line(self) -> None:
        """Stop waiting: a key was found, or the call is over."""
        if self.ticket is not None:
            self.waiting_lines.leave(self.ticket)


# The keys of the project that owns a stored resource (ADR 0005) --------------------------------


SAME_KEY_PREFIXES = ("continuation:", "page:")
"""All hops of one response, and all pages of one list, use the same key as the first."""

_NOT_CREATING = ("delete", "get", "list", "patch")

NEW_CACHE = "cachedContents"
"""The method that creates cached content."""


async def owner_candidates(call: CallState, driver: Driver) -> tuple[Candidate, ...] | None:
    """Return the keys that own the call's stored resources; unknown ones are the home project's.

    Returns:
        None if any key may send the call: the method does not bind it to an owner, and no owner of
        the resources that it names is known. Keys that the call may not use are left out.
    """
    home, names = call.home, call.info.resources
    if not (call.info.bound_to_owner or names):
        return None
    owner = await driver.get_owner(names) if names else None
    key, project = home, home.project if home is not None else ""
    if owner is not None:
        call.owner_is_known = True
        key, project = call.selector.keys.get(owner[0]), owner[1]
    if key is not None and key.platform != call.info.platform:
        key, project = home, home.project if home is not None else ""
    one_key = any(name.startswith(SAME_KEY_PREFIXES) for name in names)
    same = () if one_key else call.selector.find_project_keys(project)
    same = [k for k in same if k is not key and k.platform == call.info.platform]
    owner_keys = ([key] if key is not None else []) + same
    if (owner is None or not owner_keys) and not call.info.bound_to_owner:
        return None
    candidates = owner_keys or ([home] if home is not None else [])
    call.not_allowed = tuple(k for k in candidates if not call.info.may_use(k))
    return tuple(k for k in candidates if call.info.may_use(k))


def may_use_other_project(
    call: CallState, owner_keys: Sequence[Candidate], blocks: Mapping[str, Block]
) -> bool:
    """Return whether a call that creates a resource may use any key, since its home project cannot.

    It names no stored resource, so any project may own the new one, and the owner is recorded. For
    a client with a key of its own the home project must be one that waiting does not help: its keys
    are rejected, or it has no storage for a cache.
    """
    if call.owner_is_known or any(map(is_certain, call.info.resources)):
        return False
    if call.info.verb in _NOT_CREATING:
        return False
    if not call.home_is_own:
        return True
    why = {attempt.key_id: attempt.verdict.failure for attempt in call.attempts}
    why |= {key_id: block.reason for key_id, block in blocks.items()}
    reasons = {why.get(key.key_id) for key in owner_keys}
    stranger = any(key.key_id.startswith(HOME) for key in owner_keys)
    never = frozenset() if stranger else REJECTIONS
    if call.info.verb == NEW_CACHE:
        never |= {"cache_storage"}
    return bool(reasons) and reasons <= never


BACKOFF_BASE_S = 0.5
BACKOFF_MAX_S = 8.0
JITTER_S = 0.5
"""Spreads processes that wait for the same minute."""
MIN_PAUSE_S = 0.05
"""The shortest wait: clocks differ, and a reported time may be over already."""
RESEND_S = 1.0
"""How long a key that failed a call is not used again by it."""
SENDS_PER_KEY = 5
"""How often one call may fail with one key."""
MOST_NOTED = 100
"""Keys of one call, at most, of which it is noted that they were full."""


async def open_call(call: CallState, driver: Driver) -> Done | StreamOpened:
    """Run a call up to its response, or to the first chunk of its stream.

    Returns:
        The reply; the lease of a stream is settled later, by `end_stream`.

    Raises:
        Exhausted: No key could serve the call; the request itself is not at fault.
        BaseException: The last exception, about the request or the service, with a note per
            failed attempt.
    """
    owner_keys = await owner_candidates(call, driver)
    try:
        while True:
            lease = await _acquire(call, driver, owner_keys)
            if isinstance(lease, Unavailable):
                if _use_passed_over(call):
                    continue
                if owner_keys is not None and may_use_other_project(call, owner_keys, lease.blocks):
                    owner_keys = None
                    continue
                await _wait_or_raise(call, driver, lease)
                owner_keys = await owner_candidates(call, driver)  # keys may have changed
                continue
            if call.ticket is not None:
                call.leave_line()
            if call.first_token_s is not None:
                call.cut_off_s = await _cut_off_s(call, driver, lease, call.first_token_s)
            reply = await _attempt(call, driver, lease)
            if not isinstance(reply, Failed):
                if call.unknown:
                    await _set_aside(call, driver)
                return reply
            if not await _should_continue(call, driver, lease) and not _goes_back(call, lease):
                raise _final_error(call, None)
            del reply  # see `_forget_failure`
    finally:
        call.waiting_lines.drop(call.ticket)


async def end_stream(
    call: CallState, driver: Driver, lease: Lease, end: StreamEnd
) -> BaseException | None:
    """Settle a stream that ended, or broke: it is never restarted.

    Returns:
        What broke it, with a note per failed attempt.
    """
    await _settle_reply(call, driver, lease, end)
    return None if end.failed is None else _with_attempt_notes(call)


async def abandon(call: CallState, driver: Driver, lease: Lease, end: StreamEnd) -> None:
    """Settle a request that was cancelled or interrupted, with its usage so far."""
    await _settle(call, driver, lease, Outcome(LeaseOutcome.ABANDONED, None, end.usage), end.names)


async def _acquire(
    call: CallState, driver: Driver, owner_keys: tuple[Candidate, ...] | None
) -> Lease | Unavailable:
    """Return a lease, or why no key is available."""
    if call.waiting_lines.tickets:
        await _wait_for_turn(call, driver)
    now = driver.time()
    call.lines_version, call.asked_at = call.waiting_lines.version, now
    if call.ticket is not None:
        call.ticket.woken = False
    blocks: dict[str, Block] = {}
    asked = set[str]()
    is_given = owner_keys is not None or call.info.conversation
    strategy: Strategy = "fill" if is_given else call.selector.strategy
    while True:
        batches: Iterable[RankedCandidates]
        if owner_keys is None:  # blocks gets why other keys are left out
            given = call.info, call.excluded, now, driver.random(), blocks
            batches = call.selector.candidate_batches(*given)
        else:
            offer = tuple((0, key) for key in owner_keys if key.key_id not in call.excluded)
            batches = (offer,) if offer else ()
        for candidates in batches:
            lease = await driver.acquire(Acquire(call.info, candidates, strategy))
            if isinstance(lease, Lease):
                if blocks or lease.refused:
                    call.note_full({**blocks, **lease.refused})
                return lease
            blocks.update(lease.blocks)
            asked |= lease.blocks.keys()
            if owner_keys is None:
                call.selector.skip(call.info, lease.blocks, lease.at)
            now = max(now, lease.at)  # the time for which the blocks are reported
        if asked >= blocks.keys() or not call.selector.ask_again(call.info, now):
            call.note_full(blocks)
            return Unavailable(now, blocks)


async def _wait_or_raise(call: CallState, driver: Driver, unavailable: Unavailable) -> None:
    """Wait for a new value of a rejected key, or for a key; raise if neither helps."""
    if await _refresh_rejected(call, driver, unavailable) or await _wait(call, driver, unavailable):
        return
    call.leave_line()
    # The keys that it may not use come first: its error names them too.
    why_not = call.info.why_not
    others = {k.key_id: Block(str(why_not(k)), inf) for k in call.not_allowed}
    others = {**(others or call.selector.other_tiers(call.info)), **call.not_tried}
    call.unavailable = unavailable = unavailable.beside(others)
    raise _final_error(call, unavailable)


async def _cut_off_s(call: CallState, driver: Driver, lease: Lease, limit_s: float) -> float:
    """Return how long an attempt may show nothing: for ever, if nothing else could serve the call.

    Keys for which other calls wait cannot.
    """
    call.goes_on, policy = False, call.policy
    last = 0 < policy.max_attempts <= 1 + sum(a.verdict.rotate for a in call.attempts)
    if limit_s == inf or last or call.waiting_lines.tickets:
        return inf
    excluded = {**call.excluded, lease.key_id: inf}
    for info in filter(None, (call.info, call.next_info)):
        for batch in call.selector.candidate_batches(info, excluded, driver.time(), 0.0, {}):
            if await driver.is_available(info, [key for _, key in batch]):
                call.goes_on = info is call.next_info
                return limit_s
        excluded = {}
    return inf


def _use_slow_keys(call: CallState) -> bool:
    """Use keys again that were only slow, now without a deadline: no other can serve the call.

    Raises:
        BaseException: The next model can.
    """
    slow = {attempt.key_id for attempt in call.attempts if attempt.verdict.failure == SLOW}
    if not slow or call.first_token_s == inf:
        return False
    if call.goes_on:
        raise _with_attempt_notes(call)
    call.first_token_s = inf
    for key_id in slow:
        call.excluded.pop(key_id, None)
    return True


def _use_passed_over(call: CallState) -> bool:
    """Use keys again that were only slow, or passed over; return whether there are any."""
    if call.first_token_s is not None and _use_slow_keys(call):
        return True
    spared, call.spared = call.spared, set()
    for key_id in spared:
        call.excluded.pop(key_id, None)
    return bool(spared)


def _goes_back(call: CallState, lease: Lease) -> bool:
    """Return whether slow keys are used again, since the last one to replace them has failed."""
    verdict = call.attempts[-1].verdict
    if call.first_token_s is None or not (verdict.rotate or verdict.retry):
        return False
    call.excluded[lease.key_id] = inf
    return _use_slow_keys(call)


async def _attempt(call: CallState, driver: Driver, lease: Lease) -> SendResult:
    """Send once with *lease*; settle it, unless a stream is open."""
    call.sends += 1
    try:
        reply = await driver.send(Send(lease, call.sends))
        if isinstance(reply, StreamOpened):
            call.delivered = True
            if reply.answered:
                call.evidence.answered(call.info, lease.key_id, call.asked_at, driver.time())
            _forget_failure(call)
            if lease.probe and reply.answered:  # other calls need not wait for its end
                await driver.report_serving(lease)
            return reply
    except GeneratorExit:
        raise  # what is closed cannot await: the driver settles the lease
    except BaseException:
        await abandon(call, driver, lease, StreamEnd())
        raise
    await _settle_reply(call, driver, lease, reply)
    return reply


async def _set_aside(call: CallState, driver: Driver) -> None:
    """Set the keys aside whose refusal no row knows: another key has got an answer."""
    for refusal in call.unknown:
        if call.evidence.blames(refusal, driver.time()):
            # Its lease is settled already.
            bare = refusal.lease._replace(reservation=None, probe=False, purses=())
            outcome = Outcome(LeaseOutcome.ABANDONED, guess(refusal.verdict, call.info))
            await driver.set_aside(Settle(bare, outcome))


async def _settle_reply(
    call: CallState, driver: Driver, lease: Lease, reply: Done | Failed | StreamEnd
) -> None:
    """Settle a lease by what came of it."""
    if isinstance(reply, Failed):
        reply = StreamEnd(failed=reply)
    failed = reply.failed if isinstance(reply, StreamEnd) else None
    if call.last is not None:
        _forget_failure(call)
    if failed is None:
        reported = reply.reported
        if reported and (key := call.selector.keys.get(lease.key_id)) is not None:
            reported = [one.for_part(key.use) for one in reported]
        outcome = Outcome(LeaseOutcome.SUCCESS, None, reply.usage, reported)
        if isinstance(reply, Done):
            call.evidence.answered(call.info, lease.key_id, call.asked_at, driver.time())
        if not reply.usage.estimated:
            call.scale.learn(call.info.model, call.info.estimate, reply.usage.input_tokens or 0)
    else:
        call.last, call.failed_at = failed, driver.time()
        outcome = _failed_outcome(call, lease, failed, reply.usage)
    await _settle(call, driver, lease, outcome, reply.names)


async def _settle(
    call: CallState, driver: Driver, lease: Lease, outcome: Outcome, names: tuple[str, ...]
) -> None:
    error = call.last.error if outcome.verdict and call.last else None
    until = await driver.settle(Settle(lease, outcome, names, error))
    used = outcome.usage.input_tokens
    gave_back = outcome.kind is LeaseOutcome.UNSENT or (used is not None and used < lease.tokens)
    if gave_back:  # so a key with a full window may have room
        call.selector.release(lease.key_id)
    if call.waiting_lines.tickets:
        call.waiting_lines.released(lease.key_id, gave_back=gave_back)
    if outcome.verdict is not None:
        call.attempts.append(FailedAttempt(lease.key_id, outcome.verdict, until))


def _failed_outcome(call: CallState, lease: Lease, failed: Failed, usage: Usage) -> Outcome:
    verdict = call.classify(failed.facts, call.info, call.failed_at, lease.at)
    if verdict.failure == UNKNOWN_LIMIT and verdict.until is None and call.info.idempotent:
        if call.evidence.is_shared_limit(call.info, lease, verdict, call.failed_at):
            verdict = replace(verdict, scope=Scope.NONE, rotate=False, retry=True)
    elif verdict.retry:
        call.evidence.failed(call.info, verdict, call.failed_at)
    if verdict.failure == SLOW and lease.purses:
        usage = Usage(lease.tokens)  # what it costs at least
    if lease.key_id.startswith(HOME):  # the client's own key: not managed by the pool
        verdict = replace(verdict, scope=Scope.NONE)
    return Outcome(LeaseOutcome.FAILURE if verdict.sent else LeaseOutcome.UNSENT, verdict, usage)


def _forget_failure(call: CallState) -> None:
    """Forget the exception of an earlier attempt, which the program will not see.

    Frames and exceptions of the HTTP libraries hold each other, and from Python 3.12 on they hold
    the callers' frames too. A stream that is open there would not end when the program leaves it,
    but when the garbage collector runs.
    """
    failed, call.last = call.last, None
    if failed is not None:
        drop_tracebacks(failed.error)


def drop_tracebacks(error: BaseException) -> None:
    """Drop the tracebacks of an exception and of those behind it, but not of the program's own."""
    own = sys.exception()  # Python hangs it behind every exception that is raised meanwhile
    chain: list[BaseException | None] = [error]
    seen = {id(None), id(own)}
    for link in chain:  # which grows meanwhile
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            chain += (link.__cause__, link.__context__)


async def _should_continue(call: CallState, driver: Driver, lease: Lease) -> bool:
    """Return whether to send again after a failure, with another key or as a retry."""
    verdict = call.attempts[-1].verdict
    if verdict.retry:
        return await _retry(call, driver, lease, verdict)
    if not verdict.rotate:
        return False
    if verdict.rejected:
        replaced = await driver.refresh(Refresh(lease.key_id, wait=False))
        if lease.key_id not in call.refreshed:
            if replaced:
                call.refreshed.add(lease.key_id)
                return True
            call.unresolved_rejections.append(lease.key_id)
        if lease.probe:
            _pass_over_rejected(call, lease.key_id)
        call.evidence.rejected(lease.key_id, verdict.failure, call.attempts[-1].until)
    _exclude(call, lease, verdict)
    if verdict.failure == UNKNOWN_REFUSAL and not _compare(call, lease, verdict):
        return False
    same = sum(attempt.verdict.failure == verdict.failure for attempt in call.attempts)
    if verdict.max_rotations is not None and same > verdict.max_rotations:
        return False
    walked = sum(attempt.verdict.rotate for attempt in call.attempts)
    return not 0 < call.policy.max_attempts <= walked


def _pass_over_rejected(call: CallState, key_id: str) -> None:
    """Leave the other rejected keys to later calls: each tries one again, not all that are due."""
    for other, block in call.evidence.due(call.failed_at).items():
        if other != key_id and other not in call.excluded:
            call.excluded[other] = inf
            call.not_tried[other] = block


def _compare(call: CallState, lease: Lease, verdict: Verdict) -> bool:
    """Return whether another key is asked after a refusal that no row knows; see evidence.py."""
    now, evidence = call.failed_at, call.evidence
    refusal = evidence.refused(call.info, lease, verdict, now)
    call.unknown.append(refusal)
    if evidence.ends(call.unknown, now):
        return False
    alike, others = evidence.refused_lately(refusal.words, now)
    call.excluded |= dict.fromkeys(alike, inf)
    _spare(call, others)
    return True


def _spare(call: CallState, key_ids: Iterable[str]) -> None:
    """Pass over keys while another one can serve the call."""
    for key_id in key_ids:
        if key_id not in call.excluded:
            call.excluded[key_id] = inf
            call.spared.add(key_id)


async def _refresh_rejected(call: CallState, driver: Driver, unavailable: Unavailable) -> bool:
    """Wait for new values of rejected keys, now that no other key is available."""
    while call.unresolved_rejections:
        key_id = call.unresolved_rejections.pop()
        if await driver.refresh(Refresh(key_id, wait=True)):
            call.refreshed.add(key_id)
            del call.excluded[key_id]
            return True
    blocks = unavailable.blocks.values()
    if call.attempts or call.looked_up or not blocks:
        return False
    if not all(block.reason in REJECTIONS for block in blocks):
        return False
    call.looked_up = True
    return await driver.refresh_all()


def _exclude(call: CallState, lease: Lease, verdict: Verdict) -> None:
    until = (
        verdict.until
        if verdict.has_known_end and verdict.may_wait and verdict.until is not None
        else inf
    )
    failed = sum(a.key_id == lease.key_id and a.verdict.rotate for a in call.attempts)
    if failed >= SENDS_PER_KEY:
        until = inf
    # A server that reports a few milliseconds each time must not get hundreds of requests.
    call.excluded[lease.key_id] = max(until, call.failed_at + RESEND_S)
    # Our token count is an estimate, so two keys must report that the request is too large.
    too_large = verdict.exceeds_limit and lease.tier in call.exceeded_tiers
    if verdict.exceeds_limit:
        call.exceeded_tiers.add(lease.tier)
    if too_large or not verdict.any_tier:
        for key in call.selector.keys.values():
            if key.tier == lease.tier:
                call.excluded[key.key_id] = inf


async def _retry(call: CallState, driver: Driver, lease: Lease, verdict: Verdict) -> bool:
    """Wait before a retry; return False if the budget or the request forbids one."""
    limit = call.policy.max_retries if verdict.max_retries is None else verdict.max_retries
    harmless = call.info.idempotent or not verdict.sent
    spent = call.retries >= min(limit, call.policy.max_retries)
    pause = min(BACKOFF_BASE_S * 2.0**call.retries, BACKOFF_MAX_S) * (0.5 + driver.random() / 2)
    named = (
        verdict.retry_delay_s
        if verdict.retry_delay_s is not None and verdict.retry_delay_s > pause
        else 0.0
    )
    late = named > call.budget_s - call.waited_s
    if late and not call.retries:  # another key may be served before the time that this one got
        call.excluded[lease.key_id], named, late = inf, 0.0, False
    if call.info.sdk_retries or not (harmless and call.retries_model) or spent or late:
        return False
    call.retries += 1
    if verdict.code is not None:  # it may be one account that fails
        _spare(call, (lease.key_id,))
    if verdict.failure == UNKNOWN_LIMIT:
        _spare(call, call.evidence.limited_lately(call.info, verdict, call.failed_at))
    slept = await driver.sleep(Sleep(max(pause, named), "retry"))
    if named:  # a wait for the server counts against the budget
        call.waited_s += slept
    return True


async def _wait(call: CallState, driver: Driver, unavailable: Unavailable) -> bool:
    """Wait for the soonest key, if its time is known and within the remaining budget."""
    now, left = unavailable.at, call.budget_s - call.waited_s
    blocks = _waitable_blocks(call, unavailable)
    soonest = Unavailable(now, blocks).retry_at
    pause = max(soonest - now, MIN_PAUSE_S)
    if left <= 0 or not isfinite(pause) or pause > left:
        return False
    call.ticket = call.ticket or Ticket(call.info)
    starts_wait = call.ticket not in call.waiting_lines.tickets
    front = call.waiting_lines.join(call.ticket, blocks, soonest, call.lines_version)
    if not front:
        pause += min(LATE_S, left - pause)
    elif not any(block.note for block in blocks.values()):  # what was held back is soon too late
        pause += driver.random() * min(JITTER_S, pause, left - pause)
    await _sleep_in_line(call, driver, pause, front=front, starts_wait=starts_wait)
    reached = driver.time()
    if not call.ticket.woken:
        reached = max(reached, now + pause)
    renewed, call.ticket.renewed = call.ticket.renewed, set()
    for key_id in [k for k, until in call.excluded.items() if until <= reached or k in renewed]:
        del call.excluded[key_id]
    return True


async def _wait_for_turn(call: CallState, driver: Driver) -> None:
    """Let calls go that came before."""
    lines = call.waiting_lines
    while lines.tickets and call.waited_s < call.budget_s:
        now = driver.time()
        pause = lines.turn_in(call.info, call.ticket, now)
        if pause == 0:
            return
        call.ticket = call.ticket or Ticket(call.info)
        comes = call.ticket not in lines.tickets  # or comes back
        if comes:
            lines.join(call.ticket, {}, now, lines.version)
        pause = min(pause, call.budget_s - call.waited_s)
        await _sleep_in_line(call, driver, pause, front=False, starts_wait=comes)


async def _sleep_in_line(
    call: CallState, driver: Driver, pause: float, *, front: bool, starts_wait: bool
) -> None:
    try:
        call.waited_s += await driver.sleep(Sleep(pause, "key", call.ticket, front, starts_wait))
    except GeneratorExit:
        raise
    except BaseException:  # cancelled or interrupted: wake the next call now
        call.leave_line()
        raise


def _waitable_blocks(call: CallState, unavailable: Unavailable) -> dict[str, Block]:
    """Return the keys that the call may wait for: those with a known time."""
    blocks = {
        key_id: block
        for key_id, block in unavailable.blocks.items()
        if block.waitable and key_id not in call.excluded
    }
    failures = {attempt.key_id: attempt.verdict.failure for attempt in call.attempts}
    for key_id, until in call.excluded.items():
        if isfinite(until):
            blocks[key_id] = Block(failures.get(key_id, "failed"), until, waitable=True)
    return blocks


def _final_error(call: CallState, unavailable: Unavailable | None) -> BaseException:
    """Return what a call raises that ends here, whatever the order in which its keys failed.

    Args:
        call: The call.
        unavailable: Why no key is available; None where a limit on the attempts ends the call.
    """
    if call.last is None:
        assert unavailable is not None  # noqa: S101 - narrows the type; nothing was tried
        return Exhausted(unavailable, model=call.info.quota_model)
    verdict = call.attempts[-1].verdict
    about_keys = verdict.scope is not Scope.NONE or verdict.failure == SLOW
    if verdict.failure == UNKNOWN_REFUSAL and unavailable is not None:
        about_keys = any(attempt.verdict.scope is not Scope.NONE for attempt in call.attempts)
    if not (verdict.rotate and about_keys) or verdict.exceeds_limit:
        return _with_attempt_notes(call)
    tried = {
        attempt.key_id: Block(
            attempt.verdict.failure,
            inf if attempt.until is None else attempt.until,
            attempt.verdict.has_known_end,
        )
        for attempt in call.attempts
        if attempt.verdict.rotate
    }
    if unavailable is None:
        no_key = Unavailable(call.failed_at, tried)
    else:
        no_key = Unavailable(unavailable.at, {**tried, **unavailable.blocks})
    reasons = {block.reason for block in no_key.blocks.values()} - {OTHER_TIER, OTHER_PROJECT}
    if reasons <= MODEL_REFUSALS:  # the model is gone, for all who may serve the call
        return _with_attempt_notes(call)
    model, untried = call.info.quota_model, unavailable is None
    error = Exhausted(no_key, call.last.error, model=model, has_untried_keys=untried)
    return _with_attempt_notes(call, error)


def _with_attempt_notes(call: CallState, error: BaseException | None = None) -> BaseException:
    """Return *error*, else the last exception, with a note per failed attempt."""
    assert call.last is not None  # noqa: S101 - narrows the type; callers have just failed
    error = error or call.last.error
    for number, attempt in enumerate(call.attempts, 1):
        error.add_note(attempt_note(number, attempt))
    return error
