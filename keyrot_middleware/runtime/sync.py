"""Drive a flow in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Protocol

from ..core.commands import (
    Acquire,
    Command,
    Flow,
    GetOwner,
    GetTime,
    Refresh,
    RefreshAll,
    RelayStream,
    ReportServing,
    Send,
    Settle,
    Sleep,
    StreamEnd,
)
from ..core.failures import KEY_REJECTIONS
from ..core.flow import Exhausted
from ..core.model import NO_USAGE, CallInfo, Lease, LeaseOutcome, Outcome, Unavailable
from ..guard import handle_internal_error
from ..telemetry.observer import CallObserver, notify_listeners
from ..telemetry.otel_api import current_trace_id
from .activity import RunningCall
from .pool import Pool, SystemClock, unreserved_lease

__all__ = [
    "Relay",
    "Stream",
    "SyncDriver",
    "open_stream",
    "run",
    "run_stream",
]

# Run the commands of a flow -------------------------------------------------------------------


class SyncDriver:
    """Runs the commands of one call on the parts of its pool, and blocks the thread."""

    __slots__ = (
        "__weakref__",
        "_abandoned",
        "_end",
        "_info",
        "_lease",
        "_over",
        "_pool",
        "_record",
        "_send_request",
        "_stream",
        "driven",
        "observer",
    )

    def __init__(
        self,
        pool: Pool,
        info: CallInfo,
        send: Callable[..., Any],
        observer: CallObserver | None = None,
    ) -> None:
        """Serve one call.

        Args:
            pool: The pool.
            info: The call.
            send: Sends the request with the key of a lease; returns Done, StreamOpened or Failed.
            observer: Is notified of every command.
        """
        self._pool = pool
        self._info = info
        self._send_request = send
        self.observer = observer
        self._record = RunningCall(pool.activity, info)
        self._lease: Lease | None = None
        """What this call holds, until it is settled."""
        self._stream: Any = None
        """The open stream, which counts its usage."""
        self._end = StreamEnd()
        self._abandoned = self._over = False
        self.driven = True
        """False once no loop runs the call any more, also when an interrupt ended it."""

    def is_alive(self) -> bool:
        """Return whether the lease of the call will be settled; see `state.base.Holder`."""
        return self.driven and not (self._over or self._abandoned)

    def __call__(self, command: Command) -> Any:
        """Run *command* and notify the observer; return its reply."""
        if type(command) is Settle:
            command = self._settling(command)
        observer = self.observer
        if observer is None:
            return self.handlers[type(command)](self, command)
        observer.before(command)
        try:
            reply = self.handlers[type(command)](self, command)
        except BaseException as error:
            observer.after(command, error)
            raise
        observer.after(command, reply)
        return reply

    def relay(self, command: RelayStream) -> Any:
        """Return the stream that *command* passes to the caller; `abandon` reads its usage."""
        self._stream = command.stream
        return command.stream

    def abandon(self) -> None:
        """Queue a call that is closed or dropped, to be settled; do nothing if it is over.

        The garbage collector may be closing it, at any line of a thread, also at one that holds a
        lock of the state, of a tracer or of logging: settling it here would wait for itself.
        """
        if self._abandoned or self._over:
            return
        self._abandoned = True
        stream, self._stream = self._stream, None
        self._end = stream.end(None) if stream is not None else StreamEnd()
        self._send_request = _over  # what waits to be settled keeps nothing of the request alive
        self._pool.abandoned.append(self)

    def settle_abandoned(self) -> None:
        """Settle the call in this thread, whether it is a sync or an async one."""
        lease, end = self._lease, self._end
        if lease is not None:
            self._settle_blocking(
                Settle(lease, Outcome(LeaseOutcome.ABANDONED, None, end.usage), end.names)
            )
        self.finish(GeneratorExit())

    def _settling(self, command: Settle) -> Settle:
        """Record what came of a request, and return it with its cost if that is needed now."""
        command = self._with_cost(command)
        self._record.settle(command)
        return command

    def _with_cost(self, command: Settle) -> Settle:
        """Add what the request cost, where somebody wants to know."""
        outcome, has_budget = command.outcome, command.lease.has_budget
        if outcome.usage is NO_USAGE or not (has_budget or self.observer is not None):
            return command
        usage = self._pool.with_cost(outcome.usage, self._info, has_budget=has_budget)
        priced = Outcome(outcome.kind, outcome.verdict, usage)  # _replace takes ten times as long
        return Settle(command.lease, priced, command.names, command.error, command.at)

    def _settle_blocking(self, command: Settle) -> None:
        command, observer = self._settling(command), self.observer
        if observer is not None:
            observer.before(command)
        reply = SyncDriver._settle(self, command)
        if observer is not None:
            observer.after(command, reply)

    def finish(self, error: BaseException | None) -> None:
        """Report, once, that the call is over."""
        if self._over:
            return
        self._over = True
        self._record.finish(error)
        if isinstance(error, Exhausted) and not error.has_untried_keys:
            notify_listeners(
                self._pool.event_listeners, "on_exhausted", handle_internal_error, self._info, error
            )
        if self.observer is not None:
            self.observer.finish(error)

    def notify(self, command: Settle | Sleep, reply: object = None) -> None:
        """Notify the event listeners of what affects more than this call."""
        notify_listeners(
            self._pool.event_listeners,
            "on_change",
            handle_internal_error,
            self._info,
            command,
            reply,
        )

    def _now(self, _command: GetTime) -> tuple[float, float]:
        return self._pool.clock.time(), self._pool.random()

    def _acquire(self, command: Acquire) -> Lease | Unavailable:
        reply = self._call_state(
            self._pool.state.acquire,
            self._counted(command),
            command.candidates,
            spread=command.spread,
            holder=self,
        )
        return self._acquired(command, reply)

    def _counted(self, command: Acquire) -> CallInfo:
        if self._pool.abandoned:
            self._pool.settle_abandoned()
        self._pool.keep_running()
        return self._pool.with_estimates(command.info)

    def _acquired(self, command: Acquire, reply: Lease | Unavailable | None) -> Lease | Unavailable:
        if reply is None:  # the state failed
            reply = unreserved_lease(command, self._pool.clock.time())
        if isinstance(reply, Lease):
            self._lease = reply
        else:
            for key_id, block in reply.blocks.items():
                if block.reason in KEY_REJECTIONS:
                    self._pool.doubtful.add(key_id)
        return reply

    def _call_state(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what a method of the state returns; None if it fails: the call goes on."""
        try:
            return method(*args, **kwargs)
        except Exception:
            handle_internal_error("state")
            return None

    def _send(self, command: Send) -> Any:
        observer = self.observer
        if observer is None:
            return self._send_now(command)
        token = observer.attach()
        self._record.trace_id = current_trace_id()
        try:
            return self._send_now(command)
        finally:
            observer.detach(token)

    def _send_now(self, command: Send) -> Any:
        self._record.send()
        return self._send_request(command.lease)

    def _serving(self, command: ReportServing) -> None:
        if command.lease.reservation is not None:
            self._call_state(self._pool.state.settle, command.lease, Outcome(LeaseOutcome.SERVING))

    def _settle(self, command: Settle) -> float | None:
        self._lease = until = None
        if command.lease.reservation is not None:
            until = self._call_state(
                self._pool.state.settle, command.lease, command.outcome, command.names
            )
        return self._settled(command, until)

    def _settled(self, command: Settle, until: float | None) -> float | None:
        if command.outcome.verdict is not None:
            self._pool.record_refusal(command)
            self.notify(command._replace(at=self._pool.clock.time()), until)
        return until

    def _owner(self, command: GetOwner) -> tuple[str, str] | None:
        owner: tuple[str, str] | None = self._call_state(self._pool.state.get_owner, command.names)
        return owner

    def _refresh(self, command: Refresh) -> bool:
        return self._pool.refresh(command.key_id, wait=command.wait)

    def _refresh_all(self, _command: RefreshAll) -> bool:
        return self._pool.refresh_all()

    def _sleep(self, command: Sleep) -> tuple[float, float]:
        if command.starts_wait:
            self._begin_wait(command)
        began, ticket = self._monotonic(), command.ticket
        if ticket is None or self._by_clock(command):
            self._pool.clock.sleep(command.seconds)
        else:
            woken = threading.Event()
            ticket.wake = woken.set
            if not ticket.woken:  # else it was woken before `wake` was set
                woken.wait(command.seconds)
            ticket.wake = None
        return self._slept(command, began)

    def _begin_wait(self, command: Sleep) -> None:
        if command.reason == "key":
            self._record.waited = True
        self.notify(command)

    def _by_clock(self, command: Sleep) -> bool:
        """Return whether to wait by the clock of the pool, which a test has set."""
        return command.is_front and not isinstance(self._pool.clock, SystemClock)

    def _slept(self, command: Sleep, began: float) -> tuple[float, float]:
        ended = self._monotonic()
        if command.ticket is None or not command.ticket.woken:
            ended = max(ended, began + command.seconds)
        return began, ended

    def _monotonic(self) -> float:
        clock = self._pool.clock
        now: float = getattr(clock, "monotonic", clock.time)()
        return now

    handlers: ClassVar[Mapping[type, Callable[[Any, Any], Any]]] = {
        GetTime: _now,
        Acquire: _acquire,
        Send: _send,
        ReportServing: _serving,
        Settle: _settle,
        GetOwner: _owner,
        Refresh: _refresh,
        RefreshAll: _refresh_all,
        Sleep: _sleep,
    }


