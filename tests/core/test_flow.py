"""A call walks the pool: a failed key is excluded, an available one is used at once."""

import sys
from math import inf
from typing import Any

import pytest
from support.pool import INFO, Rig, key, three
from support.replies import (
    OK,
    GoogleError,
    bad,
    capacity,
    day,
    denied,
    exceeds_limit,
    failure,
    invalid,
    lost,
    minute,
    overloaded,
    unsupported_region,
)

from keyrot_middleware.core.commands import Acquire, Done, Failed, Refresh, Settle, Sleep
from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.core.flow import (
    Exhausted,
    FailedAttempt,
    attempt_note,
    drop_tracebacks,
)
from keyrot_middleware.core.model import Limits, Scope, Usage, Verdict

SUSPENDED = failure(403, "Permission denied: Consumer 'projects/1' has been suspended.")


def reasons(error: Any) -> dict[str, str]:
    assert isinstance(error, Exhausted)
    return {key_id: block.reason for key_id, block in error.unavailable.blocks.items()}


def rejected(*key_ids: str) -> Rig:
    """Make a pool whose keys were all rejected by one call."""
    rig = Rig(*map(key, key_ids), strategy="fill", max_wait_s=0)
    for key_id in key_ids:
        rig.will(key_id, invalid())
    rig.failing()
    rig.sent.clear()
    return rig


def replaced(rig: Rig, key_id: str) -> Any:
    def reply() -> Any:
        rig.store.values[key_id] += "x"
        return invalid()

    return reply


# Walking ---------------------------------------------------------------------------------------


def test_220_dead_keys_are_tried_once_each() -> None:
    """However many keys are dead, each costs one request in all."""
    rig = Rig(*(key(f"dead{number}") for number in range(220)), key("good"))
    for number in range(220):
        rig.will(f"dead{number}", invalid(), invalid())
    rig.random = 0.999
    for _ in range(3):
        rig.call()
    rig.random = 0.0
    assert [rig.call() for _ in range(20)] == ["answer"] * 20
    dead = [key_id for key_id in rig.sent if key_id != "good"]
    assert len(dead) == len(set(dead)) == 220
    assert rig.sent[-1] == "good"


def test_a_call_skips_keys_that_are_known_to_cool_down() -> None:
    """Candidates that were all refused are skipped by the next call: cost does not grow."""
    rig = Rig(*(key(f"k{number}", Limits(rpd=1)) for number in range(200)), strategy="fill")
    for _ in range(190):
        rig.call()
    tapes = [rig.recorded() for _ in range(3)]
    assert sum(len(tape.of(Acquire)) for tape in tapes) <= 4


def test_a_capacity_error_is_not_tried_with_every_key() -> None:
    """A 429 without a quota is probably the model's: six keys are tried, not twenty."""
    rig = Rig(*(key(f"k{number}") for number in range(20)), strategy="fill")
    for number in range(20):
        rig.will(f"k{number}", capacity())
    rig.failing()
    assert rig.sent == [f"k{number}" for number in range(6)]


def test_an_unsupported_region_tries_one_key_of_another_tier() -> None:
    """Where the free tier is not offered only a paid key can help; one refusal is enough."""
    free, paid = ([key(f"{tier}{n}", tier=tier) for n in range(3)] for tier in ("free", "paid"))
    rig = Rig(*free, *paid, strategy="fill")
    rig.will("free0", unsupported_region(), unsupported_region())
    assert rig.call() == "answer"
    assert rig.sent == ["free0", "paid0"]
    rig.will("paid0", unsupported_region())
    rig.failing()
    assert rig.sent[2:] == ["free0", "paid0"]


@pytest.mark.parametrize("tier", ["free", None])
def test_a_request_larger_than_the_limit_is_tried_with_two_keys_of_a_tier(tier: str | None) -> None:
    """Our count is an estimate, so a second key is tried; then only another tier can help."""
    free, paid = (key(f"f{number}", tier=tier) for number in range(6)), key("paid", tier="paid")
    rig = Rig(*free, paid, strategy="fill")
    for number in range(6):
        rig.will(f"f{number}", exceeds_limit())
    assert rig.call(INFO._replace(tokens=5_000)) == "answer"
    assert (rig.sent, rig.slept) == (["f0", "f1", "paid"], [])
    rig.script.clear()
    rig.will("f2", exceeds_limit())
    rig.will("f3", minute("9s"))
    assert rig.call(INFO._replace(tokens=5_000)) == "answer"
    assert rig.sent[3:] == ["f2", "f3", "f4"], "a second key without room just now decides nothing"


