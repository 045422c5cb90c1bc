"""redis-py's client of one pool, used by threads; tasks use it through a thread (ADR 0028).

A call waits for one round trip, that of `acquire`. The settle of a plain success is *deferred*: it
is sent in the pipeline of this process's next script, after `FLUSH_S` by a background thread, or at
`close()`. Each script is sent after all deferred ones, so a caller sees its own earlier settles.

redis-py does not retry here; state/fallback.py decides what to do when the server fails.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from ...core.text import one_line
from ...errors import KeyrotError
from ...forks import after_fork
from .url import RedisUrl

__all__ = [
    "Connections",
    "RedisStateError",
    "Script",
    "ScriptCall",
    "check_library",
    "script",
]

# The Lua scripts: read from the package once, called by digest ----------------------------------


class Script(NamedTuple):
    """A script and the digest by which EVALSHA calls it."""

    text: str
    digest: str


@cache
def script(name: str) -> Script:
    """Return the script *name* with shared.lua in front."""
    folder = files("keyrot_middleware.state") / "lua"
    text = "\n".join(
        (folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("shared", name)
    )
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


_log = logging.getLogger("keyrot_middleware")


FLUSH_S = 0.02
"""How long a deferred script waits for another one to be sent with, seconds."""
_SERVER_REFUSALS = ("OOM", "READONLY", "NOAUTH", "NOPERM", "MISCONF", "LOADING", "BUSY", "MOVED")
"""Errors of the server that are not caused by a record."""
_ECHO = re.compile(r",? with args\b.*", re.DOTALL)
"""Servers echo commands that they do not understand, such as `AUTH` with its password."""
FAILURES = (RedisError, RedisClusterException, OSError)
"""What redis-py raises; RedisClusterException is not a RedisError."""
MAX_CONNECTIONS = 2**31
"""One per thread in use; redis-py allows only 100 by default."""
IDLE_S = 1.0
"""The background thread ends after this long without a deferred script, seconds."""


class RedisStateError(KeyrotError):
    """Raised when the server was not reached in time, or refused.

    If the reply did not arrive in time, it is unknown whether the script ran.

    Attributes:
        may_be_a_record: An unreadable record may be the cause.
    """

    def __init__(self, text: str, *, may_be_a_record: bool = False) -> None:
        super().__init__(text)
        self.may_be_a_record = may_be_a_record


class ScriptCall(NamedTuple):
    """One run of a script with its arguments."""

    script: Script
    args: tuple[Any, ...]


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
        self._deferred: deque[ScriptCall] = deque()
        self._sent: set[str] = set()
        """The digests of the scripts that were sent in full, in a pipeline."""
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._flusher: threading.Thread | None = None
        self._retry_at = 0.0
        self._closed = False
        self._forked = False
        after_fork(self, Connections._after_fork)

    def run(self, call: ScriptCall) -> Any:
        """Run the deferred scripts and this one in one round trip; return its reply.

        Raises:
            RedisStateError: The server was not reached, did not reply in time, or refused.
        """
        with self._state_errors():
            with self._flushing:  # a flush in flight sends what was deferred before this call
                deferred = self._take_deferred()
            reply = self._run([*deferred, call])[-1]
        if isinstance(reply, Exception):
            raise self._to_state_error(reply) from None
        return reply

    def defer(self, call: ScriptCall) -> None:
        """Run a script soon; its reply and its failure are ignored.

        It runs at once if nothing would run it later: after `close()`, and in a child forked by
        multiprocessing, which ends without exit handlers.
        """
        self._deferred.append(call)
        if self._closed or (self._forked and _is_multiprocessing_child()):
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
            if calls := self._take_deferred():
                self._run(calls)

    def commands(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send plain commands in order; return their replies.

        Raises:
            RedisStateError: As `run`, for the first command that failed.
        """
        with self._state_errors():
            client = self._open()
            if self._url.kind == "cluster":
                node = client.get_node_from_key(self._slot_key)
                return [client.execute_command(*command, target_nodes=node) for command in commands]
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = pipeline.execute()
            return replies

    def close(self) -> None:
        """Send the deferred scripts and disconnect; calls in flight reconnect."""
        self._closed = True
        try:
            self.flush()
        except RedisStateError as error:
            _log.warning("the outcome of a call may not have been recorded: %s", error)
        self._disconnect_if_closed()

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
        client = self._client
        if not self._closed or client is None:
            return
        if self._url.kind == "cluster":
            client.close()
        else:
            client.connection_pool.disconnect(inuse_connections=False)

    def _run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run scripts in order; errors of the server are returned as exceptions."""
        client = self._open()
        if len(calls) == 1 or self._url.kind == "cluster":  # cluster pipelines support no scripts
            return [self._run_one(client, call) for call in calls]
        pipeline = client.pipeline(transaction=False)
        for script, args in calls:
            if script.digest in self._sent:
                pipeline.evalsha(script.digest, 1, self._slot_key, *args)
            else:  # the server may not know it, and would run the others first
                pipeline.eval(script.text, 1, self._slot_key, *args)
        replies = pipeline.execute(raise_on_error=False)
        self._sent.update(call.script.digest for call in calls)
        return [
            client.eval(call.script.text, 1, self._slot_key, *call.args)
            if isinstance(reply, NoScriptError)
            else reply
            for call, reply in zip(calls, replies, strict=True)
        ]

    def _run_one(self, client: Any, call: ScriptCall) -> Any:
        try:
            return client.evalsha(call.script.digest, 1, self._slot_key, *call.args)
        except NoScriptError:
            return client.eval(call.script.text, 1, self._slot_key, *call.args)

    def _take_deferred(self) -> list[ScriptCall]:
        taken: list[ScriptCall] = []
        with suppress(IndexError):  # another thread may take some at the same time
            while self._deferred:
                taken.append(self._deferred.popleft())
        return taken

    def _open(self) -> Any:
        client = self._client
        if client is None:
            with self._lock:
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

    def _start_flusher(self) -> None:
        with self._lock:
            if self._flusher is not None or self._closed:
                return
            target = self._flush_until_idle
            flusher = threading.Thread(target=target, name="keyrot-redis", daemon=True)
            try:
                flusher.start()
            except RuntimeError:  # no thread can be started: the next script sends it
                return
            self._flusher = flusher

    def _flush_until_idle(self) -> None:
        idle_at = time.monotonic() + IDLE_S
        try:
            while time.monotonic() < idle_at and not self._closed:
                time.sleep(FLUSH_S)
                if self._deferred:
                    idle_at = time.monotonic() + IDLE_S
                    with suppress(RedisStateError):  # the next acquire fails too, and falls back
                        self.flush()
        finally:
            self._flusher = None
        if self._deferred:  # deferred since the last check
            self._start_flusher()

    def _to_state_error(self, error: BaseException) -> RedisStateError:
        message = str(error)
        words = one_line(self._url.redact(_ECHO.sub("", message))) or type(error).__name__
        record = isinstance(error, ResponseError) and not message.startswith(_SERVER_REFUSALS)
        return RedisStateError(f"{self._url}: {words}", may_be_a_record=record)

    def _after_fork(self) -> None:
        self._forked = True
        self._deferred.clear()  # the parent sends them
        self._client, self._flusher = None, None
        self._lock, self._flushing = threading.Lock(), threading.Lock()


def _is_multiprocessing_child() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def open_client(url: RedisUrl) -> Any:
    """Return redis-py's client for a URL.

    Raises:
        RedisError: A cluster was not reached; the others connect when they are used.
        TypeError: The installed redis-py is too old to know an argument.
    """
    limits = {"socket_timeout": url.timeout_s, "socket_connect_timeout": url.timeout_s}
    common = {**url.options, **limits, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
    common["max_connections"] = MAX_CONNECTIONS
    if url.kind == "unix":
        return redis.Redis(unix_socket_path=url.nodes[0][0], **common)
    common |= {"ssl": url.tls}
    if url.kind == "cluster":
        nodes = [ClusterNode(*node) for node in url.nodes]  # type: ignore[no-untyped-call]
        del common["db"]
        common["retry"] = Retry(NoBackoff(), 1)  # one retry, if the slot has moved
        return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **common)
    if url.kind == "sentinel":
        each_s = url.timeout_s / len(url.nodes)  # all of them within one time limit
        mine = {"socket_timeout": each_s, "socket_connect_timeout": each_s}
        never = Retry(NoBackoff(), 0)
        theirs = {**url.sentinel_options, **mine, "ssl": url.tls, "retry": never}
        made: Any = Sentinel  # redis-py gives it no types
        return made(url.nodes, sentinel_kwargs=theirs).master_for(url.master, **common)
    host, port = url.nodes[0]
    return redis.Redis(host=host, port=port, **common)


def check_library() -> None:
    """Check that redis-py is new enough; nothing is connected.

    Raises:
        TypeError: It is too old for an argument.
    """
    open_client(RedisUrl("one", (("localhost", 0),), options={"db": 0})).close()
