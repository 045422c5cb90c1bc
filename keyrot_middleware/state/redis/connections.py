"""redis-py's client of one pool, used by threads; tasks use it through a thread (ADR 0028).

A call waits for one round trip, that of `acquire`. The settle of a plain success is *deferred*: it
is sent in the pipeline of this process's next script, after `FLUSH_S` by a background thread, or at
`close()`. A script is sent after all deferred ones, so a caller of a near server sees its own
earlier settles.

A request whose connection fails is repeated on a new one, as long as `socket_timeout` is not over:
scripts that change counts have an id, by which the server knows them. No caller waits longer than
twice that time, whatever has to be done to connect: a new connection is opened in a thread of its
own, and serves the next request if it comes too late for this one.
"""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from ...core.text import one_line
from ...errors import KeyrotError
from ...exits import time_left
from ...forks import after_fork, before_child_ends
from .scripts import ScriptCall
from .url import RedisUrl

__all__ = [
    "Connections",
    "RedisStateError",
    "check_library",
]

_log = logging.getLogger("keyrot_middleware")


FLUSH_S = 0.02
"""How long a deferred script waits for another one to be sent with, seconds."""
FLUSHING_S = 0.05
"""How long a script waits for deferred ones that are on their way to a near server, seconds."""
_ECHO = re.compile(r",? with args\b.*", re.DOTALL)
"""Servers echo commands that they do not understand, such as `AUTH` with its password."""
FAILURES = (RedisError, RedisClusterException, OSError)
"""What redis-py raises; RedisClusterException is not a RedisError."""
_BROKEN = (RedisConnectionError, RedisTimeoutError, OSError)
"""What is raised when a connection fails; it is unknown whether the server got the request."""
_REFUSED = (AuthenticationError, AuthorizationError)
"""Connection errors of redis-py that are answers of the server."""
REPEATS = 3
"""How often a request is repeated at the most."""
MAX_CONNECTIONS = 2**31
"""One per thread in use; redis-py allows only 100 by default."""
IDLE_S = 1.0
"""The background thread ends after this long without a deferred script, seconds."""
CLOSE_S = 1.0
"""How long `close()` waits for the deferred scripts, seconds."""
DEFERRED_S = 30.0
"""How long a deferred script that fails is kept: less than the server remembers its id, seconds."""
MAX_DEFERRED = 10_000

_T = TypeVar("_T")


class RedisStateError(KeyrotError):
    """Raised when the server was not reached in time, or refused.

    If the reply did not arrive in time, it is unknown whether the script ran.

    Attributes:
        is_wrong_type: A record is of another type, so something else has written it.
        undo: Undoes what the script may have done; None if that does not matter.
    """

    def __init__(self, text: str, *, is_wrong_type: bool = False) -> None:
        super().__init__(text)
        self.is_wrong_type = is_wrong_type
        self.undo: Callable[[], object] | None = None


class _Deferred(NamedTuple):
    """A script that is sent later."""

    call: ScriptCall
    ends_at: float
    """When it is dropped, monotonic seconds."""