def test_a_key_of_a_learned_bucket_cools_down_for_all_of_its_names() -> None:
    """Google counts a `-latest` name with its model: both cool down after either's 429."""
    rig = Rig(key("a"), max_wait_s=0)
    latest = INFO._replace(model="gemini-flash-latest")
    rig.will("a", minute("20s", model=INFO.model))
    rig.failing(latest)
    for info in (latest, INFO):
        assert isinstance(rig.failing(info), Exhausted)
    rig.clock.advance(21)
    rig.call(latest)
    rig.will("a", minute("20s", model="gemini-3-flash"))
    rig.failing(latest)
    assert isinstance(rig.failing(latest), Exhausted)
    assert rig.call(INFO) == "answer"


@pytest.mark.parametrize("ends", [lambda: lost("connect"), lambda: Done("answer", Usage(50))])
def test_what_a_request_releases_is_available_at_once(ends: Any) -> None:
    """Another call found the minute full; then the request was not sent, or was smaller."""
    rig = Rig(key("a", Limits(tpm=1_000)), max_wait_s=0)
    large = INFO._replace(tokens=900, estimate=900)

    def meanwhile() -> Any:
        assert isinstance(rig.failing(large), Exhausted)
        return ends()

    rig.will("a", meanwhile)
    assert [rig.call(large), rig.call(INFO)] == ["answer"] * 2


# Replies that no row knows ---------------------------------------------------------------------


def unknown(code: int, text: str) -> Any:
    return Failed(FailureFacts(code, text), GoogleError(f"{code} {text}"))


def openai(**policy: Any) -> Rig:
    keys = (key(one, platform="openai") for one in "abc")
    return Rig(*keys, strategy="fill", max_wait_s=0, **policy)


OPENAI = INFO._replace(platform="openai")


@pytest.mark.parametrize(("code", "other_model"), [(401, "b"), (402, "b"), (403, "a")])
def test_a_key_whose_refusal_is_unknown_is_set_aside_beside_one_that_serves(
    code: int, other_model: str
) -> None:
    """It is a guess: for a minute, then twice as long; a 403 is of the model alone."""
    rig = openai()
    rig.will("a", unknown(code, "No."), *[unknown(code, "Still no.")] * (other_model == "b"))
    assert [rig.call(OPENAI) for _ in range(3)] == ["answer"] * 3
    assert rig.call(OPENAI._replace(model="other")) == "answer"
    rig.clock.advance(61)
    rig.call(OPENAI)
    rig.clock.advance(61)
    rig.call(OPENAI)
    assert "".join(rig.sent) == f"abbb{other_model}" + ("abb" if other_model == "b" else "aa")


@pytest.mark.parametrize("code", [400, 401, 402, 403])
def test_what_every_key_is_refused_is_the_requests(code: int) -> None:
    """Each is asked once, then one of them for each call; ids and keys in the words differ."""
    rig = openai()
    for number, key_id in enumerate("abc"):
        said = f"Key sk-FAKE{number} of this account (id {number}) may not do that"
        rig.will(key_id, *[unknown(code, said)] * (3 if key_id == "a" else 1))
    assert [str(rig.failing(OPENAI))[:7] for _ in range(3)] == [f"{code} Key"] * 3
    assert "".join(rig.sent) == "abcaa"
    assert rig.call(OPENAI) == "answer"
    assert rig.sent[5:] == ["a"]


def test_an_unknown_refusal_beside_exhausted_keys_is_raised_as_exhausted() -> None:
    """Whatever the order: another key will serve; a pool of one key raises the refusal itself."""
    for first, second in (("a", "b"), ("b", "a")):
        rig = Rig(key("a", platform="openai"), key("b", platform="openai"), max_wait_s=0)
        rig.will(first, unknown(401, "No."))
        rig.will(second, unknown(429, "Slow down."))
        assert reasons(rig.failing(OPENAI)) == {first: "unknown_refusal", second: "unknown_limit"}
    rig = Rig(key("a", platform="openai"))
    rig.default = unknown(401, "No.")
    assert [str(rig.failing(OPENAI)) for _ in range(2)] == ["401 No."] * 2


