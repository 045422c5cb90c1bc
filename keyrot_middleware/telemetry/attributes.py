"""Attribute sets of spans and measurements, and the cause of a failure as an attribute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from ..core.failures import REJECTIONS
from ..core.flow import Exhausted
from ..core.model import GEMINI_API, HOME, Platform, Usage, Verdict
from ..errors import rejection_code
from . import semconv

__all__ = [
    "Attributes",
    "ErrorCause",
    "attempt_attributes",
    "call_attributes",
    "call_span_start",
    "cause_from_error",
    "cause_from_verdict",
    "operation_name",
    "pool_attributes",
    "record_error",
    "request_attributes",
    "usage_attributes",
]

# Why an attempt or a call failed: `error.type` and a short text, never a message or a key -------


class ErrorCause(NamedTuple):
    """`error.type`, and the status description that a timeline shows."""

    type: str
    description: str


def cause_from_verdict(verdict: Verdict, error: BaseException | None) -> ErrorCause:
    """Return why an attempt failed: `("429", "429 quota_minute")`."""
    if verdict.code is not None:
        return ErrorCause(str(verdict.code), f"{verdict.code} {verdict.failure}")
    return ErrorCause(_class_name(error) if error is not None else verdict.failure, verdict.failure)


def cause_from_error(error: BaseException | None) -> ErrorCause | None:
    """Return why a call failed; None if it succeeded or its reader closed the stream."""
    if error is None or isinstance(error, GeneratorExit):
        return None
    if isinstance(error, Exhausted):
        # The caller sees KeyPoolExhausted: a 429 while any key will come back, else the refusal.
        reasons = [block.reason for block in error.unavailable.blocks.values()]
        code, _ = rejection_code(reasons if REJECTIONS.issuperset(reasons) else ())
        return ErrorCause(str(code), "no key can serve")
    return ErrorCause(_class_name(error), type(error).__name__)


def record_error(span: Span, cause: ErrorCause) -> None:
    """Mark *span* as failed."""
    span.set_attribute(semconv.ERROR_TYPE, cause.type)
    span.set_status(Status(StatusCode.ERROR, cause.description))


def _class_name(error: BaseException) -> str:
    cls = type(error)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


# Attribute sets of measurements, cached: creating one costs more than the measurement ----------


Attributes = dict[str, AttributeValue]
"""Shared by many measurements: never modify one."""

CACHE_SIZE = 4_096
"""Cached sets per function; the SDK keeps 2,000 per metric and merges the rest into one."""


@lru_cache(maxsize=CACHE_SIZE)
def pool_attributes(pool: str, error_type: str | None = None) -> Attributes:
    """Return the attributes of a measurement of the whole pool."""
    return _without_missing({semconv.POOL: pool, semconv.ERROR_TYPE: error_type})


@lru_cache(maxsize=CACHE_SIZE)
def attempt_attributes(  # noqa: PLR0917 - keyword arguments would double the cost of a cache hit
    pool: str,
    key_id: str,
    model: str | None = None,
    token_type: str | None = None,
    failure: str | None = None,
    error_type: str | None = None,
) -> Attributes:
    """Return the attributes of a measurement of one attempt.

    Args:
        pool: The pool's name.
        key_id: Every home key becomes `home`, or each client would have series of its own.
        model: As requested.
        token_type: `input` or `output`.
        failure: A failure class of core/failures.py.
        error_type: The HTTP code as text, else the class of the exception.
    """
    attributes = {
        semconv.POOL: pool,
        semconv.KEY_ID: HOME.rstrip(":") if key_id.startswith(HOME) else key_id,
        semconv.GEN_AI_REQUEST_MODEL: model,
        semconv.TOKEN_TYPE: token_type,
        semconv.FAILURE_CLASS: failure,
        semconv.ERROR_TYPE: error_type,
    }
    return _without_missing(attributes)


@lru_cache(maxsize=CACHE_SIZE)
def call_attributes(  # noqa: PLR0917 - as above
    pool: str,
    operation: str,
    model: str,
    host: str,
    platform: Platform,
    response_model: str | None = None,
    token_type: str | None = None,
    error_type: str | None = None,
    modality: str | None = None,
) -> Attributes:
    """Return the attributes of a measurement of a call, as in the GenAI conventions."""
    attributes = {
        semconv.POOL: pool,
        semconv.GEN_AI_RESPONSE_MODEL: response_model,
        semconv.TOKEN_TYPE: token_type,
        semconv.ERROR_TYPE: error_type,
        semconv.TOKEN_MODALITY: modality,
    }
    return {
        **request_attributes(operation, model, host, platform),
        **_without_missing(attributes),
    }


def _without_missing(attributes: Mapping[str, str | None]) -> Attributes:
    """Drop attributes without a value."""
    return {name: value for name, value in attributes.items() if value}


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


@lru_cache(maxsize=256)
def _server_attributes(host: str) -> dict[str, AttributeValue]:
    """Parse `host`, `host:port` or `[v6]:port`; without a port there is no port attribute."""
    address, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and (":" not in address or address.endswith("]")):
        return {semconv.SERVER_ADDRESS: address.strip("[]"), semconv.SERVER_PORT: int(port)}
    return {semconv.SERVER_ADDRESS: host.strip("[]")} if host else {}


def request_attributes(
    operation: str, model: str, host: str, platform: Platform
) -> dict[str, AttributeValue]:
    """Return the attributes known before anything is sent."""
    attributes: dict[str, AttributeValue] = {
        semconv.GEN_AI_OPERATION: operation,
        semconv.GEN_AI_PROVIDER: (
            semconv.PROVIDER if platform == GEMINI_API else semconv.EXPRESS_PROVIDER
        ),
        **_server_attributes(host),
    }
    if model:
        attributes[semconv.GEN_AI_REQUEST_MODEL] = model
    return attributes


@lru_cache(maxsize=1024)
def call_span_start(  # noqa: PLR0917 - as above
    verb: str, model: str, host: str, stream: bool, pool: str, platform: Platform
) -> tuple[str, Mapping[str, AttributeValue]]:
    """Return name and initial attributes of a call's span; cached."""
    operation = operation_name(verb)
    attributes = {**request_attributes(operation, model, host, platform), semconv.POOL: pool}
    if stream:
        attributes[semconv.GEN_AI_REQUEST_STREAM] = True
    return (f"{operation} {model}" if model else operation), MappingProxyType(attributes)


def usage_attributes(usage: Usage) -> dict[str, AttributeValue]:
    """Return the attributes of what the response reported."""
    attributes: dict[str, AttributeValue] = {}
    for name, value in zip(_USAGE_ATTRIBUTES, usage, strict=False):
        if value is not None and value != ():
            attributes[name] = value
    return attributes


_USAGE_ATTRIBUTES = (
    semconv.GEN_AI_INPUT_TOKENS,
    semconv.GEN_AI_OUTPUT_TOKENS,
    semconv.GEN_AI_CACHED_TOKENS,
    semconv.GEN_AI_THOUGHT_TOKENS,
    semconv.GEN_AI_RESPONSE_MODEL,
    semconv.GEN_AI_RESPONSE_ID,
    semconv.GEN_AI_FINISH_REASONS,
)
"""In the order of the fields of `Usage`; the last one, `cost_usd`, has none."""
