"""The decisions over records that are named by text: what is read, changed and dropped."""

from __future__ import annotations

from itertools import count
from math import inf
from typing import Any

import pytest
from support.moments import NOON
from support.pool import INFO, key

from keyrot_middleware.core.ledger import (
    CHECK_ABANDONED_EVERY,
    Health,
    Ledger,
    Owner,
    Records,
    Reservation,
    UnleasedUsage,
    expires_at,
    quota_name,
    quota_of_name,
    snapshot,
)
from keyrot_middleware.core.model import (
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Scope,
    Unavailable,
    Usage,
    Verdict,
)
from keyrot_middleware.core.spending import Spending, nano_usd
from keyrot_middleware.core.windows import DAY_S, Cooldown, QuotaWindows, next_pacific_midnight

OK = Outcome(LeaseOutcome.SUCCESS)
TABLES = (
    "quotas", "cooldowns", "leases", "spending", "health", "configured", "buckets", "owners",
    "claims",
)  # fmt: skip


class Dictionaries(Records):
    """Records in dictionaries, and the names that were asked for at once."""

    def __init__(self) -> None:
        for name in TABLES:
            setattr(self, name, {})
        self.asked: list[list[str]] = []

    def read(self, names: Any) -> None:
        """Record the names."""
        super().read(names)
        self.asked.append(list(names))


class Book:
    """A ledger, its records, and the time."""

    def __init__(self, **more: Any) -> None:
        self.records, self.now = Dictionaries(), NOON
        self.gone: set[str] = set()
        self.ledger = Ledger(self.records, RetryPolicy(), self.gone.__contains__, **more)
        self._ids = map(str, count(1))

    def acquire(self, *keys: Candidate, info: Any = INFO, **more: Any) -> Lease | Unavailable:
        """Acquire one of *keys*."""
        candidates = tuple((0, one) for one in keys)
        more = {"spread": False, **more}
        return self.ledger.acquire(info, candidates, next(self._ids), self.now, **more)

    def lease(self, *keys: Candidate, **more: Any) -> Lease:
        """Acquire one of *keys*, which is available."""
        found = self.acquire(*keys, **more)
        assert isinstance(found, Lease), found
        return found

    def reasons(self, *keys: Candidate, **more: Any) -> dict[str, str]:
        """Return why none of *keys* is available."""
        found = self.acquire(*keys, **more)
        assert isinstance(found, Unavailable), found
        assert found.blocks == self.ledger.get_blocks(more.get("info", INFO), keys, self.now)
        return {key_id: block.reason for key_id, block in found.blocks.items()}

    def settle(self, lease: Lease, outcome: Outcome = OK, *names: str) -> float | None:
        """Settle a lease."""
        return self.ledger.settle(lease, outcome, names, self.now)

    def fail(self, one: Candidate, scope: Scope, until: float | None = None, **more: Any) -> Any:
        """Let a request with *one* fail."""
        verdict = Verdict("capacity", 503, scope, until, **more)
        return self.settle(self.lease(one), Outcome(LeaseOutcome.FAILURE, verdict))

    def all(self) -> dict[str, Any]:
        """Return all records by name."""
        return {name: one for table in TABLES for name, one in getattr(self.records, table).items()}


A, B = key("a", Limits(rpm=2)), key("b", Limits(rpm=2))


def test_names_of_quotas_can_be_read_back() -> None:
    """A project and a bucket with colons are never mistaken for others."""
    assert quota_name("a:b", "c") != quota_name("a", "b:c")
    assert quota_of_name(quota_name("a:b", "c:d")) == ("a:b", "c:d")


def test_a_choice_among_keys_asks_for_their_records_at_once() -> None:
    """With `spread` those of all keys, else of the first; of cooldowns only if there are any."""
    book = Book()
    book.lease(A, B, spread=True)
    book.lease(A, B)
    assert book.records.asked == [
        [quota_name("a", INFO.model), quota_name("b", INFO.model)],
        [quota_name("a", INFO.model)],
    ]
    book.fail(B, Scope.KEY)
    book.acquire(A, B)
    assert {"cooldown:key:a", "cooldown:project:a"} < set(book.records.asked[-1])
    assert "cooldown:key:b" not in book.records.asked[-1]


def test_the_least_used_key_is_leased() -> None:
    """`spread` compares the keys of a group; keys of a later group are only for want of them."""
    book = Book()
    assert [book.lease(A, B, spread=True).key_id for _ in range(4)] == ["a", "b", "a", "b"]
    other = ((0, A), (1, key("c")))
    found = book.ledger.acquire(INFO, other, "x", book.now, spread=True)
    assert isinstance(found, Lease)
    assert (found.key_id, set(found.refused)) == ("c", {"a"})
    assert book.reasons(A, B) == {"a": "rpm", "b": "rpm"}


