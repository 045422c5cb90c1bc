"""A request of an HTTP library as a call of the pool: what it is, its key, its models, its reply.

Nothing here knows a library. httpx_clients.py and requests_sessions.py say how each of them copies
a request, reads a response and makes one.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

from .. import providers
from ..adapters import host_from_url, hostname, is_within, origin_from_url, with_served_tier
from ..adapters.pooled_calls import NoKey, PooledCalls
from ..adapters.redaction import Redact, without_key
from ..core.chains import (
    fallback_call,
    fallback_info,
    has_chain,
    is_missing,
    may_fall_back,
    stay_note,
    tried_note,
)
from ..core.commands import Done, Failed
from ..core.failures import SLOW, FailureFacts
from ..core.flow import CallState, Exhausted
from ..core.model import POOL_KEY, CallInfo, Lease
from ..core.text import one_line
from ..errors import handle_internal_error
from ..providers.base import Provider, Route
from ..providers.gemini import GEMINI_API
from ..runtime import SdkCall, required_project, required_tiers, sdk_call, workload
from ..runtime.first_token import first_token_s
from ..secrets import Secret
from ..settings import AllowedOrigins
from ..telemetry import CallObserver
from .events import EventReader

CLIENT_HEADER = "x-goog-api-client"
SDK = "google-genai"
_SDK = "google-genai-sdk"
"""In this header of each of its requests."""
_PLACEHOLDER = re.compile(rf"{POOL_KEY}[\w-]*")
NO_RETRY = "x-should-retry"
"""openai retries 429 and 5xx twice unless a response says otherwise."""
_FERN = "x-fern-language"
SDK_RETRIES = ("x-stainless-retry-count", _FERN)
"""One is in each request of an SDK that repeats a 5xx: openai and its like, and cohere."""
_STAND_IN_S = 3_600.0
_QUOTED = 300
"""Characters of a provider's message in a warning."""


NO_ROUTE = Route("", bound_to_owner=True, counts_in_quota=False, protocol="unknown")
"""Of a path that no provider's table has: with a placeholder it goes with the home key."""


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

    def find(self, method: str, url: str, headers: Any) -> tuple[Provider, Route] | None:
        """Return the provider and the route of a request; None: it is none of the pool's."""
        url = url.partition("#")[0]  # mistralai writes /v1/chat/completions#stream
        there = self.providers(url)
        if not there:
            return None
        found = [one for one in there if one.route(method, url) is not None]
        if len(found) != 1 or any(one.key_header != found[0].key_header for one in there):
            found = [max(there, key=lambda one: one.fit(method, url, headers))]
        provider, route = found[0], found[0].route(method, url)
        if route is None and provider.find_key(NO_ROUTE, headers, url)[0].startswith(POOL_KEY):
            verb = method.lower()
            route = NO_ROUTE._replace(verb=verb, idempotent=verb in ("get", "head"))
        return None if route is None else (provider, route)

    def providers(self, url: str) -> Sequence[Provider]:
        """Return the providers of an address; of its host, where its origin is nobody's."""
        host = hostname(url)
        places = self.hosts.get(host)
        if places is None:
            return ()
        found = places.get(origin_from_url(url)) or next(iter(places.values()))
        if host in self.with_paths:
            within = [place for place in places if is_within(url, (place,))]
            found = places[max(within, key=len)] if within else found
        return found

    def write_home_key(self, headers: Any, url: str, key: Secret) -> None:
        """Write a key where a request has a placeholder."""
        there = [name for name in self.key_headers if POOL_KEY in (headers.get(name) or "")]
        for name in there:
            headers[name] = _PLACEHOLDER.sub(lambda _: key.reveal(), headers[name])
        if not there:  # it is in the address
            name, text = self.providers(url)[0].key_field(Route(""), key.reveal())
            headers[name] = text


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
    found = {providers.of(platform) for platform in allowed}
    keys = frozenset(name for provider in found for name in provider.key_headers)
    return Served(
        libraries,
        hosts,
        frozenset(host for host, places in hosts.items() if any(p.count("/") > 2 for p in places)),
        keys,
        keys | {CLIENT_HEADER, *SDK_RETRIES, "user-agent"},
        frozenset(
            {
                *("content-type", "content-encoding", "retry-after"),
                *(h for p in found for h in (*p.limit_headers, p.tier_header, p.upload_header)),
            }
        ),
    )


