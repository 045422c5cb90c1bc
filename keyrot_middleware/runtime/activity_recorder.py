"""Record what calls did lately; see core/activity.py for what is kept.

A call adds one record to a list; counting and pricing is done for many at once, off the path of
calls: by the refresher each second, where a page looks, and when the program ends. The state adds
it up, so that a page shows the calls of all processes that share one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

from .. import providers
from ..core.activity import (
    LARGE_POOL,
    ActivityBatch,
    ActivityLog,
    Attempt,
    BoundedNames,
    CallOutcome,
    CallRecord,
)
from ..core.commands import Settle
from ..core.failures import quotable
from ..core.flow import Exhausted
from ..core.judgement import ends_by, first_block
from ..core.model import DEFAULT_ZONE, NO_USAGE, Block, CallInfo, LeaseOutcome, project_name
from ..core.outcomes import End
from ..errors import handle_internal_error
from ..forks import after_fork, process_name
from ..locks import Lock
from ..state.base import State
from ..telemetry.semconv import cause_from_verdict
from .state_lists import report_skipped

MOST_NEW = 100_000
"""Records that wait to be counted, at most; the oldest are dropped."""


def _watch_nothing(_record: CallRecord, _end: End | None = None) -> None:
    """See nothing."""


Price = Callable[[CallRecord], float | None]


class ActivityRecorder:
    """Counts the calls of one pool and keeps them in its state."""

    def __init__(
        self,
        state: State,
        now: Callable[[], float],
        price: Price = lambda _: None,
        count_keys: Callable[[], int] = lambda: 0,
        zone: str = DEFAULT_ZONE,
    ) -> None:
        """Start empty.

        Args:
            state: It keeps the activity.
            now: Returns epoch seconds.
            price: Returns what a call cost, in US dollars, where its usage does not say.
            count_keys: Returns how many keys the pool has.
            zone: Where its days end.
        """
        self.now = now
        self.redact: Callable[[str], str] = str
        """Hides keys in what a service wrote."""
        self._state, self._price, self._count_keys = state, price, count_keys
        self._sending = Lock()
        self._new: deque[CallRecord] = deque(maxlen=MOST_NEW)
        self._names = BoundedNames()
        self.watch: Callable[[CallRecord, End], Callable[[], object] | None] = _watch_nothing
        """Sees how each call of a model ended; returns what to do about that."""
        self.watch_answer: Callable[[CallRecord], Callable[[], object] | None] = _watch_nothing
        """Sees each call whose response names a model, likewise."""
        self._log = ActivityLog(state.activity, state.activity_log, zone, report_skipped)
        self.zone = zone
        self._batch = self._new_batch()
        after_fork(self, ActivityRecorder._in_child)

    def add(self, record: CallRecord) -> None:
        """Record a call that ended. Does not block, and may be called in a garbage collection."""
        self._new.append(record)

    def send(self) -> None:
        """Count what is new, and send it to the state; what that does not take is dropped."""
        with self._sending:  # who reads waits for what another thread has taken
            said = self._count_new()
            batch, self._batch = self._batch, self._new_batch()
            if batch:
                self._state.add_activity(batch.rows())
        for say in said:  # without a lock: a handler of log lines may look at the pool
            say()

    def read(self) -> ActivityLog:
        """Return what is kept of the calls, the new ones included."""
        self.send()
        return self._log

    def _count_new(self) -> list[Callable[[], object]]:
        """Count the new records; return what there is to say of them."""
        new, batch, said = self._new, self._batch, list[Callable[[], object]]()
        try:
            while new:
                record = new.popleft()
                usage = record.usage
                if usage.cost_usd is None and usage is not NO_USAGE:
                    usage = usage._replace(cost_usd=self._price(record))
                if usage.model and not providers.names_models(record.platform):
                    usage = usage._replace(model=None)
                record = record._replace(usage=usage)
                end = batch.add(record)
                if end is not None and (say := self.watch(record, end)):
                    said.append(say)
                if usage.model and (say := self.watch_answer(record)):
                    said.append(say)
        except Exception:
            handle_internal_error("activity")
        return said

    def _new_batch(self) -> ActivityBatch:
        is_large = self._count_keys() > LARGE_POOL
        return ActivityBatch(self._names, is_large, self.zone, process_name())

    def _in_child(self) -> None:
        self._new.clear()  # the parent sends these
        self._batch = self._new_batch()


class RunningCall:
    """Makes the record of one call."""

    __slots__ = (
        "_activity", "_attempts", "_began", "_first_chunk_s", "_info", "_sent_at", "_since",
        "_usage", "_waited_s", "trace_id", "waited",
    )  # fmt: skip

    def __init__(self, activity: ActivityRecorder, info: CallInfo) -> None:
        """Begin with the call."""
        self._activity, self._info = activity, info
        self._began = self._sent_at = perf_counter()
        self._since: float | None = None
        """When it began to look for the key of its next request."""
        self._waited_s = self._first_chunk_s = 0.0
        self._attempts: list[Attempt] = []
        self._usage = NO_USAGE
        self.waited = False
        """It waited for a key."""
        self.trace_id = ""

    def acquire(self) -> None:
        """Note that it looks or waits for a key."""
        if self._since is None:
            self._since = perf_counter()

    def send(self) -> None:
        """Note that a request is sent."""
        self._sent_at = now = perf_counter()
        self._waited_s, self._since = now - (self._since or now), None

    def open_stream(self) -> None:
        """Note that the first chunk of its stream is here."""
        self._first_chunk_s = perf_counter() - self._began

    def settle(self, command: Settle) -> None:
        """Note what came of a request."""
        lease, (_, verdict, self._usage, _) = command.lease, command.outcome
        failure, code, message, kind = None, None, "", ""
        if verdict is not None:
            failure, code = verdict.failure, verdict.code
            message = quotable(failure, self._activity.redact(verdict.message))
            kind = cause_from_verdict(verdict, command.error).type
        seconds, project = perf_counter() - self._sent_at, project_name(lease.project) or ""
        sent = 0 if command.outcome.kind is LeaseOutcome.UNSENT else lease.requests
        known = lease.key_id, failure, code, seconds, project, message, lease.bucket, sent
        self._attempts.append(Attempt(*known, kind, self._waited_s))

    def cool_down(self) -> None:
        """Note that a cooldown follows from the last request."""
        self._attempts[-1] = self._attempts[-1]._replace(cools_down=True)

    def finish(self, error: BaseException | None, full: tuple[str, ...] = ()) -> CallRecord:
        """Add the call to the pool's activity, and return its record.

        Args:
            error: How it ended.
            full: The keys that it did not get since a limit of theirs was full.
        """
        outcome: CallOutcome = "ok"
        block: Block | None = None
        if isinstance(error, Exhausted):
            outcome, block = "exhausted", first_block(error.unavailable.blocks)
        elif isinstance(error, Exception):
            outcome = "failed"
        elif error is not None:  # closed, cancelled, interrupted
            outcome = "abandoned"
        activity, info = self._activity, self._info
        record = CallRecord(
            activity.now(),
            info.model,
            perf_counter() - self._began,
            outcome,
            tuple(self._attempts),
            self._usage,
            self.waited,
            info.workload or "",
            self.trace_id,
            info.service_tier,
            info.platform,
            self._first_chunk_s,
            "" if block is None else block.reason,
            block is not None and ends_by(block) == "time",
            full,
        )
        activity.add(record)
        return record
