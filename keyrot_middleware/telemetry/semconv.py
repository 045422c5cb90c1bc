"""Names and values that spans and metrics share.

docs/telemetry.md says what each means. The `gen_ai.*` names follow the GenAI semantic conventions.
Their Python constants are deprecated since the conventions moved to a repository of their own, so
the names are spelled out here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, get_current_span
from opentelemetry.util.types import AttributeValue

from .. import providers
from ..core.failures import REJECTIONS
from ..core.flow import Exhausted
from ..core.model import CallInfo, Verdict

INSTRUMENTATION: Final = "keyrot_middleware"
"""The instrumentation scope, and the logger."""

# Names that spans and metrics share; the others stand where they are set.
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
ERROR_TYPE: Final = "error.type"
POOL: Final = "keyrot.pool.name"
KEY_ID: Final = "keyrot.key.id"
COST: Final = "keyrot.cost"
FAILURE_CLASS: Final = "keyrot.failure.class"
FAILURE_MESSAGE: Final = "keyrot.failure.message"
FALLBACK_FROM: Final = "keyrot.model_fallback.from"

Attributes = dict[str, AttributeValue]


class ErrorCause(NamedTuple):
    """`error.type`, and the status description that a timeline shows; never a message or a key."""

    type: str
    description: str


def cause_from_verdict(verdict: Verdict, error: BaseException | None) -> ErrorCause:
    """Return why an attempt failed: `("429", "429 quota_minute")`."""
    if verdict.code is not None:
        return ErrorCause(str(verdict.code), f"{verdict.code} {verdict.failure}")
    return ErrorCause(_class_name(error) if error is not None else verdict.failure, verdict.failure)


def cause_from_error(error: BaseException | None, platform: str) -> ErrorCause | None:
    """Return why a call failed; None if it succeeded or its reader closed the stream."""
    if error is None or isinstance(error, GeneratorExit):
        return None
    if isinstance(error, Exhausted):
        # The caller sees KeyPoolExhausted: a 429 while any key will come back, else the refusal.
        reasons = [block.reason for block in error.unavailable.blocks.values()]
        retired = reasons if set(reasons) <= REJECTIONS else ()
        code, _ = providers.of(platform).rejection_code(retired)
        return ErrorCause(str(code), "no key can serve")
    return ErrorCause(_class_name(error), type(error).__name__)


def record_error(span: Span, cause: ErrorCause) -> None:
    """Mark *span* as failed."""
    span.set_attribute(ERROR_TYPE, cause.type)
    span.set_status(Status(StatusCode.ERROR, cause.description))


def _class_name(error: BaseException) -> str:
    cls = type(error)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


_OPERATIONS = {
    "generateContent": "generate_content",
    "streamGenerateContent": "generate_content",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
}
"""The names of the conventions; other methods have their own name in snake case."""
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@lru_cache(maxsize=256)
def operation_name(verb: str) -> str:
    """Return the name of a method's operation: `count_tokens` for `countTokens`."""
    return _OPERATIONS.get(verb) or _WORD_START.sub("_", verb).lower()


def request_attributes(operation: str, model: str, host: str, platform: str) -> Attributes:
    """Return the attributes known before anything is sent.

    The host is `host`, `host:port` or `[v6]:port`; without a port there is no port attribute.
    """
    attributes: Attributes = {
        GEN_AI_OPERATION: operation,
        "gen_ai.provider.name": providers.of(platform).otel,
    }
    address, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and (":" not in address or address.endswith("]")):
        attributes["server.port"], host = int(port), address
    if host:
        attributes["server.address"] = host.strip("[]")
    if model:
        attributes[GEN_AI_REQUEST_MODEL] = model
    return attributes


class Conventions(NamedTuple):
    """Which GenAI conventions spans and metrics follow: those of before July 2026, the new, both.

    Only inference has new names, and the parts of its usage.
    """

    old: bool = True
    new: bool = False


def conventions_of(setting: str) -> Conventions:
    """Return the conventions that a setting names.

    Args:
        setting: `old`, `new`, `both`, or `auto`: what the official library for Python writes, which
            is the old ones up to version 1.3, and both where it is newer or not installed.
    """
    if setting != "auto":
        return Conventions(setting != "new", setting != "old")
    try:
        found = re.match(r"(\d+)\.(\d+)", version("opentelemetry-util-genai"))
    except PackageNotFoundError:
        found = None
    is_old = found is not None and (int(found[1]), int(found[2])) <= _LAST_OLD
    return Conventions(old=True, new=not is_old)


_LAST_OLD = (1, 3)
"""The last version of opentelemetry-util-genai that is known to write the old names."""

# Two inference spans for one request would double its tokens in every backend. The official
# instrumentation has the operation's data in the context, by these keys of its optional library
# opentelemetry-util-genai, the second ones until July 2026; still older versions, and others, have
# the operation on the current span.
_DATA_KEYS = {
    "embeddings": (
        "opentelemetry.genai.client.embedding.context",
        "opentelemetry.genai.embedding_context",
    ),
    "get": (
        "opentelemetry.genai.client.fetch_response.context",
        "opentelemetry.genai.fetch_response_context",
    ),
    "generate_content": (
        "opentelemetry.genai.client.inference.context",
        "opentelemetry.genai.inference_context",
    ),
}
INFERENCE = ("chat", "generate_content", "text_completion")
"""The operations that the new conventions call inference: different names of the same one."""


def covering_span(ctx: Context, info: CallInfo) -> Span | None:
    """Return the current span if another instrumentation describes this request with it."""
    span, operation = get_current_span(ctx), operation_name(info.verb)
    attributes = getattr(span, "attributes", None) or {}
    model = attributes.get(GEN_AI_REQUEST_MODEL)
    asked = info.models_tried[0] if info.models_tried else info.model
    if isinstance(model, str) and not model.endswith(asked.rpartition("/")[2]):
        return None  # a request of a tool that is called meanwhile
    named = attributes.get(GEN_AI_OPERATION)
    same = named == operation or (named in INFERENCE and operation in INFERENCE)
    keys = _DATA_KEYS.get(operation, ())
    has_data = named is None and any(ctx.get(key) is not None for key in keys)
    return span if same or has_data else None
