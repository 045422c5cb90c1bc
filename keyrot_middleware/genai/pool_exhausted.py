"""`KeyPoolExhausted`: no key is available, in a form that every caller understands.

Frameworks know the SDK's `ClientError` and read its code, body and `response.text`; some rebuild
it from `(code, details, response)`, and only the text of the body survives. So the body is a whole
Google error, with a RetryInfo, and its message says the true cause of each key. They also sniff
words, which is why the message avoids some (`_SNIFFED`).

The class is created at first use: importing this package must not import the SDK.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from math import ceil, inf, isfinite
from typing import TYPE_CHECKING, Any

from ..core.failures import REJECTIONS
from ..core.model import OTHER_TIER, Block
from ..errors import rejection_code

if TYPE_CHECKING:
    from google.genai.errors import ClientError as _ClientError
else:
    _ClientError = object

__all__ = [
    "NO_EXPRESS_KEY",
    "NO_KEY",
    "LastRefusal",
    "also_api_error",
    "error_body",
    "exhausted",
    "key_pool_exhausted",
    "response_type_of",
]

_SNIFFED = ("timeout", "403", "500", "502", "503")
_SHOWN = 10
"""Keys named in the message; all of them are in `reasons`."""

_TYPE = "type.googleapis.com/google.rpc."


LastRefusal = tuple[int, str | None, Any]
"""Code, status and body with which Google rejected a key."""


class _KeyPoolExhausted(_ClientError):  # noqa: N818 - its name is fixed, and says what it is
    """No key of the pool could serve the call.

    Nothing was sent, or every key that was tried failed as a key: its quota is exhausted, or Google
    rejects it. Then the SDK's error of the last attempt is the `__cause__`. While a key will come
    back, the code is 429.

    Attributes:
        retry_at: When the first key is expected back, an aware datetime in UTC; where all are
            rejected, when the first is tried again; None when the pool has no key for the call.
        reasons: Why each key cannot serve, and until when, by key id.
    """

    retry_at: datetime | None
    reasons: dict[str, str]

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.__dict__.copy(), self.args))


if TYPE_CHECKING:
    KeyPoolExhausted = _KeyPoolExhausted


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
    body = {
        k: v for k, v in vars(_KeyPoolExhausted).items() if k not in ("__dict__", "__weakref__")
    }
    body |= {"__module__": "keyrot_middleware", "__qualname__": "KeyPoolExhausted"}
    _classes[:] = [type("KeyPoolExhausted", (*_classes, client_error), body)]
    return _classes[0]


NO_KEY = (
    "there is no Gemini API key to send this with: set GEMINI_API_KEYS or GEMINI_API_KEY, write a "
    "keys.json, or give the client an api_key other than keyrot-pool; keyrot check shows what is "
    "found"
)


NO_EXPRESS_KEY = (
    "there is no key for Vertex AI in express mode to send this with: write a keys.json that has "
    'one with "platform": "vertex_express", or give the client an api_key other than keyrot-pool'
)


def error_body(code: int, text: str) -> dict[str, Any]:
    """Return *text* as the body of an error of Google."""
    status = "UNAUTHENTICATED" if code == 401 else "FAILED_PRECONDITION"
    return {"error": {"code": code, "message": f"keyrot: {text}", "status": status}}


def exhausted(
    pool: str,
    blocks: Mapping[str, Block],
    now: float,
    last: LastRefusal | None,
    response_type: Any,
    *,
    has_untried_keys: bool = False,
    quote: str | None = None,
) -> BaseException:
    """Build the exception for a call that no key could serve.

    Args:
        pool: The pool's name.
        blocks: Why each key cannot serve.
        now: Epoch seconds.
        last: What rejected the last key; used when all are rejected, and this process saw it.
        response_type: The `Response` class of the client's HTTP library, or None.
        has_untried_keys: A limit on the attempts ended the call, so other keys may be available.
        quote: What Google said of the model.
    """
    retry_at = min((block.until for block in _returning(blocks) or blocks.values()), default=inf)
    reasons = {key_id: _reason(block) for key_id, block in blocks.items()}
    if _returning(blocks) or last is None:  # another process may have seen the rejections
        which = "that was tried " if has_untried_keys else ""
        intro = f"No Gemini API key of pool {pool!r} {which}is available."
        details = _body(pool, blocks, reasons, retry_at, now, intro)
        if quote:
            details["error"]["message"] += f' Google says: "{quote}"'
        code = details["error"]["code"]
    else:
        code, details = last[0], _google_body(last[2])
    error: Any = key_pool_exhausted()(code, details, _response(response_type, code, details))
    error.retry_at = datetime.fromtimestamp(retry_at, UTC) if isfinite(retry_at) else None
    error.reasons = reasons
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


def _google_body(details: Any) -> Any:
    """Return Google's body; for an async stream the SDK has it as the text of a `message`."""
    try:
        body = json.loads(details["message"])
    except (KeyError, TypeError, ValueError):
        return details
    return body if isinstance(body, dict) and "error" in body else details


