"""What the pool asks of a provider of an API: one class each, mostly data.

A `Provider` with its defaults serves an API in the manner of OpenAI's: the key as a bearer token,
the model in a JSON body, errors as `{"error": {"message", "type", "code"}}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import unquote

from ..core.failures import (
    FIRST_RULES,
    FOR_GOOD,
    LAST_RULES,
    MAX_MESSAGE,
    FailureFacts,
    ParsedError,
    Rule,
    classify,
    error_words,
    open_error,
    refusal_codes,
    retry_after_s,
)
from ..core.model import NO_USAGE, OTHER_PROJECT, OTHER_TIER, CallInfo, Reported, Usage, Verdict


class Route(NamedTuple):
    """What follows from the method and the path of a request alone."""

    verb: str
    """The API's method, such as `generateContent` or `chat.completions`."""
    model: str = ""
    """Empty where the path names none."""
    names: tuple[str, ...] = ()
    """Stored things that the address names, in the form of core/affinity.py."""
    bound_to_owner: bool = False
    """It uses stored things, so only their owner's key may send it; also if its body names some."""
    idempotent: bool = True
    """Sending it twice is harmless."""
    counts_in_quota: bool = True
    """It counts in the limits of the model."""
    stream: bool = False
    """The path itself asks for a stream."""
    protocol: str = ""
    """Which of the provider's protocols it is, where there are several."""
    collection: str = ""
    """What an `id` of the reply belongs to, where ids are names without a collection."""


def text_size(text: str) -> int:
    """Return the bytes of a text in UTF-8: those of a long one stand behind its beginning."""
    size = text.rpartition("\x00")[2] if "\x00" in text else ""
    if size.isdecimal():
        return int(size)
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def is_numbers(value: object) -> bool:
    """Return whether a value is a list of numbers, such as tokens: its first item is one."""
    return isinstance(value, list) and value != [] and isinstance(value[0], int | float)


