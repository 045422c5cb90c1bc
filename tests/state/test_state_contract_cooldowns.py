"""The contract of a state: which keys cool down after a failure, for how long, and what ends it."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from support.pool import INFO, key
from support.sync_async import ABANDONED, OK, UNSENT, StateClient, SyncClient, failed, used

from keyrot_middleware.core.failures import SLOW_BACKOFF
from keyrot_middleware.core.model import (
    NO_LIMITS,
    Block,
    CallInfo,
    LeaseOutcome,
    Limits,
    Outcome,
    Scope,
    Unavailable,
    Verdict,
)
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.keys_file import KeySpec
from keyrot_middleware.testing import FakeClock

GUESS = failed(Scope.KEY_MODEL)
REJECTED = Outcome(
    LeaseOutcome.FAILURE,
    Verdict("key_invalid", 400, Scope.KEY, rejected=True, backoff=SLOW_BACKOFF),
)
LONE = KeySpec(key_id="lone").candidate
A, B = key("a", project="p", billing_account="x"), key("b", project="p", billing_account="x")
C, D = key("c", project="q", billing_account="x"), key("d")
PRO = INFO._replace(model="gemini-2.5-pro")
EMBED = INFO._replace(verb="embedContent")
CACHE = INFO._replace(verb="cachedContents")
COUNT = INFO._replace(verb="countTokens", counts_in_quota=False)


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
async def test_exactly_the_keys_in_a_failures_scope_cool_down(
    client: StateClient, clock: FakeClock, scope: Scope, cooling: str
) -> None:
    """A failure's scope decides: the key, its project's model, its billing account."""
    until = await client.fails(A, failed(scope, clock.time() + 60))
    ways = {"a": (A, INFO), "pro": (A, PRO), "embed": (A, EMBED), "cache": (A, CACHE)}
    ways |= {"count": (A, COUNT), "b": (B, INFO), "c": (C, INFO), "d": (D, INFO)}
    replies = {name: await client.acquire(one, info=info) for name, (one, info) in ways.items()}
    found = [name for name, reply in replies.items() if isinstance(reply, Unavailable)]
    assert found == cooling.split()
    assert until == (None if scope is Scope.NONE else clock.time() + 60)


async def test_a_call_without_a_model_shares_no_bucket(
    client: StateClient, clock: FakeClock
) -> None:
    """A bucket in the failure of one such call does not make all of them share it."""
    stored = INFO._replace(model="", verb="cachedContents", counts_in_quota=False)
    await client.fails(A, failed(Scope.NONE, bucket="gemini-2.5-flash"), info=stored)
    await client.fails(A, failed(Scope.PROJECT_MODEL, clock.time() + 60))
    assert await client.granted(A, most=1, info=stored) == 1


async def test_each_scope_has_a_backoff_of_its_own(client: StateClient, clock: FakeClock) -> None:
    """Failures of one model do not lengthen the cooldown of another."""
    for info in (INFO, PRO):
        assert await client.fails(D, GUESS, info=info) == clock.time() + 30


async def test_one_probe_goes_first(client: StateClient, clock: FakeClock) -> None:
    """When a cooldown ends, one request is sent; the others wait for its result."""
    await client.fails(D, GUESS)
    clock.advance(30)
    probe = await client.acquire_lease(D)
    assert probe.probe
    assert await client.refused(D) == {"d": "probe"}
    await client.settle(probe)
    assert not (await client.acquire_lease(D)).probe
    assert await client.granted(D, most=5) == 5


@pytest.mark.parametrize("outcome", [ABANDONED, UNSENT, failed(Scope.NONE)])
async def test_a_probe_that_proved_nothing_is_followed_by_another(
    client: StateClient, clock: FakeClock, outcome: Outcome
) -> None:
    """A cancelled probe neither makes the key available nor blocks it."""
    await client.fails(D, GUESS)
    clock.advance(30)
    await client.settle(await client.acquire_lease(D), outcome)
    assert (await client.acquire_lease(D)).probe
    assert await client.refused(D) == {"d": "probe"}


async def test_a_project_is_probed_by_one_of_its_keys(
    client: StateClient, clock: FakeClock
) -> None:
    """While one key probes its project, the project's other keys wait as well."""
    await client.fails(A, failed(Scope.PROJECT_MODEL, clock.time() + 20, has_known_end=True))
    clock.advance(20)
    probe = await client.acquire_lease(B)
    assert await client.refused(A) == {"a": "probe"}
    await client.settle(probe)
    assert await client.granted(A, most=3) == 3