def _reason(block: Block) -> str:
    if block.reason == OTHER_TIER:
        return f"{OTHER_TIER}: not one that this call may use (KEYROT_TIERS, workload)"
    if not isfinite(block.until):
        return block.reason
    at = f"{datetime.fromtimestamp(block.until, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if block.reason in REJECTIONS:
        return f"{block.reason}, rejected; replace its value; tried again at {at}"
    return f"{block.reason} until {at}"


def _returning(blocks: Mapping[str, Block]) -> list[Block]:
    """List the blocks that end by themselves: those of keys that Google does not reject."""
    return [b for b in blocks.values() if b.reason not in REJECTIONS and isfinite(b.until)]


def _body(  # noqa: PLR0917 - one caller
    pool: str,
    blocks: Mapping[str, Block],
    reasons: Mapping[str, str],
    retry_at: float,
    now: float,
    intro: str,
) -> dict[str, Any]:
    shown = "; ".join(f"{key_id}: {why}" for key_id, why in list(reasons.items())[:_SHOWN])
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    message = (
        f"{intro} {shown}{more}."
        if shown
        else (f"Pool {pool!r} has no Gemini API key that may serve this call.")
    )
    details: list[dict[str, Any]] = []
    returning = _returning(blocks)
    why = {block.reason for block in returning}
    if returning and why <= {"rpd", "quota_day", "usd"}:
        violation = {"quotaMetric": "keyrot/requests", "quotaId": "KeyPoolRequestsPerDay"}
        if why == {"usd"}:
            violation = {"quotaMetric": "keyrot/usd", "quotaId": "KeyPoolUsdPerDay"}
        details.append({"@type": f"{_TYPE}QuotaFailure", "violations": [violation]})
    if returning:
        details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": _delay(retry_at - now)})
    code, status = rejection_code(() if returning else [block.reason for block in blocks.values()])
    return {"error": {"code": code, "message": message, "status": status, "details": details}}


def _delay(seconds: float) -> str:
    """Round up to whole seconds, past numbers that are taken for another error's code."""
    whole = max(ceil(seconds), 1)
    while any(word in str(whole) for word in _SNIFFED):
        whole += 1
    return f"{whole}s"


def _response(response_type: Any, code: int, details: Any) -> Any:
    if response_type is None:
        return None
    return response_type(
        code,
        headers={"content-type": "application/json; charset=UTF-8"},
        content=json.dumps(details).encode(),
    )


def response_type_of(api_client: Any) -> Any:
    """Return the `Response` class of the client's HTTP library; never import it."""
    for cls in type(getattr(api_client, "_httpx_client", None)).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in ("httpx", "httpx2"):
            return getattr(sys.modules.get(root), "Response", None)
    return None


def __getattr__(name: str) -> Any:
    if name == "KeyPoolExhausted":
        return key_pool_exhausted()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
