"""Convert requests, responses and errors of the SDK to values of the core."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..core.affinity import conversation, parse_path
from ..core.commands import Done, Failed
from ..core.failures import FailureFacts
from ..core.model import GEMINI_API, NO_USAGE, CallInfo, Platform, Usage
from ..core.request_body import is_certain, read_body, requested_tier
from ..core.spending import service_tier
from ..core.tokens import TokenScale, count_requests
from ..core.usage import parse_token_counts, parse_usage_text
from .foreign_errors import facts_from_close, facts_from_error, is_quota_close
from .redaction import Redact, redact_exception

__all__ = [
    "ApiRequest",
    "call_info",
    "done_from_response",
    "effective_options",
    "facts_from_reported_error",
    "facts_from_session_error",
    "failed_from_error",
    "get_alias",
    "host_from_url",
    "option",
    "origin_from_url",
    "required_tiers",
    "timeout_s",
    "with_served_tier",
    "workload",
]

workload: ContextVar[str | None] = ContextVar("keyrot_workload", default=None)
required_tiers: ContextVar[frozenset[str] | None] = ContextVar("keyrot_tiers", default=None)
"""The tiers that `workload()` allows; None: all."""


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


@lru_cache(maxsize=256)
def host_from_url(base_url: str) -> str:
    """Return `host`, or `host:port` for a port that is not the default; empty for no URL."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        return ""
    if port is None or (parts.scheme, port) in (("https", 443), ("http", 80)):
        return parts.hostname or ""
    return f"{parts.hostname or ''}:{port}"


_PORTS = {"https": 443, "wss": 443, "http": 80, "ws": 80}


@lru_cache(maxsize=256)
def origin_from_url(url: str) -> str:
    """Return `scheme://host:port` of a URL, in the form of `settings.origins`; empty without host.

    A websocket over TLS has the origin of its host's HTTPS.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (KeyError, ValueError):
        return ""
    host = parts.hostname or ""
    scheme = {"wss": "https", "ws": "http"}.get(parts.scheme, parts.scheme)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" if host else ""


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
    body = request.request_dict if isinstance(request.request_dict, dict) else {}
    extra = extra_body if isinstance(extra_body, dict) else None
    route = parse_path(request.http_method, request.path)
    tokens, names = read_body({**body, **extra} if extra else body)
    if extra:  # which the SDK merges level by level, so that nothing of the body is lost
        names += read_body(body)[1]
    names = tuple(dict.fromkeys((*route.names, *names))) if names else route.names
    bound_to_owner = route.bound_to_owner or any(map(is_certain, names))
    tokens = tokens if route.counts_in_quota else 0
    return CallInfo(
        model=route.model,
        verb=route.verb,
        tokens=scale.scaled(route.model, tokens),
        estimate=tokens,
        requests=count_requests(route.verb, body) if route.counts_in_quota else 0,
        stream=stream,
        bound_to_owner=bound_to_owner,
        idempotent=route.idempotent,
        resources=names,
        workload=workload.get(),
        conversation=conversation(body) if sticky and not bound_to_owner else None,
        host=host,
        platform=platform,
        sdk_retries=retry is not None and option(retry, "attempts") not in (0, 1),
        counts_in_quota=route.counts_in_quota,
        service_tier=requested_tier({**body, **extra} if extra else body),
    )


def done_from_response(response: Any, *, in_full: bool) -> Done:
    """Read a whole response; *in_full*: more than its tokens, for an observer."""
    body = getattr(response, "body", None)
    if not in_full:
        return Done(response, *parse_token_counts(body))
    usage, names = parse_usage_text(body)
    return Done(response, with_served_tier(usage, getattr(response, "headers", None)), names)


def with_served_tier(usage: Usage, headers: Any) -> Usage:
    """Return *usage* with the service tier that the headers name; without, that of the body.

    The header is how Google says that a request was served in another tier than it asked for. The
    body of an interaction may repeat the one that was asked for.
    """
    if usage is NO_USAGE or not hasattr(headers, "items"):
        return usage
    found = (text for name, text in headers.items() if name.lower() == _TIER_HEADER)
    served = service_tier(next(found, None))
    return usage if served is None else usage._replace(service_tier=served)


_TIER_HEADER = "x-gemini-service-tier"


def failed_from_error(error: Exception, redact: Redact, handled: BaseException | None) -> Failed:
    """Redact the keys in the exception of a failure, and read its facts."""
    redact_exception(error, redact, handled)
    return Failed(_facts(error), error)


def facts_from_reported_error(error: Exception, redact: Redact) -> FailureFacts:
    """Read the facts of an error that a program reports by hand; of any library."""
    theirs = None if _is_sdk_error(error) else facts_from_error(error, redact)
    redact_exception(error, redact, frames=False)
    own = _facts(error)
    if is_quota_close(own.code, own.body):
        return replace(own, code=429)
    return theirs or own


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
    return facts_from_error(error, str) or FailureFacts(transport=_transport(error))


def _is_sdk_error(error: Exception) -> bool:
    api_errors = sys.modules.get("google.genai.errors")
    return api_errors is not None and isinstance(error, api_errors.APIError)


def _facts(error: Any) -> FailureFacts:
    if _is_sdk_error(error):
        headers: Any = getattr(error.response, "headers", None)
        after = headers.get("retry-after") if hasattr(headers, "get") else None
        return FailureFacts(code=error.code, body=error.details, retry_after=after)
    return FailureFacts(transport=_transport(error))


_TRANSPORT_ERRORS: Mapping[str, Any] = {
    # httpx and httpx2, then aiohttp: their names are read, for neither may be imported here.
    "ConnectError": "connect",
    "ReadError": "reset",
    "WriteError": "reset",
    "CloseError": "reset",
    "RemoteProtocolError": "reset",
    "TimeoutException": "timeout",
    "ClientConnectorError": "connect",
    "ConnectionTimeoutError": "timeout",
    "ServerTimeoutError": "timeout",
    "ServerDisconnectedError": "reset",
    "ClientOSError": "reset",
    "ClientPayloadError": "reset",
    "ClientConnectionResetError": "reset",
    # websockets
    "InvalidMessage": "reset",
    # what lies below them
    "TimeoutError": "timeout",
    "ConnectionRefusedError": "connect",
    "ConnectionResetError": "reset",
    "BrokenPipeError": "reset",
}


def _transport(error: BaseException) -> Any:
    """Classify a transport error by the first of its classes in the table."""
    for cls in type(error).__mro__:
        if cls.__name__ in _TRANSPORT_ERRORS:
            return _TRANSPORT_ERRORS[cls.__name__]
    return "other"