def test_a_clients_own_key_is_not_set_aside() -> None:
    """It is none of the pool's; a key of its project serves the call."""
    home = key("home:x", platform="openai", project="p")
    rig = Rig(key("a", platform="openai", project="p"), max_wait_s=0)
    rig.will("home:x", unknown(401, "No."), unknown(401, "No."))
    bound = OPENAI._replace(bound_to_owner=True)
    assert [rig.call(bound, home) for _ in range(2)] == ["answer"] * 2
    assert rig.sent == ["home:x", "a", "home:x", "a"]


@pytest.mark.parametrize("keys", ["a", "ab"])
def test_a_5xx_that_names_a_long_time_is_tried_with_another_key(keys: str) -> None:
    """Where there is one: another account may be served earlier."""
    rig = Rig(*(key(one, platform="openai") for one in keys), strategy="fill", max_wait_s=1)
    busy = Failed(FailureFacts(503, "", "3600"), GoogleError("busy"))
    rig.will("a", busy, busy)
    if keys == "a":
        assert str(rig.failing(OPENAI)) == "busy"
    else:
        assert rig.call(OPENAI) == "answer"
    assert "".join(rig.sent) == keys


# Values that are replaced ----------------------------------------------------------------------


def test_a_replaced_secret_is_used_at_once_but_only_once() -> None:
    """A rejected key whose value was replaced serves the same call; a second bad value does not."""
    rig = three()
    rig.will("a", replaced(rig, "a"))
    assert rig.call() == "answer"
    rig.will("a", replaced(rig, "a"), replaced(rig, "a"))
    assert rig.call() == "answer"
    assert rig.sent == ["a", "a", "a", "a", "b"]


@pytest.mark.parametrize(
    ("faults", "looked_up"),
    [
        ([minute(), denied(), SUSPENDED], [("c", False), ("c", True)]),
        ([invalid(), invalid(), invalid()], [(k, wait) for wait in (False, True) for k in "abc"]),
    ],
)
def test_a_store_is_asked_about_rejected_keys_and_waited_for_where_no_other_serves(
    faults: Any, looked_up: list[tuple[str, bool]]
) -> None:
    """An exhausted minute or a project closed for a day is no reason to query it."""
    rig = three(max_wait_s=0)
    for key_id, fault in zip("abc", faults, strict=True):
        rig.will(key_id, fault)
    found = [(refresh.key_id, refresh.wait) for refresh in rig.recorded().of(Refresh)]
    assert sorted(found, key=lambda one: one[1]) == found
    assert sorted(found) == sorted(looked_up)


def test_a_late_value_serves_the_call_that_no_other_key_can() -> None:
    """Two keys are rejected; the first one's new value has arrived when the second fails."""
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0)
    rig.will("a", invalid())
    rig.will("b", replaced(rig, "a"))
    assert rig.call() == "answer"
    assert rig.sent == ["a", "b", "a"]


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_call_that_finds_every_key_rejected_looks_all_values_up(
    name: str, way: str
) -> None:
    """Not only that of the key that was rejected last; a task awaits the look-up."""
    rig = rejected("a", "b")
    rig.store.values[name] += "x"
    assert (rig.call() if way == "sync" else await rig.acall()) == "answer"
    assert rig.sent == [name]


def test_without_another_good_value_the_call_fails_after_one_look_up() -> None:
    """The next call queries no store for a while; a new value that is rejected causes no other."""
    rig = rejected("a", "b")
    assert isinstance(rig.failing(), Exhausted)
    lookups = rig.store.lookups
    assert isinstance(rig.failing(), Exhausted)
    assert (rig.sent, rig.store.lookups) == ([], lookups)
    other = rejected("a")
    other.will("a", invalid())
    other.store.values["a"] += "x"
    assert "key_invalid" in other.failing().__notes__[0]
    assert other.sent == ["a"]