class Incoming(NamedTuple):
    """A request as an HTTP library has it."""

    method: str
    url: str
    headers: Any
    """A mapping whose names are in any case."""
    timeout_s: float = inf
    """How long the program waits for the response; `inf` if it has set nothing."""
    retries_5xx: bool = False
    """The library itself sends a request again after a 5xx or a lost connection."""
    library: str = ""
    """Which one it is, unless google-genai sends the request."""
    has_head_timeout: bool = True
    """The head of a response can have a timeout of its own."""


class Outcome(NamedTuple):
    """What a response that ends a call carries for the exception that google-genai makes of it."""

    notes: Sequence[str]
    """One about each attempt."""
    no_key: NoKey | None = None
    """Why no key could serve the call."""
    last: tuple[int, Any, Any] | None = None
    """Code, body and response of the last refusal before that."""


class Refused(Exception):  # noqa: N818 - a refusal of the server, which reaches no caller
    """No response that serves: a refusal, which goes to the program, or another attempt follows."""

    def __init__(self, response: Any, body: Any = None, no_key: NoKey | None = None) -> None:
        super().__init__()
        first = body[0] if isinstance(body, list) and body else body
        self.response = response
        self.body = body
        self.no_key = no_key
        self.code = 0
        self.details = first if isinstance(first, dict) else None
        """The body, as Google writes errors."""
        error = self.details.get("error") if self.details else None
        self.status = error.get("status") if isinstance(error, dict) else None


class Reply(NamedTuple):
    """A response of our own, in place of one of the server's."""

    code: int
    headers: dict[str, str]
    body: bytes


class Target(NamedTuple):
    """What is sent: with another model than the program's."""

    method: str
    url: str
    """Without a key."""
    body: bytes


# Read a request -----------------------------------------------------------------------------------


def read(
    calls: PooledCalls | None, served: Served, request: Incoming
) -> Head | Reply | Secret | None:
    """Return what to do with a request to an allowed host, before its body is read.

    Args:
        calls: The pool; None where no key was found at all.
        served: What goes through the pool.
        request: The request.

    Returns:
        A request for the pool; a response, where it has a placeholder and there is no key; a key
        that takes the placeholder's place, once and without the pool; None: send it as it is.
    """
    if calls is not None:
        calls.begun.discard(sdk_call.get())
    try:
        return _read(calls, served, request)
    except Exception:
        handle_internal_error("http_clients")
        return _in_place_of_placeholder(calls, served, request)


@dataclass(slots=True, repr=False, eq=False)
class Head:
    """A request for the pool, of which the body is to be read. No tuple: reporters show those."""

    calls: PooledCalls
    request: Incoming
    provider: Provider
    route: Route
    own: str
    sdk: SdkCall | None
    in_query: bool
    served: Served

    def call(self, content: bytes, rest: Any = None) -> Call | Reply | Secret | None:
        """Return the call; or, after an internal error, what `read` returns.

        Args:
            content: The body.
            rest: An iterator of the rest of one that is too long to be kept; or None.
        """
        try:
            return self._call(content, rest)
        except Exception:
            handle_internal_error("http_clients")
            return _in_place_of_placeholder(self.calls, self.served, self.request)

    def _call(self, content: bytes, rest: Any) -> Call:
        sdk, body = self.sdk, _parse(content)
        self.route = self.provider.route_with(self.route, body)
        info = self._info(body)
        state = self.calls.call_state(info, self.own or POOL_KEY, self.request.timeout_s)
        if sdk is not None and sdk.repeats:
            state.info = state.info._replace(sdk_retries=True)
        if sdk is not None and sdk.attempts > 1:
            state.policy = replace(state.policy, max_retries=sdk.attempts - 1)
        if rest is not None:
            state.policy = replace(state.policy, max_attempts=1, max_retries=0)
        return Call(self, state, content, rest)

    def _info(self, body: dict[str, Any]) -> CallInfo:
        request, pool, provider = self.request, self.calls.pool, self.provider
        info = provider.read_request(self.route, body)
        model = "" if self.route.protocol == NO_ROUTE.protocol else info.model
        info = info._replace(model=pool.secrets.redact(model))  # it is shown
        sticky = pool.policy.strategy == "sticky" and not info.bound_to_owner
        return info._replace(
            tokens=pool.token_scale.scaled(info.model, info.estimate),
            workload=workload.get(),
            conversation=provider.conversation(body) if sticky else None,
            host=host_from_url(request.url),
            platform=provider.platform,
            sdk_retries=request.retries_5xx or self._sdk_retries,
        )

    @property
    def _sdk_retries(self) -> bool:
        headers, agent = self.request.headers, self.provider.repeating_agent
        if any(name in headers for name in SDK_RETRIES):
            return True
        return bool(agent) and (headers.get("user-agent") or "").endswith(agent)


