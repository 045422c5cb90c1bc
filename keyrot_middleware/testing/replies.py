"""Every observed reply of the Gemini API, by name; some echo the key, as Google's do.

Sources: docs/gemini-api.md#exhausted-quotas, docs/gemini-api.md#rejected-keys-and-refused-requests
and docs/failures.md.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from keyrot_middleware.core.model import Limits
from keyrot_middleware.providers.gemini.models import CURRENT_MODEL, FREE_LIMITS
from keyrot_middleware.testing.keys import seconds_to_midnight, seconds_to_minute
from keyrot_middleware.testing.request import FakeRequest

JSON = "application/json; charset=UTF-8"
HTML = "text/html; charset=UTF-8"
Then = Literal["end", "close", "reset"]
Body = Callable[[FakeRequest], Any]


@dataclass(frozen=True, slots=True)
class Scripted:
    """A reply to one request.

    Attributes:
        name: The member's name in `Reply`, or `CUSTOM`; it appears in the request log.
        status: The HTTP status; 0: no response.
        body: Returns the JSON value, text or bytes of the body; None: the ordinary answer.
        content_type: The header of that name.
        headers: More headers.
        delay_s: Seconds before the first byte, in real time.
        gap_s: Seconds before every chunk of a stream but the first.
        keep_alive_s: A stream has its head at once, and this often a comment until its first chunk.
        after_chunks: In a stream, the number of chunks before the failure; None: fail at once.
        then: What happens to the connection afterwards.
        wrap_in_list: Whether the error comes in a list of one.
        interactions: Whether the error has the shape of the Interactions API.
        spares_reads: Whether requests that run no model are answered as usual.
        charged: Whether a refused request still counts against the quota.
        continues: Whether the ordinary answer ends with CONTINUATION and a token.
        close: The code of the close frame that a Live session gets instead; 0: the handshake fails.
    """

    status: int = 200
    body: Callable[[FakeRequest], Any] | None = None
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    gap_s: float = 0.0
    keep_alive_s: float = 0.0
    after_chunks: int | None = None
    then: Then = "end"
    wrap_in_list: bool = False
    interactions: bool = False
    spares_reads: bool = False
    charged: bool = False
    continues: bool = False
    close: int = 0
    name: str = "CUSTOM"

    def delayed(self, seconds: float) -> Scripted:
        """Return the same reply, its first byte `seconds` later."""
        return replace(self, delay_s=seconds)

    def kept_alive(self, every_s: float = 1.0) -> Scripted:
        """Return the same stream, with comments while its first chunk is late."""
        return replace(self, keep_alive_s=every_s)

    def in_stream(self, after: int = 0) -> Scripted:
        """Return the same error, inside a stream with HTTP 200, after that many chunks.

        A unary request still gets it as an HTTP error.
        """
        return replace(self, after_chunks=after)

    def list_wrapped(self) -> Scripted:
        """Return the same error in a list of one, as some endpoints send it."""
        return replace(self, wrap_in_list=True)

    def as_interactions(self) -> Scripted:
        """Return the same error as `{"error": {"message", "code": "too_many_requests"}}`."""
        return replace(self, interactions=True)

    def as_close(self, code: int, after: int | None = None) -> Scripted:
        """Return the same error as the close frame of a Live session, with its message as reason.

        Args:
            code: 1007, 1008 or 1011 (docs/gemini-api.md#closed-live-sessions). Other requests get
                the HTTP error.
            after: Messages of the server before it; None: none, not even `setupComplete`.
        """
        return replace(self, close=code, after_chunks=after)

    def with_headers(self, **headers: str) -> Scripted:
        """Return the same reply with more headers; `_` in a name stands for `-`."""
        more = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        return replace(self, headers=self.headers + more)

    @property
    def counts(self) -> bool:
        """Whether the request counts against the quota: 400 and 5xx do as well.

        See docs/gemini-api.md#what-counts.
        """
        return self.status == 200 or self.status >= 500 or self.charged

    @property
    def answers(self) -> bool:
        """Whether this is the ordinary answer (even if slow, cut or continued), not an error."""
        return self.status == 200 and self.body is None


class Scripts:
    """Queues of replies by key, and default replies; under None those of any key."""

    def __init__(self) -> None:
        self.next: defaultdict[str | None, deque[Scripted]] = defaultdict(deque)
        self._always: dict[str | None, Scripted] = {}

    def set_default(self, label: str | None, reply: Scripted | None) -> None:
        """Set the reply to all requests of a key, or of any; None removes it."""
        if reply is None:
            self._always.pop(label, None)
        else:
            self._always[label] = reply

    def clear(self) -> None:
        """Remove all replies."""
        self.next.clear()
        self._always.clear()

    def take(self, label: str | None, *, read: bool) -> Scripted | None:
        """Remove and return the reply to a request; None: answer as usual.

        The key's queue comes first, then the common queue, the key's default, the common default.
        A reply that spares reads stays queued until a request that runs a model.
        """
        for queue in (self.next.get(label), self.next.get(None)):
            if queue and not (read and queue[0].spares_reads):
                return queue.popleft()
        found = (self._always.get(name) for name in (label, None))
        return next((one for one in found if one and not (read and one.spares_reads)), None)


# Error bodies ------------------------------------------------------------------------------------

_EXHAUSTED = "RESOURCE_EXHAUSTED"
_TYPE = "type.googleapis.com/google.rpc."
_SERVICE = "generativelanguage.googleapis.com"
_CONSOLE = f"https://console.developers.google.com/apis/api/{_SERVICE}"
_DOCS = "https://ai.google.dev/gemini-api/docs/rate-limits"
_HELP = {
    "@type": f"{_TYPE}Help",
    "links": [{"description": "Learn more about Gemini API quotas", "url": _DOCS}],
}


def error(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    """Return Google's error object; it has no `details` if there are none."""
    inner: dict[str, Any] = {"code": code, "message": message, "status": status}
    return {"error": inner | ({"details": list(details)} if details else {})}


def plain(code: int, status: str, message: str, *details: dict[str, Any]) -> Body:
    """Return a body that is the same for every request."""
    body = error(code, status, message, *details)
    return lambda _request: body


def _info(reason: str, **metadata: str) -> dict[str, Any]:
    named = {"@type": f"{_TYPE}ErrorInfo", "reason": reason, "domain": "googleapis.com"}
    return named | {"metadata": metadata}


def _localized(message: str) -> dict[str, Any]:
    return {"@type": f"{_TYPE}LocalizedMessage", "locale": "en-US", "message": message}


def _api_key_invalid(message: str) -> Scripted:
    """Return the 400 of a key that is unknown, expired or deleted: one reason, three messages."""
    details = _info("API_KEY_INVALID", service=_SERVICE), _localized(message)
    return Scripted(400, plain(400, "INVALID_ARGUMENT", message, *details))


def _token_unsupported(request: FakeRequest) -> dict[str, Any]:
    """Return the 401 of an auth key that was used like an OAuth token."""
    message = (
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login "
        "cookie or other valid authentication credential. See "
        "https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    info = _info("ACCESS_TOKEN_TYPE_UNSUPPORTED", method=request.route.rpc, service=_SERVICE)
    del info["domain"]
    return error(401, "UNAUTHENTICATED", message, info)


def _refused(message: str, reason: str, **metadata: str) -> Scripted:
    """Return a 403 with an ErrorInfo; {value}, {number} and {rpc} are those of the request."""

    def body(request: FakeRequest) -> dict[str, Any]:
        number = request.consumer.removeprefix("projects/")
        named = {"value": request.value, "number": number, "rpc": request.route.rpc}
        text = message.format(**named)
        more = {name: value.format(**named) for name, value in metadata.items()}
        info = _info(reason, consumer=request.consumer, service=_SERVICE, **more)
        return error(403, "PERMISSION_DENIED", text, info, _localized(text))

    return Scripted(403, body)


def _file_denied(request: FakeRequest) -> dict[str, Any]:
    """Return the 403 of a file that is another project's, or gone; one text for both."""
    file_id = (request.resource or request.route.name or "files/xxxx").partition("/")[2]
    message = f"You do not have permission to access the File {file_id} or it may not exist."
    return error(403, "PERMISSION_DENIED", message)


def _rate_limit_exceeded(request: FakeRequest) -> dict[str, Any]:
    """Return the older 429, which has an ErrorInfo and no QuotaFailure."""
    metric, limit = "Generate Content API requests per minute", "GenerateContent request limit"
    message = (
        f"Quota exceeded for quota metric '{metric}' and limit '{limit} per minute for a region' "
        f"of service '{_SERVICE}' for consumer 'project_number:{request.consumer[9:]}'."
    )
    info = _info(
        "RATE_LIMIT_EXCEEDED",
        service=_SERVICE,
        quota_location="us-west4",
        quota_limit_value="0",
        quota_limit="GenerateContentRequestsPerMinutePerProjectPerRegion",
        quota_metric=f"{_SERVICE}/generate_content_requests",
        consumer=request.consumer,
    )
    return error(429, _EXHAUSTED, message, info)


def _cache_storage(request: FakeRequest) -> dict[str, Any]:
    """Return the 429 of explicit caching where the tier has none of it."""
    message = (
        "TotalCachedContentStorageTokensPerModelFreeTier limit exceeded for model "
        f"{request.bucket or CURRENT_MODEL}: limit=0, requested={request.tokens}"
    )
    return error(429, _EXHAUSTED, message)


def _model_not_found(request: FakeRequest) -> dict[str, Any]:
    route = request.route
    message = (
        f"models/{route.model or 'unknown'} is not found for API version "
        f"{route.version or 'v1beta'}, or is not supported for {route.verb or 'generateContent'}. "
        "Call ModelService.ListModels to see the list of available models and their supported "
        "methods."
    )
    return error(404, "NOT_FOUND", message)


def _new_users(request: FakeRequest) -> dict[str, Any]:
    """Return the 404 of an old model in a project that never used it."""
    message = (
        f"This model models/{request.route.model or 'gemini-2.5-flash'} is no longer available to "
        "new users, use models/gemini-3.5-flash-lite."
    )
    return error(404, "NOT_FOUND", message)


# Bodies of 429: which limit was exceeded, and when to retry. An exhausted day of the free tier
# names the next minute as retry time (docs/gemini-api.md#quota-errors-with-details).

_INTRO = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    f"information on this error, head to: {_DOCS}."
)
_GENERATE = {
    "rpd": "GenerateRequestsPerDayPerProjectPerModel",
    "rpm": "GenerateRequestsPerMinutePerProjectPerModel",
}
_FREE_TOKENS = "GenerateContentInputTokensPerModelPer"
# (embedding?, free tier?) -> limit -> quota id. Those without a public recording follow the others.
_QUOTA_IDS: dict[tuple[bool, bool], dict[str, str]] = {
    (False, True): {
        **{kind: f"{quota_id}-FreeTier" for kind, quota_id in _GENERATE.items()},
        "tpm": f"{_FREE_TOKENS}Minute-FreeTier",
        "tpd": f"{_FREE_TOKENS}Day-FreeTier",
    },
    (False, False): {**_GENERATE, "tpm": "GenerateContentPaidTierInputTokensPerModelPerMinute"},
    (True, True): {
        "rpd": "EmbedContentRequestsPerDayPerUserPerProjectPerModel-FreeTier",
        "rpm": "EmbedContentRequestsPerMinutePerUserPerProjectPerModel-FreeTier",
        "tpm": "EmbedContentInputTokensPerMinutePerUserPerProjectPerModel-FreeTier",
    },
    (True, False): {
        "rpd": "EmbedContentRequestsPerDayPerProjectPerModel",
        "rpm": "EmbedContentRequestsPerMinutePerProjectPerModel",
        "tpm": "EmbedContentInputTokensPerMinutePerProjectPerModel",
    },
}
# The limits named by a scripted error if the project has none configured.
_DEFAULT_LIMITS = {True: FREE_LIMITS[CURRENT_MODEL], False: Limits(1_000, 1_000_000, 10_000)}


def go_duration(seconds: float) -> str:
    """Format a duration as Google's messages do: `4h59m27.7s`, `48.939935699s`, `900ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours:.0f}h{minutes:.0f}m{text}"
    return f"{minutes:.0f}m{text}" if minutes else text


def quota_body(
    request: FakeRequest, kinds: Sequence[str], *, free: bool, retry_s: float, zero: bool = False
) -> dict[str, Any]:
    """Return the body of a 429 with Help, QuotaFailure and RetryInfo.

    Args:
        request: The refused request.
        kinds: The limits it exceeds, in the order of the violations.
        free: Whether the quotas of the free tier are named.
        retry_s: The time in RetryInfo, in whole seconds there and exact in the message.
        zero: Whether the limits are 0; Google omits such a `quotaValue`.
    """
    violations = [_violation(request, kind, free=free, zero=zero) for kind in kinds]
    lines = "".join(
        f"* Quota exceeded for metric: {one['quotaMetric']}, limit: {one.get('quotaValue', '0')}, "
        f"model: {one['quotaDimensions']['model']}\n"
        for one in violations
    )
    usage = " To monitor your current usage, head to: https://ai.dev/rate-limit. "
    message = f"{_INTRO}{usage}\n{lines}Please retry in {go_duration(retry_s)}."
    failure = {"@type": f"{_TYPE}QuotaFailure", "violations": violations}
    retry = {"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{int(retry_s)}s"}
    return error(429, _EXHAUSTED, message, _HELP, failure, retry)


def quota_infos(limits: Mapping[str, Limits], *, free: bool) -> list[dict[str, Any]]:
    """List quotas as Cloud Quotas does: those of the other tier too, ten times as large or small.

    Args:
        limits: Of a project, by model.
        free: Whether it is of the free tier.
    """
    found = []
    for (embedding, of_free), ids in _QUOTA_IDS.items():
        for kind in ("rpd", "rpm", "tpm"):
            values = {
                model: -1 if (limit := getattr(one, kind)) is None else limit
                for model, one in limits.items()
                if ("embedding" in model) == embedding
            }
            if of_free != free:
                values = {
                    m: n * 10 if free or n < 0 else max(n // 10, 1) for m, n in values.items()
                }
            infos = [
                {"dimensions": {"model": model}, "details": {"value": str(value)}}
                for model, value in values.items()
            ]
            found.append(
                {
                    "quotaId": ids[kind],
                    "service": _SERVICE,
                    "refreshInterval": "day" if kind == "rpd" else "minute",
                    "dimensions": ["model"],
                    "dimensionsInfos": infos,
                }
            )
    return found


def _violation(request: FakeRequest, kind: str, *, free: bool, zero: bool) -> dict[str, Any]:
    embedding = "embed" in request.route.verb.lower() and kind in _QUOTA_IDS[True, free]
    unit = "requests" if kind[0] == "r" else "input_token_count"
    verb, tier = "embed" if embedding else "generate", "free" if free else "paid"
    metric = f"{verb}_content_{tier}_tier_{unit}"
    if not embedding and not free and kind != "tpm":
        metric = f"generate_requests_per_model{'_per_day' if kind == 'rpd' else ''}"
    violation: dict[str, Any] = {
        "quotaMetric": f"{_SERVICE}/{metric}",
        "quotaId": _QUOTA_IDS[embedding, free][kind],
        "quotaDimensions": {"location": "global", "model": request.bucket or CURRENT_MODEL},
    }
    if not zero:
        own = getattr(request.limits, kind)
        limit = getattr(_DEFAULT_LIMITS[free], kind) if own is None else own
        violation["quotaValue"] = str(limit)
    return violation


def _limit_zero(request: FakeRequest) -> dict[str, Any]:
    """Return the 429 of a model that is not offered to the project: every limit is 0."""
    kinds = ("rpd", "rpm", "tpm", "tpd")[: 4 if request.free else 3]
    retry_s = seconds_to_minute(request.now)
    return quota_body(request, kinds, free=request.free, retry_s=retry_s, zero=True)


def over_quota(*kinds: str, free: bool | None = None) -> Scripted:
    """Return a 429 that names the given limits, or those the request exceeds; of the key's tier."""

    def body(request: FakeRequest) -> dict[str, Any]:
        named = kinds or request.exceeded
        if not kinds and any(getattr(request.limits, kind) == 0 for kind in named):
            return _limit_zero(request)
        tier = request.free if free is None else free
        in_s = seconds_to_midnight if "rpd" in named and not tier else seconds_to_minute
        return quota_body(request, named, free=tier, retry_s=in_s(request.now))

    return Scripted(429, body)


# The replies -------------------------------------------------------------------------------------

_BAD_FIELD = 'Invalid JSON payload received. Unknown name "unknownField": Cannot find field.'
_SPEND = "https://ai.google.dev/gemini-api/docs/billing"
_PREPAY = (
    "Your prepayment credits are depleted. Please go to AI Studio at    "
    "https://ai.studio/projects to manage your project and billing. Learn more at "
    f"{_SPEND}#prepay."
)


def _error(code: int, status: str, message: str, **more: Any) -> Scripted:
    return Scripted(code, plain(code, status, message), **more)


def _denied(message: str) -> Scripted:
    return _error(403, "PERMISSION_DENIED", message)


def _bad_request(message: str) -> Scripted:
    return _error(400, "INVALID_ARGUMENT", message, charged=True)


def _exhausted(message: str, code: int = 429) -> Scripted:
    return _error(code, _EXHAUSTED, message)


class Reply:
    """Names of replies for `FakeGemini.script()`; docs/gemini-api.md has the sources.

    Any member can be varied: `Reply.OVERLOADED.in_stream(after=2)`, `Reply.OK.delayed(0.5)`,
    `Reply.KEY_INVALID.list_wrapped()`, `Reply.EXHAUSTED.as_interactions()`.
    """

    OK: Final = Scripted()
    CONTINUATION: Final = Scripted(continues=True)

    # 429 with QuotaFailure, of the key's tier.
    QUOTA: Final = over_quota()
    QUOTA_MINUTE: Final = over_quota("rpm")
    QUOTA_TOKENS: Final = over_quota("tpm")
    QUOTA_DAY: Final = over_quota("rpd")
    QUOTA_DAY_FREE: Final = over_quota("rpd", free=True)
    QUOTA_DAY_PAID: Final = over_quota("rpd", free=False)
    LIMIT_ZERO: Final = Scripted(429, _limit_zero)

    # 429 in its other forms, and 402.
    EXHAUSTED: Final = _exhausted("Resource has been exhausted (e.g. check quota).")
    CAPACITY: Final = _exhausted(
        "Resource exhausted. Please try again later. Please refer to https://cloud.google.com/"
        "vertex-ai/generative-ai/docs/error-code-429 for more details."
    )
    HELP_ONLY: Final = Scripted(429, plain(429, _EXHAUSTED, _INTRO, _HELP))
    RATE_LIMIT_EXCEEDED: Final = Scripted(429, _rate_limit_exceeded)
    CACHE_STORAGE: Final = Scripted(429, _cache_storage)
    SPEND_CAP_PROJECT: Final = _exhausted(
        "Your project has exceeded its monthly spending cap. Please go to AI Studio at "
        "https://ai.studio/spend to manage your project spend cap. Learn more at "
        f"{_SPEND}#project-spend-caps. "
    )
    SPEND_RATE: Final = _exhausted(
        "You exceeded your spend-based rate limit. Your spending rate has exceeded the allowed "
        "limit for your account's billing history and tier."
    )
    PREPAY: Final = replace(_exhausted(_PREPAY, 402), spares_reads=True)

    # The key, its project, its account.
    KEY_INVALID: Final = _api_key_invalid("API key not valid. Please pass a valid API key.")
    KEY_EXPIRED: Final = _api_key_invalid("API key expired. Please renew the API key.")
    KEY_NOT_FOUND: Final = _api_key_invalid("API Key not found. Please pass a valid API key.")
    TOKEN_UNSUPPORTED: Final = Scripted(401, _token_unsupported)
    MULTIPLE_KEYS: Final = _bad_request(
        "Multiple authentication credentials received. Please pass only one."
    )
    NO_BEARER: Final = _bad_request("Missing or invalid Authorization header.")
    UNREGISTERED: Final = _denied(
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API."
    )
    KEY_LEAKED: Final = _denied("Your API key was reported as leaked. Please use another API key.")
    KEY_SUSPENDED: Final = _refused(
        "Permission denied: Consumer 'api_key:{value}' has been suspended.",
        "CONSUMER_SUSPENDED",
        containerInfo="api_key:{value}",
    )
    SERVICE_DISABLED: Final = _refused(
        "Generative Language API has not been used in project {number} before or it is disabled. "
        f"Enable it by visiting {_CONSOLE}/overview?project={{number}} then retry. If you enabled "
        "this API recently, wait a few minutes for the action to propagate to our systems and "
        "retry.",
        "SERVICE_DISABLED",
        containerInfo="{number}",
        activationUrl=f"{_CONSOLE}/overview?project={{number}}",
        serviceTitle="Generative Language API",
    )
    IP_BLOCKED: Final = _refused(
        "The provided API key has an IP address restriction. The originating IP address of the "
        "call (127.0.0.1) violates this restriction.",
        "API_KEY_IP_ADDRESS_BLOCKED",
        callerIp="127.0.0.1",
    )
    PROJECT_DENIED: Final = replace(
        _denied("Your project has been denied access. Please contact support."), spares_reads=True
    )
    FILE_DENIED: Final = Scripted(403, _file_denied)
    CACHE_DENIED: Final = _denied("CachedContent not found (or permission denied)")
    LOCATION: Final = _error(
        400, "FAILED_PRECONDITION", "User location is not supported for the API use."
    )

    # The request and the model.
    BAD_REQUEST: Final = _bad_request("Provided image is not valid.")
    BAD_FIELD: Final = Scripted(
        400,
        plain(
            400,
            "INVALID_ARGUMENT",
            _BAD_FIELD,
            {"@type": f"{_TYPE}BadRequest", "fieldViolations": [{"description": _BAD_FIELD}]},
        ),
        charged=True,
    )
    TOO_MANY_TOKENS: Final = _bad_request(
        "The input token count exceeds the maximum number of tokens allowed (1048576)."
    )
    THOUGHT_SIGNATURE: Final = _bad_request("Corrupted thought signature.")
    THOUGHT_SIGNATURE_INVALID: Final = _bad_request("Thought signature is not valid")
    THOUGHT_SIGNATURE_MISSING: Final = _bad_request(
        "Function call is missing a thought_signature in functionCall parts."
    )
    MODEL_NOT_FOUND: Final = Scripted(404, _model_not_found)
    NEW_USERS: Final = Scripted(404, _new_users)
    NOT_FOUND_HTML: Final = Scripted(404, lambda _request: b"", HTML)

    # The service.
    CANCELLED: Final = _error(499, "CANCELLED", "The operation was cancelled.")
    INTERNAL: Final = _error(
        500,
        "INTERNAL",
        "An internal error has occurred. Please retry or report in "
        "https://developers.generativeai.google/guide/troubleshooting",
    )
    OVERLOADED: Final = _error(
        503, "UNAVAILABLE", "The model is overloaded. Please try again later."
    )
    DEADLINE: Final = _error(
        504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."
    )
    BAD_GATEWAY: Final = Scripted(
        502,
        lambda _request: "<html><title>Error 502 (Server Error)!!1</title></html>",
        HTML,
    )

    # The transport.
    RESET: Final = Scripted(0, then="reset")
    CLOSE: Final = Scripted(0, then="close")
    HANG: Final = Scripted(0, then="close", delay_s=60.0)
    SLOW: Final = Scripted(gap_s=0.05, delay_s=0.05)
    LATE: Final = Scripted(delay_s=20.0)

    # Inside a stream, after its first chunk; a unary request gets the HTTP error, or half a body.
    STREAM_OVERLOADED: Final = OVERLOADED.in_stream(1)
    STREAM_EXHAUSTED: Final = _exhausted("Resource exhausted.").in_stream(1)
    STREAM_DROPPED: Final = Scripted(after_chunks=1, then="close")
    STREAM_TRUNCATED: Final = Scripted(after_chunks=1)

    @staticmethod
    def custom(
        status: int,
        body: object | Callable[[Any], object] = b"",
        *,
        headers: dict[str, str] | None = None,
        content_type: str = JSON,
    ) -> Scripted:
        """Return a custom reply.

        Args:
            status: The HTTP status, 100 to 599.
            body: A JSON value, text, bytes, or a function of the `FakeRequest` that returns one.
            headers: More headers.
            content_type: The header of that name.
        """
        make = body if callable(body) else lambda _request: body
        return Scripted(status, make, content_type, tuple((headers or {}).items()))

    @staticmethod
    def hang(seconds: float) -> Scripted:
        """Return a reply that sends nothing for `seconds`, then closes the connection."""
        return replace(Reply.HANG, delay_s=seconds)

    @staticmethod
    def slow(seconds: float) -> Scripted:
        """Return the ordinary answer, `seconds` before every chunk of it."""
        return replace(Reply.SLOW, gap_s=seconds, delay_s=seconds)

    @staticmethod
    def dropped(after: int) -> Scripted:
        """Return a stream whose connection breaks after that many chunks."""
        return replace(Reply.STREAM_DROPPED, after_chunks=after)

    @staticmethod
    def truncated(after: int) -> Scripted:
        """Return a stream that ends properly after that many chunks, without its last one."""
        return replace(Reply.STREAM_TRUNCATED, after_chunks=after)

    @staticmethod
    def all() -> dict[str, Scripted]:
        """Return every member by its name."""
        return {name: value for name, value in vars(Reply).items() if isinstance(value, Scripted)}


for _name, _member in Reply.all().items():
    setattr(Reply, _name, replace(_member, name=_name))