def test_while_a_key_has_a_known_end_no_store_is_queried() -> None:
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0)
    rig.will("a", invalid())
    rig.will("b", minute("20s"))
    rig.failing()
    rig.store.values["a"] += "x"
    assert isinstance(rig.failing(), Exhausted)


# Retrying --------------------------------------------------------------------------------------


def test_max_attempts_bounds_the_walk_but_not_the_retries() -> None:
    """Walking, retrying and waiting have budgets of their own: none uses up another's."""
    rig = three(max_attempts=2, max_retries=2, max_wait_s=0)
    rig.will("a", lost("reset"), lost("reset"), invalid())
    rig.will("b", day())
    error = rig.failing()
    assert rig.sent == ["a", "a", "a", "b"]
    assert (error.has_untried_keys, set(error.unavailable.blocks)) == (True, {"a", "b"})
    rig = three(max_attempts=0, max_retries=1)
    rig.will("a", invalid())
    rig.will("b", lost("reset"), invalid())
    rig.will("c", overloaded())
    rig.failing()
    assert rig.sent == ["a", "b", "b", "c"]
    rig = Rig(key("a"), max_retries=2)
    rig.will("a", overloaded(), minute("5s"), overloaded(), OK)
    assert rig.call() == "answer"
    assert [round(pause, 2) for pause in rig.slept] == [0.25, 5.0, 0.5]


@pytest.mark.parametrize(
    ("fault", "sent"),
    [
        (overloaded, "abc"),
        (lambda: failure(500), "abc"),
        (lambda: lost("reset"), "aaa"),
        (lambda: lost("connect"), "aaa"),
    ],
)
def test_a_server_failure_is_retried_with_backoff_and_penalizes_no_key(
    fault: Any, sent: str
) -> None:
    """5xx and lost connections: sent again twice, further apart.

    After a reply with another key: its account may be what fails.
    """
    rig = three(max_retries=2)
    replies = [fault() for _ in range(3)]
    for key_id, reply in zip(sent, replies, strict=True):
        rig.will(key_id, reply)
    rig.random = 0.999
    assert rig.failing() is replies[-1].error
    assert "".join(rig.sent) == sent
    assert [round(pause, 1) for pause in rig.slept] == [0.5, 1.0]
    assert rig.call() == "answer"
    assert rig.sent[3:] == ["a"]


@pytest.mark.parametrize("others", ["", "limited"])
def test_a_repeat_goes_back_to_the_key_if_no_other_is_available(others: str) -> None:
    """At once, without waiting for those that are limited."""
    rig = Rig(*map(key, "ab" if others else "a"), strategy="fill", max_retries=1)
    rig.will("a", failure(500))
    rig.will("b", minute("50s"))
    assert rig.call() == "answer"
    assert "".join(rig.sent) == ("aba" if others else "aa")
    assert sum(rig.slept) < 1


def test_the_backoff_is_bounded() -> None:
    """However many retries are allowed, no pause is longer than eight seconds."""
    rig = Rig(key("a"), max_retries=12)
    rig.will("a", *(overloaded() for _ in range(12)))
    rig.random = 0.999999
    rig.call()
    assert max(rig.slept) <= 8.0
    assert rig.slept == sorted(rig.slept)


LATER = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}


@pytest.mark.parametrize(
    ("info", "fault", "sends"),
    [
        (INFO, lambda: failure(504), 2),  # the work may have been done
        (INFO, lambda: failure(503, "Busy.", LATER), 2),  # 14 s are beyond the longest wait
        (INFO._replace(idempotent=False), overloaded, 1),
        (INFO._replace(idempotent=False), lambda: lost("reset"), 1),
        (INFO._replace(idempotent=False), lambda: lost("connect"), 6),  # nothing was sent
        (INFO._replace(sdk_retries=True), overloaded, 1),
    ],
)
def test_some_calls_are_retried_less(info: Any, fault: Any, sends: int) -> None:
    rig = Rig(key("a"), max_retries=5, max_wait_s=10.0)
    rig.will("a", *(fault() for _ in range(6)))
    rig.failing(info)
    assert rig.sent == ["a"] * sends


# How a call ends -------------------------------------------------------------------------------


