"""Drive a call: perform what its flow awaits on the parts of a pool, in a thread or in a task.

One driver, with two small ends. In a thread nothing that is awaited ever suspends, so `complete`
runs a coroutine by its first step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from math import inf
from typing import Any, TypeVar

from ..core.commands import (
    Acquire,
    Command,
    Done,
    Failed,
    Refresh,
    Send,
    SendResult,
    Settle,
    Sleep,
    StreamEnd,
    StreamOpened,
)
from ..core.failures import KEY_REJECTIONS, FailureFacts
from ..core.flow import CallState, Exhausted, open_call
from ..core.model import NO_USAGE, CallInfo, Candidate, Lease, LeaseOutcome, Outcome, Unavailable
from ..core.waiting import Ticket
from ..core.windows import DAY_S
from ..errors import handle_internal_error
from ..telemetry import CallObserver, tell
from ..telemetry.otel import current_trace_id
from .activity_recorder import RunningCall
from .first_token import Deadline
from .pool import Pool, SystemClock, unreserved_lease

_T = TypeVar("_T")


def complete(work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of a coroutine that never suspends."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("what runs in a thread has nothing to wait for")


def _nothing(_error: None) -> StreamEnd:
    return StreamEnd()


class SyncDriver:
    """Runs one call on the parts of its pool, and blocks the thread."""

    in_thread = True
    _began = False

    def __init__(
        self,
        pool: Pool,
        call: CallState,
        send: Callable[[Lease], Awaitable[SendResult]],
        observer: CallObserver | None = None,
    ) -> None:
        """Serve one call.

        Args:
            pool: The pool.
            call: The call.
            send: Sends the request with the key of a lease; returns Done, StreamOpened or Failed.
                In a thread it never suspends.
            observer: Is notified of every command.
        """
        self.call, self.observer = call, observer
        self._pool, self._send_request = pool, send
        self._record = RunningCall(pool.activity, call.info)
        self.lease: Lease | None = None
        """What this call holds, until it is settled."""
        self.is_held = False
        """Something that is open holds the lease; see held.py."""
        self._end = StreamEnd()
        self.is_over = False
        self.time: Callable[[], float] = pool.clock.time
        self.random: Callable[[], float] = pool.random

    async def run(self) -> Done | StreamOpened:
        """Run the call up to its response, or to the first chunk of its stream."""
        self._began = True
        try:
            reply = await open_call(self.call, self)
        except GeneratorExit:
            self.abandon()
            raise
        except BaseException as error:
            self.finish(error)
            raise
        if isinstance(reply, StreamOpened):
            self._send_request = _over
            if self.call.info.stream:
                self._record.open_stream()
        else:
            self.finish(None)
        return reply

    def finish(self, error: BaseException | None) -> None:
        """Report, once, that the call is over."""
        if self.is_over:
            return
        self.is_over = True
        if self.lease is not None:  # an interrupt came between: it is settled soon
            self._pool.abandoned.append(self)
        record = self._record.finish(error, self.call.full)
        if isinstance(error, Exhausted) and not error.has_untried_keys:
            self._notify("on_exhausted", error)
        if self.observer is not None:
            self.observer.finish(error, record)

    def abandon(self, end: Callable[[None], StreamEnd] = _nothing) -> None:
        """Queue a call that is closed or dropped, to be settled; do nothing if it is over.

        The garbage collector may be closing it, at any line of a thread, also at one that holds a
        lock of the state, of a tracer or of logging: settling it here would wait for itself.

        Args:
            end: Returns what was used so far.
        """
        if self.is_over or not self._began:
            return
        self._began = False
        self._end = end(None)
        self._send_request = _over  # what waits to be settled keeps nothing of the request alive
        self._pool.abandoned.append(self)

    def __del__(self) -> None:
        if self._began and not self.is_over and not self.is_held:
            self.abandon()

    def settle_abandoned(self) -> None:
        """Settle the call in this thread, whether it is a sync or an async one."""
        lease, end = self.lease, self._end
        if lease is not None:
            self.in_thread = True
            outcome = Outcome(LeaseOutcome.ABANDONED, None, end.usage)
            complete(self.settle(Settle(lease, outcome, end.names)))
        self.finish(GeneratorExit())

    # What the flow awaits -------------------------------------------------------------------------

    async def acquire(self, command: Acquire) -> Lease | Unavailable:
        """Acquire a lease."""
        pool = self._pool
        if pool.abandoned:
            await self.blocking(pool.settle_abandoned)
        self._record.acquire()
        info = pool.with_estimates(command.info)
        ask = partial(pool.state.acquire, info, command.candidates, strategy=command.strategy)
        if self.observer is None:
            reply = await self._ask(ask)
        else:
            reply = await self._observed(command, partial(self._ask, ask))
        if reply is None:  # the state failed
            reply = unreserved_lease(command, self.time())
        if isinstance(reply, Lease):
            self.lease = reply
            return reply
        for key_id, block in reply.blocks.items():
            if block.reason in KEY_REJECTIONS:
                pool.doubtful.add(key_id)
        return reply

    async def send(self, command: Send) -> Any:
        """Send the request."""
        self._record.send()
        limit_s = self.call.cut_off_s
        self.call.deadline = None
        send = self._send_request if limit_s is None else partial(self._send_until, limit_s)
        if self.observer is None:
            return await send(command.lease)
        return await self._observed(command, partial(self.in_span, partial(send, command.lease)))

    async def in_span(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do *work* with the span of the attempt current."""
        observer = self.observer
        if observer is None:
            return await work()
        token = observer.attach()
        self._record.trace_id = current_trace_id()
        try:
            return await work()
        finally:
            observer.detach(token)

    async def is_available(self, info: CallInfo, keys: Sequence[Candidate]) -> bool:
        """Return whether one of *keys* could serve a call now; not if the state fails."""
        ask = partial(self._pool.state.get_blocks, self._pool.with_estimates(info), keys)
        blocks = await self._ask(ask)
        return blocks is not None and len(blocks) < len(keys)

    async def settle(self, command: Settle) -> float | None:
        """Settle a lease, with its cost if that is needed now."""
        outcome, purses = command.outcome, command.lease.purses
        is_needed = purses or self.observer is not None or not self._pool.prices.is_read
        if outcome.usage is not NO_USAGE and is_needed:
            usage = self._pool.with_cost(outcome.usage, self.call.info, command.lease)
            command = command._replace(outcome=outcome._replace(usage=usage))
        self._record.settle(command)
        if self.observer is None:
            return await self._settle(command)
        return await self._observed(command, partial(self._settle, command))

    async def _settle(self, command: Settle) -> float | None:
        self.lease = until = None  # from here on it is settled to the end, also when cancelled
        if command.lease.reservation is not None:
            until = await self._ask_to_settle(command)
        if self._pool.doubtful and command.outcome.kind is LeaseOutcome.SUCCESS:
            self._pool.doubtful.discard(command.lease.key_id)
        if command.outcome.verdict is not None:
            self._pool.record_refusal(command)
            if isinstance(until, int | float):
                self._record.cool_down()
            self._notify("on_change", command._replace(at=self.time()), until)
        return until

    async def set_aside(self, command: Settle) -> None:
        """Apply the verdict about a key whose lease is settled already."""
        until = await self._ask_to_settle(command)
        self._notify("on_change", command._replace(at=self.time()), until)

    async def report_serving(self, lease: Lease) -> None:
        """Report that a probe succeeds."""
        if lease.reservation is not None:
            await self._ask_to_settle(Settle(lease, Outcome(LeaseOutcome.SERVING)))

    async def get_owner(self, names: Sequence[str]) -> tuple[str, str] | None:
        """Return the owner of a stored resource."""
        if self._pool.abandoned:  # a stream that was just closed may have named it
            await self.blocking(self._pool.settle_abandoned)
        return await self._ask(partial(self._pool.state.get_owner, names))

    async def refresh(self, command: Refresh) -> bool:
        """Look up the value of a rejected key again."""
        look_up = partial(self._pool.refresh, command.key_id, wait=command.wait)
        return await self._observed(command, partial(self.blocking, look_up))

    async def refresh_all(self) -> bool:
        """Look up the values of all keys."""
        return await self.blocking(self._pool.refresh_all)

    async def sleep(self, command: Sleep) -> float:
        """Wait."""
        if command.reason == "key":
            self._record.acquire()
        if command.starts_wait:
            self._record.waited = self._record.waited or command.reason == "key"
            self._notify("on_change", command, None)
        return await self._observed(command, partial(self._slept, command))

    async def _slept(self, command: Sleep) -> float:
        ticket, clock = command.ticket, self._pool.clock
        monotonic: Callable[[], float] = getattr(clock, "monotonic", clock.time)
        began = monotonic()
        if ticket is None or (command.is_front and not isinstance(clock, SystemClock)):
            await self._pause(command.seconds)  # by the clock of the pool, which a test has set
        else:
            await self._until_woken(ticket, command.seconds)
        slept = monotonic() - began
        return slept if ticket is not None and ticket.woken else max(slept, command.seconds)

    async def _observed(self, command: Command, work: Callable[[], Awaitable[_T]]) -> _T:
        observer = self.observer
        if observer is None:
            return await work()
        observer.before(command)
        try:
            reply = await work()
        except BaseException as error:
            observer.after(command, error)
            raise
        observer.after(command, reply)
        return reply

    async def _ask(self, work: Callable[[], _T], settle: Settle | None = None) -> _T | None:
        """Return what a method of the state returns; None if it fails: the call goes on."""
        try:
            return work() if self.in_thread else await self._asked(work, settle)
        except Exception:
            handle_internal_error("state")
            return None

    async def _ask_to_settle(self, command: Settle) -> float | None:
        state, given = self._pool.state, (command.lease, command.outcome, command.names)
        return await self._ask(partial(state.settle, *given), command)

    async def _asked(self, work: Callable[[], _T], settle: Settle | None) -> _T:
        """Ask the state for a task; it settles to the end, also when that is cancelled."""
        state = self._pool.state
        if settle is None:
            return await state.do(work)
        if state.settles_without_io(settle.lease, settle.outcome, settle.names):
            return work()
        task = asyncio.ensure_future(state.do(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    def _notify(self, method: str, *args: object) -> None:
        """Notify the event listeners of what affects more than this call."""
        listeners, info = self._pool.event_listeners, self.call.info
        tell(listeners, method, handle_internal_error, info, *args)

    # The end of a thread --------------------------------------------------------------------------

    async def blocking(self, work: Callable[[], _T]) -> _T:
        """Run what blocks for a while."""
        return work()

    async def _pause(self, seconds: float) -> None:
        self._pool.clock.sleep(seconds)

    async def _until_woken(self, ticket: Ticket, seconds: float) -> None:
        woken = threading.Event()
        ticket.wake = woken.set
        if not ticket.woken:  # else it was woken before `wake` was set
            woken.wait(seconds)
        ticket.wake = None

    async def _send_until(self, limit_s: float, lease: Lease) -> SendResult:
        """Send a request, and cut it off at its deadline."""
        tokens, model = self._pool.first_tokens, self.call.info.model
        # A read that times out is over, so one of the cuts of this minute is held for it.
        if limit_s == inf or not tokens.take(model):
            return await self._send_request(lease)
        self.call.deadline = deadline = Deadline(limit_s)
        reply = await self._send_request(lease)
        failed = isinstance(reply, Failed) and reply.facts.transport == "timeout"
        if failed and deadline.was_missed:
            return _too_slow()
        tokens.take(model, -1)
        return reply


class AsyncDriver(SyncDriver):
    """The end of a task: blocks only that."""

    in_thread = False

    async def blocking(self, work: Callable[[], _T]) -> _T:
        """Run what blocks for a while."""
        return await self._pool.threads.run(work)

    async def _pause(self, seconds: float) -> None:
        await self._pool.clock.asleep(seconds)

    async def _until_woken(self, ticket: Ticket, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def finish() -> None:
            if not woken.done():
                woken.set_result(None)

        def wake() -> bool:  # from any thread
            try:
                loop.call_soon_threadsafe(finish)
            except RuntimeError:  # the loop is closed, and the call with it
                return False
            return True

        ticket.wake = wake
        if ticket.woken:  # before `wake` was set
            return
        timer = loop.call_later(seconds, finish)
        try:
            await woken
        finally:
            timer.cancel()
            ticket.wake = None

    async def _send_until(self, limit_s: float, lease: Lease) -> SendResult:
        """Send a request, and cut it off at its deadline."""
        loop, call = asyncio.get_running_loop(), self.call

        def cut_off() -> None:
            if self._pool.first_tokens.take(call.info.model):
                scope.reschedule(loop.time())

        try:
            async with asyncio.timeout(None) as scope:
                timer = call.deadline = loop.call_later(min(limit_s, DAY_S), cut_off)
                try:
                    return await self._send_request(lease)
                finally:
                    timer.cancel()
        except TimeoutError:
            return _too_slow()


def _over(_lease: Lease) -> Any:
    raise RuntimeError("this call was abandoned")


def _too_slow() -> Failed:
    return Failed(FailureFacts(transport="slow"), TimeoutError("nothing came in time"))
