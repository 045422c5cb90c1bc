"""The contract of a state, for each backend: choice, limits, cooldowns, owners, snapshots."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from support.pool import INFO, key
from support.states import (
    OK,
    UNSENT,
    acquire,
    failed,
    granted,
    lease_of,
    refusal,
    refused,
    settle,
    used,
)

from keyrot_middleware.core.failures import SLOW_BACKOFF
from keyrot_middleware.core.ledger import KeyHealth, Used
from keyrot_middleware.core.model import (
    NO_LIMITS,
    Backoff,
    Block,
    Budget,
    CallInfo,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Scope,
    Terms,
    Unavailable,
    Usage,
    Verdict,
)
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.keys_file import KeySpec
from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock

PACIFIC = ZoneInfo("America/Los_Angeles")
THREADS, TASKS = 50, 200
REJECTED = Outcome(
    LeaseOutcome.FAILURE,
    Verdict("key_invalid", 400, Scope.KEY, rejected=True, backoff=SLOW_BACKOFF),
)
LONE = KeySpec(key_id="lone").candidate
A, B = key("a", project="p", billing_account="x"), key("b", project="p", billing_account="x")
C, D = key("c", project="q", billing_account="x"), key("d")
PRO = INFO._replace(model="gemini-3.1-pro-preview")
EMBED = INFO._replace(verb="embedContent")
CACHE = INFO._replace(verb="cachedContents")
COUNT = INFO._replace(verb="countTokens", counts_in_quota=False, requests=0, tokens=0)
LATEST = INFO._replace(model="gemini-flash-latest")


# Which candidate is leased ---------------------------------------------------------------------


def test_without_spreading_the_order_is_the_order_of_use(state: State) -> None:
    small, second = key("small", Limits(rpm=2)), key("second", Limits(rpm=10))
    leased = [lease_of(state, small, second).key_id for _ in range(4)]
    assert leased == ["small", "small", "second", "second"]
    assert [lease_of(state, key("free"), D).key_id for _ in range(4)] == ["free"] * 4


def test_spreading_leases_the_least_utilized_key(state: State) -> None:
    """The used fraction of the limit counts; where no limit is known, the weight."""
    small, large = key("small", Limits(rpm=10)), key("large", Limits(rpm=30))
    leased = [lease_of(state, small, large, strategy="spread").key_id for _ in range(20)]
    assert (leased.count("small"), leased.count("large")) == (5, 15)
    heavy, light = key("heavy", weight=3.0), key("light")
    leased = [lease_of(state, light, heavy, strategy="spread").key_id for _ in range(40)]
    assert leased.count("heavy") == 30


def test_a_lower_group_goes_first_however_used(state: State) -> None:
    first, second = key("first", Limits(rpm=10)), key("second", Limits(rpm=10))
    leased = [lease_of(state, (0, first), (1, second), strategy="spread").key_id for _ in range(12)]
    assert leased == ["first"] * 10 + ["second"] * 2


def test_a_refusal_has_every_keys_reason_and_the_soonest_time(
    state: State, clock: FakeClock
) -> None:
    settle(state, A, failed(Scope.KEY, clock.time() + 5, has_known_end=True))
    settle(state, B, failed(Scope.KEY, inf))
    reply = refusal(state, A, B)
    assert (reply.at, reply.retry_at) == (clock.time(), clock.time() + 5)
    assert lease_of(state, A, B, C).key_id == "c"
    assert refusal(state).retry_at == inf


def test_a_lease_has_its_key_reservation_and_tier(state: State, clock: FakeClock) -> None:
    lease = lease_of(state, replace(D, tier="paid"), info=INFO._replace(tokens=77, requests=2))
    assert lease._replace(reservation=None, degraded=False) == Lease(
        key_id="d",
        project="d",
        billing_account="d",
        bucket=INFO.model,
        verb=INFO.verb,
        tokens=77,
        requests=2,
        at=clock.time(),
        tier="paid",
        record="d",
    )


# Owners and snapshots --------------------------------------------------------------------------


def test_the_owner_of_a_stored_resource_is_known(state: State) -> None:
    """The first known of several names decides; the newest owner counts."""
    assert state.get_owner(["files/x"]) is None
    settle(state, A, OK, "files/x", "files/y")
    assert state.get_owner(["files/none", "files/y"]) == ("a", "p")
    settle(state, D, OK, "files/y")
    assert state.get_owner(["files/y", "files/x"]) == ("d", "d")
    assert state.get_owner([]) is None


def test_a_snapshot_has_what_is_known_now(state: State, clock: FakeClock) -> None:
    """Counts, the latest running cooldown, and usage of each model; what is past counts nothing."""
    now = clock.time()
    settle(state, D, used(40), info=INFO._replace(tokens=50))
    settle(state, D, failed(Scope.KEY_MODEL, now + 5))
    clock.advance(5)
    until = clock.time() + 60
    settle(state, D, failed(Scope.PROJECT, until, learned=Limits(rpm=5)))
    assert state.snapshot([D, A]) == {
        "d": KeyHealth(
            last_used=clock.time(),
            success_count=1,
            error_count=2,
            cooldown_until=until,
            cooldown_reason="failure",
            cooldown_scope="project",
            last_error="failure",
            used=[Used(INFO.model, 3, 60, 3, Limits(rpm=5), peaks=(3, 60))],
        ),
        "a": KeyHealth(),
    }
    clock.advance(3 * DAY_S)
    assert state.snapshot([D])["d"].used == [Used(INFO.model, 0, 0, 0, NO_LIMITS)]


def test_a_snapshot_sees_the_widest_and_latest_cooldown(state: State, clock: FakeClock) -> None:
    """A billing account's is that of each of its keys; of equal ends the wider one is shown."""
    leases = [lease_of(state, A) for _ in range(2)]
    settle(state, leases[0], failed(Scope.BILLING, clock.time() + 90))
    settle(state, leases[1], failed(Scope.KEY, clock.time() + 20))
    settle(state, D, failed(Scope.KEY_VERB, clock.time() + 60), info=EMBED)
    settle(state, D, failed(Scope.KEY, clock.time() + 60), info=PRO)
    shown = state.snapshot([A, C, D, LONE])
    assert [shown[name].cooldown_scope for name in ("a", "c", "d", "lone")] == [
        "billing",
        "billing",
        "key",
        None,
    ]


