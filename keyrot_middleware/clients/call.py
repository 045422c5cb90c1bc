"""A call: one request that goes through the pool, its key, its models and its deadline.

Nothing here knows a library.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

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
from ..core.flow import Exhausted
from ..core.html_pages import is_page
from ..core.model import POOL_KEY, Lease
from ..core.wording import one_line
from ..errors import handle_internal_error
from ..hosts import host_from_url, is_within, origin_from_url
from ..providers.base import Provider, Route
from ..runtime import SdkCall, workload
from ..runtime.first_token import first_token_s
from ..secrets import Secret
from .bounded import LONGEST_BODY
from .events import EndReader, EventReader, with_served_tier
from .large import parse_body
from .no_key import why_no_key
from .pooled_calls import PooledCalls
from .redaction import redacted_json, without_key
from .refusals import RefusalError, error_response, without_pool
from .signatures import SignedEvents

STAINLESS, FERN = "x-stainless-retry-count", "x-fern-language"
"""One is in each request of an SDK that repeats a 5xx: openai and its like, and cohere."""
_QUOTED = 300
"""Characters of a provider's message in a warning."""
NO_ROUTE = Route("", bound_to_owner=True, counts_in_quota=False, protocol="unknown")
"""Of a path that no provider's table has: with a placeholder it goes with the home key."""


Headers = MutableMapping[str, str]


class Incoming(NamedTuple):
    """A request as an HTTP library has it."""

    method: str
    url: str
    headers: Headers
    """Their names are in any case."""
    timeout_s: float = inf
    """How long the program waits for the response; `inf` if it has set nothing."""
    retries_5xx: bool = False
    """The library itself sends a request again after a 5xx or a lost connection."""
    library: str = ""
    """Which one it is, unless google-genai sends the request."""
    has_head_timeout: bool = True
    """The head of a response can have a timeout of its own."""
    is_exposed: bool = False
    """It goes to this machine in clear, and a proxy of the program's or its environment gets it."""
    routed: tuple[Provider, Route] | None = None
    """Whose it is, and what it asks for, where that was read before, as by `keyrot serve`."""


class Target(NamedTuple):
    """What is sent: with another model than the program's."""

    method: str
    url: str
    """Without a key."""
    body: bytes


