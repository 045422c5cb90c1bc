"""OpenAI's API, and what the APIs that speak its protocol have in common.

Sources of the rows: the reference and the help center of OpenAI, and recorded replies
(tests/providers/recorded.jsonl).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import islice, repeat
from math import ceil
from typing import Any
from urllib.parse import unquote

from ..core.failures import (
    DAILY_BACKOFF,
    FIRST_RULES,
    LAST_RULES,
    MAX_MESSAGE,
    FailureFacts,
    Implies,
    ParsedError,
    QuotaViolation,
    Rule,
    delay_until,
    denied_model,
    error_words,
    for_a_day,
    for_an_hour,
    limited,
    objects,
    of_billing,
    of_project,
    of_request,
    open_error,
    paced,
    parse_error_text,
    rejected,
    rejected_for_method,
    reset_s,
    restricted,
    retry_after_s,
    sane_delay,
    seconds,
    until_retry_info,
)
from ..core.model import NO_USAGE, CallInfo, Reported, Usage
from ..core.windows import DAY_S, HOUR_S, next_midnight, next_month
from .base import Events, Provider, Route, is_numbers, text_size
from .hidden_errors import NUMBERS, SENTENCES, find_error
from .openai_protocol import NOT_TEXT, ChatEvents, parse_text, parse_usage

# Requests -----------------------------------------------------------------------------------------

_STATELESS = {
    "chat/completions": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "responses": "chat",
    "responses/input_tokens": "count_tokens",
    "ocr": "ocr",
    "fim/completions": "text_completion",
    **{
        path: path.replace("/", "_")
        for path in (
            *("images/generations", "images/edits", "images/variations", "moderations"),
            *("audio/speech", "audio/transcriptions", "audio/translations"),
        )
    },
}
"""What stores nothing, or only its own response: any key may send it."""
_API = re.compile(
    r"(?<!/messages)/(?=(?:(?:chat|fim)/completions|completions|ocr|responses|embeddings|images|audio|moderations|files"
    r"|batches|uploads|vector_stores|containers|conversations|videos|fine_tuning|assistants"
    r"|threads|evals|models(?!/(?:chat|embeddings)))(?:/|\Z))"
)
"""Where the path of the API begins, behind a version and whatever a gateway has in front."""
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")
"""Azure's name of a model."""


@lru_cache(maxsize=1024)
def _route(method: str, path: str) -> Route | None:
    begin = _API.search(path)
    if begin is None:
        return None
    rest = path[begin.end() :].rstrip("/")
    verb, reads = _STATELESS.get(rest), method.upper() == "GET"
    if verb is not None and method.upper() == "POST":
        found = _DEPLOYMENT.search(path)
        protocol = "responses" if rest == "responses" else ""
        counts = verb != "count_tokens"
        return Route(verb, found[1] if found else "", counts_in_quota=counts, protocol=protocol)
    parts = rest.split("/")
    if parts[0] == "models" and reads:
        return Route("get" if parts[1:] else "list", counts_in_quota=False)
    names = tuple(parts[2 if parts[0] in ("chat", "fine_tuning") else 1 :: 2])
    return stored_route(method, names, parts[0])


def stored_route(method: str, names: tuple[str, ...], collection: str) -> Route:
    """Return the route of a request about stored things."""
    reads = method.upper() == "GET"
    return Route(
        method.lower() if names else "list" if reads else collection,
        names=names,
        bound_to_owner=True,
        idempotent=reads,
        counts_in_quota=False,
        protocol="stored",
    )


_ID = re.compile(
    r"(?:file|batch|msgbatch|resp|vs|cntr|conv|upload|asst|thread|pmpt|video)[-_][\w-]{6,}"
)
_TEXT = frozenset({"content", "text", "input", "prompt", "instructions", "arguments", "output"})
"""Keys of what people and models wrote, which names nothing."""
_MESSAGE = 4.0
"""Tokens of a message beside its text:
https://github.com/openai/openai-cookbook/blob/main/examples/How_to_count_tokens_with_tiktoken.ipynb."""
_MEDIA = 1_000.0
"""Tokens of an image, a file or a recording: the response corrects it."""
_MAX_CONTAINERS = 100_000


