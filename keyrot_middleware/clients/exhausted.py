"""`KeyPoolExhausted`: no key is available, in a form that every caller understands.

Frameworks know the SDK's `ClientError` and read its code, body and `response.text`; some rebuild
it from `(code, details, response)`, and only the text of the body survives. So the body is a whole
Google error; see `NoKey`. This imports the SDK, and is imported where the SDK is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from math import isfinite
from typing import Any

from google.genai.errors import ClientError

from .no_key import NoKey


class KeyPoolExhausted(ClientError):  # noqa: N818 - its name is fixed, and says what it is
    """No key of the pool could serve the call; a `google.genai.errors.ClientError`.

    Nothing was sent, or every key that was tried failed because of the key: its quota is exhausted,
    or Google rejects it. In the second case the SDK's error of the last attempt is the `__cause__`.

    Like each `APIError` of the SDK it has `code`, `status` and `message`. The code is 429 while a
    key will be available again, 400 if no key has an allowed tier or project, and that of the last
    rejection if all keys are rejected. For `client.interactions` it is an exception of the SDK's
    Interactions too.
    """

    retry_at: datetime | None
    """When to call again: when the first key is expected to be available, an aware time in UTC. If
    all keys are rejected, when the first one is tried again. None: no time is known."""
    retry_in: int | None
    """How many seconds after the exception was raised that is, rounded up, at least 1: a delay for
    a task queue."""
    reasons: dict[str, str]
    """Why each key cannot serve the call, and until when, by key id."""

    def __reduce__(self) -> tuple[Any, ...]:
        theirs = [base for base in type(self).__bases__ if not issubclass(base, ClientError)]
        return (_rebuild, (theirs[0] if theirs else None, self.__dict__.copy(), self.args))


KeyPoolExhausted.__module__ = "keyrot_middleware"


def exhausted(
    why: NoKey,
    last: BaseException | None,
    notes: Iterable[str] = (),
    theirs: BaseException | None = None,
) -> KeyPoolExhausted:
    """Return the exception of a call that no key could serve.

    Args:
        why: Why.
        last: The SDK's exception of the last attempt, if there was one.
        notes: One about each attempt.
        theirs: What Interactions would raise for the response; programs that use them catch that.
    """
    library = sys.modules.get("httpx2") or sys.modules.get("httpx")
    response = getattr(theirs, "response", None)
    if response is None and library is not None:
        head = {"content-type": "application/json; charset=UTF-8"}
        response = library.Response(why.code, headers=head, content=json.dumps(why.body).encode())
    error = KeyPoolExhausted(why.code, why.body, response)
    if theirs is not None:
        state = {**theirs.__dict__, **error.__dict__}
        error = _rebuild(type(theirs), state, error.args)
    error.retry_at = datetime.fromtimestamp(why.until, UTC) if isfinite(why.until) else None
    error.retry_in, error.reasons = why.retry_in, why.reasons
    error.__cause__ = last
    for note in notes:
        error.add_note(note)
    return error


def _rebuild(
    theirs: type[BaseException] | None, state: dict[str, Any], args: tuple[object, ...]
) -> KeyPoolExhausted:
    cls = KeyPoolExhausted if theirs is None else _class_for(theirs)  # type: ignore[arg-type]  # a class
    error: KeyPoolExhausted = BaseException.__new__(cls)
    error.__dict__.update(state)
    error.args = args
    return error


@cache
def _class_for(theirs: type[BaseException]) -> type[KeyPoolExhausted]:
    names = {"__module__": "keyrot_middleware", "__qualname__": "KeyPoolExhausted"}
    return type("KeyPoolExhausted", (KeyPoolExhausted, theirs), names)
