"""A flow lets go of the exceptions that the program will not see."""

from __future__ import annotations

import sys

from keyrot_middleware.core.flow import drop_tracebacks


def _fail(error: Exception, cause: Exception | None = None) -> None:
    raise error from cause


def _raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        _fail(error, cause)
    except Exception as caught:
        return caught
    raise AssertionError


def test_the_tracebacks_of_the_whole_chain_are_dropped() -> None:
    """Those of the error, of its cause and of what was handled when it was raised."""
    cause = _raised(ValueError("cause"))
    try:
        _fail(KeyError("context"))
    except KeyError as context:
        error = _raised(OSError("error"), cause)
        error.__suppress_context__ = True
        sent_while = context
    assert error.__context__ is sent_while
    drop_tracebacks(error)
    assert [e.__traceback__ for e in (error, cause, sent_while)] == [None, None, None]


def test_the_exception_that_the_program_handles_keeps_its_traceback() -> None:
    """It stands behind ours as their context, and so does all that is behind it."""
    try:
        _fail(KeyError("the program's own"))
    except KeyError as own:
        error = _raised(OSError("error"))
        assert sys.exception() is own
        drop_tracebacks(error)
        assert error.__traceback__ is None
        assert own.__traceback__ is not None


def test_a_chain_with_a_circle_ends() -> None:
    """Libraries can link exceptions as they like."""
    first, second = _raised(OSError("a")), _raised(OSError("b"))
    first.__context__, second.__cause__ = second, first
    drop_tracebacks(first)
    assert first.__traceback__ is second.__traceback__ is None
