"""The keys of a pool, and in which order a call tries them.

The order of a call is a list of groups: keys whose `model` is the requested one, then keys without
a model, then the others; within these, keys of the requested workload first, then by priority; the
last resort comes after all of them. Keys that the call may not use are in no group. Within a group
the strategy decides where to start: `spread` at random, `fill` at the first key; a call with a
conversation at a position derived from that.

Candidates are passed to the state in batches of one group. The state decides which of them is
available. A key that it refused until a known time is skipped until then, so that a call does not
try ten thousand exhausted keys. That is a hint: it ends after `SKIP_S` at the latest, or when a
call finds no key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from .failures import Implies, classes
from .model import (
    IN_USE,
    LAST_RESORT,
    NO_BUDGET,
    OTHER_TIER,
    WINDOWS,
    Block,
    CallInfo,
    Candidate,
    Strategy,
)

FIRST_BATCH, BATCH_SIZE = 3, 8
"""Keys in the first batch of a call, of which `spread` takes the least used one, and in later ones.
Three of a random start are used almost as evenly as eight, and cost a shared state a third; where
limits, weights or uses differ, the first batch has eight too."""

SKIP_S = 60.0
ASK_AGAIN_S = 0.01
"""For each key of the pool: how long a call without a key may rely on keys that were skipped."""
MAX_ORDERS = 64
"""Orders kept: one per model, workload, tiers and project in use, and per method without quota."""

_NEVER_SKIPPED = classes(Implies.METHOD, *IN_USE)
"""Reasons without a known end, or about one method only: the next call tries such a key again."""

_NOT_REFUSED = Block("", 0.0), 0.0

RankedCandidate = tuple[int, Candidate]
"""The rank of a key's group, and the key."""
RankedCandidates = tuple[RankedCandidate, ...]


class _Order:
    """The groups of calls of one kind, and the keys that the state refused them."""

    __slots__ = ("asked_at", "firsts", "groups", "refused", "size")

    def __init__(self, groups: list[list[RankedCandidate]]) -> None:
        self.groups = groups
        alike = {(key.limits, key.weight, key.use) for _, key in groups[0]} if groups else set()
        self.size = FIRST_BATCH if len(alike) == 1 else BATCH_SIZE
        """Of first batches: keys that may be used unequally are compared with more others."""
        self.firsts: dict[int, RankedCandidates] = {}
        """The first batches of calls that exclude and skip no key, by where they start: a state
        knows them by their identity."""
        self.refused: dict[str, tuple[Block, float]] = {}
        """Until when they are skipped, epoch seconds."""
        self.asked_at = 0.0
        """When a call without a key last asked about all keys, epoch seconds."""

    def first(self, start: int) -> RankedCandidates:
        """Return the first batch of the first group from *start* on."""
        order = self.firsts.get(start)
        if order is None:
            group = self.groups[0]
            size = min(self.size, len(group))
            order = tuple(group[(start + n) % len(group)] for n in range(size))
            self.firsts[start] = order
        return order