class Connections:
    """The connections to the pool's server. Safe for threads."""

    def __init__(self, url: RedisUrl, slot_key: str) -> None:
        """Start without connecting.

        Args:
            url: The parsed URL.
            slot_key: A key in the cluster slot of the pool's records.
        """
        self._url, self._slot_key = url, slot_key
        self._client: Any = None
        self._deferred: deque[_Deferred] = deque(maxlen=MAX_DEFERRED)
        self._sent: set[str] = set()
        """The digests of the scripts that were sent in full, in a pipeline."""
        self._open: deque[None] = deque()
        """An entry per connection that is open and idle."""
        self._begin_locks(is_closing=False)
        self._flusher: threading.Thread | None = None
        self._retry_at = 0.0
        self._ends_with_child = False
        after_fork(self, Connections._after_fork)

    def __str__(self) -> str:
        """Return the URL without credentials."""
        return str(self._url)

    def run(self, call: ScriptCall) -> Any:
        """Run the deferred scripts and this one in one round trip; return its reply.

        Raises:
            RedisStateError: The server was not reached, did not reply in time, or refused.
        """
        with self._state_errors():
            ends = time.monotonic() + 2 * self._url.timeout_s
            # A flush in flight sends what was deferred before this call.
            waited = self._flushing.acquire(timeout=min(FLUSHING_S, self._url.timeout_s))
            deferred = self._take_deferred()
            if waited:
                self._flushing.release()
            reply = self._send(deferred, [call], ends)[-1]
        if isinstance(reply, Exception):
            raise self._to_state_error(reply) from None
        return reply

    def defer(self, call: ScriptCall) -> None:
        """Run a script soon; its reply is ignored, and its failure after `DEFERRED_S`.

        After `close()` it runs at once, since nothing would run it later.
        """
        self._deferred.append(_Deferred(call, time.monotonic() + DEFERRED_S))
        if not self._ends_with_child:
            self._ends_with_child = True
            before_child_ends(self, Connections.close_at_exit)
        if self._closing.is_set():
            with suppress(RedisStateError):
                self.flush()
        elif self._flusher is None:
            self._start_flusher()

    def flush(self) -> None:
        """Send the deferred scripts.

        Raises:
            RedisStateError: As `run`.
        """
        with self._state_errors(), self._flushing:  # after it all earlier deferred ones are sent
            if deferred := self._take_deferred():
                self._send(deferred, (), time.monotonic() + 2 * self._url.timeout_s)

    def commands(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send plain commands in order, twice if a connection fails; return their replies.

        Raises:
            RedisStateError: As `run`, for the first command that failed.
        """
        with self._state_errors():
            ends = time.monotonic() + 2 * self._url.timeout_s
            return self._request(partial(self._execute, commands), ends)

    def close_at_exit(self) -> None:
        """Close within the time that the exit may take; all pools share it."""
        self.close(min(max(time_left(), 2 * FLUSH_S), CLOSE_S))

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Send the deferred scripts and disconnect; calls in flight reconnect.

        Args:
            wait_s: How long to wait for the deferred scripts, seconds.
        """
        self._closing.set()
        flusher = self._flusher
        if flusher is None and self._deferred:
            flusher = self._start_flusher()
        if flusher is not None:
            flusher.join(wait_s)
        if self._deferred or (flusher is not None and flusher.is_alive()):
            text = "%s: the outcomes of the last calls may not have been recorded"
            _log.warning(text, self)
        self._disconnect_if_closed()

    # A request, bounded in time -------------------------------------------------------------------

    def _request(self, work: Callable[[], _T], ends: float) -> _T:
        """Do *work*, which sends a request; if its connection fails, repeat it on a new one.

        It ends, done or not, at *ends*, monotonic seconds; a try begins `socket_timeout` before.

        A new connection is opened in another thread: names are resolved, sentinels asked and
        passwords checked there, and none of that has a common time limit.
        """
        repeats = REPEATS
        while True:
            try:
                return self._in_time(work, ends)
            except _REFUSED:
                raise
            except _BROKEN:
                self._disconnect_idle()
                if not repeats or time.monotonic() > ends - self._url.timeout_s:
                    raise
                repeats -= 1

    def _in_time(self, work: Callable[[], _T], ends: float) -> _T:
        try:
            self._open.pop()
        except IndexError:
            pass
        else:
            with suppress(_NotConnectedError):
                return self._connected(work)
        return _in_thread(partial(self._connected, work), ends - time.monotonic())

    def _connected(self, work: Callable[[], _T]) -> _T:
        """Do *work*; remember its connection, which is open and idle then."""
        result = work()
        if self._url.kind != "cluster":  # redirections take any number of round trips
            self._open.append(None)
        return result

    def _disconnect_idle(self) -> None:
        """Close the idle connections, so that the next request opens a new one."""
        self._open.clear()
        client = self._client
        if client is not None:
            with suppress(*FAILURES):
                _disconnect(client, self._url.kind)

    @contextmanager
    def _state_errors(self) -> Iterator[None]:
        """Raise errors of redis-py as `RedisStateError`; disconnect after `close()`."""
        try:
            yield
        except FAILURES as error:
            raise self._to_state_error(error) from None
        finally:
            self._disconnect_if_closed()

    def _disconnect_if_closed(self) -> None:
        """Close idle connections; those in use are closed after use."""
        if self._closing.is_set():
            self._disconnect_idle()

    # What is sent ---------------------------------------------------------------------------------

    def _send(
        self, deferred: Sequence[_Deferred], calls: Sequence[ScriptCall], ends: float
    ) -> list[Any]:
        """Run deferred scripts, then others; keep the deferred ones if they may not have run."""
        work = partial(self._run, [*(one.call for one in deferred), *calls])
        try:
            return self._request(work, ends)
        except FAILURES:
            now = time.monotonic()
            self._deferred.extendleft(one for one in reversed(deferred) if one.ends_at > now)
            raise

    def _execute(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        client = self._get_client()
        if self._url.kind == "cluster":
            node = client.get_node_from_key(self._slot_key)
            return [client.execute_command(*command, target_nodes=node) for command in commands]
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute()
        return replies

    def _run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run scripts in order; errors of the server are returned as exceptions."""
        client = self._get_client()
        if len(calls) == 1 or self._url.kind == "cluster":  # cluster pipelines support no scripts
            return [self._run_one(client, call) for call in calls]
        pipeline = client.pipeline(transaction=False)
        for script, records, args in calls:
            keys = (self._slot_key, *records)
            if script.digest in self._sent:
                pipeline.evalsha(script.digest, len(keys), *keys, *args)
            else:  # the server may not know it, and would run the others first
                pipeline.eval(script.text, len(keys), *keys, *args)
        replies = pipeline.execute(raise_on_error=False)
        self._sent.update(call.script.digest for call in calls)
        return [
            self._run_one(client, call) if isinstance(reply, NoScriptError) else reply
            for call, reply in zip(calls, replies, strict=True)
        ]

    def _run_one(self, client: Any, call: ScriptCall) -> Any:
        keys = (self._slot_key, *call.keys)
        try:
            return client.evalsha(call.script.digest, len(keys), *keys, *call.args)
        except NoScriptError:
            return client.eval(call.script.text, len(keys), *keys, *call.args)

    def _take_deferred(self) -> list[_Deferred]:
        taken: list[_Deferred] = []
        with suppress(IndexError):  # another thread may take some at the same time
            while self._deferred:
                taken.append(self._deferred.popleft())
        return taken

    def _get_client(self) -> Any:
        client = self._client
        if client is None:
            with self._connecting:
                client = self._client
                if client is None:
                    client = self._client = self._connect()
        return client

    def _connect(self) -> Any:
        """Make the client; fail at once if another caller has just failed."""
        if time.monotonic() < self._retry_at:
            raise RedisConnectionError("it could not be reached a moment ago")
        try:
            client = open_client(self._url)
        except FAILURES:
            self._retry_at = time.monotonic() + self._url.timeout_s
            raise
        if self._url.kind != "cluster":  # its requests are always sent in a thread
            pool = client.connection_pool
            pool.connection_class = _connecting_in_threads(pool.connection_class)
        return client

    # The background thread ------------------------------------------------------------------------

    def _start_flusher(self) -> threading.Thread | None:
        with self._lock:
            if self._flusher is None:
                target = self._flush_until_idle
                flusher = threading.Thread(target=target, name="keyrot-redis", daemon=True)
                try:
                    flusher.start()
                except RuntimeError:  # no thread can be started: the next script sends it
                    return None
                self._flusher = flusher
            return self._flusher

    def _flush_until_idle(self) -> None:
        idle_at, failed = time.monotonic() + IDLE_S, False
        try:
            while self._deferred or not (self._closing.is_set() or time.monotonic() > idle_at):
                self._closing.wait(FLUSH_S)
                if self._deferred:
                    idle_at = time.monotonic() + IDLE_S
                    self.flush()
        except RedisStateError:  # the next acquire fails too, and falls back
            failed = True
        finally:
            self._flusher = None
        if self._deferred and not failed:  # deferred since the last check
            self._start_flusher()

    def _to_state_error(self, error: BaseException) -> RedisStateError:
        message = str(error)
        words = one_line(self._url.redact(_ECHO.sub("", message))) or type(error).__name__
        is_wrong_type = isinstance(error, ResponseError) and "WRONGTYPE " in message
        return RedisStateError(f"{self._url}: {words}", is_wrong_type=is_wrong_type)

    def _after_fork(self) -> None:
        self._deferred.clear()  # the parent sends them
        self._open.clear()
        self._client, self._flusher = None, None
        self._ends_with_child = False
        self._begin_locks(is_closing=self._closing.is_set())

    def _begin_locks(self, *, is_closing: bool) -> None:
        """Make new locks, also in a forked child: another thread may have held them at the fork."""
        self._lock, self._connecting = threading.Lock(), threading.Lock()
        self._flushing = threading.Lock()
        self._closing = threading.Event()  # it has a lock of its own
        if is_closing:
            self._closing.set()


_may_connect: ContextVar[bool] = ContextVar("keyrot_may_connect", default=False)


class _NotConnectedError(RedisConnectionError):
    """Raised when an idle connection was closed and a caller would have to wait for a new one."""


@cache
def _connecting_in_threads(kind: type[Any]) -> type[Any]:
    """Return a class of connections that connect only where `_in_thread` allows it.

    redis-py connects an idle connection that the server has closed again, in the thread of the
    caller, and that can take any time.
    """

    class ConnectingInThreads(kind):  # type: ignore[misc]  # a class of redis-py, known at run time
        _is_open = False

        def connect(self) -> None:
            if self._is_open:
                return
            if not _may_connect.get():
                raise _NotConnectedError("the idle connection was closed")
            super().connect()
            self._is_open = True

        def disconnect(self, *args: Any, **options: Any) -> None:
            self._is_open = False
            super().disconnect(*args, **options)

    return ConnectingInThreads


def _in_thread(work: Callable[[], _T], seconds: float) -> _T:
    """Do *work* in another thread; if it takes longer than *seconds*, do not wait for its end."""
    done: Future[_T] = Future()

    def do() -> None:
        try:
            result = work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    context = contextvars.copy_context()
    context.run(_may_connect.set, True)
    target = partial(context.run, do)
    try:
        threading.Thread(target=target, name="keyrot-connect", daemon=True).start()
    except RuntimeError:  # no thread can be started
        return context.run(work)
    try:
        return done.result(max(seconds, 0))
    except TimeoutError:
        raise RedisTimeoutError(f"no reply within {seconds:.1f} s over a new connection") from None


def _disconnect(client: Any, kind: str) -> None:
    """Close the idle connections of a client."""
    nodes = (
        [node.redis_connection for node in client.get_nodes()] if kind == "cluster" else [client]
    )
    for node in filter(None, nodes):
        node.connection_pool.disconnect(inuse_connections=False)


def open_client(url: RedisUrl) -> Any:
    """Return redis-py's client for a URL.

    Raises:
        RedisError: A cluster was not reached; the others connect when they are used.
        TypeError: The installed redis-py is too old to know an argument.
    """
    limits = {"socket_timeout": url.timeout_s, "socket_connect_timeout": url.timeout_s}
    common = {**url.options, **limits, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
    common["max_connections"] = MAX_CONNECTIONS
    if url.kind != "unix":
        common["ssl"] = url.tls
    if url.kind == "cluster":
        nodes = [ClusterNode(*node) for node in url.nodes]  # type: ignore[no-untyped-call]
        del common["db"]
        common["retry"] = Retry(NoBackoff(), 1)  # one retry, if the slot has moved
        return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **common)
    if not url.tls:  # over TLS redis-py takes a session ticket for a reply, unless it has read one
        common["redis_connect_func"] = _begin_connection
    if url.kind == "unix":
        return redis.Redis(unix_socket_path=url.nodes[0][0], **common)
    if url.kind == "sentinel":
        each_s = url.timeout_s / len(url.nodes)  # all of them within one time limit
        mine = {"socket_timeout": each_s, "socket_connect_timeout": each_s}
        never = Retry(NoBackoff(), 0)
        theirs = {**url.sentinel_options, **mine, "ssl": url.tls, "retry": never}
        made: Any = Sentinel  # redis-py gives it no types
        return made(url.nodes, sentinel_kwargs=theirs).master_for(url.master, **common)
    host, port = url.nodes[0]
    return redis.Redis(host=host, port=port, **common)


def _begin_connection(connection: Any) -> None:
    """Log in; leave out the name of the library, which takes redis-py two round trips."""
    connection.driver_info = connection.lib_name = connection.lib_version = None
    connection.on_connect()


def check_library() -> None:
    """Check that redis-py is new enough; nothing is connected.

    Raises:
        TypeError: It is too old for an argument.
    """
    open_client(RedisUrl("one", (("localhost", 0),), options={"db": 0})).close()