def test_a_report_on_a_key_without_a_lease_is_recorded(state: State, clock: FakeClock) -> None:
    """A failure reported by hand cools its key down, and releases no reservation."""
    by_hand = Lease("d", "d", "d", INFO.model, INFO.verb, 0, 0, at=clock.time())
    busy = key("d", Limits(max_concurrency=1))
    lease = lease_of(state, busy)
    until = clock.time() + 20
    assert settle(state, by_hand, failed(Scope.KEY_MODEL, until, bucket=PRO.model)) == until
    assert refused(state, busy, info=PRO) == {"d": "failure"}
    settle(state, by_hand, OK)
    settle(state, by_hand, UNSENT)
    assert refused(state, busy, info=INFO._replace(model="x")) == {"d": "concurrency"}
    settle(state, lease)
    assert state.snapshot([busy])["d"].success_count == 2


# Limits ----------------------------------------------------------------------------------------


def test_unmetered_calls_are_leased_and_not_counted(state: State) -> None:
    """An exhausted minute does not stop countTokens, nor do a hundred of these exhaust one."""
    one = key("a", Limits(rpm=20, tpm=100))
    assert granted(state, one, most=100, info=COUNT) == 100
    assert granted(state, one) == 10
    assert granted(state, one, most=5, info=COUNT) == 5


def test_the_smallest_of_configured_learned_and_read_limits_holds(
    state: State, clock: FakeClock
) -> None:
    """A smaller learned one ends with its day, and what was read is renewed each hour."""
    one, hour = key("a", Limits(rpm=8), project="p"), 3_600.0
    clock.advance(60 - clock.time() % 60 + 2)
    state.take_limits("p", {INFO.model: Limits(6, 900, 50), "other": Limits(1)})
    assert granted(state, one) == 6
    used = state.snapshot([one])["a"].used
    assert used == [
        Used(INFO.model, 6, 60, 6, Limits(6, 900, 50), read=Limits(6, 900, 50), peaks=(6, 60))
    ]
    clock.advance(60)
    settle(state, one, failed(Scope.NONE, learned=Limits(rpm=4)))
    assert granted(state, one) == 3
    for read, left in ((9, 22), (2, 2), (3, 3)):  # the smallest; the learned one is gone with the 2
        for _ in range(left if read == 9 else 1):
            clock.advance(hour)
            state.take_limits("p", {INFO.model: Limits(read)})
        assert granted(state, one) == min(read, 4)


