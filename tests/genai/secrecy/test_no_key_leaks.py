"""No key of the pool, nor the client's own, is in anything that a program may print."""

from __future__ import annotations

import gc
import logging
from itertools import cycle

import pytest
from support.key_search import hold_no_key, texts_of
from support.modes import MODES, ask_async, calls, skip_where_the_sdk_reconnects

import keyrot_middleware
from keyrot_middleware.adapters.redaction import redact_exception
from keyrot_middleware.monitoring.view import source_of
from keyrot_middleware.providers.gemini import KEY_HEADER
from keyrot_middleware.testing import Reply

FAILURES = sorted(set(Reply.all()) - {"OK", "CONTINUATION"})


@pytest.mark.parametrize(("mode", "name"), list(zip(cycle(MODES), FAILURES, strict=False)))
def test_no_failure_carries_a_key(mode, name, gemini, pool, connect, caplog) -> None:
    """After any failure neither the last error nor the next one, nor a log line, has a key."""
    if name in ("RESET", "CLOSE"):
        skip_where_the_sdk_reconnects(mode)
    reply = Reply.all()[name]
    gemini.add_key("own")
    pool("A", "B", max_retries=0, max_wait_s=0)
    gemini.always_any(Reply.hang(0.4) if name == "HANG" else reply)
    client = connect(gemini.key("own").value, timeout=200 if name == "HANG" else None)
    with caplog.at_level(logging.DEBUG, "keyrot_middleware"):
        answers = calls(mode, client, 2)
    for answer in answers:
        if isinstance(answer, Exception):
            hold_no_key(answer, gemini, "A", "B", "own")
    printed = caplog.text + repr(keyrot_middleware.status())
    assert not any(gemini.key(label).value in printed for label in ("A", "B", "own"))


def test_a_key_of_any_shape_is_redacted(gemini, pool, connect) -> None:
    value = "FAKE-short-odd-key"
    gemini.add_key("A", value=value)
    pool("A", max_wait_s=0)
    gemini.always("A", Reply.KEY_SUSPENDED)
    for error in calls("sync", connect(), 2):
        assert not [text for text in texts_of(error) if value in text]


def test_every_exception_in_the_chain_is_redacted() -> None:
    """A cause hides the context from tracebacks, but not from tools that read both."""
    error, cause, context = (ValueError(f"FAKE-value of {name}") for name in "abc")
    error.__cause__, error.__context__ = cause, context
    context.__context__ = error  # a cycle
    redact_exception(error, lambda text: text.replace("FAKE-value", "[redacted]"))
    assert [str(one) for one in (error, cause, context)] == [f"[redacted] of {n}" for n in "abc"]


@pytest.mark.parametrize("mode", ["async", "async_stream"])
async def test_no_dictionary_has_a_key_after_a_call(mode, gemini, pool, connect) -> None:
    """Not even while the timers of the loop keep the context of the call."""
    pool("A")
    client = connect()
    assert await ask_async(mode, client)
    gc.collect()
    value = gemini.key("A").value
    held = [one for one in gc.get_objects() if type(one) is dict and KEY_HEADER in one]
    assert [list(one) for one in held if one[KEY_HEADER] == value] == []
    await client.aio.aclose()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_key_in_place_of_the_model_is_shown_nowhere(mode, pool, connect, caplog) -> None:
    """Neither in status(), nor in a log line, nor in what the page shows of the call."""
    caplog.set_level(logging.DEBUG, "keyrot_middleware")
    installed, key = pool("A", max_wait_s=0), "AIzaFAKE" + "b3" * 16
    calls(mode, connect(), 1, model=key)
    shown = [keyrot_middleware.status(), source_of(installed).status(), caplog.text]
    assert "AIza" in str(shown)
    assert key not in str([*shown, source_of(installed).attempts()])


class Unreadable:
    """What a foreign library has among its arguments."""

    def __str__(self) -> str:
        raise RuntimeError("no text yet")


def test_an_unreadable_exception_does_not_replace_the_error(monkeypatch, caplog) -> None:
    """An unreadable exception is logged, and the others are still redacted."""
    monkeypatch.setattr("keyrot_middleware.errors._strict", False)
    error, odd, behind = ValueError("FAKE-value"), KeyError("FAKE-value"), OSError("FAKE-value")
    error.__cause__, odd.__context__, behind.__context__ = odd, behind, ValueError(Unreadable())
    redact_exception(error, lambda text: text.replace("FAKE-value", "[redacted]"))
    assert [one.args for one in (error, odd, behind)] == [("[redacted]",)] * 3
    assert "adapters failed (<class 'RuntimeError'>" in caplog.text
