"""Convert requests, responses and errors of the SDK to values of the core."""

from __future__ import annotations

import sys
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

from ..adapters.foreign_errors import facts_from_close, facts_from_error
from ..adapters.reading import read_call, transport_failure, with_served_tier
from ..adapters.redaction import Redact, redact_exception
from ..core.commands import Done, Failed
from ..core.failures import FailureFacts
from ..core.model import GEMINI_API, CallInfo, Platform
from ..core.tokens import TokenScale
from ..core.usage import parse_token_counts, parse_usage_text

__all__ = [
    "ApiRequest",
    "call_info",
    "done_from_response",
    "effective_options",
    "facts_from_session_error",
    "failed_from_error",
    "get_alias",
    "option",
    "timeout_s",
]


class ApiRequest(NamedTuple):
    """The arguments of the api client's four request methods."""

    http_method: str
    path: str
    request_dict: Any
    """The body; the SDK's own type says dict."""
    http_options: Any = None


def option(options: Any, name: str) -> Any:
    """Read an option from `HttpOptions`, or from the dict that stands for one.

    A dict may have Google's own spelling instead, `baseUrl`; both are refused by the SDK.
    """
    if not isinstance(options, dict):
        return getattr(options, name, None)
    alias = get_alias(name)
    return options[alias] if alias in options else options.get(name)


@lru_cache(maxsize=64)
def get_alias(name: str) -> str:
    """Return Google's spelling of an option: `baseUrl` for `base_url`."""
    head, *humps = name.split("_")
    return head + "".join(map(str.capitalize, humps))


def effective_options(api_client: Any, options: Any) -> tuple[str, Any, Any]:
    """Return the effective options: those of the request, else those of the client.

    Returns:
        The base URL; `extra_body`, which the SDK merges into the body; the retry options.
    """
    shared = api_client._http_options
    if options is None:
        return shared.base_url or "", shared.extra_body, shared.retry_options
    return (
        option(options, "base_url") or shared.base_url or "",
        option(options, "extra_body") or shared.extra_body,
        option(options, "retry_options") or shared.retry_options,
    )


def timeout_s(api_client: Any, options: Any) -> float:
    """Return the effective timeout in seconds, which limits waiting too; `inf` for none."""
    own = option(options, "timeout") if options is not None else None
    ms = own or api_client._http_options.timeout
    return ms / 1000 if isinstance(ms, int | float) and ms > 0 else inf


def call_info(
    request: ApiRequest,
    extra_body: Any,
    retry: Any,
    *,
    stream: bool,
    host: str,
    scale: TokenScale,
    sticky: bool,
    platform: Platform = GEMINI_API,
) -> CallInfo:
    """Read a request; none of its content is kept."""
    return read_call(
        request.http_method,
        request.path,
        request.request_dict if isinstance(request.request_dict, dict) else {},
        extra_body if isinstance(extra_body, dict) else None,
        stream=stream,
        host=host,
        scale=scale,
        sticky=sticky,
        platform=platform,
        sdk_retries=retry is not None and option(retry, "attempts") not in (0, 1),
    )


def done_from_response(response: Any, *, in_full: bool) -> Done:
    """Read a whole response; *in_full*: more than its tokens, for an observer."""
    body = getattr(response, "body", None)
    if not in_full:
        return Done(response, *parse_token_counts(body))
    usage, names = parse_usage_text(body)
    return Done(response, with_served_tier(usage, getattr(response, "headers", None)), names)


def failed_from_error(error: Exception, redact: Redact, handled: BaseException | None) -> Failed:
    """Redact the keys in the exception of a failure, and read its facts."""
    redact_exception(error, redact, handled)
    return Failed(_facts(error), error)


def facts_from_session_error(error: BaseException) -> FailureFacts:
    """Read the facts of an error of a Live session: of its handshake, its setup or its end."""
    if hasattr(error, "rcvd"):  # websockets' ConnectionClosed; None: no close frame came
        close = error.rcvd
        if close is None:
            return FailureFacts(transport="reset")
        return facts_from_close(close.code, close.reason)
    code = getattr(error, "code", None)
    if isinstance(code, int) and code >= 1000:
        return facts_from_close(code, getattr(error, "details", None))
    return facts_from_error(error, str) or FailureFacts(transport=transport_failure(error))


def _is_sdk_error(error: Exception) -> bool:
    api_errors = sys.modules.get("google.genai.errors")
    return api_errors is not None and isinstance(error, api_errors.APIError)


def _facts(error: Any) -> FailureFacts:
    if _is_sdk_error(error):
        headers: Any = getattr(error.response, "headers", None)
        after = headers.get("retry-after") if hasattr(headers, "get") else None
        return FailureFacts(code=error.code, body=error.details, retry_after=after)
    return FailureFacts(transport=transport_failure(error))
