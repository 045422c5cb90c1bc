"""A call of the pool: its key, its models, its deadline, and why no key could serve it.

Nothing here knows a library. `PooledCalls` is what all calls of a pool share, Live sessions too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import blake2b
from math import ceil, inf, isfinite
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

from .. import providers
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
from ..core.failures import FOR_GOOD, MODEL_REFUSALS, REJECTIONS, SLOW, FailureFacts
from ..core.flow import CallState, Exhausted
from ..core.judgement import describe_block, judge
from ..core.model import DEFAULT_PLATFORM, HOME, POOL_KEY, CallInfo, Candidate, Lease
from ..core.text import is_page, one_line
from ..errors import handle_internal_error, warn_safely
from ..hosts import AllowedOrigins, host_from_url, is_within, origin_from_url
from ..providers.base import Provider, Route
from ..runtime import SdkCall, bypassed, required_project, required_tiers, session, workload
from ..runtime.first_token import first_token_s
from ..runtime.pool import Pool
from ..secrets import Secret
from ..state.memory import BoundedDict
from .body import LONGEST_BODY, EndReader, EventReader, with_served_tier
from .large import parse_body
from .redaction import Redact, redacted_json, without_key
from .signatures import Signatures, SignedEvents

_log = logging.getLogger("keyrot_middleware")

_SALT = os.urandom(16)
_EPHEMERAL = "auth_tokens/"
_TO_TRANSPORT_S = 2.0
"""How long an uninstall waits for calls of google-genai to reach their transport: microseconds."""
_MOST_WARNED = 20
"""Programs may use any number of hosts."""
STAINLESS, FERN = "x-stainless-retry-count", "x-fern-language"
"""One is in each request of an SDK that repeats a 5xx: openai and its like, and cohere."""
NO_RETRY = "x-should-retry"
"""openai retries 429 and 5xx twice unless a response says otherwise."""
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
    found: tuple[Provider, Route] | None = None
    """Whose it is, and what it asks for, where that was read before, as by `keyrot serve`."""


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


class NoKey(NamedTuple):
    """Why no key could serve a call."""

    code: int
    body: Any
    """An error as the provider writes it, or the one with which it rejected the last key."""
    until: float
    """When the first key is expected back, epoch seconds; `inf` for never."""
    retry_in: int | None
    """Seconds until then, rounded up, at least 1; None for never."""
    reasons: dict[str, str]
    """Why each key cannot serve, and until when, by key id."""


class PooledCalls:
    """A pool, and where its keys may go."""

    def __init__(self, pool: Pool, allowed: AllowedOrigins) -> None:
        """Serve a pool whose keys may go to *allowed*."""
        self.pool = pool
        self.allowed = allowed
        self.signatures = Signatures()
        """Those of models that have served in place of another."""
        self.uploads: BoundedDict[Secret] = BoundedDict(1_000)
        """The client's own key, or an empty one, of each upload that was begun here, by its name;
        its bytes may come without a key."""
        self.begun: set[SdkCall | None] = set()
        """Calls of google-genai with the placeholder, which have not reached their transport."""
        self._is_closed = False
        self._warned: set[str] = set()
        self._left_out: set[str] = set()

    def begin(self, call: SdkCall) -> bool:
        """Return whether a call of google-genai may have the placeholder in place of its key."""
        self.begun.add(call)
        if self._is_closed:
            self.begun.discard(call)
            return False
        return True

    def close(self) -> None:
        """Begin no call, and let those that have the placeholder reach their transport."""
        self._is_closed = True
        end = time.monotonic() + _TO_TRANSPORT_S
        while self.begun and time.monotonic() < end:
            time.sleep(0.001)

    @property
    def tiers(self) -> frozenset[str] | None:
        """The tiers of the keys that may serve a call that is made now; None: all."""
        mine, asked = self.pool.tiers, required_tiers.get()
        return mine & asked if mine is not None and asked is not None else mine or asked

    def serves(
        self,
        key: str,
        base_url: str,
        platform: str = DEFAULT_PLATFORM,
    ) -> bool:
        """Return whether a request goes through the pool; else it is sent as it is.

        Args:
            key: The client's own key, the placeholder or "".
            base_url: Where it goes; another host is warned about, once.
            platform: That of the client. A pool without a key for another than the default has no
                part in it.
        """
        if key.startswith(_EPHEMERAL) or bypassed.get():
            return False
        has_keys = platform in self.pool.selector.platforms
        if platform != DEFAULT_PLATFORM and not has_keys:
            return False
        if not is_within(base_url, self.allowed[platform]):
            host = host_from_url(base_url)
            self.warn_once(
                host, f"calls to {host} bypass the pool: it is not in KEYROT_ALLOWED_HOSTS"
            )
            return False
        if has_keys or not is_key(key):
            return True
        return self.tiers is not None or required_project.get() is not None

    def call_state(self, info: CallInfo, key: str, wait_limit_s: float = inf) -> CallState:
        """Return the state of a new call.

        Args:
            info: The call.
            key: The client's own key, the placeholder or "".
            wait_limit_s: The timeout of the call, seconds, which limits its waits.
        """
        pool, tiers, project = self.pool, self.tiers, required_project.get()
        if tiers is not None or project is not None:
            info = info._replace(tiers=tiers, project=project)
        if pool.terms:
            info = info._replace(terms=pool.terms.get(info.workload, pool.terms.get(None)))
        if (same := session.get()) is not None:
            info = info._replace(conversation=same)
        own = self._own(key, info) if info.bound_to_owner else None
        return CallState(
            info,
            pool.selector,
            pool.policy,
            pool.token_scale,
            providers.of(info.platform).classify,
            own or (self._home(info) if info.bound_to_owner else None),
            pool.waiting_lines,
            pool.evidence,
            wait_limit_s,
            home_is_own=own is not None,
        )

    def value(self, lease: Lease) -> Secret | None:
        """Return the key of a lease; None for a key outside the pool, the client's own."""
        key_id = lease.key_id
        return None if key_id.startswith(HOME) else self.pool.secrets.value(key_id)

    def redact(self, key: str) -> Redact:
        """Return what redacts the pool's keys and the client's own *key* in a text."""
        redact = self.pool.secrets.redact
        return partial(redact, also=Secret(key)) if is_key(key) else redact

    def no_key(self, exhausted: Exhausted, provider: Provider) -> NoKey:
        """Return why no key could serve a call."""
        blocks, now, pool = exhausted.unavailable.blocks, exhausted.unavailable.at, self.pool
        first = judge(CallInfo("", ""), (), blocks, now=now, rejected={}).block
        until = inf if first is None else first.until
        retry_in = max(ceil(until - now), 1) if isfinite(until) else None
        said, model = pool.last_sentence, exhausted.model
        reasons = {
            key_id: describe_block(block, said(key_id, block.reason, model))
            for key_id, block in blocks.items()
        }
        ending = [b for b in blocks.values() if b.reason not in FOR_GOOD and isfinite(b.until)]
        if not blocks and provider.platform not in pool.selector.platforms:
            only = f" of KEYROT_TIERS ({', '.join(sorted(pool.tiers))})" if pool.tiers else ""
            lacks = f"pool {pool.name!r} has no {provider.title} API key{only}"
            body = provider.error_body(401, f"keyrot: {lacks}; {provider.no_key}")
            return NoKey(401, body, until, retry_in, reasons)
        if not ending:
            ids = [k for k, b in blocks.items() if b.reason in REJECTIONS]
            is_model = any(block.reason in MODEL_REFUSALS for block in blocks.values())
            last = pool.last_refusal(ids, exhausted.model if is_model else "")
            if last is not None:  # else another process may have seen it
                return NoKey(last[0], _whole_body(last[2]), until, retry_in, reasons)
        text = f"Pool {pool.name!r} has no {provider.title} API key that may serve this call."
        if reasons:
            which = "that was tried " if exhausted.has_untried_keys else ""
            shown = "; ".join(f"{key_id}: {why}" for key_id, why in list(reasons.items())[:_SHOWN])
            more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
            text = f"No {provider.title} API key of pool {pool.name!r} {which}is available. "
            text += f"{shown}{more}."
        code, reason = 429, ""
        if not ending:
            code, reason = provider.rejection_code(block.reason for block in blocks.values())
        elif first is not None and not first.note:  # a share of a day is not the provider's
            reason = _DAYS.get(first.reason, "")
        wait_s = until - now if ending else None
        body = provider.error_body(code, text, reason=reason, retry_in_s=wait_s)
        return NoKey(code, body, until, retry_in, reasons)

    def _own(self, key: str, info: CallInfo) -> Candidate | None:
        """Return a client's own key as a candidate, in the pool or not; None if it has none.

        A key that keys.json marks for the other platform, or whose tier or project the call may
        not use, counts as none.
        """
        if not is_key(key):
            return None
        key_id = self.pool.secrets.key_id_for(Secret(key))
        own = self.pool.selector.keys.get(key_id) if key_id is not None else None
        found = own or _outside(key, info.platform)
        return found if info.may_use(found) else None

    def _home(self, info: CallInfo) -> Candidate:
        """Return the home key of clients without a key of their own, as a candidate."""
        key_id = self.pool.home_id_for(info.platform, info.tiers, info.project)
        found = self.pool.selector.keys.get(key_id) if key_id is not None else None
        return found or _outside("", info.platform)

    def log_left_out(self, title: str, name: str) -> None:
        """Log, once for a header, that requests go out without it."""
        if name not in self._left_out:
            self._left_out.add(name)
            text = "the header %s of requests is left out: their account is that of the %s key"
            _log.info(text, name, title)

    def warn_of_proxy(self, url: str) -> None:
        """Warn of requests to this machine that a proxy would get in clear, once for a host."""
        host = host_from_url(url)
        self.warn_once(
            f"proxy {host}",
            f"calls to {host} bypass the pool: a proxy would get their keys in clear; let your "
            "client send to it without one (NO_PROXY=localhost,127.0.0.1,[::1])",
        )

    def warn_once(self, subject: str, text: str) -> None:
        """Warn of a host or a model, once; the warning cannot fail the call."""
        if subject in self._warned or len(self._warned) >= _MOST_WARNED:
            return
        self._warned.add(subject)
        _log.warning("%s", text)
        warn_safely(text)


