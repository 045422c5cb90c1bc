"""Whole span trees of real calls through a real pool, as text."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest
from support.scripted_pool import OK, Chunks, ScriptedPool, failure, invalid, minute

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import RetryPolicy


@pytest.fixture(params=["sync", "async"])
def way(request: pytest.FixtureRequest) -> str:
    """Each tree is the same from a thread and from a task."""
    return str(request.param)


def text(tree: str) -> str:
    return dedent(tree).strip()


def test_a_call_that_succeeds_at_once(traced: Any, way: str) -> None:
    """One logical span with request and usage, one attempt in it, both UNSET."""
    ScriptedPool([traced.observer]).all_modes()[way]()
    assert traced.tree == text("""
        generate_content gemini-2.5-flash  CLIENT
            gen_ai.operation.name=generate_content
            gen_ai.provider.name=gcp.gemini
            gen_ai.request.model=gemini-2.5-flash
            gen_ai.response.finish_reasons=stop
            gen_ai.response.id=resp-1
            gen_ai.response.model=gemini-2.5-flash-001
            gen_ai.usage.cache_read.input_tokens=4
            gen_ai.usage.input_tokens=12
            gen_ai.usage.output_tokens=30
            gen_ai.usage.reasoning.output_tokens=8
            keyrot.attempt.count=1
            keyrot.cost=0.000078
            keyrot.key.id=flash_01
            keyrot.pool.name=test
            server.address=gemini.test
            server.port=8443
          attempt flash_01  INTERNAL
              http.response.status_code=200
              keyrot.acquire.wait_time=…
              keyrot.attempt.number=1
              keyrot.attempt.outcome=success
              keyrot.cost=0.000078
              keyrot.key.id=flash_01
              keyrot.key.project=project-fla
              keyrot.pool.name=test
    """)


def brief(tree: str) -> str:
    """Omit what the tree above has shown."""
    kept = (
        line
        for line in tree.splitlines()
        if not any(
            name in line for name in ("    gen_ai.", "    server.", "wait_time=", "pool.name")
        )
    )
    return "\n".join(kept)


def test_a_call_that_succeeds_with_the_third_key(traced: Any, way: str) -> None:
    """Failed attempts are ERROR with code and class; the call's span has no error of them."""
    scripted = ScriptedPool([traced.observer], keys=("flash_01", "exp_02", "pro_01"))
    scripted.script = {"flash_01": [minute(20)], "exp_02": [invalid()]}
    scripted.all_modes()[way]()
    assert brief(traced.tree) == text("""
        generate_content gemini-2.5-flash  CLIENT
            keyrot.attempt.count=3
            keyrot.cost=0.000078
            keyrot.key.id=pro_01
          attempt flash_01  INTERNAL  ERROR 429 quota_minute
              error.type=429
              http.response.status_code=429
              keyrot.attempt.number=1
              keyrot.attempt.outcome=failure
              keyrot.failure.class=quota_minute
              keyrot.key.id=flash_01
              keyrot.key.project=project-fla
              ! keyrot.cooldown keyrot.cooldown.duration=20 keyrot.cooldown.scope=project_model keyrot.failure.class=quota_minute keyrot.key.id=flash_01
          attempt exp_02  INTERNAL  ERROR 400 key_invalid
              error.type=400
              http.response.status_code=400
              keyrot.attempt.number=2
              keyrot.attempt.outcome=failure
              keyrot.failure.class=key_invalid
              keyrot.key.id=exp_02
              keyrot.key.project=project-exp
              ! keyrot.key.retired keyrot.cooldown.duration=900 keyrot.cooldown.scope=key keyrot.failure.class=key_invalid keyrot.key.id=exp_02
          attempt pro_01  INTERNAL
              http.response.status_code=200
              keyrot.attempt.number=3
              keyrot.attempt.outcome=success
              keyrot.cost=0.000078
              keyrot.key.id=pro_01
              keyrot.key.project=project-pro
    """)  # noqa: E501


def shape(tree: str) -> str:
    """Keep names, status, outcome, errors and events."""
    marks = ("INTERNAL", "CLIENT", "! ", "outcome", "error.type", "attempt.count")
    return "\n".join(line for line in tree.splitlines() if any(mark in line for mark in marks))


def test_a_wait_for_the_only_key(traced: Any, way: str) -> None:
    """A wait is an event on the call, between two attempts with the same key."""
    scripted = ScriptedPool([traced.observer], keys=("flash_01",))
    scripted.script = {"flash_01": [minute(20), OK]}
    scripted.all_modes()[way]()
    assert shape(traced.tree) == text("""
        generate_content gemini-2.5-flash  CLIENT
            keyrot.attempt.count=2
            ! keyrot.wait keyrot.wait.reason=key keyrot.wait.seconds=20.000
          attempt flash_01  INTERNAL  ERROR 429 quota_minute
              error.type=429
              keyrot.attempt.outcome=failure
              ! keyrot.cooldown keyrot.cooldown.duration=20 keyrot.cooldown.scope=project_model keyrot.failure.class=quota_minute keyrot.key.id=flash_01
          attempt flash_01  INTERNAL
              keyrot.attempt.outcome=success
    """)  # noqa: E501


