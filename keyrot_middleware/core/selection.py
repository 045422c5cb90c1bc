"""Which keys to offer for a call, in which order, at a cost that does not grow with the pool.

The order of a call is a list of groups: keys whose `model` is the one asked for, then keys
without a model, then the others; within these, keys of the wanted workload first, then by
priority; the last resort comes after all of them. Within a group the strategy decides where to
begin: `spread` anywhere, `fill` at the beginning, `sticky` at a place that follows from the
conversation.

A shortlist is a few keys of one group. The state says exactly which of them can serve; what it
refused until a known time is *parked* here and not offered again before, so that a call does not
pass by ten thousand exhausted keys. Parking is a hint, checked again after `PARK_S` at the latest.
A full window is no more than a hint about one size of request, until something is given back:
when no other key of its group can serve, such a key is offered to smaller requests all the same.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from heapq import heappop, heappush
from math import inf

from .failures import RULES
from .model import LAST_RESORT, Block, CallInfo, Candidate, Scope
from .waiting import Claims, wanted
from .windows import AHEAD_S

__all__ = ["BATCH_SIZE", "RankedCandidates", "Selector"]

BATCH_SIZE = 8
"""Keys in one shortlist: up to here `spread` compares every key of a group."""

PARK_S = 60.0
VIEWS = 64
"""Orders kept, one for each model and workload in use; a method that is not metered has its own."""

_OF_A_VERB = {rule.name for rule in RULES if rule.scope in (Scope.KEY_VERB, Scope.PROJECT_CACHE)}
_NEVER_PARKED = frozenset({"probe", "concurrency"} | _OF_A_VERB)
"""Reasons whose end nobody knows, or that are about one method of the API while a view is for all
of them: such a key is offered again by the next call."""

_Offer = tuple[int, Candidate]
"""The rank of a key's group, and the key."""
RankedCandidates = tuple[_Offer, ...]


class _RankGroup:
    """Keys of equal rank: those worth offering, and those parked until a time."""

    __slots__ = ("deferred", "ends", "full", "keys", "offers", "ready", "turns", "until")

    def __init__(self, rank: int, keys: list[Candidate]) -> None:
        self.keys = keys
        self.offers = [(rank, key) for key in keys]
        few = range(len(keys)) if len(keys) <= BATCH_SIZE else ()
        self.turns = [tuple(self.offers[i:] + self.offers[:i]) for i in few]
        """Of a few keys every shortlist while none is parked, by the offset where it begins."""
        self.ready = list(range(len(keys)))
        self.until: list[tuple[float, int]] = []
        """A heap of when to offer parked keys again; of a key that has several, the least holds."""
        self.deferred: dict[int, Block] = {}
        self.ends: dict[int, float] = {}
        """Until when each parked key is not offered."""
        self.full: dict[int, float] = {}
        """Of the parked those whose window is full, for requests of this size and more."""

    def unpark(self, now: float) -> None:
        if self.until and self.until[0][0] > now + PARK_S + AHEAD_S:
            self.until = [(now, index) for index in sorted(self.ends)]  # the clock has stepped back
            self.ends = dict.fromkeys(self.ends, now)
        while self.until and self.until[0][0] <= now:
            end, index = heappop(self.until)
            if self.ends.get(index) != end:
                continue  # it was parked again since, for a shorter time
            del self.deferred[index], self.ends[index]
            self.full.pop(index, None)
            insort(self.ready, index)

    def defer(self, index: int, block: Block, size: float | None, now: float) -> None:
        end = min(block.until, now + PARK_S)
        if index not in self.deferred:
            del self.ready[bisect_left(self.ready, index)]
        if end < self.ends.get(index, inf):
            self.ends[index] = end
            heappush(self.until, (end, index))
        self.deferred[index] = block
        self.full.pop(index, None)
        if size is not None:
            self.full[index] = size

    def release(self, index: int) -> None:
        if index in self.full:
            self.full[index] = inf

    def worth_asking(self, info: CallInfo) -> list[_Offer]:
        return [
            self.offers[index]
            for index, size in self.full.items()
            if (wanted(self.deferred[index].reason, info) or 0) < size
        ]

    def first(self, offset: int) -> RankedCandidates:
        some = self.ready[offset : offset + BATCH_SIZE]
        if len(some) < BATCH_SIZE:
            some += self.ready[: min(offset, BATCH_SIZE - len(some))]
        return tuple([self.offers[index] for index in some])

    def rest(self, offset: int, offered: RankedCandidates) -> list[_Offer]:
        seen = {key.key_id for _, key in offered}
        everyone = (self.offers[i] for i in self.ready[offset:] + self.ready[:offset])
        return [offer for offer in everyone if offer[1].key_id not in seen]


class _Order:
    """The groups of one model and workload, and where each key stands in them."""

    __slots__ = ("groups", "places")

    def __init__(self, groups: list[_RankGroup]) -> None:
        self.groups = groups
        self.places = {
            key.key_id: (group, index) for group in groups for index, key in enumerate(group.keys)
        }