def _outside(key: str, platform: str) -> Candidate:
    """Return a key outside the pool, the client's own, as a candidate."""
    label = f"{HOME}{fingerprint(key)}"
    return Candidate(label, label, label, platform=platform)


def is_key(key: object) -> bool:
    """Return whether *key* is a key, neither empty nor a placeholder."""
    return isinstance(key, str) and not key.strip().startswith(POOL_KEY) and key.strip() != ""


@lru_cache(maxsize=256)
def fingerprint(key: str) -> str:
    """Return a label for a key outside the pool; it does not reveal the key."""
    return blake2b(key.encode(), digest_size=4, key=_SALT).hexdigest()


_DAYS = {"rpd": "rpd", "quota_day": "rpd", "usd": "usd", "usd_month": "usd"}
"""How the body names a block of a day or longer."""
_SHOWN = 10
"""Keys named in the message; all of them are in `reasons`."""


def _whole_body(details: Any) -> Any:
    """Return the body; for an async stream the SDK has it as the text of a `message`."""
    try:
        body = json.loads(details["message"])
    except (KeyError, TypeError, ValueError):
        return details
    return body if isinstance(body, dict) and "error" in body else details


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
        model = pool.secrets.redact(model)  # it is shown
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
            raise Refused(without_pool(self.provider, self.target.url))
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
            found = self.provider.find_error(text)
            return found and redacted_json(found, self.redact)
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
        return Failed(FailureFacts(400, body), Refused(_reply(400, body, self.url), body))

    def refused(self, code: int, text: str, headers: Mapping[str, str], response: Any) -> Failed:
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
        if why.code == 429 and why.retry_in is not None and FERN not in self._request.headers:
            reply.headers["retry-after"] = str(why.retry_in)
        error = Refused(reply, why.body, why)
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


def home_key(calls: PooledCalls, provider: Provider, url: str) -> Secret | Reply | None:
    """Return the key that takes the place of a placeholder without the pool.

    None: no key of the pool may go there, and the request is sent as it is.
    """
    if not is_within(url, calls.allowed[provider.platform]):
        return None
    home = calls.pool.home_value(provider.platform, required_tiers.get(), required_project.get())
    return home or without_pool(provider, url)


def without_pool(provider: Provider, url: str) -> Reply:
    """Return the response to a request that has a placeholder where there is no key to send."""
    return _reply(401, provider.error_body(401, f"keyrot: {provider.no_key}"), url)


def _reply(code: int, body: object, url: str) -> Reply:
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