def test_a_bucket_is_learned_and_may_change(state: State, clock: FakeClock) -> None:
    """Names that Google counts together share one budget; a `-latest` name moves to a new model."""
    one, soon = key("a", Limits(rpm=5)), clock.time()
    settle(state, one, failed(Scope.PROJECT_MODEL, soon, bucket=INFO.model), info=LATEST)
    settle(state, one, info=LATEST)
    assert granted(state, one, most=2, info=LATEST) == 2
    assert granted(state, one) == 2
    clock.advance(61)
    moved = failed(Scope.PROJECT_MODEL, clock.time() + 20, bucket="gemini-3-flash")
    settle(state, one, moved, info=LATEST)
    assert refused(state, one, info=LATEST) == {"a": "failure"}
    assert lease_of(state, one).bucket == INFO.model


@pytest.mark.parametrize(
    ("learned", "info", "tokens"),
    [
        (Limits(tpm=100), INFO._replace(tokens=100), 250),
        (Limits(rpm=2), INFO._replace(requests=3), 10),
        (Limits(rpd=2), INFO._replace(requests=3), 10),
    ],
)
def test_a_success_beyond_a_learned_limit_ends_it(
    state: State, learned: Limits, info: CallInfo, tokens: int
) -> None:
    """Google raised it, or the estimate was wrong: a served request is within the limit."""
    request = lease_of(state, D, info=info)
    settle(state, D, failed(Scope.NONE, learned=learned), info=info._replace(requests=0))
    settle(state, request, used(tokens))
    assert state.snapshot([D])["d"].used[0].limits == NO_LIMITS
    assert granted(state, D, most=9) == 9


def test_a_success_within_a_learned_limit_ends_nothing(state: State) -> None:
    """Nor do several that were in flight together: the server's order is not known."""
    leases = [lease_of(state, D) for _ in range(4)]
    settle(state, D, failed(Scope.NONE, learned=Limits(rpm=2, tpm=100)))
    for lease in leases:
        settle(state, lease, used(90))
    assert state.snapshot([D])["d"].used[0].limits == Limits(rpm=2, tpm=100)


BUDGET = key("a", usd=Budget(day=10))


def test_a_new_value_of_a_key_has_no_new_budget(state: State) -> None:
    """Also of a key that is its own project, and pays for itself."""
    one = key("a", project="key:a", billing_account="project:key:a", usd=Budget(10, 10))
    settle(state, lease_of(state, one), OK._replace(usage=Usage(1, 1, cost_usd=2e-8)))
    assert refused(state, one.with_value("f")) == {"a": "usd"}
    assert state.snapshot([one.with_value("f")])["a"].spent == (20, 20, None)


def test_the_reservation_of_a_killed_process_ends(state: State, clock: FakeClock) -> None:
    """A call that is never settled reserves nothing any more after ten minutes."""
    info = INFO._replace(longest_cost=100)
    lease_of(state, BUDGET, info=info)
    clock.advance(290)
    assert refused(state, BUDGET, info=info) == {"a": "usd_reserved"}
    clock.advance(310)
    lease_of(state, BUDGET, info=info)


@pytest.mark.parametrize("days", [400, 40, 2, -2, -40, -400])
def test_a_wrong_clock_for_one_call_blocks_nothing_later(
    state: State, clock: FakeClock, days: int
) -> None:
    """Days and months whose end only a wrong clock can have set are not believed."""
    one = key("w", Limits(rpd=5), usd=Budget(20, 40, 190))
    spends = OK._replace(usage=Usage(1, 1, cost_usd=1e-8))
    for off in (0, days, 0):
        clock.advance(off * DAY_S)
        settle(state, one, spends)
        clock.advance(-off * DAY_S)
    for _ in range(4):
        clock.advance(DAY_S)
        settle(state, one, spends)
        settle(state, one, spends)


