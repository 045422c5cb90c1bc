"""What a span says of a request and its usage, from the values of the core."""

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
from ..core.model import HOME, Usage, Verdict
from ..errors import code_of
from . import semconv

__all__ = [
    "Attributes",
    "ErrorCause",
    "blame",
    "of_attempt",
    "of_call",
    "of_error",
    "of_pool",
    "of_verdict",
    "opening",
    "operation_of",
    "request_attributes",
    "usage_attributes",
]

# Why an attempt or a call failed, in the words of a span: never a message, never a key ---------


class ErrorCause(NamedTuple):
    """`error.type`, and the status description that a person reads in a timeline."""

    type: str
    text: str


def of_verdict(verdict: Verdict, error: BaseException | None) -> ErrorCause:
    """Tell why an attempt failed: `("429", "429 quota_minute")`."""
    if verdict.code is not None:
        return ErrorCause(str(verdict.code), f"{verdict.code} {verdict.failure}")
    return ErrorCause(_qualified(error) if error is not None else verdict.failure, verdict.failure)


def of_error(error: BaseException | None) -> ErrorCause | None:
    """Tell why a call failed; None where it did not, or its stream was closed by its reader."""
    if error is None or isinstance(error, GeneratorExit):
        return None
    if isinstance(error, Exhausted):
        # The caller sees KeyPoolExhausted: a 429 while any key will come back, else the refusal.
        reasons = [block.reason for block in error.unavailable.blocks.values()]
        code, _ = code_of(reasons if REJECTIONS.issuperset(reasons) else ())
        return ErrorCause(str(code), "no key can serve")
    return ErrorCause(_qualified(error), type(error).__name__)


def blame(span: Span, cause: ErrorCause) -> None:
    """Mark *span* as failed."""
    span.set_attribute(semconv.ERROR_TYPE, cause.type)
    span.set_status(Status(StatusCode.ERROR, cause.text))


def _qualified(error: BaseException) -> str:
    cls = type(error)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


# The attributes of measurements: a set is made once and used again, for making one costs more ---


Attributes = dict[str, AttributeValue]
"""Shared by many measurements: nobody changes one."""

KEPT = 4_096
"""Sets of a kind that are kept; the SDK keeps 2,000 of a metric, and counts the rest as one."""


@lru_cache(maxsize=KEPT)
def of_pool(pool: str, error_type: str | None = None) -> Attributes:
    """Give what a measurement of the whole pool says."""
    return _known({semconv.POOL: pool, semconv.ERROR_TYPE: error_type})


@lru_cache(maxsize=KEPT)
def of_attempt(  # noqa: PLR0917 - names would cost as much as the whole look-up
    pool: str,
    key_id: str,
    model: str | None = None,
    token_type: str | None = None,
    failure: str | None = None,
    error_type: str | None = None,
) -> Attributes:
    """Give what a measurement of one send says.

    Args:
        pool: The pool's name.
        key_id: `home` stands for every client's own key: their ids are as many as the clients.
        model: As asked for.
        token_type: `input` or `output`, where tokens are counted.
        failure: A row of core/failures.py.
        error_type: Its HTTP code as text, else the class of the exception.
    """
    attributes = {
        semconv.POOL: pool,
        semconv.KEY_ID: HOME.rstrip(":") if key_id.startswith(HOME) else key_id,
        semconv.GEN_AI_REQUEST_MODEL: model,
        semconv.TOKEN_TYPE: token_type,
        semconv.FAILURE_CLASS: failure,
        semconv.ERROR_TYPE: error_type,
    }
    return _known(attributes)


@lru_cache(maxsize=KEPT)
def of_call(  # noqa: PLR0917 - as above
    pool: str,
    operation: str,
    model: str,
    host: str,
    response_model: str | None = None,
    token_type: str | None = None,
    error_type: str | None = None,
    modality: str | None = None,
) -> Attributes:
    """Give what a measurement of a whole call says, by the GenAI conventions and with the pool."""
    attributes = {
        semconv.POOL: pool,
        semconv.GEN_AI_RESPONSE_MODEL: response_model,
        semconv.TOKEN_TYPE: token_type,
        semconv.ERROR_TYPE: error_type,
        semconv.TOKEN_MODALITY: modality,
    }
    return {**request_attributes(operation, model, host), **_known(attributes)}


def _known(attributes: Mapping[str, str | None]) -> Attributes:
    """Leave out what is not known."""
    return {name: value for name, value in attributes.items() if value}


_OPERATIONS = {
    "generateContent": "generate_content",
    "streamGenerateContent": "generate_content",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
}
"""The conventions' names; other methods go by their own, in snake case."""

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@lru_cache(maxsize=256)
def operation_of(verb: str) -> str:
    """Name the operation of a method: `countTokens` is `count_tokens`."""
    return _OPERATIONS.get(verb) or _HUMP.sub("_", verb).lower()


@lru_cache(maxsize=256)
def _server(host: str) -> dict[str, AttributeValue]:
    """Read `host`, `host:port` or `[v6]:port`; a port that is not written is omitted."""
    address, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and (":" not in address or address.endswith("]")):
        return {semconv.SERVER_ADDRESS: address.strip("[]"), semconv.SERVER_PORT: int(port)}
    return {semconv.SERVER_ADDRESS: host.strip("[]")} if host else {}


def request_attributes(operation: str, model: str, host: str) -> dict[str, AttributeValue]:
    """Give what is known before anything is sent."""
    attributes: dict[str, AttributeValue] = {
        semconv.GEN_AI_OPERATION: operation,
        semconv.GEN_AI_PROVIDER: semconv.PROVIDER,
        **_server(host),
    }
    if model:
        attributes[semconv.GEN_AI_REQUEST_MODEL] = model
    return attributes


@lru_cache(maxsize=1024)
def opening(
    verb: str, model: str, host: str, stream: bool, pool: str
) -> tuple[str, Mapping[str, AttributeValue]]:
    """Give name and first attributes of a call's span: made once for all calls that are alike."""
    operation = operation_of(verb)
    attributes = {**request_attributes(operation, model, host), semconv.POOL: pool}
    if stream:
        attributes[semconv.GEN_AI_REQUEST_STREAM] = True
    return (f"{operation} {model}" if model else operation), MappingProxyType(attributes)


def usage_attributes(usage: Usage) -> dict[str, AttributeValue]:
    """Return what the response reported of itself; nothing for what it did not report."""
    attributes: dict[str, AttributeValue] = {}
    for name, value in zip(_OF_USAGE, usage, strict=True):
        if value is not None and value != ():
            attributes[name] = value
    return attributes


_OF_USAGE = (
    semconv.GEN_AI_INPUT_TOKENS,
    semconv.GEN_AI_OUTPUT_TOKENS,
    semconv.GEN_AI_CACHED_TOKENS,
    semconv.GEN_AI_THOUGHT_TOKENS,
    semconv.GEN_AI_RESPONSE_MODEL,
    semconv.GEN_AI_RESPONSE_ID,
    semconv.GEN_AI_FINISH_REASONS,
)
"""In the order of the fields of `Usage`."""