def test_the_exception_lists_every_attempt() -> None:
    """Notes list which key failed how and until when it cools down; a bad request has them too."""
    rig = three(max_wait_s=0)
    rig.will("a", minute("20s"))
    rig.will("b", invalid())
    rig.will("c", bad())
    assert rig.failing().__notes__ == [
        "keyrot: attempt 1 with key a: quota_minute (429), cooling down until 2026-01-01 12:30:50Z",
        "keyrot: attempt 2 with key b: key_invalid (400), rejected; replace its value; "
        "tried again at 2026-01-01 12:45:30Z",
        "keyrot: attempt 3 with key c: bad_request (400)",
    ]
    assert attempt_note(1, FailedAttempt("k", Verdict("key_invalid", 400), 1e12)).endswith(
        "9999-12-31 23:59:59Z"
    )


@pytest.mark.parametrize("order", ["abc", "bca", "cab", "cba"])
def test_what_is_raised_does_not_depend_on_the_order_of_keys(order: str) -> None:
    """Each key's reason, from the last error, and when the first is available again; twice."""
    rig = Rig(*(key(key_id) for key_id in order), strategy="fill", max_wait_s=10)
    replies = {"a": invalid(), "b": day(), "c": minute("31s")}
    for key_id, reply in replies.items():
        rig.will(key_id, reply)
    error = rig.failing()
    assert error.last is replies[order[-1]].error
    assert not error.has_untried_keys
    assert [note.split()[5] for note in error.__notes__] == [f"{key_id}:" for key_id in order]
    for one in (error, rig.failing()):
        assert reasons(one) == {"a": "key_invalid", "b": "quota_day", "c": "quota_minute"}
        assert one.unavailable.retry_at == rig.clock.time() + 31
    assert (rig.sent, rig.slept) == (list(order), [])


@pytest.mark.parametrize("fault", [bad, overloaded, unsupported_region])
def test_errors_of_the_request_and_of_the_service_are_the_sdks_own(fault: Any) -> None:
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0, max_retries=0)
    rig.will("a", invalid())
    last = fault()
    rig.will("b", last)
    assert rig.failing() is last.error


def test_a_pool_without_a_candidate_has_no_retry_time() -> None:
    """A stored resource with neither owner nor home key cannot be requested."""
    error = three().failing(INFO._replace(bound_to_owner=True, resources=("files/a",)))
    assert error.unavailable.retry_at == inf


def test_every_send_is_settled_with_its_verdict_and_error() -> None:
    """The state and the telemetry get the failure; the tokens of a response scale the next."""
    rig = three()
    reply = minute()
    rig.will("a", reply)
    rig.will("b", lost("connect"), Done("answer", Usage(input_tokens=30)))
    tape = rig.recorded()
    settled = tape.of(Settle)
    assert settled[0].error is reply.error
    assert settled[0].outcome.verdict.scope is Scope.PROJECT_MODEL
    assert [one.outcome.kind.value for one in settled] == ["failure", "unsent", "success"]
    assert [sleep.reason for sleep in tape.of(Sleep)] == ["retry"]
    assert rig.pool.token_scale.scaled(INFO.model, 10) == 30
    rig.will("b", Done("answer", Usage(90, 5, estimated=True)))
    rig.recorded()
    assert rig.pool.token_scale.scaled(INFO.model, 10) == 30


# Exceptions that the program does not see ------------------------------------------------------


def _raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause  # noqa: TRY301 - that is all it does
    except Exception as caught:
        return caught


def test_the_tracebacks_of_the_whole_chain_are_dropped() -> None:
    """Those of the error, of its cause and context; a chain with a circle ends."""
    cause, context = _raised(ValueError("cause")), _raised(KeyError("context"))
    error = _raised(OSError("error"), cause)
    error.__context__, error.__suppress_context__ = context, True
    context.__context__ = cause
    cause.__cause__ = error
    drop_tracebacks(error)
    assert [e.__traceback__ for e in (error, cause, context)] == [None, None, None]


def test_the_exception_that_the_program_handles_keeps_its_traceback() -> None:
    """It stands behind ours as their context, and so does all that is behind it."""
    try:
        raise KeyError("the program's own")  # noqa: TRY301
    except KeyError as own:
        error = _raised(OSError("error"))
        assert sys.exception() is own
        drop_tracebacks(error)
        assert error.__traceback__ is None
        assert own.__traceback__ is not None