class Events:
    """Reads the events of one stream. The defaults report nothing."""

    __slots__ = ()

    marks: ClassVar[tuple[bytes, ...]] = ()
    """What an event holds that reports anything; see `skim`."""
    usage: Any = NO_USAGE
    names: Any = ()
    """Stored things that were named so far."""

    def skim(self, line: bytes) -> bool:
        """Add an event by its line if that suffices; else return False: it is parsed and fed.

        Most events of a stream carry text alone, and parsing them costs more than all else here.
        In doubt an event is parsed. The default adds those without any of `marks`, if there are
        some. Model output cannot look like a mark or a key: in JSON its quotes are escaped.

        Args:
            line: With its `data:`. The one that ends a stream, `[DONE]`, is not added.
        """
        if not self.marks or b"[DONE]" in line:
            return False
        return not any([mark in line for mark in self.marks])

    def feed(self, event: Mapping[str, Any]) -> bool:
        """Add an event, parsed; return whether it is the last one."""
        return False

    def is_error(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event is an error."""
        return event.get("error") is not None and event.get("event_type", "error") == "error"

    def is_preliminary(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event shows nothing yet, so that the request may be sent again."""
        return False


_MODEL = re.compile(rb'("model"\s*:\s*"(?:models/)?)[^"\\]*"')
_LARGE = 1_048_576
"""Bytes of a body that is not parsed to write one word."""


def with_named_model(content: bytes, model: str) -> bytes | None:
    """Return the JSON body of a request with another model; None: a large one names several.

    What it has before the name, `models/`, stays.
    """
    if len(content) > _LARGE:
        found = [*islice(_MODEL.finditer(content), 2)]
        if len(found) != 1:
            return None
        begin, end = found[0].span()
        return b"".join(
            (content[:begin], found[0][1], json.dumps(model)[1:].encode(), content[end:])
        )
    body = json.loads(content)
    prefix = "models/" if str(body.get("model")).startswith("models/") else ""
    return json.dumps({**body, "model": f"{prefix}{model}"}).encode()


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""What OpenAI and Anthropic call an error, by its code."""


def bearer_token(headers: Any) -> str:
    """Return the bearer token of a request, or ""."""
    scheme, _, value = (headers.get("authorization") or "").strip().partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


class Provider:
    """One API: what its requests, keys, replies and failures look like. It has no state."""

    name: ClassVar[str]
    """In keys.json, such as `openai`."""
    platform: ClassVar[str]
    """Of its keys and calls; `name`, but where one provider has several services."""
    title: ClassVar[str]
    """For people: `OpenAI`."""
    vendor: str = ""
    """Who runs it, if that is not its title."""
    otel: ClassVar[str]
    """`gen_ai.provider.name`, by OpenTelemetry's conventions."""
    prices: str = ""
    """Its name in the list of genai-prices, if not its own."""
    repeating_agent: str = ""
    """How the user agent of its SDK ends, if that repeats a 5xx whatever the response says."""
    check_path: str = "/v1/models"
    """What a request asks for that shows whether a key is accepted, at no cost or a small one."""
    check_headers: Mapping[str, str] = {}
    check_body: Mapping[str, Any] | None = None
    check_model: str = ""
    """That which is asked if none is named, in `{model}` of the path; empty: none is asked."""
    hosts: tuple[str, ...] = ()
    """Where its keys may be sent."""
    variables: tuple[str, ...] = ()
    """Variables of its SDK that hold one key, such as `OPENAI_API_KEY`."""
    base_url_variable: str = ""
    """The variable of its SDK that names another address."""
    base_url_path: str = ""
    """What that address has behind the host; empty: nothing."""
    zone: str = "UTC"
    """Where its day and month end."""
    key_header, key_scheme = "authorization", "Bearer"
    key_headers: tuple[str, ...] = ("authorization",)
    """All headers in which a request can have a key, in lower case."""
    account_headers: tuple[str, ...] = ()
    """Headers with which a request chooses the account, project or workspace that it is counted to,
    in lower case. None goes out with a key of the pool: what the server says of that account would
    be taken for a fault of the key."""
    account_params: tuple[str, ...] = ()
    """Parameters of an address that do the same, in lower case and without a `$`."""
    limit_header: str = ""
    """The header of a successful response with a limit, in lower case: `{kind}` stands for one of
    `limit_kinds`, and `{word}` for `limit`, or for `remaining` where it says what is left."""
    limit_kinds: Mapping[str, Literal["rpm", "tpm", "rpd"]] = {}
    """The limits; of two kinds that are one limit the first counts."""
    tier_header = upload_header = ""
    """Those that name the service tier in which it was served, and where an upload goes."""
    replaced: Mapping[str, str] = {}
    """The models that others answer, under their old names: they count in one limit."""
    names_models: bool = True
    """A request names the model itself, so that a response which names another one says news; else
    the user's own name for it, as a deployment of Azure has."""
    model_marks: tuple[bytes, ...] = ()
    """What a body holds that only the same model accepts, so no fallback model gets it."""
    rules: tuple[Rule, ...] = (*FIRST_RULES, *LAST_RULES)
    says: Mapping[str, str] = {}
    """Its own sentence for a failure class, by which people search."""

    @property
    def no_key(self) -> str:
        """What to do where there is no key at all."""
        variable = self.variables[-1] if self.variables else "its variable"
        return (
            f"there is no {self.title} API key to send this with: set {variable}S or {variable}, "
            "write a keys.json, or give the client an api_key other than keyrot-pool; keyrot check "
            "shows what is found"
        )

    # A request ------------------------------------------------------------------------------------

    def route(self, method: str, url: str) -> Route | None:
        """Return what a request is; None: the pool does not serve it. Keep results in a cache."""
        raise NotImplementedError

    def find_key(self, route: Route, headers: Any, url: str) -> tuple[str, bool]:
        """Return the key of a request, or "", and whether it is in the query.

        Args:
            route: That of the request.
            headers: A mapping whose names are in any case.
            url: The whole address.

        A placeholder, which begins with `POOL_KEY`, may be in any place. SDKs send a key or a login
        as a bearer token too, where `key_headers` has that header.
        """
        value = (headers.get(self.key_header) or "").strip()
        if not self.key_scheme and (value or self.key_headers == (self.key_header,)):
            return value, False
        return bearer_token(headers), False

    @cached_property
    def base(self) -> str:
        """Where the paths of its API begin, such as `/v1`."""
        return self.check_path.rpartition("/")[0]

    def check_url_path(self, model: str) -> str:
        """Return the path of the request that shows whether a key is accepted."""
        return self.check_path.format(model=model)

    def check_url(self, base: str, model: str) -> str:
        """Return its address below *base*, which may end with the version, as most SDKs take it."""
        path = self.check_url_path(model)
        if base.endswith("/v1"):
            path = f"/{path.rpartition('/v1/')[2].lstrip('/')}"
        return base + path

    def is_asked_like(self, other: Provider) -> bool:
        """Return whether no request shows for which of the two it is."""
        mine, its = ((type(p).route, p.key_header, p.base) for p in (self, other))
        return mine == its

    def fit(self, method: str, url: str, headers: Any) -> tuple[bool, bool, int, int, bool]:
        """Return how well a request fits, for a host that it shares with other providers."""
        route = self.route(method, url)
        return (
            self.find_key(route or Route(""), headers, url)[0] != "",
            route is not None,
            sum(name in headers for name in self.check_headers),
            len(self.base) if f"{self.base}/" in url else -1,
            self.key_header in headers,
        )

    def key_field(self, route: Route, key: str) -> tuple[str, str]:
        """Return name and text of the header that carries *key*."""
        return self.key_header, f"{self.key_scheme} {key}" if self.key_scheme else key

    def without_account(self, headers: MutableMapping[str, str], url: str) -> str:
        """Take what names an account out of *headers*; return the URL without such a parameter."""
        for name in self.account_headers:
            if name in headers:
                del headers[name]
        if not any(name in url.lower() for name in self.account_params):
            return url
        path, _, rest = url.partition("?")
        query, mark, fragment = rest.partition("#")
        kept = "&".join(
            one
            for one in query.split("&")
            if unquote(one.partition("=")[0]).lstrip("$").lower() not in self.account_params
        )
        return f"{path}{'?' if kept else ''}{kept}{mark}{fragment}"

    def read_request(self, route: Route, body: Mapping[str, Any]) -> CallInfo:
        """Read a request: `tokens` and `estimate` as estimated; keep none of its content.

        Of long texts *body* has the beginning; see `text_size`.
        """
        raise NotImplementedError

    def route_with(self, route: Route, body: Mapping[str, Any]) -> Route:
        """Return the route again, now that the body is known."""
        return route

    def conversation(self, body: Mapping[str, Any]) -> str:
        """Return a digest of what all turns of a conversation share; empty: nothing."""
        return ""

    def with_model(
        self, route: Route, url: str, content: bytes, models: tuple[str, str]
    ) -> tuple[str, bytes] | None:
        """Return a request with the second of *models* in place of the first; None: impossible."""
        body = with_named_model(content, models[1])
        return None if body is None else (url, body)

    # A reply --------------------------------------------------------------------------------------

    def read_reply(
        self, route: Route, text: str, *, in_full: bool
    ) -> tuple[Usage, tuple[str, ...]]:
        """Return the usage of a whole response, and the stored things that it names.

        Args:
            route: That of the request.
            text: The body.
            in_full: More than tokens and model are of use.
        """
        return NO_USAGE, ()

    def events(self, route: Route) -> Events:
        """Return what reads the stream of a response."""
        return Events()

    @cached_property
    def limit_headers(self) -> tuple[str, ...]:
        """The headers that `read_limits` reads."""
        words, header = ("limit", "remaining"), self.limit_header
        return tuple(header.format(kind=k, word=w) for k in self.limit_kinds for w in words)

    def read_limits(self, headers: Mapping[str, str]) -> Sequence[Reported]:
        """Return the limits that the headers of a success name."""
        found: dict[str, Reported] = {}
        texts = iter([headers.get(name) or "" for name in self.limit_headers])
        for limit, of, left in zip(self.limit_kinds.values(), texts, texts, strict=False):
            if of.isdecimal() and int(of) and limit not in found:
                found[limit] = Reported(limit, int(of), int(left) if left.isdecimal() else None)
        return tuple(found.values())

    def find_error(self, text: str) -> Mapping[str, Any] | None:
        """Return the body of a success if it is an error, which is read like one of a stream.

        It is asked of short bodies, and not of requests about stored things: their errors are data.
        """
        return None

    def parse_error(self, facts: FailureFacts, now: float) -> ParsedError:
        """Return what a failed response says, whatever its shape. It must not raise."""
        error = open_error(facts.body)
        message, words = error.get("message"), error_words(error, "type", "code")
        shaped = isinstance(message, str) and bool(words)
        return ParsedError(
            facts.code,
            message.strip()[:MAX_MESSAGE] if isinstance(message, str) else "",
            words,
            retry_delay_s=retry_after_s(facts, now),
            has_shape=shaped,
            is_sure=shaped,
        )

    def classify(
        self, facts: FailureFacts, info: CallInfo, now: float, sent_at: float | None = None
    ) -> Verdict:
        """Return what a failure means; a request of *info* was sent at *sent_at*, or just now."""
        parsed = self.parse_error(facts, now)._replace(sent_at=sent_at)
        return classify(self.rules, facts, parsed, info, now)

    @cached_property
    def refusal_codes(self) -> Mapping[str, int]:
        """The code of a `KeyPoolExhausted` after each reason that no time ends."""
        return {OTHER_TIER: 400, OTHER_PROJECT: 400, **refusal_codes(self.rules)}

    def rejection_code(self, retired: Iterable[str]) -> tuple[int, str]:
        """Return the code of a `KeyPoolExhausted`, and the failure class behind it, if any.

        Args:
            retired: Why each key is rejected, if none of them becomes available by itself.
        """
        codes = self.refusal_codes
        known = [reason for reason in retired if reason in codes or reason in FOR_GOOD]
        return (codes.get(known[-1], 401), known[-1]) if known else (429, "")

    def error_body(
        self, code: int, text: str, *, reason: str = "", retry_in_s: float | None = None
    ) -> dict[str, Any]:
        """Return *text* as the body of an error of the provider's, for a reply of our own.

        Args:
            code: The HTTP code.
            text: The message.
            reason: The failure class behind it; `rpd` or `usd` where a day is exhausted.
            retry_in_s: When a key will be available, if it is known.
        """
        kind = _KINDS.get(code) or ("server_error" if code >= 500 else "invalid_request_error")
        return {"error": {"message": text, "type": kind, "code": reason or None, "param": None}}