async def test_a_block_with_a_named_time_may_be_waited_for(
    client: StateClient, clock: FakeClock
) -> None:
    """A block has whether its end is known and worth waiting for."""
    for outcome, waitable in (
        (failed(Scope.KEY, clock.time() + 20, has_known_end=True), True),
        (failed(Scope.KEY, clock.time() + 30), False),
        (failed(Scope.KEY, clock.time() + 40, has_known_end=True, may_wait=False), False),
    ):
        one = key(f"k{waitable}{outcome.verdict.until}")  # type: ignore[union-attr]
        await client.fails(one, outcome)
        reply = await client.acquire(one)
        assert isinstance(reply, Unavailable)
        assert reply.blocks[one.key_id].waitable == waitable


async def test_a_rejected_value_is_probed_on_a_slow_backoff(
    client: StateClient, clock: FakeClock
) -> None:
    """Its own: 15 minutes, doubled up to 6 hours, whatever the settings are; eight in a day."""
    cooldowns: list[float] = []
    while sum(cooldowns) < DAY_S:
        until = await client.fails(D, REJECTED)
        assert until is not None
        cooldowns.append(until - clock.time())
        reply = await client.acquire(D)
        assert isinstance(reply, Unavailable)
        assert reply.blocks["d"] == Block("key_invalid", until, waitable=False)
        clock.advance(cooldowns[-1])
    assert cooldowns == [900, 1_800, 3_600, 7_200, 14_400, 21_600, 21_600, 21_600]


async def test_a_success_clears_a_rejection(client: StateClient, clock: FakeClock) -> None:
    """Google was wrong, or lifted a restriction: the next rejection is a first one."""
    await client.fails(D, REJECTED)
    clock.advance(900)
    await client.fails(D, REJECTED)
    clock.advance(1_800)
    await client.settle(await client.acquire_lease(D))
    assert not (await client.acquire_lease(D)).probe
    assert await client.fails(D, REJECTED) == clock.time() + 900


async def test_a_rejection_does_not_apply_to_another_value(client: StateClient) -> None:
    """Also where the rejection comes after the new value; the old one stays rejected."""
    old, new = (LONE.with_value(fingerprint) for fingerprint in ("01234567", "89abcdef"))
    late = await client.acquire_lease(old)
    await client.fails(old, REJECTED)
    assert await client.refused(old) == {"lone": "key_invalid"}
    assert not (await client.acquire_lease(new)).probe
    await client.settle(late, REJECTED)
    assert not (await client.acquire_lease(new)).probe
    assert client.state.snapshot([old])["lone"].cooldown_reason == "key_invalid"
    assert client.state.snapshot([new])["lone"].cooldown_reason is None


async def test_limits_learned_with_one_value_do_not_bind_another(client: StateClient) -> None:
    """A key without a project is its own project, and so is each of its values."""
    first, second = (LONE.with_value(fingerprint) for fingerprint in ("01234567", "89abcdef"))
    await client.fails(first, failed(Scope.NONE, learned=Limits(rpm=2)))
    assert await client.granted(first) == 1
    assert await client.granted(second, most=5) == 5


async def test_keys_of_one_project_share_what_was_learned(client: StateClient) -> None:
    """Whatever their values are: the project is named in keys.json."""
    first, second = A.with_value("01234567"), B.with_value("89abcdef")
    await client.fails(first, failed(Scope.NONE, learned=Limits(rpm=2)))
    assert await client.granted(second) == 1


