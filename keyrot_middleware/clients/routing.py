"""Which requests are the pool's, and what each of them is.

Nothing here knows a library; httpx.py, requests.py and aiohttp.py say how each of them copies a
request, reads a response and makes one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from .. import providers
from ..core.model import POOL_KEY
from ..errors import handle_internal_error
from ..hosts import AllowedOrigins, hostname, is_within, origin_from_url
from ..libraries import SDK
from ..providers.base import Provider, Route
from ..providers.gemini import GEMINI_API
from ..runtime import SdkCall, sdk_call
from ..secrets import Secret
from .call import FERN, NO_ROUTE, STAINLESS, Call, Headers, Incoming
from .pooled_calls import PooledCalls
from .redaction import without_key
from .refusals import OwnResponse, without_pool

_CLIENT_HEADER = "x-goog-api-client"
_SDK = "google-genai-sdk"
"""In this header of each of its requests."""
_PLACEHOLDER = re.compile(rf"{POOL_KEY}[\w-]*")


class Served(NamedTuple):
    """What goes through the pool."""

    libraries: Collection[str]
    """google-genai among them or not."""
    hosts: Mapping[str, Mapping[str, Sequence[Provider]]]
    """The providers whose keys may go to a host, by its origins, or the paths below one."""
    with_paths: frozenset[str]
    """Hosts of which one of these is a path."""
    key_headers: frozenset[str]
    """Those that can have a key, in lower case."""
    request_headers: frozenset[str]
    """The headers of a request that are read, in lower case."""
    reply_headers: frozenset[str]
    """The headers of a successful response that are read."""

    def providers(self, url: str) -> Sequence[Provider]:
        """Return the providers of an address; of its host, where its origin is nobody's."""
        host = hostname(url)
        places = self.hosts.get(host)
        if places is None:
            return ()
        of_origin = places.get(origin_from_url(url)) or next(iter(places.values()))
        if host in self.with_paths:
            within = [place for place in places if is_within(url, (place,))]
            of_origin = places[max(within, key=len)] if within else of_origin
        return of_origin

    def write_home_key(self, headers: Headers, url: str, key: Secret) -> str:
        """Write a key where a request has a placeholder; return the URL."""
        there = [name for name in self.key_headers if POOL_KEY in (headers.get(name) or "")]
        for name in there:
            headers[name] = _PLACEHOLDER.sub(lambda _: key.reveal(), headers[name])
        if not there:  # it is in the address
            name, text = self.providers(url)[0].key_field(Route(""), key.reveal())
            headers[name] = str(text)  # see `Call.write_key`
        for provider in self.providers(url):
            url = provider.without_account(headers, url)
        return without_key(url)


def served(libraries: Collection[str], allowed: AllowedOrigins) -> Served:
    """Return what goes through the pool.

    Args:
        libraries: Those whose requests are served.
        allowed: Where the keys of each platform may go.
    """
    hosts: dict[str, dict[str, list[Provider]]] = {}
    for platform, origins in allowed.items():
        for origin in origins:
            of_host = hosts.setdefault(hostname(origin), {})
            of_host.setdefault(origin, []).append(providers.of(platform))
    known = {providers.of(platform) for platform in allowed}
    keys = frozenset(name for provider in known for name in provider.key_headers)
    return Served(
        libraries,
        hosts,
        frozenset(host for host, places in hosts.items() if any(p.count("/") > 2 for p in places)),
        keys,
        keys
        | {name for provider in known for name in provider.account_headers}
        | {_CLIENT_HEADER, STAINLESS, FERN, "user-agent"},
        frozenset(
            {
                *("content-type", "content-encoding", "content-length", "retry-after", "location"),
                *(h for p in known for h in (*p.limit_headers, p.tier_header, p.upload_header)),
            }
        ),
    )


def read(
    calls: PooledCalls | None, served: Served, request: Incoming
) -> Call | OwnResponse | Secret | None:
    """Return what to do with a request to an allowed host, before its body is read.

    Args:
        calls: The pool; None where no key was found at all.
        served: What goes through the pool.
        request: The request.

    Returns:
        A call of the pool, which is to `begin` with the body; a response, where the request has a
        placeholder and there is no key; a key that takes the placeholder's place, once and without
        the pool; None: send it as it is.
    """
    try:
        there = served.providers(request.url)
        if not there:
            return None
        if request.is_exposed and calls is not None:
            calls.warn_of_proxy(request.url)
        elif (routed := request.routed or _route(there, request)) is not None:
            return _call(calls, served, request, *routed)
    except Exception:
        handle_internal_error("clients")
    finally:
        if calls is not None:
            calls.begun.discard(sdk_call.get())
    return in_place_of_placeholder(calls, served, request)


def _call(
    calls: PooledCalls | None, served: Served, request: Incoming, provider: Provider, route: Route
) -> Call | OwnResponse | Secret | None:
    is_sdk = _SDK in request.headers.get(_CLIENT_HEADER, "")
    sdk = sdk_call.get() or SdkCall() if is_sdk else None
    if (request.library if sdk is None else SDK) not in served.libraries:
        return None
    own, in_query = provider.find_key(route, request.headers, request.url)
    if own and not own.startswith(POOL_KEY):
        if (
            calls is None
            or calls.pool.secrets.key_id_for(Secret(own)) is None
            or (is_sdk and provider.platform != GEMINI_API)
        ):
            return None  # the caller's own
    else:
        # The bytes of an upload need no key; their reply names the file.
        uploads = calls.uploads if calls is not None and not own else {}
        begun = [uploads[name] for name in route.names if name in uploads] if uploads else []
        if not own and not begun:
            return None
        if calls is None:
            return without_pool(provider, request.url)
        own = sdk.own if sdk is not None else begun[0].reveal() if begun else ""
    if not calls.serves(own or POOL_KEY, request.url, platform=provider.platform):
        return None if own else calls.home_key(provider, request.url)
    return Call(calls, request, provider, route, own=own, sdk=sdk, in_query=in_query)


def _route(there: Sequence[Provider], request: Incoming) -> tuple[Provider, Route] | None:
    """Return the provider and the route of a request; None: it is none of the pool's."""
    method, headers = request.method, request.headers
    url = request.url.partition("#")[0]  # mistralai writes /v1/chat/completions#stream
    provider = there[0]
    if len(there) > 1:
        known = [one for one in there if one.route(method, url) is not None]
        if len(known) == 1 and len(set(map(attrgetter("key_header"), there))) == 1:
            provider = known[0]
        else:
            provider = max(there, key=lambda one: one.fit(method, url, headers))
    route = provider.route(method, url)
    if route is None and provider.find_key(NO_ROUTE, headers, url)[0].startswith(POOL_KEY):
        verb = method.lower()
        route = NO_ROUTE._replace(verb=verb, idempotent=verb in ("get", "head"))
    return None if route is None else (provider, route)


def in_place_of_placeholder(
    calls: PooledCalls | None, served: Served, request: Incoming
) -> OwnResponse | Secret | None:
    """Return what to do with a request that could not be read, or that no table knows."""
    said = (*(request.headers.get(name) or "" for name in served.key_headers), request.url)
    if not any(POOL_KEY in text for text in said):
        return None
    if (sdk := sdk_call.get()) is not None and sdk.own:
        return Secret(sdk.own)
    provider = served.providers(request.url)[0]
    if calls is None:
        return without_pool(provider, request.url)
    return None if request.is_exposed else calls.home_key(provider, request.url)
