"""redis-py's client for one pool, used by threads; tasks come through a thread (ADR 0028).

A call waits for one round trip: that of `acquire`. How a plain success ended is *deferred*: it goes
out in the pipeline of this process's next script, or after `FLUSH_S` by a thread of its own, or at
`close()`. Whoever runs a script sends all that was deferred before it, so one caller after another
sees its own past.

redis-py repeats nothing here; state/fallback.py decides what to do about a server that fails.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
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
from .url import Place

__all__ = [
    "Connections",
    "RedisStateError",
    "Script",
    "ScriptCall",
    "check_library",
    "script",
]

# The Lua scripts, each one decision: read from the package once, known to the server by digest ---


class Script(NamedTuple):
    """A script and the name by which EVALSHA calls it."""

    text: str
    digest: str


@cache
def script(name: str) -> Script:
    """Read the script *name*, with what all of them share in front."""
    folder = files("keyrot_middleware.state") / "lua"
    text = "\n".join(
        (folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("shared", name)
    )
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


_log = logging.getLogger("keyrot_middleware")


FLUSH_S = 0.02
"""How long a deferred script waits for another one to go out with, seconds."""
_OTHER_REFUSALS = ("OOM", "READONLY", "NOAUTH", "NOPERM", "MISCONF", "LOADING", "BUSY", "MOVED")
"""Refusals that have nothing to do with what is stored."""
_ECHO = re.compile(r",? with args\b.*", re.DOTALL)
"""Servers repeat what they did not understand, and that may be `AUTH` with its password."""
FAILURES = (RedisError, RedisClusterException, OSError)
"""What redis-py raises: the exception of its clusters is of no common class."""
MAX_CONNECTIONS = 2**31
"""One for each thread that asks at the moment: redis-py refuses more than 100 by default."""
IDLE_S = 1.0
"""After so long without a deferred script the thread that sends them ends, seconds."""


class RedisStateError(KeyrotError):
    """Say that the server was not reached in time, or refused.

    Whether a script ran is unknown if its reply is what did not come.

    Attributes:
        may_be_a_record: The server's refusal may come of a record that is none of ours.
    """

    def __init__(self, text: str, *, may_be_a_record: bool = False) -> None:
        super().__init__(text)
        self.may_be_a_record = may_be_a_record


class ScriptCall(NamedTuple):
    """One run of a script with its arguments."""

    script: Script
    args: tuple[Any, ...]


class Connections:
    """The pool's server. Any number of threads may use it at once."""

    def __init__(self, place: Place, slot_key: str) -> None:
        """Connect to nothing yet.

        Args:
            place: What the URL says.
            slot_key: A key of the cluster's slot that has all records of the pool.
        """
        self._place, self._slot_key = place, slot_key
        self._client: Any = None
        self._deferred: deque[ScriptCall] = deque()
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._flusher: threading.Thread | None = None
        self._retry_at = 0.0
        self._closed = False
        self._forked = False
        after_fork(self, Connections._after_fork)

    def run(self, call: ScriptCall) -> Any:
        """Run a script after all that were deferred, in one round trip; return its reply.

        Raises:
            RedisStateError: The server was not reached, did not reply in time, or refused.
        """
        try:
            reply = self._run([*self._take_deferred(), call])[-1]
        except FAILURES as error:
            raise self._failure(error) from None
        finally:
            self._disconnect_if_closed()
        if isinstance(reply, Exception):
            raise self._failure(reply) from None
        return reply

    def defer(self, call: ScriptCall) -> None:
        """Have a script run soon; nobody waits for its reply, or hears of its failure.

        It is run at once where nothing would run it later: after `close()`, and in a child that
        multiprocessing forked, since that ends without running exit handlers.
        """
        self._deferred.append(call)
        if self._closed or (self._forked and _is_multiprocessing_child()):
            with suppress(RedisStateError):
                self.flush()
        elif self._flusher is None:
            self._start_flusher()

    def flush(self) -> None:
        """Send what is deferred.

        Raises:
            RedisStateError: As `run`.
        """
        try:
            with self._flushing:  # whoever returns from here knows that what was deferred is sent
                if calls := self._take_deferred():
                    self._run(calls)
        except FAILURES as error:
            raise self._failure(error) from None
        finally:
            self._disconnect_if_closed()

    def commands(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send plain commands in order; return their replies.

        Raises:
            RedisStateError: As `run`, for the first that was refused.
        """
        try:
            client = self._open()
            if self._place.kind == "cluster":
                node = client.get_node_from_key(self._slot_key)
                return [client.execute_command(*command, target_nodes=node) for command in commands]
            pipeline = client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = pipeline.execute()
        except FAILURES as error:
            raise self._failure(error) from None
        finally:
            self._disconnect_if_closed()
        return replies

    def close(self) -> None:
        """Send what is deferred and disconnect; a call that is still under way connects anew."""
        self._closed = True
        try:
            self.flush()
        except RedisStateError as error:
            _log.warning("the end of a call may not have been booked: %s", error)
        self._disconnect_if_closed()

    def _disconnect_if_closed(self) -> None:
        """Close connections that no call uses; those of calls under way are closed after use."""
        client = self._client
        if not self._closed or client is None:
            return
        if self._place.kind == "cluster":
            client.close()
        else:
            client.connection_pool.disconnect(inuse_connections=False)

    def _run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run scripts in order; a refusal is among the replies as an exception."""
        client = self._open()
        if len(calls) == 1 or self._place.kind == "cluster":  # its pipelines take no scripts
            return [self._run_one(client, call) for call in calls]
        pipeline = client.pipeline(transaction=False)
        for script, args in calls:
            pipeline.evalsha(script.digest, 1, self._slot_key, *args)
        replies = pipeline.execute(raise_on_error=False)
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
                    client = self._client = self._connected()
        return client

    def _connected(self) -> Any:
        """Make the client; who waited while another caller failed to does not try as well."""
        if time.monotonic() < self._retry_at:
            raise RedisConnectionError("it could not be reached a moment ago")
        try:
            return open_client(self._place)
        except FAILURES:
            self._retry_at = time.monotonic() + self._place.timeout_s
            raise

    def _start_flusher(self) -> None:
        with self._lock:
            if self._flusher is not None or self._closed:
                return
            target = self._flush_until_idle
            flusher = threading.Thread(target=target, name="keyrot-redis", daemon=True)
            try:
                flusher.start()
            except RuntimeError:  # no more threads can be started: the next script takes it along
                return
            self._flusher = flusher

    def _flush_until_idle(self) -> None:
        idle_at = time.monotonic() + IDLE_S
        try:
            while time.monotonic() < idle_at and not self._closed:
                time.sleep(FLUSH_S)
                if self._deferred:
                    idle_at = time.monotonic() + IDLE_S
                    with suppress(
                        RedisStateError
                    ):  # the next acquire fails as well, and falls back
                        self.flush()
        finally:
            self._flusher = None
        if self._deferred:  # deferred since the last look
            self._start_flusher()

    def _failure(self, error: BaseException) -> RedisStateError:
        said = str(error)
        words = one_line(self._place.redact(_ECHO.sub("", said))) or type(error).__name__
        record = isinstance(error, ResponseError) and not said.startswith(_OTHER_REFUSALS)
        return RedisStateError(f"{self._place}: {words}", may_be_a_record=record)

    def _after_fork(self) -> None:
        self._forked = True
        self._deferred.clear()  # the parent sends them
        self._client, self._flusher = None, None
        self._lock, self._flushing = threading.Lock(), threading.Lock()


def _is_multiprocessing_child() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def open_client(place: Place) -> Any:
    """Make redis-py's client of a place.

    Raises:
        RedisError: A cluster was not reached; the others connect when they are used.
        TypeError: The installed redis-py is too old to know an argument.
    """
    limits = {"socket_timeout": place.timeout_s, "socket_connect_timeout": place.timeout_s}
    common = {**place.options, **limits, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
    common["max_connections"] = MAX_CONNECTIONS
    if place.kind == "unix":
        return redis.Redis(unix_socket_path=place.nodes[0][0], **common)
    common |= {"ssl": place.tls}
    if place.kind == "cluster":
        nodes = [ClusterNode(*node) for node in place.nodes]  # type: ignore[no-untyped-call]
        del common["db"]
        common["retry"] = Retry(NoBackoff(), 1)  # once more, where the slot has moved
        return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **common)
    if place.kind == "sentinel":
        each_s = place.timeout_s / len(place.nodes)  # all of them together take one time limit
        mine = {"socket_timeout": each_s, "socket_connect_timeout": each_s}
        never = Retry(NoBackoff(), 0)
        theirs = {**place.sentinel_options, **mine, "ssl": place.tls, "retry": never}
        made: Any = Sentinel  # redis-py gives it no types
        return made(place.nodes, sentinel_kwargs=theirs).master_for(place.master, **common)
    host, port = place.nodes[0]
    return redis.Redis(host=host, port=port, **common)


def check_library() -> None:
    """Do what needs a redis-py that is new enough; nothing is connected.

    Raises:
        TypeError: It knows no such argument.
    """
    open_client(Place("one", (("localhost", 0),), options={"db": 0})).close()