async def test_10_000_keys_keep_their_records(client: StateClient, clock: FakeClock) -> None:
    """Cooldowns, windows and counts of ten thousand keys are all kept, and gone after a day.

    The awaited methods use the same records: for them a thousand keys are enough.
    """
    many = 10_000 if isinstance(client, SyncClient) else 1_000
    keys = [key(f"k{number}", Limits(rpm=2)) for number in range(many)]
    for number, one in enumerate(keys):
        outcome = failed(Scope.KEY, inf) if number % 2 else OK
        await client.settle(await client.acquire_lease(one), outcome)
    for number in (0, 1, 2, 3, many // 2, many // 2 + 1, many - 2, many - 1):
        if number % 2:
            assert await client.refused(keys[number]) == {f"k{number}": "failure"}
        else:
            assert await client.granted(keys[number]) == 1
    clock.advance(2 * DAY_S)
    assert await client.refused(keys[-1]) == {keys[-1].key_id: "failure"}
    assert await client.granted(keys[0]) == 2


@pytest.mark.parametrize("narrow", [Scope.KEY_VERB, Scope.PROJECT_MODEL])
async def test_of_cooldowns_that_end_together_the_wider_is_shown(
    client: StateClient, clock: FakeClock, narrow: Scope
) -> None:
    """A key with a blocked method is then cooled down as a whole."""
    await client.fails(A, failed(narrow, clock.time() + 60), info=EMBED)
    await client.fails(A, failed(Scope.KEY, clock.time() + 60), info=PRO)
    assert client.state.snapshot([A])["a"].cooldown_scope == Scope.KEY


@pytest.mark.parametrize("scope", [s for s in Scope if s is not Scope.NONE])
async def test_a_reset_ends_every_cooldown_of_a_key(client: StateClient, scope: Scope) -> None:
    """A reset by hand makes a key available, also after a rejection of its project or account."""
    await client.fails(A, failed(scope, inf), info=CACHE)
    assert await client.refused(A, info=CACHE) == {"a": "failure"}
    client.state.reset(A)
    assert (await client.acquire_lease(A, info=CACHE)).probe is False
    assert client.state.snapshot([A])["a"].cooldown_until is None


async def test_a_reset_leaves_other_keys_where_they_are(client: StateClient) -> None:
    """Cooldowns of another key alone continue, in the same project as well."""
    await client.fails(A, failed(Scope.KEY, inf))
    await client.fails(D, failed(Scope.KEY, inf))
    client.state.reset(B)
    assert await client.refused(A, D) == {"a": "failure", "d": "failure"}


async def test_a_reset_forgets_learned_limits(client: StateClient) -> None:
    """Those of the key's project, in each model's bucket; another project's stay."""
    for one in (A, D):
        for info in (INFO, PRO):
            await client.fails(one, failed(Scope.NONE, learned=Limits(rpm=2)), info=info)
    client.state.reset(A)
    for info in (INFO, PRO):
        assert await client.granted(A, most=5, info=info) == 5
        assert await client.granted(D, info=info) == 1


async def test_a_probe_that_succeeds_lets_others_go_before_its_end(
    client: StateClient, clock: FakeClock
) -> None:
    """The first chunk of a stream ends the probing; its slot and tokens are held until the end."""
    one = key("one", Limits(tpm=100, max_concurrency=2))
    await client.fails(one, failed(Scope.KEY))
    clock.advance(30)
    probe = await client.acquire_lease(one)
    await client.settle(probe, Outcome(LeaseOutcome.SERVING))
    other = await client.acquire_lease(one)
    assert not other.probe
    assert await client.refused(one) == {"one": "concurrency"}
    await client.settle(probe, used(90))
    assert await client.refused(one) == {"one": "tpm"}


async def test_a_configured_limit_that_changes_beats_what_was_learned_before(
    client: StateClient,
) -> None:
    """That of the key's project; a limit learned after it holds again, also after a restart."""
    before, after = replace(A, limits=Limits(rpm=2)), replace(A, limits=Limits(rpm=4))
    client.state.configure([before, D])
    for one in (before, D):
        await client.fails(one, failed(Scope.NONE, learned=Limits(rpm=2)))
    client.state.configure([before, D])
    assert await client.granted(before) == 1
    client.state.configure([after, D])
    assert await client.granted(after) == 2
    assert await client.granted(D) == 1
    await client.fails(after, failed(Scope.NONE, learned=Limits(rpm=3)), info=PRO)
    client.state.configure([after, D])
    assert await client.granted(after, info=PRO) == 2
    client.state.configure([replace(A, limits=NO_LIMITS), D])
    assert await client.granted(A, most=9, info=PRO) == 9


@pytest.mark.parametrize(
    ("learned", "info", "tokens"),
    [
        (Limits(tpm=100), INFO._replace(tokens=100), 250),
        (Limits(rpm=2), INFO._replace(requests=3), 10),
        (Limits(rpd=2), INFO._replace(requests=3), 10),
    ],
)
async def test_a_success_beyond_a_learned_limit_ends_it(
    client: StateClient, learned: Limits, info: CallInfo, tokens: int
) -> None:
    """Google raised it, or the estimate was wrong: a served request is within the limit."""
    request = await client.acquire_lease(D, info=info)
    await client.fails(D, failed(Scope.NONE, learned=learned), info=info._replace(requests=0))
    await client.settle(request, used(tokens))
    assert client.state.snapshot([D])["d"].used[0].limits == NO_LIMITS
    assert await client.granted(D, most=9) == 9


async def test_a_success_within_a_learned_limit_ends_nothing(client: StateClient) -> None:
    """Nor do several that were in flight together: the server's order is not known."""
    leases = [await client.acquire_lease(D) for _ in range(4)]
    await client.fails(D, failed(Scope.NONE, learned=Limits(rpm=2, tpm=100)))
    for lease in leases:
        await client.settle(lease, used(90))
    assert client.state.snapshot([D])["d"].used[0].limits == Limits(rpm=2, tpm=100)
