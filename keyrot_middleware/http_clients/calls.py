"""A request of an HTTP library as a call of the pool: what it is, its key, its models, its reply.

Nothing here knows a library. httpx_clients.py and requests_sessions.py say how each of them copies
a request, reads a response and makes one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urljoin

from .. import providers
from ..adapters import (
    TIER_HEADER,
    host_from_url,
    origin_from_url,
    read_call,
    with_served_tier,
)
from ..adapters.pooled_calls import NO_EXPRESS_KEY, NO_KEY, NoKey, PooledCalls, error_body
from ..adapters.redaction import BEARER_HEADER, KEY_HEADER, Redact, without_key
from ..core import interactions
from ..core.affinity import Route, is_api_path, parse_path
from ..core.commands import Done, Failed
from ..core.failures import FailureFacts
from ..core.flow import CallState, Exhausted
from ..core.interactions import InteractionLedger
from ..core.model import (
    EXPRESS_POOL_KEY,
    GEMINI_API,
    POOL_KEY,
    VERTEX_EXPRESS,
    CallInfo,
    Lease,
    Platform,
)
from ..core.model_fallback import (
    fallback_call,
    is_missing,
    may_fall_back,
    replace_model,
    stay_note,
    tried_note,
)
from ..core.request_body import UPLOAD, add_name
from ..core.text import one_line
from ..core.usage import (
    StreamLedger,
    parse_object,
    parse_openai_text,
    parse_usage_text,
)
from ..errors import handle_internal_error
from ..runtime import (
    SdkCall,
    required_project,
    required_tiers,
    sdk_call,
    workload,
)
from ..secrets import Secret
from ..telemetry import CallObserver
from .ledgers import Ledger, OpenAILedger

KEY_NAMES = frozenset({KEY_HEADER, BEARER_HEADER})
CLIENT_HEADER = "x-goog-api-client"
SDK = "google-genai"
_SDK = "google-genai-sdk"
"""In this header of each of its requests."""
_PLACEHOLDERS = (POOL_KEY, EXPRESS_POOL_KEY)
_VERTEX = re.compile(r"aiplatform\.googleapis\.com|/v1beta1/|/publishers/")
_INTERACTIONS = frozenset(
    {
        *("interactions", "agents", "environments", "credentials", "voices", "triggers"),
        *("webhooks", "decisions"),
    }
)
NO_RETRY = "x-should-retry"
"""openai retries 429 and 5xx twice unless a response says otherwise."""
OPENAI_RETRIES = "x-stainless-retry-count"
"""In each request of openai, which repeats a lost connection too."""
_QUOTED = 300
"""Characters of Google's message in a warning."""
_SIGNATURES = (b"thoughtSignature", b"thought_signature")
_UPLOAD_URL = "x-goog-upload-url"
_GOOGLE = "https://generativelanguage.googleapis.com:443"
"""A gateway passes on its upload URLs."""
READ_OF_RESPONSES = ("content-type", "content-encoding", "retry-after", TIER_HEADER, _UPLOAD_URL)
"""The headers of a successful response that are read."""


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
    calls: PooledCalls | None, served: Collection[str], request: Incoming
) -> Head | Reply | Secret | None:
    """Return what to do with a request to an allowed host, before its body is read.

    Args:
        calls: The pool; None where no key was found at all.
        served: The libraries whose requests are served.
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
        return _after_internal_error(calls, request)


@dataclass(slots=True, repr=False, eq=False)
class Head:
    """A request for the pool, of which the body is to be read. No tuple: reporters show those."""

    calls: PooledCalls
    request: Incoming
    route: Route
    platform: Platform
    own: str
    sdk: SdkCall | None
    in_query: bool

    def call(self, content: bytes, rest: Any = None) -> Call | Reply | Secret | None:
        """Return the call; or, after an internal error, what `read` returns.

        Args:
            content: The body.
            rest: An iterator of the rest of one that is too long to be kept; or None.
        """
        try:
            return self._call(content, rest)
        except Exception:
            return _after_internal_error(self.calls, self.request)

    def _call(self, content: bytes, rest: Any) -> Call:
        sdk, body = self.sdk, _parse(content)
        info = _call_info(self.calls, self.request, self.route.collection, body, self.platform)
        state = self.calls.call_state(info, self.own or POOL_KEY, self.request.timeout_s)
        if sdk is not None and sdk.repeats:
            state.info = state.info._replace(sdk_retries=True)
        if sdk is not None and sdk.attempts > 1:
            state.policy = replace(state.policy, max_retries=sdk.attempts - 1)
        if rest is not None:
            state.policy = replace(state.policy, max_attempts=1, max_retries=0)
        return Call(self, state, content, rest, body)


def _after_internal_error(calls: PooledCalls | None, request: Incoming) -> Reply | Secret | None:
    """Return what to do with a request that could not be read: a placeholder is never sent."""
    handle_internal_error("http_clients")
    if _find_key(request, is_openai=False)[0] != POOL_KEY:
        return None
    if (sdk := sdk_call.get()) is not None and sdk.own:
        return Secret(sdk.own)
    return _without_pool(request.url) if calls is None else home_key(calls, request.url)


def _read(
    calls: PooledCalls | None, served: Collection[str], request: Incoming
) -> Head | Reply | Secret | None:
    if not is_api_path(request.url.partition("?")[0]):
        return None
    is_sdk = _SDK in request.headers.get(CLIENT_HEADER, "")
    if (SDK if is_sdk else request.library) not in served:
        return None
    route, platform = parse_path(request.method, request.url), platform_of(request.url)
    given, in_query = _find_key(request, is_openai=route.is_openai)
    sdk, own = (sdk_call.get() or SdkCall()) if is_sdk else None, given
    upload = _begun_upload(calls, route) if not given else None
    if upload is not None:
        given = POOL_KEY  # the bytes of an upload, which need no key; their reply names the file
    if not given:
        return None
    if calls is None:
        return _without_pool(request.url) if given == POOL_KEY else None
    if given == POOL_KEY:
        own = sdk.own if sdk is not None else upload.reveal() if upload is not None else ""
    elif calls.pool.secrets.key_id_for(Secret(given)) is None or (sdk and platform != GEMINI_API):
        return None  # the caller's own
    if not calls.serves(own or POOL_KEY, request.url, platform=platform):
        return None if own else home_key(calls, request.url)
    return Head(calls, request, route, platform, own, sdk, in_query)


def _begun_upload(calls: PooledCalls | None, route: Route) -> Secret | None:
    """Return the client's own key, or an empty one, of the upload whose bytes these are."""
    begun = calls.uploads if calls is not None else {}
    return next((begun[name] for name in route.names if name in begun), None)


