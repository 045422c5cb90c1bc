"""FakeOpenAI and FakeAnthropic: their APIs on a port of this machine, for tests.

Errors and headers have the form of recorded replies; limits refill steadily, as theirs do.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from keyrot_middleware.locks import Lock
from keyrot_middleware.testing.keys import Clock, FakeKey
from keyrot_middleware.testing.replies import JSON, Scripted
from keyrot_middleware.testing.request import LoggedRequest
from keyrot_middleware.testing.server import (
    FakeServer,
    Head,
    HttpRequest,
    LoopbackServer,
    ResponsePlan,
)

_SSE = "text/event-stream"
_ALPHABET = string.ascii_letters + string.digits
_MINUTE, _DAY = 60.0, 86_400.0
Headers = Iterator[tuple[str, str]]


class Bucket:
    """A limit that refills steadily."""

    def __init__(self, limit: int, period_s: float) -> None:
        self.limit, self.period_s = limit, period_s
        self._level, self._at = float(limit), 0.0

    def left(self, now: float) -> float:
        """Return what may be used now."""
        refilled = (now - self._at) * self.limit / self.period_s
        self._level, self._at = min(self._level + max(refilled, 0.0), self.limit), now
        return self._level

    def take(self, number: float, now: float) -> None:
        """Use *number*."""
        self._level = self.left(now) - number

    def reset_s(self, now: float, wanted: float | None = None) -> float:
        """Return the seconds until all of it is left, or *wanted*."""
        missing = (self.limit if wanted is None else wanted) - self.left(now)
        return max(missing, 0.0) * self.period_s / self.limit


class ErrorReply(Exception):  # noqa: N818 - a reply of the service
    """The service refuses a request."""

    def __init__(
        self, status: int, body: Any, *headers: tuple[str, str], name: str = "REFUSED"
    ) -> None:
        super().__init__(name)
        self.status, self.body, self.headers, self.name = status, body, headers, name


class Asked(NamedTuple):
    """A request of a known key."""

    key: FakeKey
    method: str
    path: str
    """Without version and query."""
    body: dict[str, Any]
    now: float

    @property
    def model(self) -> str:
        """The model, or empty."""
        return str(self.body.get("model") or "")

    @property
    def tokens(self) -> int:
        """Input tokens: a quarter of the text."""
        return max(len(json.dumps(self.body.get("messages") or self.body.get("input"))) // 4, 1)


class _FakeProvider(FakeServer):
    """What both fakes have in common."""

    key_prefix: str
    api: re.Pattern[str]

    def __init__(self, clock: Clock | None = None, *, keep_log: int | None = None) -> None:
        """Open no port yet."""
        super().__init__(clock, keep_log)
        self._limits: dict[str, dict[str, tuple[int, float]]] = {}
        self._buckets: dict[tuple[str, str, str], Bucket] = {}
        self._stored: dict[str, tuple[str, Any]] = {}
        """The project of each stored thing, and the thing."""
        self._lock = Lock()
        self.answer = ""
        """What models answer; empty: `ok from LABEL`."""
        self._server = LoopbackServer(self._handle, self._handle)

    def add_key(
        self,
        label: str,
        *,
        project: str | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        rpd: int | None = None,
    ) -> FakeKey:
        """Add a key that the service accepts.

        Args:
            label: The key's name in the test.
            project: Keys of one project share its limits and what it stores; None: its own.
            rpm: Requests a minute of the project for every model; None: no limit.
            tpm: Tokens a minute, likewise.
            rpd: Requests a day, likewise.
        """
        project = project or f"project-{label}"
        value = f"{self.key_prefix}FAKE{''.join(secrets.choice(_ALPHABET) for _ in range(32))}"
        given = {"rpm": (rpm, _MINUTE), "tpm": (tpm, _MINUTE), "rpd": (rpd, _DAY)}
        limits = self._limits.setdefault(project, {})
        limits |= {name: (of, period) for name, (of, period) in given.items() if of is not None}
        return self._keys.add(label, value, project, f"billing-{project}", "paid")

    # One request ----------------------------------------------------------------------------------

    def value_of(self, http: HttpRequest) -> str:
        """Return the key of a request."""
        raise NotImplementedError

    def unknown_key(self, value: str) -> ErrorReply:
        """Return the refusal of a key that the service does not know."""
        raise NotImplementedError

    def too_many(self, asked: Asked, limit: str, bucket: Bucket, wanted: float) -> ErrorReply:
        """Return the refusal of a request over a limit."""
        raise NotImplementedError

    def headers(self, buckets: Mapping[str, Bucket], now: float) -> Headers:
        """Yield the headers that report limits."""
        yield from ()

    def reply(self, asked: Asked) -> Any:
        """Return the body of an answer; a list: the events of a stream."""
        raise NotImplementedError

    def counts(self, asked: Asked) -> bool:
        """Return whether a request runs a model, which counts in its limits."""
        return asked.method == "POST" and bool(asked.model)

    def _handle(self, http: HttpRequest) -> ResponsePlan:
        with self._lock:
            return self._answer(http)

    def _answer(self, http: HttpRequest) -> ResponsePlan:
        now, found = self.clock.time(), self.api.search(http.target.partition("?")[0])
        key = self._keys.by_value.get(self.value_of(http))
        body = _parse(http.body)
        path = found[1].strip("/") if found else ""
        label, name, status = key.label if key else None, "OK", 200
        headers: tuple[tuple[str, str], ...] = ()
        scripted = self._scripts.take(label, read=http.method == "GET") if key else None
        try:
            if key is None:
                raise self.unknown_key(self.value_of(http))
            content, headers = self._content(Asked(key, http.method, path, body, now), scripted)
        except ErrorReply as refused:
            content, status, name = refused.body, refused.status, refused.name
            headers = refused.headers
        stream = isinstance(content, list)
        logged = LoggedRequest(
            now,
            label,
            http.method,
            http.target,
            str(body.get("model") or ""),
            path,
            status,
            stream,
            name,
            body=body,
            headers=http.headers,
        )
        self._log.add(logged)
        pieces = tuple(map(_event, content)) if stream else (_body(content),)
        length = None if stream else len(pieces[0])
        head = Head(status, _SSE if stream else JSON, now, length, headers, front_end=())
        names = ("delay_s", "gap_s", "keep_alive_s") if scripted else ()
        late = {name: getattr(scripted, name) for name in names}
        return ResponsePlan(head, pieces, lambda: self._log.done(label), **late)

    def _content(
        self, asked: Asked, scripted: Scripted | None
    ) -> tuple[Any, tuple[tuple[str, str], ...]]:
        """Return the body of an answer and its headers.

        Raises:
            ErrorReply: By a script, by a limit, or by what is asked for.
        """
        failure: Any = None
        if scripted is not None and scripted.body is not None:
            failure = scripted.body(None)  # type: ignore[arg-type]  # it reads no request
            if scripted.after_chunks is None:
                raise ErrorReply(scripted.status, failure, *scripted.headers, name=scripted.name)
        headers = tuple(self._take(asked)) if self.counts(asked) else ()
        content = self.reply(asked)
        if failure is not None and scripted is not None and isinstance(content, list):
            content[scripted.after_chunks :] = [failure]
        return content, headers

    def _take(self, asked: Asked) -> Headers:
        """Count a request, and yield the headers that report what is left.

        Raises:
            ErrorReply: A limit is exhausted.
        """
        limits = self._limits[asked.key.project]
        for name, (limit, period) in limits.items():
            place = (asked.key.project, asked.model, name)
            self._buckets.setdefault(place, Bucket(limit, period))
        mine = {name: self._buckets[asked.key.project, asked.model, name] for name in limits}
        wanted = {"rpm": 1, "rpd": 1, "tpm": asked.tokens}
        for name, bucket in mine.items():
            if bucket.left(asked.now) < wanted[name]:
                raise self.too_many(asked, name, bucket, wanted[name])
        for name, bucket in mine.items():
            bucket.take(wanted[name], asked.now)
        yield from self.headers(mine, asked.now)

    def text(self, asked: Asked) -> str:
        """Return what a model answers."""
        return self.answer or f"ok from {asked.key.label}"

    def store(self, asked: Asked, name: str, thing: Any) -> Any:
        """Keep a thing of the key's project, and return it."""
        self._stored[name] = asked.key.project, thing
        return thing

    def find(self, asked: Asked, name: str, missing: Callable[[str], ErrorReply]) -> Any:
        """Return a stored thing of the key's project.

        Raises:
            ErrorReply: It has none of that name.
        """
        project, thing = self._stored.get(name, ("", None))
        if project != asked.key.project:
            raise missing(name)
        return thing