def read_body(body: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return the estimated input tokens of a request, and the stored things that it names."""
    found: dict[str, None] = {}
    total, nodes = 0.0, [body]
    for node in islice(nodes, _MAX_CONTAINERS):  # which grows meanwhile
        for key, value in node.items() if isinstance(node, dict) else zip(repeat(""), node):
            if isinstance(value, dict | list):
                if is_numbers(value):
                    total += len(value)  # tokens
                else:
                    nodes.append(value)  # type: ignore[arg-type]  # a list is read like an object
            elif isinstance(value, str):
                if key not in NOT_TEXT:
                    total += text_size(value) / 4
                elif key in ("url", "image_url", "data"):
                    total += _MEDIA
                elif key == "role":
                    total += _MESSAGE
                if len(value) < 100 and key not in _TEXT and _ID.fullmatch(value):
                    found[value] = None
    return ceil(total), tuple(found)


# Replies ------------------------------------------------------------------------------------------


class ResponsesEvents(Events):
    """Reads the stream of a response of the Responses API."""

    marks = (b'"response":', b'"error"')

    def __init__(self) -> None:
        self.usage: Usage = NO_USAGE
        self.names: tuple[str, ...] = ()

    def feed(self, event: Mapping[str, Any]) -> bool:
        """Add an event; return whether it is the last one."""
        response = event.get("response")
        if isinstance(response, Mapping):
            self.names = _stored(response)
            if response.get("usage"):
                self.usage = parse_usage(response)
        kind = event.get("type")
        return kind in ("response.completed", "response.incomplete", "response.failed")

    def is_preliminary(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event says only that the request is being served."""
        return event.get("type") in ("response.created", "response.in_progress", "response.queued")

    def is_error(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event is an error."""
        return event.get("type") in ("error", "response.failed") or bool(event.get("error"))


def _stored(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the stored things that a reply names."""
    if body.get("object") == "response" and body.get("store") is False:
        return ()
    items = (body, *objects(body.get("data")), *objects(body.get("output")))
    names = ("id", "output_file_id", "error_file_id", "container_id")
    found = (item.get(name) for item in items for name in names)
    return tuple(one for one in dict.fromkeys(found) if isinstance(one, str) and one)


# Failures -----------------------------------------------------------------------------------------

_LIMIT = re.compile(
    r"on (?P<what>requests|tokens) per (?P<unit>min|day)\w* \([RT]P[MD]\): "
    r"Limit (?P<limit>\d{1,12})(?:, Used \d{1,12})?, Requested (?P<requested>\d{1,12})"
)
"""OpenAI's and Groq's: the headers do not distinguish an exhausted day from a minute."""
_WINDOWS = {
    "permonth": re.compile(r"per[ -]?month|/ ?month|\bmonthly", re.IGNORECASE),
    "perday": re.compile(r"(?:per|by)[ -]?(?:day|24)|/ ?day|\bdaily|\b[RT]PD\b", re.IGNORECASE),
    "perhour": re.compile(r"per[ -]?hour|/ ?hour|\bhourly", re.IGNORECASE),
    "perminute": re.compile(r"per[ -]?min|/ ?min|\b[RT]PM\b", re.IGNORECASE),
}
"""Words about a window, where a message names one of them."""
_PART = (
    r"\d{1,9}(?:\.\d{1,9})?\s?(?:m(?:illi)?s(?:ec\w*)?|[smhd]|sec\w*|min\w*|hours?|days?)(?![a-z])"
)
_AGAIN = re.compile(
    rf"(?:again|retry|retrying|wait|reset|resets|available|replenished)\b\D{{0,20}}"
    rf"((?:{_PART}[\s,]*(?:and )?)+"
    r"|(?P<date>\d{4}-\d\d-\d\d[T ]\d\d:[\d:.]{2,16} ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d)))",
    re.IGNORECASE,
)
_UNITS = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": HOUR_S, "d": DAY_S}
_CODES = {
    **dict.fromkeys(("INVALID_API_KEY", "AUTHENTICATION_ERROR"), 401),
    **dict.fromkeys(("RATE_LIMIT_EXCEEDED", "RATE_LIMIT_ERROR", "INSUFFICIENT_QUOTA"), 429),
    **dict.fromkeys(("SERVER_ERROR", "API_ERROR"), 500),
    **dict.fromkeys(("SERVER_IS_OVERLOADED", "OVERLOADED_ERROR"), 503),
    "INVALID_REQUEST_ERROR": 400,
}
"""What an error inside a stream means, which has no HTTP code."""
_LIMITED = re.compile(r"rate[ -]?limit|too many requests", re.IGNORECASE)
_MESSAGES = ("message", "detail", "error", "error_description", "title", *SENTENCES[1:])
"""Where the sentence of an error may stand."""
_ENVELOPES = ("response", "errors", "detail", "base_resp")
_BESIDE = (*NUMBERS, "error_type", "retry_after", "retry_after_seconds")
"""What may stand beside an error instead of in it."""


def any_of(*words: str) -> frozenset[str]:
    """Return words that a rule looks for."""
    return frozenset(words)


def _status(error: Mapping[Any, Any], words: frozenset[str]) -> int | None:
    """Return the status that an error stands for which has none: a gateway's own codes are none."""
    number = next((str(error[name]) for name in NUMBERS if error.get(name) is not None), "")
    status = int(number) if re.fullmatch(r"[45]\d\d", number, re.ASCII) else None
    status = next((_CODES[word] for word in words if word in _CODES), status)
    return 429 if status is None and _LIMITED.search(error["message"]) else status


def _worded_s(message: str, now: float) -> float | None:
    """Return the delay that a message names, such as `try again in 6m0s`, seconds."""
    found = _AGAIN.search(message)
    if found is None:
        return None
    if found["date"]:
        return delay_until(found["date"], now)
    parts = re.findall(r"(\d[\d.]*)\s?(ms|milli|[smhd])", found[1].lower())
    return sane_delay(sum(float(number) * _UNITS[unit] for number, unit in parts))


def until_window_ends(parsed: ParsedError, now: float) -> float:
    """Return the time that the server named, else the end of the day; of a month its end."""
    if any("permonth" in quota.name for quota in parsed.quotas):
        return next_month(now, "UTC")
    return until_retry_info(parsed, now) or next_midnight(now, "UTC")


SUSPENDED = restricted(
    "project_suspended",
    (400, 401, 403),
    reasons=any_of("ACCOUNT_DEACTIVATED", "ORGANIZATION_RESTRICTED"),
    text=r"^(?:(?:this|your) )?(?:organization|account|team|project) (?:has been|is) "
    r"(?:disabled|deactivated|suspended|restricted)",
    backoff=DAILY_BACKOFF,
    exhausted_code=403,
)
ACCOUNT_RULES = (
    rejected(
        "key_invalid",
        (400, 401, 403),
        reasons=any_of(
            *("INVALID_API_KEY", "EXPIRED_API_KEY", "WRONG_API_KEY", "INVALIDAPIKEY"),
            *("AUTHENTICATION_ERROR", "INVALID_AUTHENTICATION_ERROR"),
        ),
        text=r"^(?:incorrect|invalid|wrong|expired) api[ _-]?key\b"
        r"|^(?:your |the |this )?api[ _-]?key (?:you )?(?:provided )?(?:is |has |was )?"
        r"(?:currently |been )?"
        r"(?:not valid|not found|invalid|incorrect|expired|revoked|disabled|deleted|blocked)\b",
        exhausted_code=401,
    ),
    SUSPENDED,
    of_billing(
        "credit_depleted",
        (400, 401, 402, 403, 412, 429),
        reasons=any_of(
            *("INSUFFICIENT_QUOTA", "CREDIT_BALANCE_EXHAUSTED", "INSUFFICIENT_BALANCE"),
            *("INSUFFICIENT_CREDITS", "INSUFFICIENT_USER_QUOTA", "BILLING_HARD_LIMIT_REACHED"),
            *("BILLING_NOT_ACTIVE", "EXCEEDED_CURRENT_QUOTA_ERROR", "ARREARAGE"),
            *("BLOCKED_API_ACCESS", "BUDGET_EXCEEDED"),
        ),
        text=r"^(?:insufficient (?:credits?|balance|funds)|(?:your )?credit (?:balance|limit)\b"
        r"|billing hard limit|budget has been exceeded"
        r"|(?:you(?:r \w+)?|this|the)\b[^\"`:]{0,60}?\b(?:credits\b|spend(?:ing)? limit"
        r"|balance is (?:too low|insufficient)|current quota|is not active))",
    ),
)
"""What is wrong with a key or its account, in words that several providers use."""
LIMIT_RULES = (
    Rule(
        "too_large",
        (429,),
        reasons=any_of("REQUESTED_OVER_LIMIT"),
        rotate=True,  # that of another organization may be larger
        max_rotations=1,
    ),
    paced("quota_day", quota="permonth", until=until_window_ends, may_wait=False),
    paced("quota_day", quota="perday", until=until_window_ends, may_wait=False),
    limited("rate_limit", quota="perhour"),
    paced("quota_minute", quota="perminute"),
)
"""Of the providers whose messages name the window."""
MODEL_DENIED = denied_model(
    "model_denied",
    (400, 403, 404),
    reasons=any_of(
        *("MODEL_NOT_FOUND", "MODEL_PERMISSION_BLOCKED_ORG", "MODEL_PERMISSION_BLOCKED_PROJECT")
    ),
    until=for_a_day,
    max_rotations=1,
    exhausted_code=403,
)
SHARED_RULES = (
    *ACCOUNT_RULES,
    *LIMIT_RULES,
    of_billing("payment_required", (402,)),
    of_request(
        "bad_request",
        (403,),
        text=r"moderat|flagged|guardrail|usage guidelines|max_new_tokens",
        foreign=False,
    ),
    of_request(  # servers in Rust (xAI, text-generation-inference) say so in text
        "bad_request",
        (400, 415, 422),
        text=r"^Failed to (?:deserialize|parse|buffer) the (?:JSON|request) body"
        r"|^Expected request with `Content-Type",
    ),
    Rule(
        "location",
        (403,),
        reasons=any_of("UNSUPPORTED_COUNTRY_REGION_TERRITORY"),
        text=r"\bcountry\b|\bregion\b",
        implies=Implies.NOTHING,
    ),
    paced("rate_limit"),
    *LAST_RULES,
)
"""Of all of them, after their own."""


class OpenAILike(Provider):
    """What the providers that speak OpenAI's protocol share."""

    limit_header = "x-ratelimit-{word}-{kind}"
    own_rules: tuple[Rule, ...] = (rejected("key_invalid", (401,)),)
    """Its rows in the table of failures, behind those of all and before those that many share."""
    rules = (*FIRST_RULES, *own_rules, *SHARED_RULES)

    def __init_subclass__(cls) -> None:
        """Make the table of one that has rows of its own."""
        if "own_rules" in vars(cls):
            cls.rules = (*FIRST_RULES, *cls.own_rules, *SHARED_RULES)

    def route(self, method: str, url: str) -> Route | None:
        """Return what a request is."""
        return _route(method, url.partition("?")[0])

    def route_with(self, route: Route, body: Mapping[str, Any]) -> Route:
        """Return the route of a request: the reply to one that stores it names what is stored."""
        is_stored = not route.protocol and body.get("store") is True
        return route._replace(protocol="stored") if is_stored else route

    def read_request(self, route: Route, body: Mapping[str, Any]) -> CallInfo:
        """Read a request."""
        tokens, names = read_body(body)
        tokens = tokens if route.counts_in_quota else 0
        model = body.get("model")
        return CallInfo(
            route.model or (model if isinstance(model, str) else ""),
            route.verb,
            tokens,
            tokens,
            stream=body.get("stream") is True,
            bound_to_owner=route.bound_to_owner or bool(names),
            idempotent=route.idempotent and not body.get("background"),
            resources=(*route.names, *names),
            counts_in_quota=route.counts_in_quota,
        )

    def read_reply(
        self, route: Route, text: str, *, in_full: bool
    ) -> tuple[Usage, tuple[str, ...]]:
        """Return usage and stored things of a whole response."""
        usage, body = parse_text(text, in_full=in_full or bool(route.protocol))
        return usage, _stored(body) if route.protocol else ()

    def events(self, route: Route) -> Events:
        """Return what reads the stream of a response."""
        if route.protocol == "responses":
            return ResponsesEvents()
        return ChatEvents(is_stored=route.protocol == "stored")

    def open(self, body: object) -> Mapping[Any, Any]:
        """Return the object of a failed response, whose sentence is its `message`.

        What some write beside the error, or in another place, is in it too.
        """
        outer = body if isinstance(body, dict) else {}
        inner = next((outer[n] for n in _ENVELOPES if outer.get(n)), body)
        error = open_error(body if isinstance(inner, str) or "error" in outer else inner)
        beside = {name: outer[name] for name in _BESIDE if name in outer}
        found = (error[name] for name in _MESSAGES if isinstance(error.get(name), str))
        message = next(found, "").strip()[:MAX_MESSAGE]
        return {**beside, **error, "message": unquote(message) if "%20" in message else message}

    def find_error(self, text: str) -> Mapping[str, Any] | None:
        """Return the body of a success if it is an error."""
        return find_error(text)

    def parse_error(self, facts: FailureFacts, now: float) -> ParsedError:
        """Return what a failed response says."""
        body = facts.body
        if isinstance(body, str):
            body = parse_error_text(body) or body
        error = self.open(body)
        message, words = error["message"], error_words(error, "type", "code", "error_type")
        code = facts.code or _status(error, words)
        quotas: tuple[QuotaViolation, ...] = ()
        if (found := _LIMIT.search(message)) is not None:
            kind = "requests" if found["what"] == "requests" else "inputtokens"
            unit = "perday" if found["unit"] == "day" else "perminute"
            quotas = (QuotaViolation(f"{kind}{unit}permodel", int(found["limit"])),)
            if int(found["requested"]) > int(found["limit"]):
                words |= {"REQUESTED_OVER_LIMIT"}
        elif (
            code == 429 and len(named := [w for w in _WINDOWS if _WINDOWS[w].search(message)]) == 1
        ):
            quotas = (QuotaViolation(named[0]),)
        delay = retry_after_s(facts, now)
        if code == 429:  # a gateway's short Retry-After may stand beside the end of a day
            delay = max(delay or 0, self.body_delay(error, now) or 0)
            delay = delay or reset_s(facts.headers or {}, now)
        is_sure = bool(message) and not {"code", "type", "error_type"}.isdisjoint(error)
        shaped = bool(message) and isinstance(body, dict)
        return ParsedError(code, message, words, quotas, delay, has_shape=shaped, is_sure=is_sure)

    def body_delay(self, error: Mapping[Any, Any], now: float) -> float | None:
        """Return the delay that an error names, seconds."""
        named = error.get("retry_after") or error.get("retry_after_seconds") or ""
        return delay_until(str(named), now) or _worded_s(error["message"], now)


_SPENT = any_of("ORGANIZATION_SPEND_LIMIT_EXCEEDED", "ORGANIZATION_USAGE_LIMIT_EXCEEDED")


class OpenAI(OpenAILike):
    """api.openai.com."""

    name = platform = otel = "openai"
    title = "OpenAI"
    hosts = ("api.openai.com",)
    variables = ("OPENAI_API_KEY",)
    base_url_variable = "OPENAI_BASE_URL"
    base_url_path = "/v1"
    account_headers = ("openai-organization", "openai-project")
    limit_kinds = {"requests": "rpm", "tokens": "tpm"}
    own_rules = (
        restricted(
            "key_denied",
            (401,),
            backoff=DAILY_BACKOFF,
            reasons=any_of("ACCOUNT_DEACTIVATED"),
            text=r"^You must be a member of an organization",
        ),
        restricted("key_restricted", (401,), text=r"^Your IP is not authorized|^IP not authorized"),
        rejected_for_method(
            "key_method_blocked",
            (401, 403),
            text=r"^You have insufficient permissions for this operation",
        ),
        of_project(
            "project_cap", reasons=any_of("PROJECT_SPEND_LIMIT_EXCEEDED"), until=for_an_hour
        ),
        of_billing("billing_cap", reasons=_SPENT),
        limited("rate_limit", reasons=any_of("SLOW_DOWN"), has_known_end=False),
        MODEL_DENIED,
    )

    @cached_property
    def limit_headers(self) -> tuple[str, ...]:
        """The headers that `read_limits` reads."""
        return (*super().limit_headers, "x-ratelimit-reset-requests")

    def read_limits(self, headers: Mapping[str, str]) -> Sequence[Reported]:
        """Return the limits; the reset of the requests shows whether theirs is of a day.

        It is the time until all of them are left again.
        """
        text = headers.get("x-ratelimit-reset-requests") or ""
        reset, found = seconds(text if text[-1:].isalpha() else f"{text}s") or 0, []
        for one in super().read_limits(headers):
            limit, left = one.of or 0, one.left or 0
            is_of_day = one.limit == "rpm" and reset * limit / max(limit - left, 1) > HOUR_S
            found.append(one._replace(limit="rpd") if is_of_day else one)
        return found