def _over(_lease: Lease) -> Any:
    raise RuntimeError("this call was abandoned")


class Stream(Protocol):
    """An open stream, whose first chunk is here."""

    def __iter__(self) -> Iterator[Any]:
        """Return the chunks, the first included."""

    def end(self, error: Exception | None) -> StreamEnd:
        """Return its usage, the names in it and why it broke."""

    def close(self) -> None:
        """Release its connection."""


def run(flow: Flow, driver: SyncDriver) -> Any:
    """Run a unary call to its end; return its response."""
    try:
        command = next(flow)
        while True:
            try:
                reply = driver(command)
            except GeneratorExit:
                raise
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(reply)
    except StopIteration as stop:
        driver.finish(None)
        return stop.value
    except GeneratorExit:
        driver.abandon()
        raise
    except BaseException as error:
        driver.finish(error)
        raise
    finally:
        driver.driven = False


def open_stream(flow: Flow, driver: SyncDriver) -> Any:
    """Run a call up to the first chunk of its stream; return a `Relay` of the chunks.

    A call whose send returned a response ends with it, and that is returned.
    """
    try:
        reached = _drive(flow, next(flow), driver)
        if isinstance(reached, RelayStream):
            return Relay(flow, driver, driver.relay(reached))
    except GeneratorExit:
        driver.abandon()
        raise
    except BaseException as error:
        driver.finish(error)
        raise
    driver.driven = False
    driver.finish(None)
    return reached