def test_unused_keys_have_no_record() -> None:
    """A key that was only compared is as if it had not been asked for."""
    book = Book()
    book.lease(A, B, spread=True)
    assert set(book.all()) == {quota_name("a", INFO.model), "health:a"}


def test_a_lease_in_flight_is_recorded_where_a_limit_needs_it() -> None:
    """Under the id that the reservation names; a settle removes it and its record."""
    book, one = Book(), key("a", Limits(max_concurrency=1))
    lease = book.lease(one, lease_until=NOON + 15)
    assert isinstance(lease.reservation, Reservation)
    assert book.records.leases.get("lease:a") == {lease.reservation.lease_id: NOON + 15}
    assert book.reasons(one) == {"a": "concurrency"}
    book.settle(lease)
    assert not book.records.leases
    book.settle(lease)  # again: it changes nothing
    book.lease(A)
    assert not book.records.leases
    every = Book(counts_all=True)
    every.lease(A)
    assert every.records.leases.get("lease:a") == {"1": inf}


def test_leases_end_when_their_time_is_over_or_their_call_is_gone() -> None:
    """Whichever is first; a renewed lease lasts longer, one that is not known is not renewed."""
    book, one = Book(), key("a", Limits(max_concurrency=2))
    for _ in range(2):
        book.lease(one, lease_until=NOON + 15)
    book.ledger.renew([("a", "1"), ("a", "9"), ("b", "1")], NOON + 30)
    book.now += 15
    assert book.lease(one)
    assert book.records.leases.get("lease:a") == {"1": NOON + 30, "3": inf}
    book.gone |= {"1", "3"}
    assert book.lease(one)
    assert book.records.leases.get("lease:a") == {"4": inf}
    assert book.reasons(key("c", Limits(max_concurrency=0))) == {"c": "concurrency"}


def test_lost_leases_without_a_limit_are_swept_now_and_then() -> None:
    """No call waits for their slots."""
    book = Book(counts_all=True)
    for number in range(3 * CHECK_ABANDONED_EVERY):
        book.lease(key("c"))
        book.gone.add(str(number))
    assert len(book.records.leases.get("lease:c") or {}) <= CHECK_ABANDONED_EVERY + 1


def test_a_share_of_each_limit() -> None:
    """At least one of each; a key without limits has none."""
    book = Book(share=0.4)
    one = key("a", Limits(rpm=5, max_concurrency=1))
    book.settle(book.lease(one))
    book.settle(book.lease(one))
    assert book.reasons(one) == {"a": "rpm"}
    assert book.lease(key("free"))
    book.ledger.get_blocks(INFO, [key("free")], book.now)


def test_a_budget_counts_what_is_in_flight_and_what_was_spent() -> None:
    """A request reserves its expected cost, until it ends or its lease does."""
    book, one = Book(), key("a", usd_per_day=1.0)
    info = INFO._replace(longest_cost=nano_usd(0.6))
    first = book.lease(one, info=info)
    assert book.reasons(one, info=info) == {"a": "usd_reserved"}
    cost = Outcome(LeaseOutcome.SUCCESS, None, Usage(cost_usd=0.5))
    book.settle(first, cost)
    lost = book.lease(one, info=info, lease_until=NOON + 15)
    assert book.reasons(one, info=info) == {"a": "usd_reserved"}
    book.now += 15
    second = book.lease(one, info=info)
    assert lost.has_budget
    book.gone.add("5")
    third = book.lease(one, info=info)
    book.settle(second, Outcome(LeaseOutcome.UNSENT))
    book.settle(third, cost)
    assert book.reasons(one, info=info) == {"a": "usd"}
    free = book.lease(one, info=info._replace(requests=0))
    book.settle(free)
    assert book.ledger.snapshot([one], book.now)["a"].spent_usd == 1.0


def test_a_probe_is_named_by_its_lease() -> None:
    """The first lease after a cooldown is its probe; its success ends the cooldown."""
    book = Book()
    assert book.fail(A, Scope.PROJECT) == NOON + 30
    assert book.reasons(A) == {"a": "capacity"}
    book.now += 30
    probe = book.lease(A)
    assert probe.probe
    assert book.reasons(A) == {"a": "probe"}
    book.settle(probe, Outcome(LeaseOutcome.ABANDONED))
    probe = book.lease(key("a"))
    assert probe.probe
    book.settle(probe, Outcome(LeaseOutcome.SERVING))
    assert not book.records.cooldowns
    book.settle(probe)
    assert book.fail(key("a"), Scope.PROJECT) == NOON + 60  # the failures begin anew
    book.now += 30
    book.settle(book.lease(key("a")))
    assert not book.records.cooldowns


