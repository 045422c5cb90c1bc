"""The candidates for a call, in order, at a cost that does not grow with the pool.

The order of a call is a list of groups: keys whose `model` is the requested one, then keys without
a model, then the others; within these, keys of the requested workload first, then by priority; the
last resort comes after all of them. Keys of another platform, or of a tier or project that the call
may not use, are in no group. Within a group the
strategy decides where to start: `spread` at random, `fill` at the first key, `sticky` at a position
derived from the conversation.

Candidates are passed to the state in batches of one group. The state decides which of them is
available. A key that it refused until a known time is *deferred* here, so that a call does not try
ten thousand exhausted keys. Deferral is a hint and ends after `DEFER_S` at the latest. A full
window is a hint about one size of request only: when no other key of the group is available, the
key is tried for smaller requests.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from heapq import heappop, heappush
from math import inf

from .failures import RULES
from .model import (
    GEMINI_API,
    IN_USE,
    LAST_RESORT,
    OTHER_TIER,
    Block,
    CallInfo,
    Candidate,
    Platform,
    Scope,
)
from .waiting import Claims, needed_amount
from .windows import AHEAD_S

__all__ = ["BATCH_SIZE", "RankedCandidates", "Selector"]

BATCH_SIZE = 8
"""Keys in one batch; in groups up to this size `spread` compares all keys."""

DEFER_S = 60.0
MAX_ORDERS = 64
"""Orders kept: one per model, workload, tiers and project in use, and per method without quota."""

_METHOD_FAILURES = {
    rule.name for rule in RULES if rule.scope in (Scope.KEY_VERB, Scope.PROJECT_CACHE)
}
_NEVER_DEFERRED = IN_USE | _METHOD_FAILURES
"""Reasons without a known end, or about one method only: the next call tries such a key again."""

RankedCandidate = tuple[int, Candidate]
"""The rank of a key's group, and the key."""
RankedCandidates = tuple[RankedCandidate, ...]


class _RankGroup:
    """Keys of equal rank: those to try, and those deferred until a time."""

    __slots__ = (
        "candidates",
        "deferred",
        "ends",
        "full_from_size",
        "keys",
        "ready",
        "rotations",
        "until",
    )

    def __init__(self, rank: int, keys: list[Candidate]) -> None:
        self.keys = keys
        self.candidates = [(rank, key) for key in keys]
        few = range(len(keys)) if len(keys) <= BATCH_SIZE else ()
        self.rotations = [tuple(self.candidates[i:] + self.candidates[:i]) for i in few]
        """For small groups: every batch while no key is deferred, by its start."""
        self.ready = list(range(len(keys)))
        self.until: list[tuple[float, int]] = []
        """A heap of when deferrals end; the earliest entry of a key is valid."""
        self.deferred: dict[int, Block] = {}
        self.ends: dict[int, float] = {}
        """Until when each key is deferred."""
        self.full_from_size: dict[int, float] = {}
        """Deferred keys with a full window, for requests of this size and larger."""

    def end_deferrals(self, now: float) -> None:
        if self.until and self.until[0][0] > now + DEFER_S + AHEAD_S:
            self.until = [(now, index) for index in sorted(self.ends)]  # the clock was set back
            self.ends = dict.fromkeys(self.ends, now)
        while self.until and self.until[0][0] <= now:
            end, index = heappop(self.until)
            if self.ends.get(index) != end:
                continue  # it was deferred again since, for a shorter time
            del self.deferred[index], self.ends[index]
            self.full_from_size.pop(index, None)
            insort(self.ready, index)

    def defer(self, index: int, block: Block, size: float | None, now: float) -> None:
        end = min(block.until, now + DEFER_S)
        if index not in self.deferred:
            del self.ready[bisect_left(self.ready, index)]
        if end < self.ends.get(index, inf):
            self.ends[index] = end
            heappush(self.until, (end, index))
        self.deferred[index] = block
        self.full_from_size.pop(index, None)
        if size is not None:
            self.full_from_size[index] = size

    def release(self, index: int) -> None:
        if index in self.full_from_size:
            self.full_from_size[index] = inf

    def deferred_with_room_for(self, info: CallInfo) -> list[RankedCandidate]:
        return [
            self.candidates[index]
            for index, size in self.full_from_size.items()
            if (needed_amount(self.deferred[index].reason, info) or 0) < size
        ]

    def first_batch(self, offset: int) -> RankedCandidates:
        some = self.ready[offset : offset + BATCH_SIZE]
        if len(some) < BATCH_SIZE:
            some += self.ready[: min(offset, BATCH_SIZE - len(some))]
        return tuple([self.candidates[index] for index in some])

    def remaining(self, offset: int, offered: RankedCandidates) -> list[RankedCandidate]:
        seen = {key.key_id for _, key in offered}
        everyone = (self.candidates[i] for i in self.ready[offset:] + self.ready[:offset])
        return [candidate for candidate in everyone if candidate[1].key_id not in seen]