def _in_place_of_placeholder(
    calls: PooledCalls | None, served: Served, request: Incoming
) -> Reply | Secret | None:
    """Return what to do with a request that could not be read, or that no table knows."""
    said = (*(request.headers.get(name) or "" for name in served.key_headers), request.url)
    if not any(POOL_KEY in text for text in said):
        return None
    if (sdk := sdk_call.get()) is not None and sdk.own:
        return Secret(sdk.own)
    provider = served.providers(request.url)[0]
    return (
        _without_pool(provider, request.url)
        if calls is None
        else home_key(calls, provider, request.url)
    )


def _read(
    calls: PooledCalls | None, served: Served, request: Incoming
) -> Head | Reply | Secret | None:
    found = served.find(request.method, request.url, request.headers)
    if found is None:
        known = served.providers(request.url)
        return _in_place_of_placeholder(calls, served, request) if known else None
    provider, route = found
    is_sdk = _SDK in request.headers.get(CLIENT_HEADER, "")
    if (SDK if is_sdk else request.library) not in served.libraries:
        return None
    given, in_query = provider.find_key(route, request.headers, request.url)
    sdk, own = (sdk_call.get() or SdkCall()) if is_sdk else None, given
    upload = _begun_upload(calls, route) if not given else None
    if upload is not None:
        given = POOL_KEY  # the bytes of an upload, which need no key; their reply names the file
    if not given:
        return None
    is_placeholder = given.startswith(POOL_KEY)
    if calls is None:
        return _without_pool(provider, request.url) if is_placeholder else None
    if is_placeholder:
        own = sdk.own if sdk is not None else upload.reveal() if upload is not None else ""
    elif calls.pool.secrets.key_id_for(Secret(given)) is None or (
        sdk and provider.platform != GEMINI_API
    ):
        return None  # the caller's own
    if not calls.serves(own or POOL_KEY, request.url, platform=provider.platform):
        return None if own else home_key(calls, provider, request.url)
    return Head(calls, request, provider, route, own, sdk, in_query, served)


def _begun_upload(calls: PooledCalls | None, route: Route) -> Secret | None:
    """Return the client's own key, or an empty one, of the upload whose bytes these are."""
    begun = calls.uploads if calls is not None else {}
    return next((begun[name] for name in route.names if name in begun), None)


def home_key(calls: PooledCalls, provider: Provider, url: str) -> Secret | Reply | None:
    """Return the key that takes the place of a placeholder without the pool.

    None: no key of the pool may go there, and the request is sent as it is.
    """
    if not is_within(url, calls.allowed[provider.platform]):
        return None
    home = calls.pool.home_value(provider.platform, required_tiers.get(), required_project.get())
    return home or _without_pool(provider, url)


def _without_pool(provider: Provider, url: str) -> Reply:
    """Return the response to a request that has a placeholder where there is no key to send."""
    return _reply(401, provider.error_body(401, f"keyrot: {provider.no_key}"), url)


_LARGE = 65_536
_LONG_TEXT, _BEGINNING = 8_192, 128


