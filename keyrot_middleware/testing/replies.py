"""Every observed reply of the Gemini API, by name."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from keyrot_middleware.testing import error_bodies
from keyrot_middleware.testing.error_bodies import api_key_invalid, plain
from keyrot_middleware.testing.request import FakeRequest

__all__ = ["JSON", "Reply", "Scripted", "Scripts", "Then"]

# A scripted reply and its variants: delayed, in mid-stream, in another shape -------------------


JSON = "application/json; charset=UTF-8"
Then = Literal["end", "close", "reset"]


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


# The scripted replies of a test ----------------------------------------------------------------


class Scripts:
    """Queues of replies by key, and default replies; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: defaultdict[str | None, deque[Scripted]] = defaultdict(deque)
        self._always: dict[str | None, Scripted] = {}

    def add(self, label: str | None, replies: Iterable[Scripted]) -> None:
        """Put replies at the end of a key's queue, or of the common one if `label` is None."""
        with self._lock:
            self._next[label].extend(replies)

    def set_default(self, label: str | None, reply: Scripted | None) -> None:
        """Set the reply to all requests of a key, or of any; None removes it."""
        with self._lock:
            if reply is None:
                self._always.pop(label, None)
            else:
                self._always[label] = reply

    def clear(self) -> None:
        """Remove all replies."""
        with self._lock:
            self._next.clear()
            self._always.clear()

    def pending(self, label: str | None) -> int:
        """Return how many replies are still queued."""
        with self._lock:
            return len(self._next[label]) if label in self._next else 0

    def take(self, label: str | None, *, read: bool) -> Scripted | None:
        """Remove and return the reply to a request; None: answer as usual.

        The key's queue comes first, then the common queue, the key's default, the common default.
        A reply that spares reads stays queued until a request that runs a model.
        """
        with self._lock:
            for queue in (self._next.get(label), self._next.get(None)):
                if queue and not (read and queue[0].spares_reads):
                    return queue.popleft()
            for name in (label, None):
                reply = self._always.get(name)
                if reply is not None and not (read and reply.spares_reads):
                    return reply
            return None


_EXHAUSTED = "RESOURCE_EXHAUSTED"
_SPEND = "https://ai.google.dev/gemini-api/docs/billing"
_PREPAY = (
    "Your prepayment credits are depleted. Please go to AI Studio at    "
    "https://ai.studio/projects to manage your project and billing. Learn more at "
    f"{_SPEND}#prepay."
)


def _denied(message: str) -> Scripted:
    return Scripted(403, plain(403, "PERMISSION_DENIED", message))


def _bad_request(message: str) -> Scripted:
    return Scripted(400, plain(400, "INVALID_ARGUMENT", message), charged=True)


def _exhausted(message: str, code: int = 429) -> Scripted:
    return Scripted(code, plain(code, _EXHAUSTED, message))