def test_a_month_that_a_wrong_clock_began_ends_with_the_true_one(
    state: State, clock: FakeClock
) -> None:
    """What is spent in January is not counted in February, whatever a clock said in between."""
    one = key("w", usd=Budget(month=100))
    spends = OK._replace(usage=Usage(1, 1, cost_usd=6e-8))
    clock.advance(40 * DAY_S)
    settle(state, one, spends)
    clock.advance(-40 * DAY_S)
    settle(state, one, spends)
    clock.advance(31 * DAY_S)
    settle(state, one, spends)
    assert state.snapshot([one])["w"].spent.month == 60
    settle(state, one, spends)
    assert refused(state, one) == {"w": "usd_month"}


# Cooldowns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "cooling"),
    [
        (Scope.NONE, ""),
        (Scope.KEY, "a pro embed cache count"),
        (Scope.KEY_VERB, "a pro"),
        (Scope.KEY_MODEL, "a embed cache"),
        (Scope.PROJECT_MODEL, "a embed cache b"),
        (Scope.PROJECT_CACHE, "cache"),
        (Scope.PROJECT, "a pro embed cache count b"),
        (Scope.BILLING, "a pro embed cache count b c"),
    ],
)
def test_exactly_the_keys_in_a_failures_scope_cool_down(
    state: State, clock: FakeClock, scope: Scope, cooling: str
) -> None:
    until = settle(state, A, failed(scope, clock.time() + 60))
    ways = {"a": (A, INFO), "pro": (A, PRO), "embed": (A, EMBED), "cache": (A, CACHE)}
    ways |= {"count": (A, COUNT), "b": (B, INFO), "c": (C, INFO), "d": (D, INFO)}
    replies = {name: acquire(state, one, info=info) for name, (one, info) in ways.items()}
    found = [name for name, reply in replies.items() if isinstance(reply, Unavailable)]
    assert found == cooling.split()
    assert until == (None if scope is Scope.NONE else clock.time() + 60)


def test_a_project_is_probed_by_one_of_its_keys(state: State, clock: FakeClock) -> None:
    """While one key probes its project, the project's other keys wait as well."""
    settle(state, A, failed(Scope.PROJECT_MODEL, clock.time() + 20, has_known_end=True))
    clock.advance(20)
    probe = lease_of(state, B)
    assert refused(state, A) == {"a": "probe"}
    settle(state, probe)
    assert granted(state, A, most=3) == 3


def test_a_success_ends_the_cooldowns_of_its_own_request_alone(
    state: State, clock: FakeClock
) -> None:
    settle(state, D, failed(Scope.KEY_VERB, clock.time() + 900), info=EMBED)
    settle(state, D, failed(Scope.KEY_MODEL, clock.time() + 20))
    clock.advance(20)
    settle(state, D)
    assert granted(state, D, most=3) == 3
    assert refused(state, D, info=EMBED) == {"d": "failure"}


def test_a_probe_that_streams_lets_others_go_before_its_end(state: State, clock: FakeClock) -> None:
    """The first chunk ends the probing; its slot and tokens are held until the end."""
    one = key("one", Limits(tpm=100, max_concurrency=2))
    settle(state, one, failed(Scope.KEY))
    clock.advance(30)
    probe = lease_of(state, one)
    settle(state, probe, Outcome(LeaseOutcome.SERVING))
    other = lease_of(state, one)
    assert not other.probe
    assert refused(state, one) == {"one": "concurrency"}
    settle(state, probe, used(90))
    assert refused(state, one) == {"one": "tpm"}


def test_a_block_with_a_named_time_may_be_waited_for(state: State, clock: FakeClock) -> None:
    for number, (known, waitable) in enumerate(
        [
            ({"has_known_end": True}, True),
            ({}, False),
            ({"has_known_end": True, "may_wait": False}, False),
        ]
    ):
        one = key(f"k{number}")
        settle(state, one, failed(Scope.KEY, clock.time() + 20, **known))
        assert refusal(state, one).blocks[one.key_id].waitable == waitable