def _drive(flow: Flow, command: Command, driver: SyncDriver) -> Any:
    """Run commands until the flow returns, or has a stream to relay."""
    try:
        while not isinstance(command, RelayStream):
            try:
                reply = driver(command)
            except GeneratorExit:
                raise
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(reply)
    except StopIteration as stop:
        return stop.value
    return command


class Relay:
    """The chunks of an open stream. Its lease is settled once, however it ends; see `AsyncRelay`.

    No generator: one that was never started is not closed, and its lease would stay.
    """

    def __init__(self, flow: Flow, driver: SyncDriver, stream: Stream) -> None:
        self._flow = flow
        self._driver = driver
        self._stream = stream
        self._chunks = iter(stream)
        self._over = False
        self._reading = threading.Lock()

    def __iter__(self) -> Relay:
        """Return this stream."""
        return self

    def __next__(self) -> Any:
        """Return the next chunk.

        Raises:
            StopIteration: The stream ended.
            ValueError: Another thread is reading it.
            BaseException: The error of the library that opened it.
        """
        if not self._reading.acquire(blocking=False):
            raise ValueError("next(): the stream is being read already")
        try:
            chunk = self._read() if not self._over else None
        finally:
            self._reading.release()
        if chunk is None:
            raise StopIteration
        return chunk

    def _read(self) -> Any:
        """Return the next chunk; settle the stream where there is none."""
        try:
            chunk, failed = _next(self._chunks, self._driver.observer)
            if chunk is None:
                end = self._stream.end(failed)
                self._stream.close()
                self._over = True
                self._settle(self._flow.send, end)
        except BaseException as error:
            self.fail(error)
            raise
        return chunk

    def close(self) -> None:
        """Close the stream; what it has used so far is booked within a second.

        Raises:
            ValueError: Another thread is reading it.
        """
        if not self._reading.acquire(blocking=False):
            raise ValueError("close(): the stream is being read")
        try:
            if self._over:
                return
            self._over = True
            self._driver.abandon()
            with suppress(Exception):  # its usage is read, and nothing else is lost
                self._stream.close()
        finally:
            self._reading.release()

    def fail(self, error: BaseException) -> None:
        """Settle a stream whose reader was interrupted by *error*, which is raised again."""
        if self._over:
            return
        self._over = True
        with suppress(Exception):
            self._stream.close()
        self._settle(self._flow.throw, error)

    def _settle(self, go_on: Callable[[Any], Command], value: Any) -> None:
        """Run the flow to its end."""
        try:
            _drive(self._flow, go_on(value), self._driver)
        except BaseException as error:
            self._driver.finish(error)
            raise
        self._driver.finish(None)

    def __del__(self) -> None:
        if hasattr(self, "_driver"):  # else it was interrupted before it had one
            self._driver.abandon()


def run_stream(flow: Flow, driver: SyncDriver) -> Generator[Any, None, None]:
    """Yield the chunks of a call, which starts with the first of them."""
    relay: Any = None
    try:
        relay = open_stream(flow, driver)
        if isinstance(relay, Relay):
            yield from relay  # which is closed with this generator
    except GeneratorExit:
        raise
    except BaseException as error:
        if isinstance(relay, Relay):
            relay.fail(error)
        raise
    finally:
        driver.driven = False


def _next(chunks: Iterator[Any], observer: CallObserver | None) -> tuple[Any, Exception | None]:
    """Wait for a chunk; `(None, …)` at the end."""
    token = observer.attach() if observer is not None else None
    try:
        return next(chunks, None), None
    except Exception as error:
        return None, error
    finally:
        if observer is not None:
            observer.detach(token)