def _shortened(content: bytes) -> bytes:
    """Return a body without its long texts: each has its beginning, a NUL, and its size in UTF-8.

    So a prompt or media of megabytes is not parsed; see `providers.base.text_size`.
    """
    parts, done, begin = list[bytes](), 0, 0
    while begin < len(content):
        quote = content.rfind(b'"', begin, begin + _LONG_TEXT)
        if quote < 0:  # a long text begins here, or numbers
            quote = content.find(b'"', begin + _LONG_TEXT)
            while content[quote - 1 : quote] == b"\\" and content[quote - 2 : quote] != rb"\\":
                quote = content.find(b'"', quote + 1)
            if quote < 0:
                break
            if content[begin - 2 : begin - 1] in (b":", b" ", b"[", b","):
                size = quote - begin
                if content.find(b"\\", begin, quote) >= 0:
                    escapes = content.count(b"\\", begin, quote)
                    size -= escapes + 2 * content.count(b"\\u", begin, quote)
                head = content[begin : begin + _BEGINNING].partition(b"\\")[0]
                parts += (content[done:begin], head, b"\\u0000%d" % size)
                done = quote
        begin = quote + 1
    return b"".join((*parts, content[done:]))


def text_of(content: bytes) -> str:
    """Return a body as text, without the long texts of a large one; see `_shortened`."""
    text = content if len(content) < _LARGE else _shortened(content)
    return text.decode("utf-8", "replace")


def _parse(content: bytes) -> dict[str, Any]:
    if content.lstrip()[:1] != b"{":
        return {}
    try:
        body = json.loads(text_of(content))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


