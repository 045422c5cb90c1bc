"""Drive a flow in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any, Protocol

from ..core.commands import Relay, Steps, StreamEnd
from ..telemetry.base import Watch
from .collector import collecting
from .performer import Performer

__all__ = ["Performer", "Stream", "run", "run_stream"]


class Stream(Protocol):
    """A stream that the SDK opened, whose first chunk is here."""

    def __iter__(self) -> Iterator[Any]:
        """Give the chunks, the first included."""

    def end(self, error: Exception | None) -> StreamEnd:
        """Tell what became of it."""

    def close(self) -> None:
        """Close the SDK's own generator."""


def run(flow: Steps, perform: Performer) -> Any:
    """Carry a unary call through; give the SDK's response."""
    try:
        command = next(flow)
        while True:
            try:
                reply = perform(command)
            except GeneratorExit:
                raise
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(reply)
    except StopIteration as stop:
        perform.finish(None)
        return stop.value
    except GeneratorExit:
        perform.abandon()
        raise
    except BaseException as error:
        perform.finish(error)
        raise
    finally:
        perform.driven = False


def run_stream(flow: Steps, perform: Performer) -> Generator[Any, None, None]:
    """Carry a streamed call through; yield the SDK's chunks as they come."""
    try:
        command = next(flow)
        while True:
            try:
                if isinstance(command, Relay):
                    reply = yield from _relay(perform.relay(command), perform.watch)
                else:
                    reply = perform(command)
            except GeneratorExit:
                raise
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(reply)
    except StopIteration:
        perform.finish(None)
    except GeneratorExit:
        perform.abandon()
        raise
    except BaseException as error:
        perform.finish(error)
        raise
    finally:
        perform.driven = False


def _relay(stream: Stream, watch: Watch | None) -> Generator[Any, None, StreamEnd]:
    """Yield the chunks; the attempt is current only while the SDK works on the next one."""
    chunks = iter(stream)
    try:
        while True:
            chunk, failed = _next(chunks, watch)
            if chunk is None:
                break
            yield chunk
        end = stream.end(failed)
    except BaseException:
        if not collecting():  # else the collector closes both in turn
            with suppress(Exception):  # its own complaint must not hide the reason
                stream.close()
        raise
    stream.close()
    return end


def _next(chunks: Iterator[Any], watch: Watch | None) -> tuple[Any, Exception | None]:
    """Wait for a chunk; `(None, …)` at the end."""
    token = watch.attach() if watch is not None else None
    try:
        return next(chunks, None), None
    except Exception as error:
        return None, error
    finally:
        if watch is not None:
            watch.detach(token)