def test_of_several_blocks_the_one_that_ends_last_is_named(state: State, clock: FakeClock) -> None:
    """A call does not wait for a minute while its share of the day is used up, or a cooldown."""
    one = key("one", Limits(rpm=3, rpd=8), usd=Budget(day=10))
    night = INFO._replace(terms=Terms("night", share=0.25))
    assert granted(state, one, info=night) == 1
    assert refusal(state, one, info=night).blocks["one"].reason == "rpm"
    clock.advance(60)
    settle(state, one, Outcome(LeaseOutcome.SUCCESS, None, Usage(1, 1)), info=night)
    assert granted(state, one) == 2
    block = refusal(state, one, info=night).blocks["one"]
    assert (block.reason, block.waitable) == ("rpd", False)
    assert block.note == "share of night: 2 of 8 a day"
    assert refusal(state, one).blocks["one"].reason == "rpm"
    lease = Lease("one", "one", "one", "", "", 0, 0, at=0.0)
    for scope, after in ((Scope.KEY, 200_000.0), (Scope.PROJECT, 100_000.0)):
        state.settle(lease, failed(scope, clock.time() + after))
    assert refusal(state, one).blocks == {"one": Block("failure", clock.time() + 200_000)}
    assert state.get_blocks(night, [one]) == refusal(state, one).blocks


@pytest.mark.parametrize(
    ("scope", "failure"),
    [
        (Scope.KEY, "key_leaked"),
        (Scope.PROJECT, "project_cap"),
        (Scope.BILLING, "credit_depleted"),
    ],
)
def test_what_a_person_ends_is_kept_until_a_success(
    scope: Scope, failure: str, state: State, clock: FakeClock
) -> None:
    """For days, and while others of its scopes cool down; a request tries whether it is over."""
    cut = Outcome(LeaseOutcome.FAILURE, Verdict(failure, 429, scope, clock.time() + 3_600))
    by_hand = Lease("a", "p", "x", PRO.model, PRO.verb, 0, 0, at=clock.time())
    settle(state, A, cut)
    for _ in range(3):
        clock.advance(3 * DAY_S)
        for narrow in (Scope.KEY_MODEL, Scope.PROJECT_MODEL):
            state.settle(by_hand, failed(narrow, clock.time() - 1))
        assert state.snapshot([A])["a"].rejection == failure
    probe = lease_of(state, A)
    assert probe.probe
    settle(state, probe)
    assert state.snapshot([A])["a"].rejection is None


@pytest.mark.parametrize(("scope", "model"), [(Scope.KEY, ""), (Scope.KEY_MODEL, PRO.model)])
def test_a_key_is_set_aside_until_a_success_or_for_a_day_more(
    scope: Scope, model: str, state: State, clock: FakeClock
) -> None:
    """After a refusal that no row knows, beside a key that answers; it says for which model."""
    aside = Verdict("unknown_refusal", 401, scope, backoff=Backoff(60.0, 21_600.0))
    for is_over in (False, True):
        settle(state, A, Outcome(LeaseOutcome.FAILURE, aside), info=PRO)
        assert state.snapshot([A, D])["a"].set_aside == model
        clock.advance(120 + DAY_S * is_over)
        if not is_over:
            found = state.snapshot([A, D])
            assert (found["a"].set_aside, found["d"].set_aside) == (model, None)
            settle(state, A, info=PRO)
        assert state.snapshot([A])["a"].set_aside is None


def test_a_cooldown_is_never_shortened(state: State, clock: FakeClock) -> None:
    """Of two requests that were under way together, the one that names the later end counts."""
    leases = [lease_of(state, D) for _ in range(2)]
    for lease, after in zip(leases, (900, 20), strict=True):
        until = state.settle(lease, failed(Scope.KEY_MODEL, clock.time() + after))
    assert until == clock.time() + 900
    clock.advance(30)
    assert refused(state, D) == {"d": "failure"}


def test_a_rejected_value_is_probed_on_a_slow_backoff(state: State, clock: FakeClock) -> None:
    """15 minutes, doubled up to 6 hours, eight in a day; after a success from the start."""
    cooldowns: list[float] = []
    while sum(cooldowns) < DAY_S:
        until = settle(state, D, REJECTED)
        assert until is not None
        cooldowns.append(until - clock.time())
        assert refusal(state, D).blocks["d"] == Block("key_invalid", until, waitable=False)
        clock.advance(cooldowns[-1])
    assert cooldowns == [900, 1_800, 3_600, 7_200, 14_400, 21_600, 21_600, 21_600]
    settle(state, D)
    assert not lease_of(state, D).probe
    assert settle(state, D, REJECTED) == clock.time() + 900


def test_what_was_found_with_one_value_does_not_bind_another(state: State) -> None:
    """Also where the rejection comes after the new value; a named project is of all its values."""
    old, new = (LONE.with_value(fingerprint) for fingerprint in ("01234567", "89abcdef"))
    settle(state, old, failed(Scope.NONE, learned=Limits(rpm=3)))
    late = lease_of(state, old)
    settle(state, old, REJECTED)
    assert refused(state, old) == {"lone": "key_invalid"}
    settle(state, late, REJECTED)
    assert not lease_of(state, new).probe
    assert granted(state, new, most=5) == 5
    assert state.snapshot([old])["lone"].cooldown_reason == "key_invalid"
    assert state.snapshot([new])["lone"].cooldown_reason is None
    settle(state, A.with_value("01234567"), failed(Scope.NONE, learned=Limits(rpm=2)))
    assert granted(state, B.with_value("89abcdef")) == 1


@pytest.mark.parametrize("scope", [s for s in Scope if s is not Scope.NONE])
def test_a_reset_ends_every_cooldown_of_a_key(state: State, scope: Scope) -> None:
    """By hand, also after a rejection of its project or account."""
    settle(state, A, failed(scope, inf), info=CACHE)
    assert refused(state, A, info=CACHE) == {"a": "failure"}
    state.reset(A)
    assert lease_of(state, A, info=CACHE).probe is False
    assert state.snapshot([A])["a"].cooldown_until is None


def test_a_reset_forgets_learned_limits_and_leaves_other_keys(state: State) -> None:
    """Those of the key's project, in each model's bucket; the cooldown of another key stays."""
    for one in (A, D):
        for info in (INFO, PRO):
            settle(state, one, failed(Scope.NONE, learned=Limits(rpm=2)), info=info)
    settle(state, B, failed(Scope.KEY, inf), info=COUNT)
    state.reset(A)
    for info in (INFO, PRO):
        assert granted(state, A, most=5, info=info) == 5
        assert granted(state, D, info=info) == 1
    assert refused(state, B) == {"b": "failure"}


# Threads and tasks -----------------------------------------------------------------------------


@pytest.fixture
def switch_threads_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def at_once(work: Callable[[], Any]) -> list[Any]:
    """Do *work* in fifty threads that begin together; return what each returned."""
    start = threading.Barrier(THREADS)

    def one(_: int) -> Any:
        start.wait(60)
        return work()

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(one, range(THREADS)))


@pytest.mark.usefixtures("switch_threads_often")
def test_50_threads_settle_without_losing_a_count(state: State) -> None:
    """Reservations, corrections and concurrency are exact after hundreds of leases."""
    one = key("a", Limits(max_concurrency=3))

    def work() -> int:
        done = 0
        for number in range(20):
            reply = acquire(state, one, info=INFO._replace(tokens=50), strategy="spread")
            if isinstance(reply, Lease):
                settle(state, reply, UNSENT if number % 2 else used(7))
                done += number % 2 == 0
        return done

    done = sum(at_once(work))
    known = state.snapshot([one])["a"]
    assert known.success_count == done
    assert (known.used[0].requests_minute, known.used[0].tokens_minute) == (done, 7 * done)
    assert granted(state, one) == 3


@pytest.mark.usefixtures("switch_threads_often")
def test_50_failures_are_one_step_and_one_of_50_threads_is_the_probe(
    state: State, clock: FakeClock
) -> None:
    """Fifty requests that fail together cool their key down for 30 s, not for 900."""
    together = threading.Barrier(THREADS)

    def fail() -> float | None:
        lease = lease_of(state, D)
        together.wait(60)
        return settle(state, lease, failed(Scope.KEY_MODEL))

    assert set(at_once(fail)) == {clock.time() + 30}
    clock.advance(30)
    probes = at_once(lambda: isinstance(acquire(state, D), Lease))
    assert sum(probes) == 1
