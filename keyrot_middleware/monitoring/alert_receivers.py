"""Deliver events to a Python function and to Apprise's URLs, in the background.

Each receiver has a bounded queue and at most one thread, which exists while there is something to
deliver. A receiver that hangs delays its own events and nothing else.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, cast

from pydantic import SecretStr

from ..core.text import did_you_mean, display
from ..errors import ConfigError, MissingExtraError
from ..events import EventName, PoolEvent
from ..forks import after_fork
from ..settings import ENV_NAMES
from ..telemetry.otel_api import suppress_instrumentation

__all__ = ["Receiver", "open_receivers", "restore_loggers"]

_log = logging.getLogger("keyrot_middleware")

QUEUE_MAX = 100
"""Events that wait for one receiver; of more, the oldest are dropped."""
TRIES = 3
RETRY_S = 1.0
"""The pause before the second try of a delivery; it doubles."""
TIMEOUT_MAX_S = 10.0
"""The longest time limit of one connection or answer that a URL may ask for with cto= and rto=."""
THREAD_NAME = "keyrot-alert"
_TYPES: dict[EventName, str] = {
    "pool_exhausted": "failure",
    "key_rejected": "failure",
    "state_degraded": "warning",
    "quota_80_percent": "warning",
    "budget_reached": "warning",
    "key_available_again": "success",
    "state_recovered": "success",
}
"""The kind of a notification in Apprise, which decides its color or icon."""


class Receiver:
    """Delivers events in order, one at a time, in a thread of its own."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[PoolEvent], None],
        *,
        tries: int = 1,
        events: Collection[EventName] | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            name: For log lines; holds no secret.
            deliver: Delivers an event, or raises.
            tries: How often a delivery is tried.
            events: Which events to deliver; None for all.
        """
        self.name = name
        self._deliver, self._tries, self._events = deliver, tries, events
        self._queue: deque[PoolEvent] = deque()
        self._failing = self._full = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        after_fork(self, Receiver._in_child)

    def put(self, event: PoolEvent) -> None:
        """Deliver *event* later; never blocks."""
        if self._events is not None and event.event not in self._events:
            return
        with self._lock:
            if len(self._queue) >= QUEUE_MAX:
                self._queue.popleft()
                if not self._full:
                    self._full = True
                    text = "%s is too slow: more than %d events wait for it; the oldest are dropped"
                    _log.warning(text, self.name, QUEUE_MAX)
            self._queue.append(event)
            if self._thread is not None and self._thread.is_alive():
                return
            thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
            with suppress(RuntimeError):  # no thread can be started; the next event tries again
                thread.start()
                self._thread = thread

    def close(self, until: float) -> None:
        """Deliver what waits, until `time.monotonic()` is *until*; drop the rest."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(until - time.monotonic(), 0.0))
        self._closed.set()
        with self._lock:
            self._queue.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread, self._full = None, False
                    return
                event = self._queue.popleft()
            for attempt in range(self._tries):
                if attempt and self._closed.wait(RETRY_S * 2.0 ** (attempt - 1)):
                    break
                try:
                    self._deliver(event)
                except BaseException as error:  # a function may raise SystemExit too
                    if attempt == self._tries - 1:
                        self._log_failure(event, error)
                else:
                    self._failing = False
                    break

    def _log_failure(self, event: PoolEvent, error: BaseException) -> None:
        """Log the first failure after a success; the text of the error may hold a secret."""
        if not self._failing:
            self._failing = True
            _log.warning(
                "%s failed on %s (%s%s); more failures are logged after a success",
                self.name,
                event.event,
                type(error).__name__,
                _place(error.__traceback__),
            )

    def _in_child(self) -> None:
        """Leave it to the parent of a fork to deliver its events."""
        self._lock, self._closed, self._thread = threading.Lock(), threading.Event(), None
        self._queue.clear()


def _place(trace: TracebackType | None) -> str:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""


