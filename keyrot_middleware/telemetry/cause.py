"""Why an attempt or a call failed, in the words of a span: never a message, never a key."""

from __future__ import annotations

from typing import NamedTuple

from opentelemetry.trace import Span, Status, StatusCode

from ..core.failures import REJECTIONS
from ..core.flow import Exhausted
from ..core.model import Verdict
from ..errors import code_of
from . import names

__all__ = ["Cause", "blame", "of_error", "of_verdict"]


class Cause(NamedTuple):
    """`error.type`, and the status description that a person reads in a timeline."""

    type: str
    text: str


def of_verdict(verdict: Verdict, error: BaseException | None) -> Cause:
    """Tell why an attempt failed: `("429", "429 quota_minute")`."""
    if verdict.code is not None:
        return Cause(str(verdict.code), f"{verdict.code} {verdict.failure}")
    return Cause(_qualified(error) if error is not None else verdict.failure, verdict.failure)


def of_error(error: BaseException | None) -> Cause | None:
    """Tell why a call failed; None where it did not, or its stream was closed by its reader."""
    if error is None or isinstance(error, GeneratorExit):
        return None
    if isinstance(error, Exhausted):
        # The caller sees KeyPoolExhausted: a 429 while any key will come back, else the refusal.
        reasons = [block.reason for block in error.unavailable.blocks.values()]
        code, _ = code_of(reasons if REJECTIONS.issuperset(reasons) else ())
        return Cause(str(code), "no key can serve")
    return Cause(_qualified(error), type(error).__name__)


def blame(span: Span, cause: Cause) -> None:
    """Mark *span* as failed."""
    span.set_attribute(names.ERROR_TYPE, cause.type)
    span.set_status(Status(StatusCode.ERROR, cause.text))


def _qualified(error: BaseException) -> str:
    cls = type(error)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )
