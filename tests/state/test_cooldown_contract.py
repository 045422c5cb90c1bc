"""The contract of a state: who rests after a failure, for how long, and what ends it."""

from __future__ import annotations

from math import inf

import pytest
from doors import ABANDONED, OK, UNSENT, Door, failed
from rig import INFO, key

from keyrot_middleware.core.model import Limits, Outcome, Scope, Unavailable
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.drive.health import retired
from keyrot_middleware.keysfile import KeySpec
from keyrot_middleware.testing import FakeClock

GUESS = failed(Scope.KEY_MODEL)
A, B = key("a", project="p", billing_account="x"), key("b", project="p", billing_account="x")
C, D = key("c", project="q", billing_account="x"), key("d")
PRO = INFO._replace(model="gemini-2.5-pro")
EMBED = INFO._replace(verb="embedContent")
CACHE = INFO._replace(verb="cachedContents")
COUNT = INFO._replace(verb="countTokens", metered=False)


@pytest.mark.parametrize(
    ("scope", "resting"),
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
async def test_exactly_those_rest_that_a_failure_is_about(
    door: Door, clock: FakeClock, scope: Scope, resting: str
) -> None:
    """A failure's scope says who rests: the key, its project's model, its billing account."""
    until = await door.fails(A, failed(scope, clock.time() + 60))
    ways = {"a": (A, INFO), "pro": (A, PRO), "embed": (A, EMBED), "cache": (A, CACHE)}
    ways |= {"count": (A, COUNT), "b": (B, INFO), "c": (C, INFO), "d": (D, INFO)}
    replies = {name: await door.acquire(one, info=info) for name, (one, info) in ways.items()}
    found = [name for name, reply in replies.items() if isinstance(reply, Unavailable)]
    assert found == resting.split()
    assert until == (None if scope is Scope.NONE else clock.time() + 60)


async def test_a_call_without_a_model_is_bound_to_none(door: Door, clock: FakeClock) -> None:
    """What a failure of one says of a model's bucket does not make them share it."""
    stored = INFO._replace(model="", verb="cachedContents", metered=False)
    await door.fails(A, failed(Scope.NONE, bucket="gemini-2.5-flash"), info=stored)
    await door.fails(A, failed(Scope.PROJECT_MODEL, clock.time() + 60))
    assert await door.granted(A, most=1, info=stored) == 1


async def test_the_ladder_climbs_30_60_120_up_to_900(door: Door, clock: FakeClock) -> None:
    """Each failure of the probe doubles the rest, up to the top; nobody may wait for a guess."""
    rests = []
    for _ in range(8):
        until = await door.fails(D, GUESS)
        assert until is not None
        rests.append(round(until - clock.time()))
        reply = await door.acquire(D)
        assert isinstance(reply, Unavailable)
        assert not reply.blocks["d"].waitable
        clock.advance(until - clock.time())
    assert rests == [30, 60, 120, 240, 480, 900, 900, 900]


async def test_a_success_takes_the_ladder_back_to_its_start(door: Door, clock: FakeClock) -> None:
    """After the probe has succeeded the next failure rests for 30 s again."""
    await door.fails(D, GUESS)
    clock.advance(30)
    await door.fails(D, GUESS)
    clock.advance(60)
    await door.settle(await door.lend(D))
    assert await door.fails(D, GUESS) == clock.time() + 30


async def test_each_scope_has_a_ladder_of_its_own(door: Door, clock: FakeClock) -> None:
    """Failures of one model do not lengthen the rest of another."""
    for info in (INFO, PRO):
        assert await door.fails(D, GUESS, info=info) == clock.time() + 30


async def test_a_burst_of_failures_is_one_step(door: Door, clock: FakeClock) -> None:
    """Ten requests under way that fail together climb one rung, not ten."""
    leases = [await door.lend(D) for _ in range(10)]
    for lease in leases:
        clock.advance(0.5)
        until = await door.settle(lease, GUESS)
    assert until == clock.time() + 30
    clock.advance(30)
    assert await door.fails(D, GUESS) == clock.time() + 60


async def test_one_probe_goes_first(door: Door, clock: FakeClock) -> None:
    """When a cooldown ends, one request tries; the others wait for what becomes of it."""
    await door.fails(D, GUESS)
    clock.advance(30)
    probe = await door.lend(D)
    assert probe.probe
    assert await door.refused(D) == {"d": "probe"}
    await door.settle(probe)
    assert not (await door.lend(D)).probe
    assert await door.granted(D, most=5) == 5


@pytest.mark.parametrize("outcome", [ABANDONED, UNSENT, failed(Scope.NONE)])
async def test_a_probe_that_proved_nothing_is_followed_by_another(
    door: Door, clock: FakeClock, outcome: Outcome
) -> None:
    """A cancelled probe ends neither the caution nor the key."""
    await door.fails(D, GUESS)
    clock.advance(30)
    await door.settle(await door.lend(D), outcome)
    assert (await door.lend(D)).probe
    assert await door.refused(D) == {"d": "probe"}


async def test_a_project_is_probed_by_one_of_its_keys(door: Door, clock: FakeClock) -> None:
    """While one key probes its project, the project's other keys wait as well."""
    await door.fails(A, failed(Scope.PROJECT_MODEL, clock.time() + 20, named=True))
    clock.advance(20)
    probe = await door.lend(B)
    assert await door.refused(A) == {"a": "probe"}
    await door.settle(probe)
    assert await door.granted(A, most=3) == 3


async def test_a_success_that_began_before_does_not_end_a_cooldown(
    door: Door, clock: FakeClock
) -> None:
    """A long stream that began before the failure says nothing of what came after."""
    stream = await door.lend(D)
    await door.fails(D, GUESS)
    clock.advance(10)
    await door.settle(stream)
    assert await door.refused(D) == {"d": "failure"}
    stream = await door.lend(key("e"))
    await door.fails(key("e"), GUESS)
    clock.advance(31)
    await door.settle(stream)
    assert (await door.lend(key("e"))).probe


async def test_a_failure_that_began_before_renews_a_cooldown(door: Door, clock: FakeClock) -> None:
    """A late failure while the probe is out keeps the key resting, whatever the probe says."""
    late = await door.lend(D)
    await door.fails(D, GUESS)
    clock.advance(30)
    probe = await door.lend(D)
    await door.settle(late, failed(Scope.KEY_MODEL, clock.time() + 50))
    await door.settle(probe)
    assert await door.refused(D) == {"d": "failure"}


async def test_a_renewed_cooldown_has_a_probe_of_its_own(door: Door, clock: FakeClock) -> None:
    """A first probe that is still out neither holds up the second one nor stands in for it."""
    late = await door.lend(D)
    await door.fails(D, GUESS)
    clock.advance(30)
    first = await door.lend(D)
    await door.settle(late, failed(Scope.KEY_MODEL, clock.time() + 50))
    clock.advance(50)
    assert (await door.lend(D)).probe
    await door.settle(first, ABANDONED)
    assert await door.refused(D) == {"d": "probe"}


async def test_a_named_time_may_be_waited_for(door: Door, clock: FakeClock) -> None:
    """A block says whether its end is known and worth waiting for."""
    for outcome, waitable in (
        (failed(Scope.KEY, clock.time() + 20, named=True), True),
        (failed(Scope.KEY, clock.time() + 30), False),
        (failed(Scope.KEY, clock.time() + 40, named=True, wait=False), False),
    ):
        one = key(f"k{waitable}{outcome.verdict.until}")  # type: ignore[union-attr]
        await door.fails(one, outcome)
        reply = await door.acquire(one)
        assert isinstance(reply, Unavailable)
        assert reply.blocks[one.key_id].waitable == waitable


async def test_a_running_cooldown_is_never_shortened(door: Door, clock: FakeClock) -> None:
    """A minute's failure after a day's leaves the day's end as it was."""
    leases = [await door.lend(D) for _ in range(2)]
    far = clock.time() + 3_600
    assert await door.settle(leases[0], failed(Scope.PROJECT_MODEL, far)) == far
    assert await door.settle(leases[1], failed(Scope.PROJECT_MODEL, clock.time() + 20)) == far


async def test_a_retired_key_comes_back_by_its_revival_only(door: Door, clock: FakeClock) -> None:
    """`inf` never passes; `revive` ends what is about the key alone, not what others share."""
    for one, scope in ((D, Scope.KEY), (A, Scope.KEY_VERB), (D, Scope.PROJECT)):
        await door.fails(one, failed(scope, inf))
        clock.advance(40 * DAY_S)
        assert await door.refused(one) == {one.key_id: "failure"}
        door.state.revive(one.key_id)
        assert not (await door.lend(one)).probe
    await door.fails(A, failed(Scope.PROJECT, inf))
    await door.fails(D, failed(Scope.PROJECT_MODEL, clock.time() + 60))
    for one in (A, D):
        door.state.revive(one.key_id)
        assert await door.refused(one) == {one.key_id: "failure"}


async def test_a_key_of_keys_json_without_a_project_comes_back_whole(door: Door) -> None:
    """Its suspended project and account are the key's own, and end with its old value."""
    one = KeySpec(key_id="lone").candidate
    for scope in (Scope.PROJECT, Scope.BILLING):
        first, second = await door.lend(one), await door.lend(one)
        await door.settle(first, failed(scope, inf))
        assert await door.refused(one) == {"lone": "failure"}
        door.state.revive("lone")
        assert await door.settle(second, failed(scope, inf)) is None
        await door.settle(await door.lend(one))


async def test_a_late_failure_of_the_old_value_does_not_retire_the_new_one(door: Door) -> None:
    """Of two calls under way with a revoked value one has it replaced; the other fails after."""
    first, second = await door.lend(D), await door.lend(D)
    await door.settle(first, failed(Scope.KEY, inf))
    door.state.revive("d")
    assert await door.settle(second, failed(Scope.KEY, inf)) is None
    await door.settle(await door.lend(D), failed(Scope.KEY, inf))
    assert await door.refused(D) == {"d": "failure"}


async def test_a_late_retirement_of_a_shared_project_counts_for_all_of_it(door: Door) -> None:
    """What began with the old value says of others' project what any failure does."""
    late = await door.lend(A)
    door.state.revive("a")
    assert await door.settle(late, failed(Scope.PROJECT, inf)) == inf
    assert await door.refused(A, B) == {"a": "failure", "b": "failure"}


async def test_a_late_failure_after_a_revival_still_counts_for_others(
    door: Door, clock: FakeClock
) -> None:
    """A new value of the key gives its project no new quota."""
    late = await door.lend(D)
    door.state.revive("d")
    assert await door.settle(late, failed(Scope.PROJECT_MODEL, clock.time() + 20))
    assert await door.refused(D) == {"d": "failure"}


async def test_10_000_keys_forget_nothing(door: Door, clock: FakeClock) -> None:
    """Cooldowns, windows and counts of ten thousand keys are all there, and after a day gone."""
    keys = [key(f"k{number}", Limits(rpm=2)) for number in range(10_000)]
    for number, one in enumerate(keys):
        outcome = failed(Scope.KEY, inf) if number % 2 else OK
        await door.settle(await door.lend(one), outcome)
    for number in (0, 1, 2, 3, 5_000, 5_001, 9_998, 9_999):
        if number % 2:
            assert await door.refused(keys[number]) == {f"k{number}": "failure"}
        else:
            assert await door.granted(keys[number]) == 1
    clock.advance(2 * DAY_S)
    assert await door.refused(keys[9_999]) == {"k9999": "failure"}
    assert await door.granted(keys[0]) == 2


@pytest.mark.parametrize("narrow", [Scope.KEY_VERB, Scope.PROJECT_MODEL])
async def test_of_what_ends_together_the_wider_is_shown(door: Door, narrow: Scope) -> None:
    """A key that a method was blocked for, and that is invalid then, is out of service."""
    await door.fails(A, failed(narrow, inf), info=EMBED)
    await door.fails(A, failed(Scope.KEY, inf), info=PRO)
    health = door.state.snapshot([A])["a"]
    assert (health.cooldown_scope, retired(health)) == (Scope.KEY, True)


@pytest.mark.parametrize("scope", [s for s in Scope if s is not Scope.NONE])
async def test_a_reset_ends_whatever_rests_a_key(door: Door, scope: Scope) -> None:
    """A person brings a key back, from a retirement of its project or account too."""
    await door.fails(A, failed(scope, inf), info=CACHE)
    assert await door.refused(A, info=CACHE) == {"a": "failure"}
    door.state.reset(A)
    assert (await door.lend(A, info=CACHE)).probe is False
    assert door.state.snapshot([A])["a"].cooldown_until is None


async def test_a_reset_leaves_other_keys_where_they_are(door: Door) -> None:
    """What rests another key alone goes on, in the same project as well."""
    await door.fails(A, failed(Scope.KEY, inf))
    await door.fails(D, failed(Scope.KEY, inf))
    door.state.reset(B)
    assert await door.refused(A, D) == {"a": "failure", "d": "failure"}
