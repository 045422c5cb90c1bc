"""The runner of the adapters: responses, streams and sessions, sync and async."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, in_flight, key
from support.replies import OK, Chunks, invalid, minute

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import LeaseOutcome, Limits
from keyrot_middleware.runtime import runner


class _NoKeyError(Exception):
    """What a program of the adapter expects."""


def _no_key(exhausted: Exhausted) -> BaseException:
    return _NoKeyError(dict(exhausted.unavailable.blocks))


def _rig() -> Rig:
    return Rig(key("a"), key("b"), strategy="fill", max_wait_s=0.0)


def _run(rig: Rig, info: Any = STREAMED) -> Any:
    opened = runner.run(rig.pool, rig.make(info), rig.send, _no_key)
    return list(opened) if isinstance(opened, runner.Relay) else opened


def _arun(rig: Rig, info: Any = STREAMED) -> Any:
    async def read() -> Any:
        opened = await runner.arun(rig.pool, rig.make(info), rig.asend, _no_key)
        return [one async for one in opened] if isinstance(opened, runner.AsyncRelay) else opened

    return asyncio.run(read())


MODES = pytest.mark.parametrize("mode", [_run, _arun])


@MODES
def test_the_response_of_the_first_key_that_serves_is_returned(mode: Callable[..., Any]) -> None:
    """A call that ends with a response returns it, and each lease is settled."""
    rig = _rig()
    rig.will("a", invalid())
    assert mode(rig, INFO) == OK.response
    assert rig.sent == ["a", "b"]
    rig.state.check()


@MODES
def test_no_key_raises_what_the_adapter_has_made(mode: Callable[..., Any]) -> None:
    """The exception of the adapter is raised outside of any handler, with nothing behind it."""
    rig = _rig()
    rig.will("a", invalid())
    rig.will("b", minute("30s"))
    with pytest.raises(_NoKeyError) as caught:
        mode(rig)
    assert caught.value.args[0].keys() == {"a", "b"}
    assert caught.value.__context__ is None
    rig.state.check()


@MODES
def test_a_stream_rotates_until_its_first_chunk(mode: Callable[..., Any]) -> None:
    """A stream is relayed chunk by chunk, and settled with its usage at its end."""
    rig = _rig()
    rig.will("a", minute("30s"))
    rig.will("b", Chunks(1, 2, 3))
    assert mode(rig) == [1, 2, 3]
    [_, (lease, outcome)] = rig.state.settled
    assert (lease.key_id, outcome.kind) == ("b", LeaseOutcome.SUCCESS)
    assert outcome.usage.input_tokens == 6
    rig.state.check()


@pytest.mark.parametrize("end", ["close", "drop", "break"])
def test_a_sync_stream_that_is_left_is_settled_once(end: str) -> None:
    """Closed, dropped unread, or broken by the server: the lease ends, once, and it is closed."""
    rig = _rig()
    failed = minute("30s") if end == "break" else None
    chunks = Chunks(1, 2, failed=failed)
    rig.will("a", chunks)
    relay = runner.run(rig.pool, rig.make(STREAMED), rig.send, _no_key)
    if end == "break":
        with pytest.raises(type(failed.error)):  # type: ignore[union-attr]  # it is set
            list(relay)
    elif end == "close":
        assert next(relay) == 1
        relay.close()
        assert list(relay) == []
        assert chunks.closed == 1
    del relay
    gc.collect()
    rig.pool.settle_abandoned()
    [(_, outcome)] = rig.state.settled
    kind = LeaseOutcome.FAILURE if end == "break" else LeaseOutcome.ABANDONED
    assert outcome.kind is kind
    rig.state.check()


def test_an_interrupt_settles_a_sync_stream() -> None:
    """Ctrl-C while a chunk is awaited is raised as it is, and the lease ends."""
    rig = _rig()

    class Interrupted(Chunks):
        def __iter__(self) -> Any:
            yield 1
            raise KeyboardInterrupt

    rig.will("a", Interrupted())
    relay = runner.run(rig.pool, rig.make(STREAMED), rig.send, _no_key)
    assert next(relay) == 1
    with pytest.raises(KeyboardInterrupt):
        next(relay)
    assert list(relay) == []
    [(_, outcome)] = rig.state.settled
    assert outcome.kind is LeaseOutcome.ABANDONED
    rig.state.check()


def test_a_stream_that_is_being_read_cannot_be_read_or_closed_beside() -> None:
    """A second reader gets an error, as with a generator, and the first one goes on."""
    rig = _rig()
    refused: list[str] = []

    class Nosy(Chunks):
        def __iter__(self) -> Any:
            for act in (relay.close, relay.__next__):
                with pytest.raises(ValueError, match="is being read") as caught:
                    act()
                refused.append(str(caught.value))
            yield 1

    rig.will("a", Nosy())
    relay = runner.run(rig.pool, rig.make(STREAMED), rig.send, _no_key)
    assert list(relay) == [1]
    assert len(refused) == 2
    rig.state.check()


def test_an_async_session_keeps_its_lease_until_it_is_closed() -> None:
    """`ahold` does the same."""

    async def session() -> None:
        rig = Rig(key("a", Limits(max_concurrency=1)))
        rig.will("a", Chunks("the session"))
        opened, relay = await runner.ahold(rig.pool, rig.make(STREAMED), rig.asend, _no_key)
        assert opened == "the session"
        assert in_flight(rig.state) == {"a": 1}
        await relay.aclose()
        assert not in_flight(rig.state)
        rig.state.check()

    asyncio.run(session())
