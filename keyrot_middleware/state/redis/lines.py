"""Connections for threads: kept open, held for one question each, never asked twice in secret.

A line is held for a question and not for the call around it, so a few serve many threads. An answer
that nobody waits for (`post`) stays on its line until whoever uses the line next, or `close`, reads
it; where it is a failure, that one is told. What that one was granted then counts as sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError, ResponseError

from ...forks import after_fork
from .calls import MOST_TRIES, Call, packed
from .dial import Dial
from .line import Line
from .place import Address
from .route import Advice, Route
from .trouble import RedisTrouble

__all__ = ["Lines"]

MOST_IDLE = 32

_log = logging.getLogger("keyrot_middleware")


class Lines:
    """The connections of one process to the pool's server."""

    def __init__(self, route: Route) -> None:
        self._route, self._dial = route, Dial(route)
        self._idle: list[Line] = []
        self._closed = False
        after_fork(self, Lines.forget)

    def call(self, call: Call) -> Any:
        """Run a script and give its answer.

        Raises:
            RedisTrouble: No server, no answer in time, or a refusal.
        """
        line = self._take()
        owed, line.owed = line.owed, None
        try:
            line.send(call.brief)
            before = line.read() if owed is not None else None
            reply = line.read()
            if owed is not None:
                self._answer(line, owed, before)
            reply = self._answer(line, call, reply)
        except RedisError as error:
            raise self._broken(line, error) from error
        self._give(line)
        return reply

    def post(self, call: Call) -> None:
        """Run a script whose answer is read later, once the server is known to have it.

        Raises:
            RedisTrouble: It could not be sent, or the answer before it was a failure.
        """
        line = self._paid(self._take())
        try:
            line.send(call.brief)
        except RedisError as error:
            raise self._broken(line, error) from error
        line.owed = call
        self._give(line if call.digest in line.knows else self._paid(line))

    def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send plain commands together and give their answers.

        Raises:
            RedisTrouble: As `call`.
        """
        line = self._paid(self._take())
        try:
            replies = self._answers(line, commands)
        except RedisError as error:
            raise self._broken(line, error) from error
        self._give(line)
        return replies

    def collect(self) -> None:
        """Read every answer that is still owed.

        Raises:
            RedisTrouble: One of them was a failure, or did not come.
        """
        for line in tuple(self._idle):
            if line.owed is not None:
                with suppress(ValueError):  # another thread has taken it, and reads it
                    self._idle.remove(line)
                    self._give(self._paid(line))

    def close(self) -> None:
        """Close every line, once what it owes was read; later ones are closed after use.

        A server that has failed one of them is not waited for by the others.
        """
        self._closed = True
        trouble: RedisTrouble | None = None
        while self._idle:
            line = self._idle.pop()
            if trouble is not None:
                line.owed = None
            try:
                self._paid(line).hang_up()
            except RedisTrouble as error:
                trouble = error
        if trouble is not None:
            _log.warning("the end of a call may not have been booked: %s", trouble)

    def forget(self) -> None:
        """Leave the lines to the process that this one was forked from."""
        self._idle = []

    def _take(self) -> Line:
        """Give a line to the right server, with nothing left to read but what it owes."""
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                return self._open()
            if line.address == self._route.address and not line.stale:
                return line
            self._paid(line)
            if line.address == self._route.address and not line.closed:
                return line
            line.hang_up()

    def _give(self, line: Line) -> None:
        line.used_at = time.monotonic()
        if self._closed or len(self._idle) >= MOST_IDLE:
            self._paid(line).hang_up()
        else:
            self._idle.append(line)

    def _paid(self, line: Line) -> Line:
        call, line.owed = line.owed, None
        if call is not None:
            try:
                self._answer(line, call, line.read())
            except RedisError as error:
                raise self._broken(line, error) from error
        return line

    def _answer(self, line: Line, call: Call, reply: Any) -> Any:
        """Give the answer to *call*; send it again only where the server says it did not run."""
        tries = 1
        while isinstance(reply, ResponseError):
            advice = self._route.advise(reply, line.address)
            if advice is Advice.FAIL or tries == MOST_TRIES:
                raise reply
            if advice is Advice.MOVE:
                self._dial.lead(line)
            line.send(call.full if advice is Advice.TELL else call.brief)
            reply = line.read()
            tries += 1
        line.knows.add(call.digest)
        return reply

    def _answers(self, line: Line, commands: Sequence[Sequence[Any]]) -> list[Any]:
        for tries in range(1, MOST_TRIES + 1):
            line.send(b"".join(packed(command) for command in commands))
            replies = [line.read() for _ in commands]
            failed = [reply for reply in replies if isinstance(reply, ResponseError)]
            if not failed:
                break
            advice = self._route.advise(failed[0], line.address)
            if advice is not Advice.MOVE or tries == MOST_TRIES:
                raise failed[0]
            self._dial.lead(line)
        return replies

    def _open(self) -> Line:
        line = Line()
        try:
            self._dial.lead(line)
        except (RedisError, LookupError) as error:
            raise self._broken(line, error) from error
        return line

    def _drop(self, address: Address) -> None:
        """Hang up the idle lines to a server that failed: each would fail its next user as well."""
        for line in tuple(self._idle):
            if line.address == address:
                with suppress(ValueError):  # another thread has taken it
                    self._idle.remove(line)
                    line.hang_up()

    def _broken(self, line: Line, error: Exception) -> RedisTrouble:
        """Close a line after a failure; a server that does not answer is not relied on."""
        line.hang_up()
        if not isinstance(error, ResponseError):
            self._route.lost(line.address)
            self._drop(line.address)
        return RedisTrouble(str(self._route.place), error)