def test_retries_that_penalize_no_key_and_fail(traced: Any, way: str) -> None:
    """The last attempt and the call have the same error, with the class where there is no code."""
    scripted = ScriptedPool([traced.observer], policy=RetryPolicy(strategy="fill", max_retries=1))
    scripted.script = {"flash_01": [failure(503), failure(transport="reset")]}
    with pytest.raises(ConnectionResetError):
        scripted.all_modes()[way]()
    assert shape(traced.tree) == text("""
        generate_content gemini-2.5-flash  CLIENT  ERROR reset
            error.type=ConnectionResetError
            keyrot.attempt.count=2
            ! keyrot.wait keyrot.wait.reason=retry keyrot.wait.seconds=0.250
          attempt flash_01  INTERNAL  ERROR 503 overloaded
              error.type=503
              keyrot.attempt.outcome=failure
          attempt flash_01  INTERNAL  ERROR reset
              error.type=ConnectionResetError
              keyrot.attempt.outcome=failure
    """)


def test_no_key_is_available(traced: Any, way: str) -> None:
    """The call's span is a 429 without an attempt, and has the reasons."""
    scripted = ScriptedPool(
        [traced.observer], keys=("flash_01",), script={"flash_01": [minute(40)]}
    )
    with pytest.raises(Exception, match="429"):
        scripted.run()
    before = len(traced.tree.splitlines())
    with pytest.raises(Exhausted):
        scripted.all_modes()[way]()
    assert shape("\n".join(traced.tree.splitlines()[before:])) == text("""
        generate_content gemini-2.5-flash  CLIENT  ERROR no key can serve
            error.type=429
            keyrot.attempt.count=0
            ! keyrot.pool.exhausted keyrot.pool.blocked_keys=flash_01: quota_minute until 2026-01-01 12:31:10Z
    """)  # noqa: E501


def test_a_pool_of_rejected_keys_is_no_429(traced: Any) -> None:
    """Where every key is rejected the error's type is the code of the refusal, as the caller's."""
    scripted = ScriptedPool([traced.observer], keys=("flash_01",), script={"flash_01": [invalid()]})
    with pytest.raises(Exception, match="400"):
        scripted.run()
    with pytest.raises(Exhausted):
        scripted.run()
    last = traced.named("generate_content")[-1]
    assert last.attributes["error.type"] == "400"


def test_a_stream(traced: Any, way: str) -> None:
    """A stream's attempt lives to its end, and has the reads as its children."""
    scripted = ScriptedPool([traced.observer])
    scripted.script = {"flash_01": [Chunks(2, tracer=traced.tracer)]}
    assert scripted.all_modes(stream=True)[way]() == [0, 1]
    attributes = traced.named("generate_content")[0].attributes
    assert attributes["gen_ai.request.stream"] is True
    assert 0 < attributes["gen_ai.response.time_to_first_chunk"] < 10
    assert attributes["gen_ai.usage.output_tokens"] == 30
    assert shape(traced.tree) == text("""
        generate_content gemini-2.5-flash  CLIENT
            keyrot.attempt.count=1
          attempt flash_01  INTERNAL
              keyrot.attempt.outcome=success
            HTTP read  INTERNAL
            HTTP read  INTERNAL
            HTTP read  INTERNAL
    """)


def test_a_stream_that_breaks(traced: Any, way: str) -> None:
    """A failure after the first chunk is the attempt's and the call's; usage so far is recorded."""
    scripted = ScriptedPool([traced.observer])
    scripted.script = {"flash_01": [Chunks(1, failed=failure(500))]}
    with pytest.raises(Exception, match="500"):
        scripted.all_modes(stream=True)[way]()
    assert traced.named("generate_content")[0].attributes["gen_ai.usage.input_tokens"] == 12
    assert shape(traced.tree) == text("""
        generate_content gemini-2.5-flash  CLIENT  ERROR 500 server_error
            error.type=500
            keyrot.attempt.count=1
          attempt flash_01  INTERNAL  ERROR 500 server_error
              error.type=500
              keyrot.attempt.outcome=failure
    """)


@pytest.mark.parametrize("lease", [{"reservation": None}, {"degraded": True}])
def test_a_state_that_is_down_is_recorded_once(traced, monkeypatch, lease) -> None:
    """A lease of this process alone, or without a reservation, is an event, once for each call."""
    scripted = ScriptedPool([traced.observer], script={"flash_01": [failure(503), OK]})
    acquire = scripted.pool.state.acquire
    monkeypatch.setattr(
        scripted.pool.state,
        "acquire",
        lambda *args, **kwargs: acquire(*args, **kwargs)._replace(**lease),
    )
    scripted.run()
    call = traced.named("generate_content")[0]
    assert [e.name for e in call.events] == ["keyrot.state.degraded", "keyrot.wait"]