def _check_callback(on_event: object) -> None:
    """Check the argument `on_event` of install().

    Raises:
        ConfigError: It is no function that can be called in a thread.
    """
    call = getattr(on_event, "__call__", None)  # noqa: B004 - an object may have an async one
    if not callable(on_event):
        found = display(on_event)
    elif inspect.iscoroutinefunction(on_event) or inspect.iscoroutinefunction(call):
        found = "found an async function"
    else:
        return
    found = found if found.startswith("found") else f"found {found}"
    raise ConfigError(f"install(on_event=…): {found}; allowed: a function of one PoolEvent.")


def open_receivers(
    on_event: Callable[[PoolEvent], object] | None,
    urls: Sequence[SecretStr],
    events: Collection[EventName],
) -> list[Receiver]:
    """Return the receivers of a pool; an empty list if nothing wants its events.

    Args:
        on_event: A function of the program.
        urls: Of Apprise.
        events: Which events are sent to the URLs.

    Raises:
        ConfigError: A URL or the function cannot be used.
        MissingExtraError: Apprise is not installed.
    """
    receivers = []
    if on_event is not None:
        _check_callback(on_event)
        receivers.append(Receiver("on_event", cast(Callable[[PoolEvent], None], on_event)))
    return receivers + [
        Receiver(
            f"{ENV_NAMES['alerts']}, entry {number} ({scheme}://)",
            _sender(service),
            tries=TRIES,
            events=events,
        )
        for number, (scheme, service) in enumerate(_services(urls), 1)
    ]


def _services(urls: Sequence[SecretStr]) -> Iterable[tuple[str, Any]]:
    """Return the scheme of each URL, and Apprise's object for it."""
    if not urls:
        return []
    variable = ENV_NAMES["alerts"]
    try:
        import apprise  # noqa: PLC0415 - an optional library
    except ImportError:
        raise MissingExtraError(wanted_by=variable, package="apprise", extra="alerts") from None
    found = []
    for number, url in enumerate(urls, 1):
        # No variable holds the text of a URL: error reporters show those of a traceback.
        scheme = url.get_secret_value().partition("://")[0].lower()
        # Apprise logs what is wrong in a URL, and imports modules that are deprecated.
        with _hidden_urls(), warnings.catch_warnings(action="ignore"):
            service = apprise.Apprise.instantiate(url.get_secret_value())
        if service is None:
            raise ConfigError(_problem(f"{variable}, entry {number}", scheme, apprise))
        service.socket_connect_timeout = min(service.socket_connect_timeout, TIMEOUT_MAX_S)
        service.socket_read_timeout = min(service.socket_read_timeout, TIMEOUT_MAX_S)
        found.append((scheme, service))
    return found


def _problem(where: str, scheme: str, apprise: Any) -> str:
    known: list[str] = apprise.NotificationManager().schemas()
    if scheme in known:
        return (
            f"{where}: Apprise cannot use this {scheme}:// URL (not shown); allowed: the form that "
            "Apprise documents for this service."
        )
    return (
        f"{where}: found the unknown scheme {display(scheme)}; allowed: URLs of Apprise, such as "
        f"mailto://, slack://, discord:// and json://.{did_you_mean(scheme, known)}"
    )


def _sender(service: Any) -> Callable[[PoolEvent], None]:
    def send(event: PoolEvent) -> None:
        with _hidden_urls(), suppress_instrumentation():
            sent = service.notify(
                title=f"keyrot: {event.event} in pool {event.pool}",
                body=event.sentence,
                notify_type=_TYPES[event.event],
                body_format="text",
            )
        if not sent:
            raise ConnectionError("the receiver did not take it")

    return send


_delivering = ContextVar("keyrot_delivering_alerts", default=False)


class _NothingOfAlerts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _delivering.get()


_FILTER = _NothingOfAlerts()
_LOGGERS = ("apprise", "urllib3.connectionpool")


@contextmanager
def _hidden_urls() -> Iterator[None]:
    """Drop what this thread logs in the libraries that log URLs."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)
    token = _delivering.set(True)
    try:
        yield
    finally:
        _delivering.reset(token)


def restore_loggers() -> None:
    """Remove the filter from the libraries' loggers, unless a delivery still runs.

    While one does, removing it could make that thread skip it.
    """
    if any(thread.name == THREAD_NAME for thread in threading.enumerate()):
        return
    for name in _LOGGERS:
        logging.getLogger(name).removeFilter(_FILTER)