class _Order:
    """The groups of one model and workload, and the position of each key in them."""

    __slots__ = ("groups", "positions")

    def __init__(self, groups: list[_RankGroup]) -> None:
        self.groups = groups
        self.positions = {
            key.key_id: (group, index) for group in groups for index, key in enumerate(group.keys)
        }


class Selector:
    """The keys of a pool, and the order in which a call tries them."""

    def __init__(
        self,
        keys: Iterable[Candidate],
        strategy: str = "spread",
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        """Take the *keys* in the order of keys.json.

        Args:
            keys: All keys of the pool that have a value.
            strategy: `spread`, `fill` or `sticky`.
            lock: Lets one caller in at a time, again and again.
        """
        self.keys = {key.key_id: key for key in keys if key.disabled is None}
        self.platforms = frozenset(key.platform for key in self.keys.values())
        """For which there is a key."""
        self.has_budgets = any(key.usd_per_day is not None for key in self.keys.values())
        """A key's project has a budget, so that costs must be estimated before a call."""
        self.spread = strategy == "spread"
        self.sticky = strategy == "sticky"
        self._orders: dict[tuple[object, ...], _Order] = {}
        self._lock: AbstractContextManager[object] = lock or nullcontext()
        self._projects: dict[str, list[Candidate]] = {}
        """The keys of each project, put together when somebody asks for the first."""
        self.had_full_window = False
        """A window was full once, so that released capacity may matter."""

    def find_project_keys(
        self, project: str, platform: Platform = GEMINI_API
    ) -> tuple[Candidate, ...]:
        """Return the keys of *project* for a platform."""
        if not self._projects:
            projects: dict[str, list[Candidate]] = {}
            for key in self.keys.values():
                projects.setdefault(key.project, []).append(key)
            self._projects = projects  # whole, for other threads
        found = self._projects.get(project, ())
        return tuple(k for k in found if k.key_id in self.keys and k.platform == platform)

    def other_tiers(self, info: CallInfo) -> dict[str, Block]:
        """Return the keys of the call's platform whose tier it may not use."""
        if info.tiers is None:
            return {}
        return {
            key.key_id: Block(OTHER_TIER, inf)
            for key in tuple(self.keys.values())
            if key.platform == info.platform and info.why_not(key) == OTHER_TIER
        }

    def candidate_batches(
        self, info: CallInfo, excluded: Mapping[str, object] | Claims, now: float, draw: float
    ) -> Iterator[RankedCandidates]:
        """Offer the keys in order, a handful at a time.

        Args:
            info: The call.
            excluded: Ids of keys that failed it, or that calls before it wait for.
            now: Epoch seconds.
            draw: A random number in [0, 1).
        """
        order = self._get_order(info)
        for group in order.groups:
            if group.rotations and not group.deferred:
                offset = self._start(group, info, draw)
                first_batch = group.rotations[offset]
            else:
                with self._lock:
                    group.end_deferrals(now)
                    offset = self._start(group, info, draw)
                    first_batch = group.first_batch(offset)
            if candidate := (_without(first_batch, excluded) if excluded else first_batch):
                yield candidate
            if len(group.keys) > BATCH_SIZE and len(first_batch) == BATCH_SIZE:
                with self._lock:
                    remaining = group.remaining(offset, first_batch)
                yield from _in_batches(remaining, excluded)
            if group.full_from_size:
                with self._lock:
                    retried = group.deferred_with_room_for(info)
                yield from _in_batches(retried, excluded)

    def ranking(self, info: CallInfo) -> list[RankedCandidate]:
        """Return all keys in the order of their groups, available or not."""
        return [one for group in self._get_order(info).groups for one in group.candidates]

    def defer(self, info: CallInfo, blocks: Mapping[str, Block], now: float) -> None:
        """Skip these keys for calls like *info* until their blocks end."""
        order = self._get_order(info)
        with self._lock:
            for key_id, block in blocks.items():
                position = order.positions.get(key_id)
                if position and block.until > now and block.reason not in _NEVER_DEFERRED:
                    size = needed_amount(block.reason, info)
                    self.had_full_window = self.had_full_window or size is not None
                    position[0].defer(position[1], block, size, now)

    def release(self, key_id: str) -> None:
        """Try this key again: part of a reservation was released, so its windows may have room."""
        for order in tuple(self._orders.values()):
            position = order.positions.get(key_id)
            if position and position[1] in position[0].full_from_size:
                with self._lock:
                    position[0].release(position[1])

    def deferred(self, info: CallInfo) -> dict[str, Block]:
        """Return the deferred keys and what blocks them."""
        order = self._get_order(info)
        with self._lock:
            return {
                group.keys[index].key_id: block
                for group in order.groups
                for index, block in group.deferred.items()
            }

    def reset(self) -> None:
        """End all deferrals: a key was reset."""
        with self._lock:
            self._orders.clear()

    def replace(self, key: Candidate) -> None:
        """Replace the key with the same id, whose value has changed, by *key*.

        Calls in flight use the new one too.
        """
        with self._lock:
            if key.key_id in self.keys:
                self.keys[key.key_id] = (
                    key  # the set of ids stays the same, so readers need no lock
                )
                self._projects = {}
                self._orders.clear()

    def _get_order(self, info: CallInfo) -> _Order:
        verb = "" if info.counts_in_quota else info.verb
        name = (info.model, info.workload, verb, info.platform, info.tiers, info.project)
        order = self._orders.get(name)
        if order is None:
            with self._lock:
                while len(self._orders) >= MAX_ORDERS:
                    del self._orders[next(iter(self._orders))]
                order = self._orders[name] = self._make_order(info)
        return order

    def _make_order(self, info: CallInfo) -> _Order:
        groups: dict[tuple[bool, int, bool, int], list[Candidate]] = {}
        for key in self.keys.values():
            if key.platform != info.platform or not info.may_use(key):
                continue
            rank = 1 if key.model is None else 0 if key.model == info.model else 2
            other_work = info.workload is not None and key.workload != info.workload
            name = (key.priority >= LAST_RESORT, rank, other_work, key.priority)
            groups.setdefault(name, []).append(key)
        return _Order([_RankGroup(rank, groups[name]) for rank, name in enumerate(sorted(groups))])

    def _start(self, group: _RankGroup, info: CallInfo, draw: float) -> int:
        if self.sticky and info.conversation:
            home = int(info.conversation, 16) % len(group.keys)
            return bisect_left(group.ready, home) % max(len(group.ready), 1)
        # A call without a conversation starts at random, not always at the first key.
        return int(draw * len(group.ready)) if self.spread or self.sticky else 0


def _in_batches(
    candidates: list[RankedCandidate], excluded: Mapping[str, object] | Claims
) -> Iterator[RankedCandidates]:
    left = _without(candidates, excluded)
    for start in range(0, len(left), BATCH_SIZE):
        yield left[start : start + BATCH_SIZE]


def _without(
    candidates: Iterable[RankedCandidate], excluded: Mapping[str, object] | Claims
) -> RankedCandidates:
    return tuple([candidate for candidate in candidates if candidate[1].key_id not in excluded])
