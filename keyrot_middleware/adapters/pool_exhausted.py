"""`KeyPoolExhausted`: no key is available, in a form that every caller understands.

Frameworks know the SDK's `ClientError` and read its code, body and `response.text`; some rebuild
it from `(code, details, response)`, and only the text of the body survives. So the body is a whole
Google error; see no_key.py.

The class is created at first use: importing this package must not import the SDK.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any

from ..core.flow import Exhausted
from .no_key import NoKey
from .pooled_calls import PooledCalls

if TYPE_CHECKING:
    from google.genai.errors import ClientError
else:
    ClientError = object

__all__ = [
    "also_api_error",
    "exhausted_call",
    "key_pool_exhausted",
]


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
    reasons: dict[str, str]
    """Why each key cannot serve the call, and until when, by key id."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.__dict__.copy(), self.args))


_TEMPLATE = KeyPoolExhausted
if not TYPE_CHECKING:
    del KeyPoolExhausted, ClientError  # see `__getattr__`


def _rebuild(state: dict[str, Any], args: tuple[Any, ...]) -> BaseException:
    error: BaseException = BaseException.__new__(key_pool_exhausted())
    error.__dict__.update(state)
    error.args = args
    return error


_classes: list[type[Any]] = []


def key_pool_exhausted() -> type[Any]:
    """Return the class, a subclass of the SDK's `ClientError`; imports the SDK."""
    from google.genai.errors import ClientError  # noqa: PLC0415 - not before it is needed

    return _class_for(ClientError)


@cache
def _class_for(client_error: type[Any]) -> type[Any]:
    """Create the class; after a second import of the SDK, a subclass of the previous one."""
    body = {k: v for k, v in vars(_TEMPLATE).items() if k not in ("__dict__", "__weakref__")}
    body |= {"__module__": "keyrot_middleware", "__qualname__": "KeyPoolExhausted"}
    _classes[:] = [type("KeyPoolExhausted", (*_classes, client_error), body)]
    return _classes[0]


def exhausted_call(
    calls: PooledCalls, no_key: Exhausted, response_type: Any, model: str = ""
) -> BaseException:
    """Build the exception for a call of a pool that no key could serve.

    Its cause is the SDK's exception of the last attempt, if there was one.

    Args:
        calls: The pool.
        no_key: Why.
        response_type: The `Response` class of the client's HTTP library, or None.
        model: The one that was requested, if any.
    """
    error = _exception(calls.no_key(no_key, model), response_type)
    error.__cause__ = no_key.last
    for note in getattr(no_key, "__notes__", ()):
        error.add_note(note)
    return error


def _exception(why: NoKey, response_type: Any) -> BaseException:
    response = _response(response_type, why.code, why.body)
    error: Any = key_pool_exhausted()(why.code, why.body, response)
    error.retry_at = datetime.fromtimestamp(why.until, UTC) if isfinite(why.until) else None
    error.reasons = why.reasons
    return error  # type: ignore[no-any-return]


def also_api_error(error: BaseException, theirs: BaseException) -> BaseException:
    """Return a `KeyPoolExhausted` that is an exception of another part of the SDK too.

    Interactions raise exceptions of their own, and programs that use them catch those.

    Args:
        error: As for all other calls.
        theirs: What the SDK would raise for a response with the same code.
    """
    return _with_class(type(theirs), {**theirs.__dict__, **error.__dict__}, error.args)


def _with_class(
    theirs: type[BaseException], state: dict[str, Any], args: tuple[Any, ...]
) -> BaseException:
    cls = _api_error_class(key_pool_exhausted(), theirs)  # type: ignore[arg-type]  # they are
    error: BaseException = BaseException.__new__(cls)
    error.__dict__.update(state)
    error.args = args
    return error


@cache
def _api_error_class(ours: type[BaseException], theirs: type[BaseException]) -> type[Any]:
    def reduce(self: BaseException) -> tuple[Any, ...]:
        return (_with_class, (theirs, self.__dict__.copy(), self.args))

    names = {"__module__": "keyrot_middleware", "__qualname__": "KeyPoolExhausted"}
    return type("KeyPoolExhausted", (ours, theirs), {**names, "__reduce__": reduce})


def _response(response_type: Any, code: int, details: Any) -> Any:
    if response_type is None:
        return None
    return response_type(
        code,
        headers={"content-type": "application/json; charset=UTF-8"},
        content=json.dumps(details).encode(),
    )


def __getattr__(name: str) -> Any:
    if name == "KeyPoolExhausted":
        return key_pool_exhausted()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