def platform_of(url: str) -> Platform:
    """Return which service a request is for, by its address: no other has such a version."""
    return VERTEX_EXPRESS if _VERTEX.search(url) else GEMINI_API


def _find_key(request: Incoming, *, is_openai: bool) -> tuple[str, bool]:
    """Return the key or the placeholder of a request, if any, and whether it is in the query.

    A placeholder counts anywhere, a key where Google reads it.
    """
    headers, query = request.headers, request.url.partition("?")[2]
    header = (headers.get(KEY_HEADER) or "").strip()
    in_query = parse_qs(query).get("key", ("",))[0] if "key=" in query else ""
    scheme, _, token = (headers.get(BEARER_HEADER) or "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    given = bearer if is_openai else header or in_query
    if not {header, in_query, bearer}.isdisjoint(_PLACEHOLDERS):
        given = POOL_KEY
    found = (given, *_PLACEHOLDERS)
    return given, in_query in found and header not in found and not is_openai


def home_key(calls: PooledCalls, url: str) -> Secret | Reply | None:
    """Return the key that takes the place of a placeholder without the pool.

    None: no key of the pool may go there, and the request is sent as it is.
    """
    platform = platform_of(url)
    if origin_from_url(url) not in calls.allowed[platform]:
        return None
    home = calls.pool.home_value(platform, required_tiers.get(), required_project.get())
    return home or _without_pool(url)


def with_key_header(headers: Any, key: Secret) -> None:
    """Put a key into headers, in place of the placeholder that they have."""
    if KEY_HEADER in headers or BEARER_HEADER not in headers:
        headers[KEY_HEADER] = key.reveal()
    else:
        headers[BEARER_HEADER] = f"Bearer {key.reveal()}"


def _without_pool(url: str) -> Reply:
    """Return the response to a request that has a placeholder where there is no key to send."""
    text = NO_KEY if platform_of(url) == GEMINI_API else NO_EXPRESS_KEY
    return _reply(401, error_body(401, text), url)


_LARGE = 65_536
_LONG_TEXT = 8_192
_LENGTH = re.compile(rb'"\x00(\d+)\x00"')


def _without_media(content: bytes) -> bytes:
    """Return a body with the length of each base64 text in its place: megabytes are not parsed."""
    texts = content.split(b'"')
    for number, text in enumerate(texts):
        if len(text) < _LONG_TEXT or not text.isascii() or texts[number - 1].endswith(b"\\"):
            continue
        if b" " not in text and b"," not in text and b"\\" not in text:
            texts[number] = b"\x00%d\x00" % len(text)
    return _LENGTH.sub(rb"\1", b'"'.join(texts))


def _parse(content: bytes) -> dict[str, Any]:
    if content.lstrip()[:1] != b"{":
        return {}
    try:
        body = json.loads(content if len(content) < _LARGE else _without_media(content))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _call_info(
    calls: PooledCalls,
    request: Incoming,
    collection: str,
    body: Mapping[str, Any],
    platform: Platform,
) -> CallInfo:
    pool, path = calls.pool, request.url
    retries = request.retries_5xx or OPENAI_RETRIES in request.headers
    stream = ":stream" in path.partition("?")[0] or body.get("stream") is True
    if collection in _INTERACTIONS:
        info = interactions.call_info(request.method, path, body)
        return info._replace(
            tokens=pool.token_scale.scaled(info.model, info.estimate),
            stream=stream,
            workload=workload.get(),
            host=host_from_url(path),
            platform=platform,
            sdk_retries=retries,
        )
    return read_call(
        request.method,
        path,
        body,
        stream=stream,
        host=host_from_url(path),
        scale=pool.token_scale,
        sticky=pool.policy.strategy == "sticky",
        platform=platform,
        sdk_retries=retries,
    )


class Call:
    """A request that goes through the pool."""

    __slots__ = (
        "_collection",
        "_error",
        "_named",
        "call",
        "calls",
        "content",
        "in_query",
        "is_openai",
        "is_sdk",
        "own",
        "redact",
        "rest",
        "target",
        "url",
    )

    def __init__(
        self, head: Head, state: CallState, content: bytes, rest: Any, body: dict[str, Any]
    ) -> None:
        calls, request, route = head.calls, head.request, head.route
        self.calls, self.own, self.is_openai = calls, Secret(head.own), route.is_openai
        self.redact: Redact = calls.redact(head.own)
        self.url, self.content, self.rest = request.url, content, rest
        self._named = str(body.get("model"))
        self._collection = ""
        """What an `id` in the response belongs to; for Interactions and the like."""
        if route.collection in _INTERACTIONS:
            self._collection = interactions.collection_of(request.method, request.url)
        self.target = Target(request.method, without_key(request.url), content)
        """What is sent."""
        self.in_query = head.in_query
        """Whether the program has its key in the address."""
        self.is_sdk = head.sdk is not None
        """Whether google-genai sends it."""
        self.call = state
        """That of the current model."""
        self._error: Exception | None = None
        """That of the first model."""

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
        if any(name in self.content for name in _SIGNATURES):
            self._error.add_note(stay_note(call.info.model))
            return False
        if not self.send_to(model):
            return False
        for link in (error, error.__cause__):  # its frames hold this call
            if link is not None:
                link.__traceback__ = None
        self.call = fallback_call(call, model)
        return True

    def _warn_of_missing(self, error: Exception, after: str | None) -> None:
        """Warn of a model of a chain that Google does not have."""
        model = self.call.info.model
        then = f"requests go on to {after}" if after else "it is the last of its chain"
        body = getattr(error.__cause__ or error, "details", None)
        facts, provider = FailureFacts(404, body), providers.of(self.call.info.platform)
        why = one_line(provider.parse_error(facts, 0.0).message)[:_QUOTED]
        self.calls.warn_once(
            model,
            f"KEYROT_FALLBACK_MODELS: the model {model} is misspelt or retired, and {then}; "
            f"Google answers 404: {why}",
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
        method, url, content = self.target
        if not self.is_openai:
            path = replace_model(url, self.call.info.model, model)
            if path is None:
                return False
            self.target = Target(method, path, content)
            return True
        prefix = "models/" if self._named.startswith("models/") else ""
        body = {**json.loads(self.content), "model": f"{prefix}{model}"}
        self.target = Target(method, url, json.dumps(body).encode())
        return True

    def key(self, lease: Lease) -> Secret:
        """Return the key to send with a lease.

        Raises:
            Refused: There is none: the pool is empty, and the program has none of its own.
        """
        value = self.calls.value(lease) or self.own
        if not value:
            raise Refused(_without_pool(self.target.url))
        return value

    def key_header(self, key: Secret) -> tuple[str, str]:
        """Return the one header that carries the key, in the form of the path."""
        if self.is_openai:
            return BEARER_HEADER, f"Bearer {key.reveal()}"
        return KEY_HEADER, str(key.reveal())

    def write_key(self, key: Secret, headers: Any, url: str) -> str:
        """Write the key where the request had its own, if Google reads it there; return the URL."""
        name, text = self.key_header(key)
        for other in KEY_NAMES - {name}:
            token = headers.get(other, "").rpartition(" ")[2]
            if other == KEY_HEADER or token in (*_PLACEHOLDERS, self.own.reveal()):
                headers.pop(other, None)  # another token of the program's stays
        if not self.in_query:
            headers[name] = text
            return url
        headers.pop(name, None)
        return f"{url}{'&' if '?' in url else '?'}key={quote(text)}"

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
        return json.dumps(error_body(code, text)).encode()

    def is_stream(self, headers: Any) -> bool:
        """Return whether to read a successful response in pieces."""
        if _UPLOAD_URL in headers:
            return False  # it has no body
        kind = headers.get("content-type", "")
        return self.stream or not kind or "json" not in kind

    def ledger(self, headers: Any) -> Ledger:
        """Return what reads a response in pieces."""
        kind = headers.get("content-type", "")
        is_events = "event-stream" in kind
        if headers.get("content-encoding") or not (is_events or "json" in kind):
            ledger, info = Ledger(), self.call.info
            if info.bound_to_owner and info.idempotent:
                ledger.names = info.resources  # of a file: its project has what was asked for
            return ledger
        if self._collection:
            return Ledger(InteractionLedger(self._collection), is_array=not is_events)
        events = OpenAILedger() if self.is_openai else StreamLedger()
        return Ledger(events, is_array=not is_events)

    def done(self, response: Any, text: str, headers: Any, *, in_full: bool) -> Done | Failed:
        """Read a whole response; one that sends an upload to another host is a failure."""
        names: tuple[str, ...]
        upload_url = headers.get(_UPLOAD_URL, "")
        if upload_url and origin_from_url(upload_url) not in (
            *self.calls.allowed[GEMINI_API],
            _GOOGLE,
        ):
            where = host_from_url(upload_url) or "no host"
            body = error_body(400, f"the upload goes to {where}, not in KEYROT_ALLOWED_HOSTS")
            return Failed(FailureFacts(400, body), Refused(_reply(400, body, self.url), body))
        if self._collection:
            ledger = InteractionLedger(self._collection)
            ledger.read(parse_object(text))
            usage, names = ledger.usage, ledger.names
        elif self.is_openai:
            usage, names = parse_openai_text(text, in_full=in_full)
        else:
            usage, names = parse_usage_text(text, in_full=in_full)
        if self.call.info.bound_to_owner and upload_url:
            uploads = _upload(upload_url)
            for name in uploads:
                self.calls.uploads[name] = self.own
            names = (*names, *uploads)
        if (tier := headers.get(TIER_HEADER)) is not None:
            usage = with_served_tier(usage, {TIER_HEADER: tier})
        return Done(response, usage, names)

    def refused(self, code: int, text: str, headers: Any, response: Any) -> Failed:
        """Return the failure that a response is."""
        try:
            body: Any = json.loads(text)
        except (ValueError, RecursionError):
            body = text
        after = headers.get("retry-after")
        refused = Refused(response, body)
        refused.code = code
        return Failed(FailureFacts(code, body, after), refused)

    # No key ---------------------------------------------------------------------------------------

    def no_key(self, exhausted: Exhausted) -> Refused:
        """Return the response to a call that no key could serve.

        On a path of OpenAI's its body is an object, not the list that Google sends there: openai
        shows the message of an object only.
        """
        why = self.calls.no_key(exhausted)
        reply = _reply(why.code, why.body, self.target.url)
        if why.code == 429 and why.retry_in is not None:
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


def _upload(url: str) -> Iterable[str]:
    found: dict[str, None] = {}
    for value in parse_qs(url.partition("?")[2]).get("upload_id", ()):
        add_name(found, UPLOAD, value)
    return found