def test_a_success_ends_only_cooldowns_that_were_over() -> None:
    """Others of the same key stay; so does one that began after the lease."""
    book, one = Book(), key("a")
    early = book.lease(one)
    book.fail(one, Scope.KEY_MODEL, NOON + 5)
    book.settle(early)
    assert book.reasons(one) == {"a": "capacity"}
    other = INFO._replace(model="other")
    lease = book.lease(one, info=other)
    book.settle(lease, Outcome(LeaseOutcome.FAILURE, Verdict("x", 429, Scope.KEY_MODEL, NOON + 9)))
    book.now += 5
    book.settle(book.lease(one))
    assert list(book.records.cooldowns.get("cooldown:key:a") or {}) == ["key_model:other"]
    book.ledger.reset(one)
    assert not book.records.cooldowns


def test_old_cooldowns_are_dropped_when_another_is_recorded() -> None:
    """A program that invents models has one record of a key, of bounded size."""
    book, one = Book(), key("a")
    for number in range(5):
        lease = book.lease(one, info=INFO._replace(model=f"m{number}"))
        verdict = Verdict("x", 429, Scope.KEY_MODEL, book.now + 1)
        book.settle(lease, Outcome(LeaseOutcome.FAILURE, verdict))
        book.now += DAY_S
    assert len(book.records.cooldowns.get("cooldown:key:a") or {}) == 2


def test_learned_limits_and_buckets() -> None:
    """A limit applies at once; a larger request that succeeds proves it wrong."""
    book, one = Book(), key("a")
    book.fail(one, Scope.NONE, learned=Limits(rpm=1, tpm=5), bucket="family")
    assert book.records.buckets.get(f"bucket:{INFO.model}") == "family"
    lease = book.lease(one)
    assert lease.bucket == "family"
    assert book.reasons(one) == {"a": "rpm"}
    book.settle(lease, Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=9)))
    quota = book.records.quotas.get(quota_name("a", "family"))
    assert quota is not None
    assert quota.learned == Limits(rpm=1)
    book.ledger.configure([one])
    assert quota.learned == Limits(rpm=1)
    book.ledger.configure([key("a", Limits(rpm=7, max_concurrency=1)), B])
    assert quota.learned == Limits()
    book.ledger.configure([key("a", Limits(rpm=7))])


def test_a_settle_corrects_what_was_counted() -> None:
    """True tokens, or nothing for a request that was not sent; a dropped record stays dropped."""
    book, name = Book(), quota_name("a", INFO.model)
    book.settle(book.lease(A), Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=3)))
    book.settle(book.lease(A), Outcome(LeaseOutcome.UNSENT))
    quota = book.records.quotas.get(name)
    assert quota is not None
    assert (quota.requests, quota.tokens, quota.day_requests) == (1, 3, 1)
    lease = book.lease(A)
    book.records.quotas.pop(name, None)
    book.settle(lease, Outcome(LeaseOutcome.UNSENT))
    assert book.records.quotas.get(name) is None


def test_a_lease_that_was_not_granted_here_changes_no_count() -> None:
    """KeyManager reports by hand: health, cooldowns and buckets are kept, nothing is released."""
    book = Book()
    lease = Lease("a", "a", "a", "model", "", 5, 1, at=NOON)
    until = book.settle(
        lease, Outcome(LeaseOutcome.FAILURE, Verdict("x", 403, Scope.KEY, inf, bucket="family"))
    )
    assert until == inf
    assert book.records.buckets.get("bucket:model") == "family"
    assert book.records.health.get("health:a") == Health(None, 0, 1, "x")
    disabled = Verdict("disabled", None, Scope.KEY, inf)
    book.settle(lease, Outcome(LeaseOutcome.ABANDONED, disabled))
    assert book.records.health.get("health:a") == Health(None, 0, 1, "x")


