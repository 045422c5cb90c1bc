"""Read requests, responses and lost connections of the Gemini API, whichever library sends them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..core.affinity import conversation, parse_path
from ..core.model import GEMINI_API, NO_USAGE, CallInfo, Platform, Usage
from ..core.request_body import is_certain, read_body, requested_tier
from ..core.spending import service_tier
from ..core.text import mask_keys
from ..core.tokens import TokenScale, count_requests
from ..runtime.current import workload


def read_call(
    method: str,
    path: str,
    body: Mapping[str, Any],
    *,
    stream: bool,
    host: str,
    scale: TokenScale,
    sticky: bool,
    platform: Platform = GEMINI_API,
    sdk_retries: bool = False,
) -> CallInfo:
    """Read a request; none of its content is kept.

    Args:
        method: The HTTP method.
        path: Its path, with the query; with or without host and version.
        body: Its JSON body; empty if it has none.
        stream: The response is read in chunks.
        host: As in `CallInfo`.
        scale: That of the pool.
        sticky: A conversation keeps its key.
        platform: Which service it is for.
        sdk_retries: As in `CallInfo`.
    """
    route = parse_path(method, path)
    tokens, names = read_body(body)
    names = tuple(dict.fromkeys((*route.names, *names))) if names else route.names
    bound_to_owner = route.bound_to_owner or any(map(is_certain, names))
    tokens = tokens if route.counts_in_quota else 0
    model = route.model
    if route.is_openai and isinstance(named := body.get("model"), str):
        model = named.removeprefix("models/")
    model = mask_keys(model)  # it is shown: a key may be given in its place
    return CallInfo(
        model=model,
        verb=route.verb,
        tokens=scale.scaled(model, tokens),
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
        sdk_retries=sdk_retries,
        counts_in_quota=route.counts_in_quota,
        service_tier=requested_tier(body),
    )


def with_served_tier(usage: Usage, headers: Any) -> Usage:
    """Return *usage* with the service tier that the headers name; without, that of the body.

    The header is how Google says that a request was served in another tier than it asked for. The
    body of an interaction may repeat the one that was asked for.
    """
    if usage is NO_USAGE or not hasattr(headers, "items"):
        return usage
    found = (text for name, text in headers.items() if name.lower() == TIER_HEADER)
    served = service_tier(next(found, None))
    return usage if served is None else usage._replace(service_tier=served)


TIER_HEADER = "x-gemini-service-tier"


_TRANSPORT_ERRORS: Mapping[str, Any] = {
    # httpx and httpx2, aiohttp, requests: their names are read, for none may be imported here.
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
    "ReadTimeout": "timeout",
    "ConnectTimeout": "timeout",
    "ChunkedEncodingError": "reset",
    "ProtocolError": "reset",
    "NewConnectionError": "connect",
    # websockets
    "InvalidMessage": "reset",
    # what lies below them
    "TimeoutError": "timeout",
    "ConnectionRefusedError": "connect",
    "ConnectionResetError": "reset",
    "BrokenPipeError": "reset",
}


def transport_failure(error: BaseException) -> Any:
    """Classify a transport error by the first of its classes in the table.

    requests has one class for all lost connections; what it was made of is in its arguments.
    """
    for _ in range(_DEEPEST):
        for cls in type(error).__mro__:
            if cls.__name__ in _TRANSPORT_ERRORS:
                return _TRANSPORT_ERRORS[cls.__name__]
        inner = None
        with suppress(Exception):  # attributes of foreign exceptions
            inner = getattr(error, "reason", None) or next(iter(error.args), None)
        if not isinstance(inner, Exception):
            break
        error = inner
    return "other"


_DEEPEST = 5