class Call:
    """A request that goes through the pool."""

    __slots__ = (
        "_asked",
        "_error",
        "_key_headers",
        "_waits_by_itself",
        "call",
        "calls",
        "content",
        "in_query",
        "is_sdk",
        "own",
        "provider",
        "redact",
        "rest",
        "route",
        "target",
        "url",
    )

    def __init__(self, head: Head, state: CallState, content: bytes, rest: Any) -> None:
        calls, request = head.calls, head.request
        self.provider, self.route = head.provider, head.route
        self.calls, self.own = calls, Secret(head.own)
        self.redact: Redact = calls.redact(head.own)
        self.url, self.content, self.rest = request.url, content, rest
        self.target = Target(request.method, without_key(request.url), content)
        """What is sent."""
        self._key_headers = [n for n in head.provider.key_headers if n in request.headers]
        """Those that the program's request has."""
        self._waits_by_itself = _FERN in request.headers
        """Whether the SDK would sleep as long as a 429 says, and ask again, where nobody can."""
        self.in_query = head.in_query
        """Whether the program has its key in the address."""
        self.is_sdk = head.sdk is not None
        """Whether google-genai sends it."""
        self.call = state
        """That of the current model."""
        self._error: Exception | None = None
        """That of the first model."""
        self._asked = state.info.model
        """The model that the program names."""
        if state.info.conversation and calls.stand_ins and has_chain(state.info):
            self._go_on_with_stand_in()
        tokens = calls.pool.first_tokens
        if (tokens.limits or first_token_s.get() is not None) and request.has_head_timeout:
            self._set_deadline()

    @property
    def stream(self) -> bool:
        """Whether the program reads the response in pieces."""
        return self.call.info.stream

    def observe(self) -> CallObserver | None:
        """Return the observer of the call to the current model."""
        return self.calls.observe(self.call.info)

    def go_on(self, error: Exception) -> bool:
        """Go on to the next model of the chain after a failure; return whether there is one."""
        self._error = self._error or error
        call, following = self.call, self.calls.pool.next_models
        model = following.get(call.info.model)
        if (model is not None or call.info.models_tried) and is_missing(call):
            self._warn_of_missing(error, model)
        if model is None or not may_fall_back(call):
            return False
        if self._stays:
            self._error.add_note(stay_note(call.info.model))
            return False
        if not self.send_to(model):
            return False
        for link in (error, error.__cause__):  # its frames hold this call
            if link is not None:
                link.__traceback__ = None
        self.call = fallback_call(call, model)
        if call.attempts and call.attempts[-1].verdict.failure == SLOW:
            self._error = None  # what the next model raises says more
        if call.first_token_s is not None:
            self._set_deadline()
        return True

    def _go_on_with_stand_in(self) -> None:
        """Send the request to the model that wrote the signatures in it, for an hour."""
        pool, info = self.calls.pool, self.call.info
        model, at = self.calls.stand_ins.get(f"{info.conversation} {self._asked}", ("", -inf))
        if at > pool.clock.time() - _STAND_IN_S and self._stays and self.send_to(model):
            tokens = pool.token_scale.scaled(model, info.estimate)
            self.call.info = info._replace(model=model, tokens=tokens)

    def note_model(self) -> None:
        """Remember which model has served a conversation in place of the one that was asked."""
        info, stand_ins = self.call.info, self.calls.stand_ins
        name = f"{info.conversation} {self._asked}"
        if info.model == self._asked:
            stand_ins.pop(name, None)
        else:
            stand_ins[name] = info.model, self.calls.pool.clock.time()

    @property
    def _stays(self) -> bool:
        """Whether only the model that the request names accepts it."""
        return any(mark in self.content for mark in self.provider.model_marks)

    def _set_deadline(self) -> None:
        """Let the first token have a deadline, if the request may be sent twice."""
        pool, call = self.calls.pool, self.call
        info, after = call.info, pool.next_models.get(call.info.model)
        bound = info.bound_to_owner or info.resources
        if bound or not (info.model and info.idempotent):
            return
        may_be_http2 = "h2" in sys.modules and self.url.startswith("https:")
        call.first_token_s = pool.first_tokens.begin(info, may_be_http2)
        if after and has_chain(info) and not self._stays:
            call.next_info = fallback_info(call, after)

    def _warn_of_missing(self, error: Exception, after: str | None) -> None:
        """Warn of a model of a chain that the provider does not have."""
        model = self.call.info.model
        then = f"requests go on to {after}" if after else "it is the last of its chain"
        body = getattr(error.__cause__ or error, "details", None)
        provider = self.provider
        why = one_line(provider.parse_error(FailureFacts(404, body), 0.0).message)[:_QUOTED]
        self.calls.warn_once(
            model,
            f"KEYROT_FALLBACK_MODELS: the model {model} is misspelt or retired, and {then}; "
            f"{provider.title} answers 404: {why}",
        )

    def take_error(self) -> Exception:
        """Return the error to raise, that of the first model."""
        error, self._error = self._error, None
        assert error is not None  # noqa: S101 - narrows the type; a model has just failed
        if tried := self.call.info.models_tried:
            error.add_note(tried_note((*tried, self.call.info.model)))
        return error

    def take_rest(self) -> Any:
        """Return the rest of a body that is too long to be kept; None for nothing.

        Raises:
            RuntimeError: It was sent already.
        """
        if self.rest is None:
            return None
        rest, self.rest = self.rest, ()
        if rest == ():
            raise RuntimeError("keyrot: a request body of more than 32 MiB can be sent only once")
        return rest

    def send_to(self, model: str) -> bool:
        """Send the request to another model, which its path names, or its body."""
        method, url, _ = self.target
        models = self.call.info.model, model
        found = self.provider.with_model(self.route, url, self.content, models)
        if found is None:
            return False
        self.target = Target(method, *found)
        return True

    def key(self, lease: Lease) -> Secret:
        """Return the key to send with a lease.

        Raises:
            Refused: There is none: the pool is empty, and the program has none of its own.
        """
        value = self.calls.value(lease) or self.own
        if not value:
            raise Refused(_without_pool(self.provider, self.target.url))
        return value

    def write_key(self, key: Secret, headers: Any, url: str) -> str:
        """Write the key where the request had its own; return the URL."""
        provider = self.provider
        name, text = provider.key_field(self.route, key.reveal())
        for other in self._key_headers:
            if other == name:
                continue
            token = headers.get(other, "").rpartition(" ")[2]
            if other == provider.key_header or token == self.own.reveal() or POOL_KEY in token:
                headers.pop(other, None)  # another token of the program's stays
        if not self.in_query:
            headers[name] = text
            return url
        headers.pop(name, None)
        return f"{url}{'&' if '?' in url else '?'}key={quote(key.reveal())}"

    # Read a response ------------------------------------------------------------------------------

    def refused_redirect(self, code: int, where: str | None) -> bytes | None:
        """Return an error in place of a redirect; None for one that the program may follow.

        google-genai would take its prompt and the placeholder to another origin.
        """
        if not where or not self.is_sdk:
            return None
        origin, target = origin_from_url(self.url), "another address"
        with suppress(ValueError):
            target = origin_from_url(urljoin(self.url, where)) or target
        if target == origin and "redacted" not in where:
            return None
        text = (
            f"{origin} redirects this request to {target}, where the pool's key may not follow: "
            "the request was not sent there, and no key is penalized"
        )
        return json.dumps(self.provider.error_body(code, f"keyrot: {text}")).encode()

    def is_stream(self, headers: Any) -> bool:
        """Return whether to read a successful response in pieces."""
        if self.provider.upload_header in headers:
            return False  # it has no body
        kind = headers.get("content-type", "")
        return self.stream or not kind or "json" not in kind

    def reader(self, headers: Any) -> EventReader:
        """Return what reads a response in pieces."""
        kind = headers.get("content-type", "")
        is_events = "event-stream" in kind
        if headers.get("content-encoding") or not (is_events or "json" in kind):
            reader, info = EventReader(), self.call.info
            if info.bound_to_owner and info.idempotent:
                reader.names = info.resources  # of a file: its project has what was asked for
            return reader
        served = headers.get(self.provider.tier_header)
        events = self.provider.events(self.route)
        estimate = self.call.info.tokens
        reader = EventReader(events, is_array=not is_events, served_tier=served, estimate=estimate)
        if self.provider.limit_headers:
            reader.reported = self.provider.read_limits(headers)
        return reader

    def done(self, response: Any, text: str, headers: Any, *, in_full: bool) -> Done | Failed:
        """Read a whole response; one that sends an upload to another host is a failure."""
        provider = self.provider
        if upload_url := headers.get(provider.upload_header):
            # A gateway passes on the provider's own upload URLs.
            own = (f"https://{host}:443" for host in provider.hosts)
            if not is_within(upload_url, (*self.calls.allowed[provider.platform], *own)):
                where = host_from_url(upload_url) or "no host"
                text = f"the upload goes to {where}, not in KEYROT_ALLOWED_HOSTS"
                body = provider.error_body(400, f"keyrot: {text}")
                return Failed(FailureFacts(400, body), Refused(_reply(400, body, self.url), body))
        usage, names = provider.read_reply(self.route, text, in_full=in_full)
        if upload_url and self.call.info.bound_to_owner:
            uploads = _upload_names(provider, upload_url)
            for name in uploads:
                self.calls.uploads[name] = self.own
            names = (*names, *uploads)
        if tier := headers.get(provider.tier_header):
            usage = with_served_tier(usage, tier)
        reported = provider.read_limits(headers) if provider.limit_headers else ()
        return Done(response, usage, names, reported)

    def refused(self, code: int, text: str, headers: Any, response: Any) -> Failed:
        """Return the failure that a response is."""
        try:
            body: Any = json.loads(text)
        except (ValueError, RecursionError):
            body = text
        after = headers.get("retry-after")
        refused = Refused(response, body)
        refused.code = code
        return Failed(FailureFacts(code, body, after, headers=headers), refused)

    # No key ---------------------------------------------------------------------------------------

    def no_key(self, exhausted: Exhausted) -> Refused:
        """Return the response to a call that no key could serve.

        Its body is an object on a path of OpenAI's too: openai shows the message of one only.
        """
        why = self.calls.no_key(exhausted, self.provider)
        reply = _reply(why.code, why.body, self.target.url)
        if why.code == 429 and why.retry_in is not None and not self._waits_by_itself:
            reply.headers["retry-after"] = str(why.retry_in)
        error = Refused(reply, why.body, why)
        error.__cause__ = exhausted.last
        for note in getattr(exhausted, "__notes__", ()):
            error.add_note(note)
        return error


def _reply(code: int, body: Any, url: str) -> Reply:
    path, _, query = url.partition("?")
    # Such a stream is an array, its errors too, and programs read it as one.
    is_array = ":stream" in path and "alt=sse" not in query
    content = json.dumps([body] if is_array else body).encode()
    headers = {
        "content-type": "application/json; charset=UTF-8",
        "content-length": str(len(content)),
        NO_RETRY: "false",
    }
    return Reply(code, headers, content)


def _upload_names(provider: Provider, url: str) -> tuple[str, ...]:
    route = provider.route("POST", url)
    return route.names if route is not None else ()
