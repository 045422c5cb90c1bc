"""redis-py's clients of one pool, used by threads; tasks use them through a thread (ADR 0028).

A call waits for one round trip, that of `acquire`. The settle of a plain success is *deferred*: it
is sent with the next acquire of this process, in the same script; after `FLUSH_S` by a background
thread; before another script; or at `close()`. So a caller of a near server sees its own earlier
settles.

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
from functools import partial
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
from .codec import lease_ids
from .scripts import ScriptCall
from .url import RedisUrl

__all__ = [
    "Connections",
    "RedisStateError",
    "Settles",
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
"""How long `close()` waits for the deferred settles, seconds."""
DEFERRED_S = 30.0
"""How long a deferred script that fails is kept: less than the server remembers its id, seconds."""
MAX_DEFERRED = 10_000
SETTLES_PER_SCRIPT = 100
"""One or two milliseconds of the server's time."""

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


class Settles(NamedTuple):
    """Deferred settles that are sent together; the server runs them once."""

    id: str
    """Empty if there are none."""
    packed: bytes
    """The arguments of all."""
    ends_at: float
    """When they are dropped, monotonic seconds."""


_NONE = Settles("", b"", 0.0)


class Connections:
    """The connections to the pool's server. Safe for threads."""

    def __init__(self, url: RedisUrl, base: str, settle: Callable[[Settles], ScriptCall]) -> None:
        """Start without connecting.

        Args:
            url: The parsed URL.
            base: With which the names of all records start.
            settle: Returns the script that runs deferred settles.
        """
        self._url, self._keys, self._settle = url, (base, f"{base}:epoch"), settle
        self._client: Any = None
        self._deferred: deque[bytes] = deque(maxlen=MAX_DEFERRED)
        self._failed: deque[Settles] = deque(maxlen=MAX_DEFERRED // SETTLES_PER_SCRIPT)
        """Settles that may have run, to be sent again."""
        self._ids = lease_ids()
        self._idle: deque[Any] = deque()
        """Clients that are connected, each with a connection of its own."""
        self._begin_locks(is_closing=False)
        self._flusher: threading.Thread | None = None
        self._retry_at = 0.0
        self._ends_with_child = False
        after_fork(self, Connections._after_fork)

    def __str__(self) -> str:
        """Return the URL without credentials."""
        return str(self._url)

    @property
    def is_open(self) -> bool:
        """Return whether settles can be deferred."""
        return not self._closing.is_set()

    def run(self, call: ScriptCall) -> Any:
        """Run the deferred settles, then this script; return its reply.

        Raises:
            RedisStateError: The server was not reached, did not reply in time, or refused.
        """
        with self._state_errors():
            ends = self._ends()
            if self._has_deferred:
                self._run_with(self._settle, ends)
            return self._request(partial(self._evalsha, call), ends)

    def run_with_settles(self, call: Callable[[Settles], ScriptCall]) -> Any:
        """Run a script that runs the deferred settles first; return its reply.

        Raises:
            RedisStateError: As `run`.
        """
        with self._state_errors():
            return self._run_with(call, self._ends())

    def defer(self, settle: bytes) -> None:
        """Settle soon; a failure is ignored after `DEFERRED_S`.

        After `close()` it is done at once, since nothing would do it later.
        """
        self._deferred.append(settle)
        if not self._ends_with_child:
            self._ends_with_child = True
            before_child_ends(self, Connections.close_at_exit)
        if self._closing.is_set():
            with suppress(RedisStateError):
                self.flush()
        elif self._flusher is None:
            self._start_flusher()

    def flush(self) -> None:
        """Send the deferred settles.

        Raises:
            RedisStateError: As `run`.
        """
        with (
            self._state_errors(),
            self._flushing,
        ):  # after it all earlier deferred ones are sent
            for _ in range(MAX_DEFERRED // SETTLES_PER_SCRIPT):
                if not (settles := self._take_deferred()).id:
                    break
                self._send(self._settle, settles, self._ends())

    def commands(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send plain commands in order, again if a connection fails; return their replies.

        Raises:
            RedisStateError: As `run`, for the first command that failed.
        """
        with self._state_errors():
            one = len(commands) == 1
            return self._request(partial(self._execute, commands), self._ends(), own=one)

    def close_at_exit(self) -> None:
        """Close within the time that the exit may take; all pools share it."""
        self.close(min(max(time_left(), 2 * FLUSH_S), CLOSE_S))

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Send the deferred settles and disconnect; calls in flight reconnect.

        Args:
            wait_s: How long to wait for the deferred settles, seconds.
        """
        self._closing.set()
        flusher = self._flusher
        if flusher is None and self._has_deferred:
            flusher = self._start_flusher()
        if flusher is not None:
            flusher.join(wait_s)
        if self._has_deferred or (flusher is not None and flusher.is_alive()):
            text = "%s: the outcomes of the last calls may not have been recorded"
            _log.warning(text, self)
        self._disconnect_if_closed()

    # A request, bounded in time -------------------------------------------------------------------

    def _ends(self) -> float:
        """Return when a request that begins now is given up, monotonic seconds."""
        return time.monotonic() + 2 * self._url.timeout_s

    def _request(self, work: Callable[[Any], _T], ends: float, *, own: bool = True) -> _T:
        """Do *work* with a client; if its connection fails, repeat it on a new one.

        The client has a connection of its own, unless *own* is false: a pipeline takes it from the
        common pool, and redirections in a cluster take any number of round trips.

        It ends, done or not, at *ends*, monotonic seconds; a try begins `socket_timeout` before.

        A new connection is opened in another thread: names are resolved, sentinels asked and
        passwords checked there, and none of that has a common time limit.
        """
        repeats = REPEATS
        while True:
            try:
                own = own and self._url.kind != "cluster"
                client = self._pop_idle() if own else None
                if client is not None:
                    return self._use(client, work)
                connect = partial(self._connect_and, work, own=own)
                return _in_thread(connect, ends - time.monotonic())
            except _REFUSED:
                raise
            except _BROKEN:
                self._disconnect_idle()
                if not repeats or time.monotonic() > ends - self._url.timeout_s:
                    raise
                repeats -= 1

    def _connect_and(self, work: Callable[[Any], _T], *, own: bool) -> _T:
        client = self._get_client()
        return self._use(client.client(), work) if own else work(client)

    def _pop_idle(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _use(self, client: Any, work: Callable[[Any], _T]) -> _T:
        """Do *work* with a connected client, which is idle then."""
        try:
            result = work(client)
        except BaseException as error:
            if isinstance(error, ResponseError):  # an answer of the server
                self._idle.append(client)
            else:
                client.close()
            raise
        self._idle.append(client)
        return result

    def _disconnect_idle(self) -> None:
        """Close the idle connections, so that the next request opens a new one."""
        while (idle := self._pop_idle()) is not None:
            idle.close()  # it gives its connection back to the common pool
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

    @property
    def _has_deferred(self) -> bool:
        return bool(self._deferred or self._failed)

    def _run_with(self, call: Callable[[Settles], ScriptCall], ends: float) -> Any:
        # A flush in flight sends what was deferred before this call.
        waited = self._flushing.acquire(timeout=min(FLUSHING_S, self._url.timeout_s))
        settles = self._take_deferred()
        if waited:
            self._flushing.release()
        return self._send(call, settles, ends)

    def _send(self, call: Callable[[Settles], ScriptCall], settles: Settles, ends: float) -> Any:
        """Run a script with deferred settles; keep them if they may not have run."""
        try:
            return self._request(partial(self._evalsha, call(settles)), ends)
        except FAILURES:
            if settles.ends_at > time.monotonic():
                self._failed.append(settles)
            raise

    def _take_deferred(self) -> Settles:
        """Return deferred settles, those that were sent before first."""
        taken: list[bytes] = []
        try:
            if self._failed:
                return self._failed.popleft()
            while self._deferred and len(taken) < SETTLES_PER_SCRIPT:
                taken.append(self._deferred.popleft())
        except IndexError:  # another thread has taken them at the same time
            pass
        if not taken:
            return _NONE
        return Settles(next(self._ids), b"".join(taken), time.monotonic() + DEFERRED_S)

    def _execute(self, commands: Sequence[Sequence[Any]], client: Any) -> list[Any]:
        if self._url.kind == "cluster":
            node = client.get_node_from_key(self._keys[0])
            return [client.execute_command(*command, target_nodes=node) for command in commands]
        if len(commands) == 1:
            return [client.execute_command(*commands[0])]
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute()
        return replies

    def _evalsha(self, call: ScriptCall, client: Any) -> Any:
        script, args = call
        try:
            return client.execute_command("EVALSHA", script.digest, 2, *self._keys, *args)
        except NoScriptError:
            return client.execute_command("EVAL", script.text, 2, *self._keys, *args)

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
            return open_client(self._url)
        except FAILURES:
            self._retry_at = time.monotonic() + self._url.timeout_s
            raise

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
            while self._has_deferred or not (self._closing.is_set() or time.monotonic() > idle_at):
                self._closing.wait(FLUSH_S)
                if self._has_deferred:
                    idle_at = time.monotonic() + IDLE_S
                    self.flush()
        except RedisStateError:  # the next acquire fails too, and falls back
            failed = True
        finally:
            self._flusher = None
        if self._has_deferred and not failed:  # deferred since the last check
            self._start_flusher()

    def _to_state_error(self, error: BaseException) -> RedisStateError:
        message = str(error)
        words = one_line(self._url.redact(_ECHO.sub("", message))) or type(error).__name__
        is_wrong_type = isinstance(error, ResponseError) and "WRONGTYPE " in message
        return RedisStateError(f"{self._url}: {words}", is_wrong_type=is_wrong_type)

    def _after_fork(self) -> None:
        self._deferred.clear()  # the parent sends them
        self._failed.clear()
        self._idle.clear()
        self._ids = lease_ids()  # these are the parent's
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

    target = partial(contextvars.copy_context().run, do)
    try:
        threading.Thread(target=target, name="keyrot-connect", daemon=True).start()
    except RuntimeError:  # no thread can be started
        return work()
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