class Call:
    """A request that goes through the pool."""

    __slots__ = (
        "_asked",
        "_error",
        "_request",
        "_sdk",
        "calls",
        "content",
        "in_query",
        "in_thread",
        "own",
        "provider",
        "redact",
        "rest",
        "route",
        "state",
        "stream",
        "target",
        "url",
    )

    def __init__(
        self,
        calls: PooledCalls,
        request: Incoming,
        provider: Provider,
        route: Route,
        *,
        own: str,
        sdk: SdkCall | None,
        in_query: bool,
    ) -> None:
        """Take a request whose body is not read yet.

        Args:
            calls: The pool.
            request: The request.
            provider: Whose it is.
            route: What it asks for.
            own: The program's own key; empty where it has the placeholder.
            sdk: What google-genai knows of it; None: another library sends it.
            in_query: The program has its key in the address.
        """
        self.calls, self.provider, self.route, self.in_query = calls, provider, route, in_query
        self.own, self.redact, self.url = Secret(own), calls.redact(own), request.url
        self._request, self._sdk = request, sdk
        self.in_thread = False
        """A thread sends it, which nothing suspends."""
        self._error: Exception | None = None
        """That of the first model."""

    def begin(self, content: bytes, rest: object) -> None:
        """Read the body.

        Args:
            content: The body.
            rest: An iterator of the rest of one that is too long to be kept; or None.
        """
        calls, request, sdk = self.calls, self._request, self._sdk
        pool, provider, headers = calls.pool, self.provider, request.headers
        body = parse_body(content)
        self.route = provider.route_with(self.route, body)
        info = provider.read_request(self.route, body)
        model = "" if self.route.protocol == NO_ROUTE.protocol else info.model
        model = pool.secrets.redact_name(model)  # it is shown: a key may be given in its place
        sticky = pool.policy.strategy == "sticky" and not info.bound_to_owner
        agent = provider.repeating_agent
        info = info._replace(
            model=model,
            tokens=pool.token_scale.scaled(model, info.estimate),
            workload=workload.get(),
            conversation=provider.conversation(body) if sticky else None,
            host=host_from_url(request.url),
            platform=provider.platform,
            sdk_retries=request.retries_5xx
            or (sdk is not None and sdk.repeats)
            or STAINLESS in headers
            or FERN in headers
            or (agent != "" and (headers.get("user-agent") or "").endswith(agent)),
        )
        self.state = state = calls.call_state(info, self.own.reveal(), request.timeout_s)
        """That of the current model."""
        if sdk is not None and sdk.attempts > 1:
            state.policy = replace(state.policy, max_retries=sdk.attempts - 1)
        if rest is not None:
            state.policy = replace(state.policy, max_attempts=1, max_retries=0)
        self.content, self.rest, self.stream = content, rest, info.stream
        self.target = Target(request.method, without_key(request.url), content)
        """What is sent."""
        self._asked = info.model
        """The model that the program names."""
        if calls.signatures and has_chain(info) and self._stays:
            self._go_on_with_stand_in()
        self._leave_failing_model()
        if (
            pool.first_tokens.limits or first_token_s.get() is not None
        ) and request.has_head_timeout:
            self._set_deadline()

    def go_on(self, error: Exception) -> bool:
        """Go on to the next model of the chain after a failure; return whether there is one."""
        self._error = self._error or error
        call, following = self.state, self.calls.pool.next_models
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
        self.state = fallback_call(call, model)
        self._leave_failing_model()
        if call.attempts and call.attempts[-1].verdict.failure == SLOW:
            self._error = None  # what the next model raises says more
        if call.first_token_s is not None:
            self._set_deadline()
        return True

    def _go_on_with_stand_in(self) -> None:
        """Send the request to the model that wrote the signatures in it."""
        calls, info = self.calls, self.state.info
        model = calls.signatures.model_of(self._asked, self.content, self.provider.model_marks)
        if model and self.send_to(model):
            tokens = calls.pool.token_scale.scaled(model, info.estimate)
            self.state.info = info._replace(model=model, tokens=tokens)

    @property
    def _stands_in(self) -> bool:
        """Whether a model serves in place of the one that was asked, and signs what it thinks."""
        return self.state.info.model != self._asked and bool(self.provider.model_marks)

    def _note_signatures(self, text: str) -> None:
        """Note what a model has signed in place of the one that was asked."""
        model, marks = self.state.info.model, self.provider.model_marks
        self.calls.signatures.note(self._asked, model, text, marks)

    @property
    def _stays(self) -> bool:
        """Whether only the model that the request names accepts it."""
        return any(mark in self.content for mark in self.provider.model_marks)

    def _leave_failing_model(self) -> None:
        """Ask a model once that fails whatever the key, if another one can serve the request."""
        pool, state = self.calls.pool, self.state
        if pool.next_models and pool.evidence.is_failing(state.info, pool.clock.time()):
            has_next = state.info.model in pool.next_models and has_chain(state.info)
            state.retries_model = not has_next or self._stays

    def _set_deadline(self) -> None:
        """Let the first token have a deadline, if the request may be sent twice."""
        pool, call = self.calls.pool, self.state
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
        model = self.state.info.model
        then = f"requests go on to {after}" if after else "it is the last of its chain"
        body = getattr(error.__cause__ or error, "details", None)
        provider = self.provider
        why = one_line(provider.parse_error(FailureFacts(404, body), 0.0).message)[:_QUOTED]
        self.calls.warn_once(
            model,
            f"KEYROT_FALLBACK_MODELS: the API has no model {model}, and {then}; "
            f"{provider.title} answers 404: {why}",
        )

    def take_error(self) -> Exception:
        """Return the error to raise, that of the first model."""
        error, self._error = self._error, None
        assert error is not None  # noqa: S101 - narrows the type; a model has just failed
        if tried := self.state.info.models_tried:
            error.add_note(tried_note((*tried, self.state.info.model)))
        return error

    def take_rest(self) -> Any:
        """Return the rest of a body that is too long to be kept; None for nothing.

        Raises:
            RuntimeError: It was sent already.
        """
        rest = self.rest
        if rest is not None:
            self.rest = ()
        if rest == ():
            raise RuntimeError("keyrot: a request body of more than 32 MiB can be sent only once")
        return rest

    def send_to(self, model: str) -> bool:
        """Send the request to another model, which its path names, or its body."""
        method, url, _ = self.target
        models = self.state.info.model, model
        target = self.provider.with_model(self.route, url, self.content, models)
        if target is None:
            return False
        self.target = Target(method, *target)
        return True

    def key(self, lease: Lease) -> Secret:
        """Return the key to send with a lease.

        Raises:
            RefusalError: There is none: the pool is empty, and the program has none of its own.
        """
        value = self.calls.value(lease) or self.own
        if not value:
            raise RefusalError(without_pool(self.provider, self.target.url))
        return value

    def write_key(self, key: Secret, headers: Headers, url: str) -> str:
        """Write the key where the request had its own; return the URL."""
        provider = self.provider
        if key is not self.own:
            url = self._without_account(headers, url)
        name, text = provider.key_field(self.route, key.reveal())
        for other in provider.key_headers:
            if other == name or other not in self._request.headers:
                continue
            token = headers.get(other, "").rpartition(" ")[2]
            if other == provider.key_header or token == self.own.reveal() or POOL_KEY in token:
                headers.pop(other, None)  # another token of the program's stays
        if not self.in_query:
            headers[name] = str(text)  # not of a class of ours: vcrpy writes it as YAML
            return url
        headers.pop(name, None)
        url, mark, fragment = url.partition("#")
        return f"{url}{'&' if '?' in url else '?'}key={quote(key.reveal())}{mark}{fragment}"

    def _without_account(self, headers: Headers, url: str) -> str:
        """Return the URL without an account that the program names, nor do *headers* name one."""
        provider, given = self.provider, self._request.headers
        named = [name for name in provider.account_headers if name in given]
        if not named and "?" not in url:
            return url  # a look-up in the headers of httpx takes microseconds
        for name in named:
            self.calls.log_left_out(provider.title, name)
        return provider.without_account(headers, url)

    # Read a response ------------------------------------------------------------------------------

    def refused_redirect(self, code: int, headers: Mapping[str, str]) -> bytes | None:
        """Return an error in place of a redirect; None for one that the program may follow.

        google-genai would take its prompt and the placeholder to another origin.
        """
        where = headers.get("location")
        if not where or self._sdk is None:
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

    def is_stream(self, headers: Mapping[str, str]) -> bool:
        """Return whether to read a successful response in pieces: all but one value of JSON."""
        if self.provider.upload_header in headers:
            return False  # it has no body
        if self.stream or not _IS_JSON(headers.get("content-type", "")):
            return True
        size = headers.get("content-length", "")
        return size.isdecimal() and int(size) > LONGEST_BODY

    def reader(self, headers: Mapping[str, str]) -> EventReader:
        """Return what reads a response in pieces."""
        kind, info = headers.get("content-type", ""), self.state.info
        is_events, is_coded = "event-stream" in kind, headers.get("content-encoding")
        served = headers.get(self.provider.tier_header)
        if is_coded or not (is_events or (self.stream and "json" in kind)):
            read = partial(self.provider.read_reply, self.route, in_full=False)
            is_read = not is_coded and _IS_JSON(kind)
            reader = EndReader(read, served) if is_read else EventReader()
            if info.bound_to_owner and info.idempotent:
                reader.names = info.resources  # of a file: its project has what was asked for
            return reader
        events = self.provider.events(self.route)
        if self._stands_in:
            events = SignedEvents(events, self._note_signatures)
        reader = EventReader(
            events,
            is_array=not is_events,
            served_tier=served,
            estimate=info.tokens,
            is_job=not info.idempotent,
        )
        if self.provider.limit_headers:
            reader.reported = self.provider.read_limits(headers)
        return reader

    def may_be_page(self, headers: Mapping[str, str]) -> bool:
        """Return whether a success may be a page, as of a captive portal; some call JSON so too."""
        kind = headers.get("content-type", "").lstrip().lower()
        return kind.startswith("text/html") and not self.state.info.bound_to_owner

    def is_no_answer(self, status: int, text: str) -> bool:
        """Return whether a success that begins so is none: a page, or nothing at all."""
        info = self.state.info
        if info.bound_to_owner or not info.counts_in_quota:
            return False
        begin = text[:_BEGIN_OF_PAGE].strip()
        is_empty = status == _OK and begin == "" and text.strip() == ""
        return is_empty or (begin[:1] == "<" and is_page(begin))

    def find_error(self, content: bytes, text: str) -> Any:
        """Return the error that is the body of a success, without keys; None if it is a reply."""
        if len(content) > _LONGEST_ERROR or self.state.info.bound_to_owner:
            return None
        try:
            error = self.provider.find_error(text)
            return error and redacted_json(error, self.redact)
        except Exception:
            handle_internal_error("clients")
            return None

    def done(
        self, response: object, text: str, headers: Mapping[str, str], *, in_full: bool
    ) -> Done | Failed:
        """Read a whole response; one that sends an upload to another host is a failure."""
        try:
            provider = self.provider
            uploads: tuple[str, ...] = ()
            if upload_url := headers.get(provider.upload_header):
                if failed := self._refused_upload(upload_url):
                    return failed
                route = provider.route("POST", upload_url)
                if self.state.info.bound_to_owner and route is not None:
                    uploads = route.names
                    self.calls.uploads.update(dict.fromkeys(uploads, self.own))
            if self._stands_in:
                self._note_signatures(text)
            usage, names = provider.read_reply(self.route, text, in_full=in_full)
            if tier := headers.get(provider.tier_header):
                usage = with_served_tier(usage, tier)
            reported = provider.read_limits(headers) if provider.limit_headers else ()
            return Done(response, usage, (*names, *uploads), reported)
        except Exception:
            handle_internal_error("clients")
            return Done(response)

    def _refused_upload(self, upload_url: str) -> Failed | None:
        """Return a failure if an upload would go where no key may."""
        provider = self.provider
        # A gateway passes on the provider's own upload URLs.
        own = (f"https://{host}:443" for host in provider.hosts)
        if is_within(upload_url, (*self.calls.allowed[provider.platform], *own)):
            return None
        where = host_from_url(upload_url) or "no host"
        text = f"the upload goes to {where}, not in KEYROT_ALLOWED_HOSTS"
        body = provider.error_body(400, f"keyrot: {text}")
        return Failed(
            FailureFacts(400, body), RefusalError(error_response(400, body, self.url), body)
        )

    def refused(self, code: int, text: str, headers: Mapping[str, str], response: Any) -> Failed:
        """Return the failure that a response is."""
        try:
            body: Any = json.loads(text)
        except (ValueError, RecursionError):
            body = text
        after = headers.get("retry-after")
        refused = RefusalError(response, body)
        refused.code = code
        return Failed(FailureFacts(code, body, after, headers=headers), refused)

    # No key ---------------------------------------------------------------------------------------

    def no_key(self, exhausted: Exhausted) -> RefusalError:
        """Return the response to a call that no key could serve.

        Its body is an object on a path of OpenAI's too: openai shows the message of one only.
        """
        why = why_no_key(self.calls.pool, exhausted, self.provider)
        reply = error_response(why.code, why.body, self.target.url)
        if why.code == 429 and why.retry_in is not None and FERN not in self._request.headers:
            reply.headers["retry-after"] = str(why.retry_in)
        error = RefusalError(reply, why.body, why)
        error.__cause__ = exhausted.last
        for note in getattr(exhausted, "__notes__", ()):
            error.add_note(note)
        return error


# Bodies ------------------------------------------------------------------------------------------


_LONGEST_ERROR = 8_192
"""Bytes of an error in place of a reply; what is longer is a reply."""
_BEGIN_OF_PAGE = 2_048
_OK = 200
"""The success that has a body."""
_IS_JSON = re.compile(r"[^;]*[/+-]json\s*(?:;|\Z)", re.IGNORECASE).match
"""A content type of one value; lines of JSON are a file or a stream, of any length."""