def _parse(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _body(content: Any) -> bytes:
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


def _event(event: Any) -> bytes:
    name = event.get("type") if isinstance(event, dict) else None
    data = event if isinstance(event, str) else json.dumps(event)
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode()


def _id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def _duration(seconds: float) -> str:
    """Write seconds as OpenAI and Groq do: `12ms`, `8.64s`, `6m0s`."""
    if seconds < 1:
        return f"{round(seconds * 1_000)}ms"
    minutes, rest = divmod(seconds, 60)
    return (f"{int(minutes)}m" if minutes else "") + f"{round(rest, 3):g}s"


def _words(text: str) -> list[str]:
    """Return the pieces of a text, as a stream has them."""
    return re.findall(r"\S+\s*", text)


# OpenAI and what is like it -----------------------------------------------------------------------

Flavor = Literal[
    "openai",
    "groq",
    "mistral",
    "openrouter",
    "xai",
    "deepseek",
    "azure-openai",
    "together",
    "fireworks",
    "cerebras",
    "perplexity",
]


def _error(message: str, kind: str | None, code: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


_PREFIX = {
    "openai": "sk-proj-",
    "groq": "gsk_",
    "openrouter": "sk-or-v1-",
    "xai": "xai-",
    "deepseek": "sk-",
    "fireworks": "fw_",
    "cerebras": "csk-",
    "perplexity": "pplx-",
}
_WRONG = "Incorrect API key provided: {key}. You can find your API key at https://example.com/keys."
_UNKNOWN: dict[str, tuple[int, Any]] = {
    "openai": (401, _error(_WRONG, "invalid_request_error", "invalid_api_key")),
    "mistral": (401, {"detail": "Invalid API Key"}),
    "openrouter": (401, {"error": {"message": "User not found.", "code": 401}}),
    "xai": (400, {"code": "invalid-argument", "error": _WRONG}),
    "deepseek": (
        401,
        _error(
            "Authentication Fails, Your api key: {key} is invalid",
            "authentication_error",
            "invalid_request_error",
        ),
    ),
    "azure-openai": (
        401,
        {
            "error": {
                "code": "401",
                "message": "Access denied due to invalid subscription key or wrong API endpoint.",
            }
        },
    ),
    "perplexity": (401, _error("Invalid API key provided.", "invalid_api_key", 401)),
}
_LONG = {"rpm": ("requests", "min", "RPM"), "rpd": ("requests", "day", "RPD")}


class FakeOpenAI(_FakeProvider):
    """A real HTTP server on 127.0.0.1 that behaves like the API of OpenAI, or of one like it.

    Chat completions, responses, embeddings, models, files and batches, with streams.

    Examples:
        >>> with FakeOpenAI() as fake:
        ...     key = fake.add_key("a", rpm=60)
        ...     client = openai.OpenAI(api_key=key.value, base_url=fake.base_url)

    Args:
        flavor: Whose errors and headers it has.
        clock: The time of limits; None: the system clock.
        keep_log: How many of the newest requests `log` keeps; None keeps all.
    """

    api = re.compile(r"/((?:chat|responses|embeddings|models|files|batches|conversations).*)")

    def __init__(
        self,
        flavor: Flavor = "openai",
        clock: Clock | None = None,
        *,
        keep_log: int | None = None,
    ) -> None:
        super().__init__(clock, keep_log=keep_log)
        self.flavor = flavor
        self.key_prefix = _PREFIX.get(flavor, "")

    @property
    def base_url(self) -> str:
        """As for `OpenAI(base_url=…)`."""
        return f"{self.url}/v1"

    def value_of(self, http: HttpRequest) -> str:
        """Return the key of a request."""
        return http.value("authorization").removeprefix("Bearer ") or http.value("api-key")

    def unknown_key(self, value: str) -> ErrorReply:
        """Return the refusal of a key that the service does not know; it repeats part of it."""
        status, body = _UNKNOWN.get(self.flavor, _UNKNOWN["openai"])
        text = json.dumps(body).replace("{key}", f"{value[:8]}****{value[-4:]}")
        return ErrorReply(status, json.loads(text), name="KEY_INVALID")

    def too_many(self, asked: Asked, limit: str, bucket: Bucket, wanted: float) -> ErrorReply:
        """Return the refusal of a request over a limit."""
        what, unit, short = _LONG.get(limit, ("tokens", "min", "TPM"))
        again, used = bucket.reset_s(asked.now, wanted), bucket.limit - int(bucket.left(asked.now))
        text = (
            f"Rate limit reached for {asked.model} in organization org-fake on {what} per {unit} "
            f"({short}): Limit {bucket.limit}, Used {used}, Requested {int(wanted)}. "
            f"Please try again in {_duration(again)}."
        )
        body: Any = _error(text, what, "rate_limit_exceeded")
        if self.flavor == "mistral":
            body = {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited"}
            return ErrorReply(429, {**body, "code": "1300"}, name="RATE_LIMIT")
        if self.flavor == "xai":
            body = {"code": "rate-limited", "error": "Too many requests"}
            return ErrorReply(429, body, name="RATE_LIMIT")
        return ErrorReply(429, body, ("retry-after", str(int(again) + 1)), name="RATE_LIMIT")

    def headers(self, buckets: Mapping[str, Bucket], now: float) -> Headers:
        """Yield the headers that report limits, as this flavor does."""
        if self.flavor == "groq":
            kinds = {"rpd": "requests", "tpm": "tokens"}
        elif self.flavor == "mistral":
            kinds = {"rpm": "req-minute", "tpm": "tokens-minute"}
        elif self.flavor in ("openai", "xai", "azure-openai"):
            kinds = {"rpd": "requests", "rpm": "requests", "tpm": "tokens"}
        else:
            return
        for limit, kind in kinds.items():
            if (bucket := buckets.get(limit)) is None:
                continue
            yield f"x-ratelimit-limit-{kind}", str(bucket.limit)
            yield f"x-ratelimit-remaining-{kind}", str(int(bucket.left(now)))
            if self.flavor in ("openai", "groq"):
                yield f"x-ratelimit-reset-{kind}", _duration(bucket.reset_s(now))
            elif self.flavor == "azure-openai":
                yield f"x-ratelimit-reset-{kind}", str(int(bucket.reset_s(now)))
                yield f"x-ratelimit-renewalperiod-{kind}", "60"

    def reply(self, asked: Asked) -> Any:
        """Return the body of an answer; a list: the events of a stream."""
        head, _, rest = asked.path.partition("/")
        if asked.path == "chat/completions":
            return self._chat(asked)
        if asked.path == "responses" and asked.method == "POST":
            return self._response(asked)
        if head == "embeddings":
            vector = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}
            usage = {"prompt_tokens": asked.tokens, "total_tokens": asked.tokens}
            return {"object": "list", "data": [vector], "model": asked.model, "usage": usage}
        if head == "models":
            model = {
                "id": rest or "gpt-5-mini",
                "object": "model",
                "created": 1,
                "owned_by": "fake",
            }
            return model if rest else {"object": "list", "data": [model]}
        name = rest.removeprefix("completions/").partition("/")[0]
        if asked.method == "POST" and not name:
            return self._create(asked, head)
        if not name:
            mine = [it for project, it in self._stored.values() if project == asked.key.project]
            return {"object": "list", "data": mine, "has_more": False}
        thing = self.find(asked, name, _no_such)
        if asked.method == "DELETE":
            del self._stored[name]
            return {"id": name, "object": thing["object"], "deleted": True}
        return "content" if rest.endswith("/content") else thing

    def _create(self, asked: Asked, head: str) -> Any:
        if head == "batches":
            self.find(asked, str(asked.body.get("input_file_id")), _no_such)
            thing = {"object": "batch", "endpoint": asked.body.get("endpoint"), "errors": None}
            thing |= {"input_file_id": asked.body.get("input_file_id"), "status": "validating"}
            thing |= {"completion_window": "24h", "created_at": int(asked.now)}
            return self.store(asked, name := _id("batch_"), {"id": name, **thing})
        if head == "conversations":
            thing = {"object": "conversation", "created_at": int(asked.now), "metadata": {}}
            return self.store(asked, name := _id("conv_"), {"id": name, **thing})
        thing = {"object": "file", "bytes": 7, "created_at": int(asked.now), "filename": "f.jsonl"}
        thing |= {"purpose": "batch", "status": "processed"}
        return self.store(asked, name := _id("file-"), {"id": name, **thing})

    def _chat(self, asked: Asked) -> Any:
        text = self.text(asked)
        number = len(_words(text))
        usage = {"prompt_tokens": asked.tokens, "completion_tokens": number}
        usage["total_tokens"] = asked.tokens + number
        made: dict[str, Any] = {"id": _id("chatcmpl-"), "created": int(asked.now)}
        made |= {"model": asked.model, "system_fingerprint": "fp_fake"}
        if not asked.body.get("stream"):
            message = {"role": "assistant", "content": text, "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            made |= {"object": "chat.completion", "choices": [choice], "usage": usage}
            return self.store(asked, made["id"], made) if asked.body.get("store") else made
        deltas: Sequence[dict[str, Any]] = [
            {"role": "assistant", "content": ""},
            *({"content": word} for word in _words(text)),
            {},
        ]
        chunks: list[Any] = [
            {
                **made,
                "object": "chat.completion.chunk",
                "choices": [
                    {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
                ],
            }
            for delta in deltas
        ]
        if (asked.body.get("stream_options") or {}).get("include_usage"):
            chunks.append(
                {**made, "object": "chat.completion.chunk", "choices": [], "usage": usage}
            )
        return [*chunks, "[DONE]"]

    def _response(self, asked: Asked) -> Any:
        for field in ("previous_response_id", "conversation"):
            if isinstance(name := asked.body.get(field), str):
                self.find(asked, name, _no_such)
        text, name, item_id = self.text(asked), _id("resp_"), _id("msg_")
        number = len(_words(text))
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"id": item_id, "type": "message", "status": "completed", "role": "assistant"}
        whole = {
            "id": name,
            "object": "response",
            "created_at": int(asked.now),
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": asked.model,
            "output": [{**item, "content": [part]}],
            "parallel_tool_calls": True,
            "store": asked.body.get("store", True),
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": {
                "input_tokens": asked.tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": number,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": asked.tokens + number,
            },
        }
        if whole["store"]:
            self.store(asked, name, whole)
        if not asked.body.get("stream"):
            return whole
        begun = {**whole, "status": "in_progress", "output": [], "usage": None}
        at = {"item_id": item_id, "output_index": 0, "content_index": 0}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": begun},
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {**item, "content": []},
            },
            {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
            *(
                {"type": "response.output_text.delta", **at, "delta": word, "logprobs": []}
                for word in _words(text)
            ),
            {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
            {"type": "response.output_item.done", "output_index": 0, "item": whole["output"][0]},
            {"type": "response.completed", "response": whole},
        ]
        return [{**event, "sequence_number": place} for place, event in enumerate(events)]


def _no_such(name: str) -> ErrorReply:
    text = f"No such object: {name}"
    return ErrorReply(404, _error(text, "invalid_request_error", None), name="NOT_FOUND")


# Anthropic ----------------------------------------------------------------------------------------


class FakeAnthropic(_FakeProvider):
    """A real HTTP server on 127.0.0.1 that behaves like Anthropic's API.

    Messages, their token counts, models, files and batches, with streams.

    Args:
        clock: The time of limits; None: the system clock.
        keep_log: How many of the newest requests `log` keeps; None keeps all.
    """

    flavor = "anthropic"
    key_prefix = "sk-ant-api03-"
    api = re.compile(r"/v1/(.*)")

    def value_of(self, http: HttpRequest) -> str:
        """Return the key of a request."""
        return http.value("x-api-key") or http.value("authorization").removeprefix("Bearer ")

    def unknown_key(self, value: str) -> ErrorReply:
        """Return the refusal of a key that the service does not know."""
        body = _failure("authentication_error", "invalid x-api-key")
        return ErrorReply(401, body, ("x-should-retry", "false"), name="KEY_INVALID")

    def too_many(self, asked: Asked, limit: str, bucket: Bucket, wanted: float) -> ErrorReply:
        """Return the refusal of a request over a limit."""
        what = "input tokens" if limit == "tpm" else "requests"
        text = (
            f"This request would exceed your organization's rate limit of {bucket.limit:,} {what} "
            f"per minute (org: fake, model: {asked.model})."
        )
        again = ("retry-after", str(int(bucket.reset_s(asked.now, wanted)) + 1))
        return ErrorReply(429, _failure("rate_limit_error", text), again, name="RATE_LIMIT")

    def headers(self, buckets: Mapping[str, Bucket], now: float) -> Headers:
        """Yield the headers that report limits."""
        for limit, kind in (("rpm", "requests"), ("tpm", "input-tokens")):
            if (bucket := buckets.get(limit)) is not None:
                full = datetime.fromtimestamp(int(now + bucket.reset_s(now)) + 1, UTC)
                yield f"anthropic-ratelimit-{kind}-limit", str(bucket.limit)
                yield f"anthropic-ratelimit-{kind}-remaining", str(int(bucket.left(now)))
                yield f"anthropic-ratelimit-{kind}-reset", f"{full:%Y-%m-%dT%H:%M:%SZ}"

    def counts(self, asked: Asked) -> bool:
        """Return whether a request runs a model."""
        return asked.method == "POST" and asked.path == "messages"

    def reply(self, asked: Asked) -> Any:
        """Return the body of an answer; a list: the events of a stream."""
        head, _, rest = asked.path.partition("/")
        if asked.path == "messages":
            return self._message(asked)
        if rest == "count_tokens":
            return {"input_tokens": asked.tokens}
        if head == "models":
            model = {"type": "model", "id": rest or "claude-haiku-4-5", "display_name": "Claude"}
            model["created_at"] = "2026-01-01T00:00:00Z"
            return model if rest else {"data": [model], "has_more": False}
        name = rest.removeprefix("batches").strip("/").partition("/")[0]
        if asked.method == "POST" and not name:
            kind = "message_batch" if head == "messages" else "file"
            made: dict[str, Any] = {"type": kind, "created_at": "2026-01-01T00:00:00Z"}
            made |= {"filename": "f", "size_bytes": 1, "mime_type": "text/plain"}
            made["processing_status"] = "in_progress"
            name = _id("msgbatch_" if head == "messages" else "file_")
            return self.store(asked, name, {"id": name, **made})
        if not name:
            mine = [it for project, it in self._stored.values() if project == asked.key.project]
            return {"data": mine, "has_more": False, "first_id": None, "last_id": None}
        return self.find(asked, name, _not_found)

    def _message(self, asked: Asked) -> Any:
        text = self.text(asked)
        usage = {"input_tokens": asked.tokens, "output_tokens": len(_words(text))}
        usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        ended = {"stop_reason": "end_turn", "stop_sequence": None}
        made = {"id": _id("msg_"), "type": "message", "role": "assistant", "model": asked.model}
        if not asked.body.get("stream"):
            content = [{"type": "text", "text": text}]
            return {**made, "content": content, **ended, "usage": usage}
        begun: dict[str, Any] = {**made, "content": [], "stop_reason": None, "stop_sequence": None}
        return [
            {"type": "message_start", "message": {**begun, "usage": {**usage, "output_tokens": 1}}},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
            {"type": "ping"},
            *(
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": word},
                }
                for word in _words(text)
            ),
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": ended,
                "usage": {"output_tokens": usage["output_tokens"]},
            },
            {"type": "message_stop"},
        ]


def _failure(kind: str, message: str) -> dict[str, Any]:
    error = {"type": kind, "message": message}
    return {"type": "error", "error": error, "request_id": _id("req_")}


def _not_found(name: str) -> ErrorReply:
    return ErrorReply(404, _failure("not_found_error", f"{name} not found"), name="NOT_FOUND")