class Selector:
    """The keys of a pool, and the order in which a call may try them."""

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
        self.keys = {key.key_id: key for key in keys if key.active}
        self.spread = strategy == "spread"
        self._sticky = strategy == "sticky"
        self._views: dict[tuple[str, str | None, str], _Order] = {}
        self._lock: AbstractContextManager[object] = lock or nullcontext()
        self._projects: dict[str, list[Candidate]] = {}
        """The keys of each project, put together when somebody asks for the first."""
        self.had_full_window = False
        """A window was full once, so that what is given back may matter."""

    def find_project_keys(self, project: str) -> tuple[Candidate, ...]:
        """List the keys that may touch what *project* has stored."""
        if not self._projects:
            projects: dict[str, list[Candidate]] = {}
            for key in self.keys.values():
                projects.setdefault(key.project, []).append(key)
            self._projects = projects  # whole, for other threads
        return tuple(key for key in self._projects.get(project, ()) if key.key_id in self.keys)

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
        view = self._view(info)
        for group in view.groups:
            if group.turns and not group.deferred:
                offset = self._offset(group, info, draw)
                first = group.turns[offset]
            else:
                with self._lock:
                    group.unpark(now)
                    offset = self._offset(group, info, draw)
                    first = group.first(offset)
            if offer := (_left(first, excluded) if excluded else first):
                yield offer
            if len(group.keys) > BATCH_SIZE and len(first) == BATCH_SIZE:
                with self._lock:
                    rest = group.rest(offset, first)
                yield from _chunks(rest, excluded)
            if group.full:
                with self._lock:
                    asked_again = group.worth_asking(info)
                yield from _chunks(asked_again, excluded)

    def ranking(self, info: CallInfo) -> list[_Offer]:
        """Return all keys in the order of their groups, whether or not they can serve."""
        return [offer for group in self._view(info).groups for offer in group.offers]

    def defer(self, info: CallInfo, blocks: Mapping[str, Block], now: float) -> None:
        """Do not offer these keys for calls like *info* before they may serve again."""
        view = self._view(info)
        with self._lock:
            for key_id, block in blocks.items():
                place = view.places.get(key_id)
                if place and block.until > now and block.reason not in _NEVER_PARKED:
                    size = wanted(block.reason, info)
                    self.had_full_window = self.had_full_window or size is not None
                    place[0].defer(place[1], block, size, now)

    def release(self, key_id: str) -> None:
        """Some of what was reserved with this key was given back: its windows may have room."""
        for view in tuple(self._views.values()):
            place = view.places.get(key_id)
            if place and place[1] in place[0].full:
                with self._lock:
                    place[0].release(place[1])

    def deferred(self, info: CallInfo) -> dict[str, Block]:
        """Tell why each key that is not offered is not."""
        view = self._view(info)
        with self._lock:
            return {
                group.keys[index].key_id: block
                for group in view.groups
                for index, block in group.deferred.items()
            }

    def reset(self) -> None:
        """Offer every key again: one was reset."""
        with self._lock:
            self._views.clear()

    def replace(self, key: Candidate) -> None:
        """Put *key*, which has another value now, in the place of the one with its id.

        Calls under way see it too: they have this roster.
        """
        with self._lock:
            if key.key_id in self.keys:
                self.keys[key.key_id] = key  # no key joins or leaves, so others may be reading
                self._projects = {}
                self._views.clear()

    def _view(self, info: CallInfo) -> _Order:
        name = (info.model, info.workload, "" if info.counts_in_quota else info.verb)
        view = self._views.get(name)
        if view is None:
            with self._lock:
                while len(self._views) >= VIEWS:
                    del self._views[next(iter(self._views))]
                view = self._views[name] = self._order(info)
        return view

    def _order(self, info: CallInfo) -> _Order:
        groups: dict[tuple[bool, int, bool, int], list[Candidate]] = {}
        for key in self.keys.values():
            rank = 1 if key.model is None else 0 if key.model == info.model else 2
            other_work = info.workload is not None and key.workload != info.workload
            name = (key.priority >= LAST_RESORT, rank, other_work, key.priority)
            groups.setdefault(name, []).append(key)
        return _Order([_RankGroup(rank, groups[name]) for rank, name in enumerate(sorted(groups))])

    def _offset(self, group: _RankGroup, info: CallInfo, draw: float) -> int:
        if self._sticky and info.conversation:
            home = int(info.conversation, 16) % len(group.keys)
            return bisect_left(group.ready, home) % max(len(group.ready), 1)
        # A call that belongs to no conversation sticks to nothing, not to the first key.
        return int(draw * len(group.ready)) if self.spread or self._sticky else 0


def _chunks(
    offers: list[_Offer], excluded: Mapping[str, object] | Claims
) -> Iterator[RankedCandidates]:
    left = _left(offers, excluded)
    for start in range(0, len(left), BATCH_SIZE):
        yield left[start : start + BATCH_SIZE]


def _left(offers: Iterable[_Offer], excluded: Mapping[str, object] | Claims) -> RankedCandidates:
    return tuple([offer for offer in offers if offer[1].key_id not in excluded])