class Reply:
    """Names of replies for `FakeGemini.script()`; docs/gemini-api.md has the sources.

    Any member can be varied: `Reply.OVERLOADED.in_stream(after=2)`, `Reply.OK.delayed(0.5)`,
    `Reply.KEY_INVALID.list_wrapped()`, `Reply.EXHAUSTED.as_interactions()`.
    """

    OK: Final = Scripted()
    CONTINUATION: Final = Scripted(continues=True)

    # 429 with QuotaFailure: of the key's tier, or of the tier in the name.
    QUOTA: Final = Scripted(429, error_bodies.over_quota())
    QUOTA_MINUTE: Final = Scripted(429, error_bodies.over_quota("rpm"))
    QUOTA_MINUTE_FREE: Final = Scripted(429, error_bodies.over_quota("rpm", free=True))
    QUOTA_MINUTE_PAID: Final = Scripted(429, error_bodies.over_quota("rpm", free=False))
    QUOTA_TOKENS: Final = Scripted(429, error_bodies.over_quota("tpm"))
    QUOTA_TOKENS_FREE: Final = Scripted(429, error_bodies.over_quota("tpm", free=True))
    QUOTA_TOKENS_PAID: Final = Scripted(429, error_bodies.over_quota("tpm", free=False))
    QUOTA_DAY: Final = Scripted(429, error_bodies.over_quota("rpd"))
    QUOTA_DAY_FREE: Final = Scripted(429, error_bodies.over_quota("rpd", free=True))
    QUOTA_DAY_PAID: Final = Scripted(429, error_bodies.over_quota("rpd", free=False))
    LIMIT_ZERO: Final = Scripted(429, error_bodies.limit_zero)

    # 429 in its other forms, and 402.
    EXHAUSTED: Final = _exhausted("Resource has been exhausted (e.g. check quota).")
    CAPACITY: Final = _exhausted(
        "Resource exhausted. Please try again later. Please refer to https://cloud.google.com/"
        "vertex-ai/generative-ai/docs/error-code-429 for more details."
    )
    HELP_ONLY: Final = Scripted(429, error_bodies.help_only)
    RATE_LIMIT_EXCEEDED: Final = Scripted(429, error_bodies.rate_limit_exceeded)
    CACHE_STORAGE: Final = Scripted(429, error_bodies.cache_storage)
    SPEND_CAP_PROJECT: Final = _exhausted(
        "Your project has exceeded its monthly spending cap. Please go to AI Studio at "
        "https://ai.studio/spend to manage your project spend cap. Learn more at "
        f"{_SPEND}#project-spend-caps. "
    )
    SPEND_CAP_BILLING: Final = _exhausted(
        "Your billing account has exceeded its monthly spending cap. Please go to AI Studio at "
        "https://ai.studio/billing to manage your billing. Learn more at "
        f"{_SPEND}#tier-spend-caps. "
    )
    SPEND_RATE: Final = _exhausted(
        "You exceeded your spend-based rate limit. Your spending rate has exceeded the allowed "
        "limit for your account's billing history and tier."
    )
    PREPAY: Final = replace(_exhausted(_PREPAY, 402), spares_reads=True)
    PREPAY_429: Final = replace(_exhausted(_PREPAY), spares_reads=True)

    # The key, its project, its account.
    KEY_INVALID: Final = Scripted(
        400, api_key_invalid("API key not valid. Please pass a valid API key.")
    )
    KEY_EXPIRED: Final = Scripted(
        400, api_key_invalid("API key expired. Please renew the API key.")
    )
    KEY_NOT_FOUND: Final = Scripted(
        400, api_key_invalid("API Key not found. Please pass a valid API key.")
    )
    KEY_INVALID_LIST: Final = KEY_INVALID.list_wrapped()
    TOKEN_UNSUPPORTED: Final = Scripted(401, error_bodies.token_unsupported)
    MULTIPLE_KEYS: Final = _bad_request(
        "Multiple authentication credentials received. Please pass only one."
    )
    NO_BEARER: Final = _bad_request("Missing or invalid Authorization header.")
    UNREGISTERED: Final = _denied(
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API."
    )
    KEY_LEAKED: Final = _denied("Your API key was reported as leaked. Please use another API key.")
    KEY_SUSPENDED: Final = Scripted(403, error_bodies.suspended)
    SERVICE_DISABLED: Final = Scripted(403, error_bodies.service_disabled)
    SERVICE_BLOCKED: Final = Scripted(403, error_bodies.method_blocked)
    REFERRER_BLOCKED: Final = Scripted(403, error_bodies.referrer_blocked)
    IP_BLOCKED: Final = Scripted(403, error_bodies.ip_blocked)
    PROJECT_DENIED: Final = replace(
        _denied("Your project has been denied access. Please contact support."), spares_reads=True
    )
    CALLER_DENIED: Final = _denied("The caller does not have permission")
    FILE_DENIED: Final = Scripted(403, error_bodies.file_denied)
    CACHE_DENIED: Final = _denied("CachedContent not found (or permission denied)")
    LOCATION: Final = Scripted(
        400,
        plain(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
    )
    LOCATION_NO_BILLING: Final = Scripted(
        400,
        plain(
            400,
            "FAILED_PRECONDITION",
            "User location is not supported for the API use without a billing account linked.",
        ),
    )

    # The request and the model.
    BAD_REQUEST: Final = _bad_request("Provided image is not valid.")
    BAD_FIELD: Final = Scripted(400, error_bodies.bad_field, charged=True)
    TOO_MANY_TOKENS: Final = _bad_request(
        "The input token count exceeds the maximum number of tokens allowed (1048576)."
    )
    THOUGHT_SIGNATURE: Final = _bad_request("Corrupted thought signature.")
    THOUGHT_SIGNATURE_INVALID: Final = _bad_request("Thought signature is not valid")
    THOUGHT_SIGNATURE_MISSING: Final = _bad_request(
        "Function call is missing a thought_signature in functionCall parts."
    )
    MODEL_NOT_FOUND: Final = Scripted(404, error_bodies.model_not_found)
    NEW_USERS: Final = Scripted(404, error_bodies.new_users)
    NOT_FOUND_HTML: Final = Scripted(404, lambda _request: b"", "text/html; charset=UTF-8")

    # The service.
    CANCELLED: Final = Scripted(499, plain(499, "CANCELLED", "The operation was cancelled."))
    INTERNAL: Final = Scripted(
        500,
        plain(
            500,
            "INTERNAL",
            "An internal error has occurred. Please retry or report in "
            "https://developers.generativeai.google/guide/troubleshooting",
        ),
    )
    OVERLOADED: Final = Scripted(
        503, plain(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
    )
    HIGH_DEMAND: Final = Scripted(
        503,
        plain(
            503,
            "UNAVAILABLE",
            "This model is currently experiencing high demand. Spikes in demand are usually "
            "temporary. Please try again later.",
        ),
    )
    DEADLINE_503: Final = Scripted(
        503, plain(503, "UNAVAILABLE", "Deadline expired before operation could complete.")
    )
    DEADLINE: Final = Scripted(
        504, plain(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.")
    )
    BAD_GATEWAY: Final = Scripted(
        502,
        lambda _request: "<html><title>Error 502 (Server Error)!!1</title></html>",
        "text/html; charset=UTF-8",
    )

    # The transport.
    RESET: Final = Scripted(0, then="reset")
    CLOSE: Final = Scripted(0, then="close")
    HANG: Final = Scripted(0, then="close", delay_s=60.0)
    SLOW: Final = Scripted(gap_s=0.05, delay_s=0.05)

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