def test_what_another_state_granted_is_counted_here_too() -> None:
    """With its bucket and its cost; `reservation.granted` is the other state's lease."""
    book, one = Book(), key("a", usd_per_day=1.0)
    granted = Book().lease(one)._replace(bucket="family")
    copied = book.ledger.copy(granted, INFO, "c", NOON)
    assert isinstance(copied.reservation, Reservation)
    assert copied.reservation.granted is granted
    assert book.records.leases.get("lease:a") == {"c": inf}
    plain = Book().lease(key("b"))._replace(record="")
    book.ledger.copy(plain, INFO, "d", NOON)
    assert set(book.all()) >= {"lease:b", "bucket:" + INFO.model, "spending:a"}


def test_a_forked_child_has_no_leases() -> None:
    """Leases, reserved costs and probes are its parent's."""
    book, one = Book(), key("a", Limits(max_concurrency=1), usd_per_day=1.0)
    book.fail(one, Scope.KEY, NOON)
    info = INFO._replace(longest_cost=nano_usd(0.9))
    assert book.lease(one, info=info).probe
    book.ledger.end_leases()
    assert book.lease(one, info=info).probe


def test_usage_without_a_lease_is_counted() -> None:
    """In the minute and the day, and costs of a project."""
    book = Book()
    book.ledger.record_usage([UnleasedUsage("a", "m", 2, 30, 7)], {"a": 5}, NOON)
    quota = book.records.quotas.get(quota_name("a", "m"))
    assert quota is not None
    assert (quota.requests, quota.tokens, quota.day_requests) == (2, 30, 7)
    spending = book.records.spending.get("spending:a")
    assert spending is not None
    assert spending.spent == 5


@pytest.mark.parametrize(("name", "renewed"), [("files/x", False), ("interactions/x", True)])
def test_an_owner_is_remembered_for_a_time(name: str, renewed: bool) -> None:
    """Some from their last use on; a recent one is not written again."""
    book = Book()
    book.settle(book.lease(A), OK, name)
    (record,) = (one for one in book.all() if one.startswith("owner:"))
    assert name not in record
    first = book.records.owners.get(record)
    assert first is not None
    assert book.ledger.get_owner(["unknown", name], NOON + 60) == ("a", "a")
    assert book.records.owners.get(record) is first
    assert book.ledger.get_owner([name], first.until - 1) == ("a", "a")
    assert (book.records.owners.get(record) is not first) == renewed
    assert (book.ledger.get_owner([name], first.until) is not None) == renewed


def test_a_name_is_claimed_once_at_a_time() -> None:
    """A claim from a clock that was set back since does not last."""
    book = Book()
    assert book.ledger.claim("x", 60, NOON) == 0
    assert book.ledger.claim("x", 60, NOON + 20) == 40
    assert book.ledger.claim("x", 60, NOON + 60) == 0
    assert book.ledger.claim("x", 60, NOON - 3_600) == 0


def test_a_snapshot_and_the_values_in_use() -> None:
    """Counts, the cooldown that ends last, and which value a key was last used with."""
    book, one = Book(), key("a", Limits(rpm=9)).with_value("feed")
    book.fail(one, Scope.KEY_MODEL, NOON + 9)
    found = book.ledger.snapshot([one, B], NOON)
    assert (found["a"].cooldown_until, found["a"].cooldown_scope) == (NOON + 9, "key_model")
    assert (found["a"].error_count, found["a"].used[0].requests_minute) == (1, 1)
    assert found["b"].last_used is None
    assert book.ledger.snapshot([one], NOON + 9)["a"].cooldown_until is None
    budget = key("c", usd_per_day=1.0)
    assert snapshot([budget], {}, {}, {}, spending={}, now=NOON)["c"].spent_usd == 0.0
    assert book.ledger.with_values([key("a"), B]) == [key("a").with_value("feed"), B]


def test_when_records_expire() -> None:
    """Each as soon as it says no more than none does."""
    quota, spending, cooldown = QuotaWindows(), Spending(), Cooldown()
    quota.advance(NOON)
    spending.advance(NOON)
    cooldown.extend("x", NOON + 5, waitable=False, now=NOON)
    midnight = next_pacific_midnight(NOON)
    assert expires_at(quota, NOON) == midnight + 61
    assert expires_at(spending, NOON) == midnight
    spending.reserved["1"] = 5, "a"
    assert expires_at(spending, NOON) == NOON + DAY_S
    assert expires_at(Owner("a", "p", NOON + 1), NOON) == NOON + 1
    assert expires_at(NOON + 2, NOON) == NOON + 2
    assert expires_at({"key": cooldown}, NOON) == NOON + 5 + DAY_S
    assert expires_at({"1": NOON + 15}, NOON) == NOON + 15
    assert expires_at({}, NOON) == NOON
    assert expires_at(Health(), NOON) == NOON + 30 * DAY_S