class Selector:
    """The keys of a pool, and the order in which a call tries them.

    Without locks: what is replaced is replaced whole, and what is lost was a hint.
    """

    def __init__(self, keys: Iterable[Candidate], strategy: Strategy = "spread") -> None:
        """Take the *keys* that have a value, in the order of keys.json.

        Args:
            keys: All keys of the pool that have a value.
            strategy: Where a call starts, and what the state is asked for.
        """
        self.strategy: Strategy = strategy
        self.update(keys)

    def update(self, keys: Iterable[Candidate]) -> None:
        """Use other keys from now on, in calls under way too."""
        self.keys = {key.key_id: key for key in keys if key.disabled is None}
        self.platforms = frozenset(key.platform for key in self.keys.values())
        """For which there is a key."""
        self.has_budgets = any(key.usd != NO_BUDGET for key in self.keys.values())
        """One of them has a budget, so that costs must be estimated before a call."""
        self.reset()

    def reset(self) -> None:
        """Skip no key: a key was reset."""
        self._orders: dict[tuple[object, ...], _Order] = {}

    def find_project_keys(self, project: str) -> list[Candidate]:
        """Return the keys of *project*."""
        return [key for key in self.keys.values() if key.project == project]

    def other_tiers(self, info: CallInfo) -> dict[str, Block]:
        """Return the keys of the call's platform whose tier it may not use."""
        if info.tiers is None:
            return {}
        return {
            key.key_id: Block(OTHER_TIER, inf)
            for key in self.keys.values()
            if info.why_not(key) == OTHER_TIER
        }

    def candidate_batches(
        self,
        info: CallInfo,
        excluded: Mapping[str, object],
        now: float,
        draw: float,
        blocks: dict[str, Block],
    ) -> Iterator[RankedCandidates]:
        """Offer the keys in order, a handful at a time.

        Args:
            info: The call.
            excluded: Ids of keys that failed it.
            now: Epoch seconds.
            draw: A random number in [0, 1).
            blocks: Gets why each key that is skipped cannot serve.
        """
        order = self._get_order(info)
        refused, size = order.refused, order.size
        for group in order.groups:
            # A call without a conversation starts at random, not always at the first key.
            start = int(draw * len(group)) if self.strategy != "fill" else 0
            if info.conversation:
                start = int(info.conversation, 16) % len(group)
            batch, begin = [], start
            if group is order.groups[0] and not excluded and not refused:
                yield (first := order.first(start))
                begin, size = start + len(first), BATCH_SIZE
            for number in range(begin, start + len(group)):
                candidate = group[number % len(group)]
                key_id = candidate[1].key_id
                if key_id in excluded:
                    continue
                block, until = refused.get(key_id, _NOT_REFUSED)
                if until - SKIP_S <= now < until:  # else it is over, or the clock was set back
                    blocks[key_id] = block
                    continue
                batch.append(candidate)
                if len(batch) == size:
                    yield tuple(batch)
                    batch, size = [], BATCH_SIZE
            if batch:
                yield tuple(batch)
                size = BATCH_SIZE

    def ranking(self, info: CallInfo) -> list[RankedCandidate]:
        """Return all keys in the order of their groups, available or not."""
        return [one for group in self._get_order(info).groups for one in group]

    def skip(self, info: CallInfo, blocks: Mapping[str, Block], now: float) -> None:
        """Skip these keys for calls like *info* until their blocks end."""
        refused = self._get_order(info).refused
        for key_id, block in blocks.items():
            if block.until > now and block.reason not in _NEVER_SKIPPED:
                refused[key_id] = block, min(block.until, now + SKIP_S)

    def ask_again(self, info: CallInfo, now: float) -> bool:
        """Skip no key, for a call that found none: another process may have reset one.

        Returns:
            False if no key was skipped, or all were asked about just now.
        """
        order = self._get_order(info)
        if not order.refused or 0 <= now - order.asked_at < ASK_AGAIN_S * len(self.keys):
            return False
        order.refused, order.asked_at = {}, now
        return True

    def release(self, key_id: str) -> None:
        """Try this key again: part of a reservation was released, so its windows may have room."""
        for order in list(self._orders.values()):
            if order.refused.get(key_id, _NOT_REFUSED)[0].reason in WINDOWS:
                order.refused.pop(key_id, None)

    def _get_order(self, info: CallInfo) -> _Order:
        verb = "" if info.counts_in_quota else info.verb
        name = (info.model, info.workload, verb, info.platform, info.tiers, info.project)
        order = self._orders.get(name)
        if order is None:
            if len(self._orders) >= MAX_ORDERS:
                self.reset()
            order = self._orders[name] = self._make_order(info)
        return order

    def _make_order(self, info: CallInfo) -> _Order:
        groups: dict[tuple[bool, int, bool, int], list[Candidate]] = {}
        for key in self.keys.values():
            if not info.may_use(key):
                continue
            rank = 1 if key.model is None else 0 if key.model == info.model else 2
            other_work = info.workload is not None and key.workload != info.workload
            name = (key.priority >= LAST_RESORT, rank, other_work, key.priority)
            groups.setdefault(name, []).append(key)
        return _Order(
            [[(rank, key) for key in groups[name]] for rank, name in enumerate(sorted(groups))]
        )
