"""What error reporters show: the local variables of every frame, and each attribute."""

from __future__ import annotations

import json
from traceback import TracebackException, walk_tb
from typing import Any

import pytest
from google import genai
from support.key_search import texts_of
from support.modes import MODES, STREAMS, ask, calls, spread

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

CODES = (400, 401, 402, 403, 404, 429, 500, 503)


def shown(error: BaseException) -> str:
    """Return all that can be printed of an error: texts, frames of all libraries, their values."""
    report = "".join(TracebackException.from_exception(error, capture_locals=True).format())
    held: list[str] = texts_of(error)
    link: BaseException | None = error
    while link is not None:
        for frame, _ in walk_tb(link.__traceback__):
            if "tests" not in frame.f_code.co_filename:
                held += map(repr, frame.f_locals.values())
        held += [repr(getattr(link, "doc", ""))]
        link = link.__cause__ or link.__context__
    return report + "\n".join(held)


def check_no_key(error: Any, gemini: FakeGemini, *labels: str) -> None:
    """Check that an error shows no key's value."""
    assert isinstance(error, Exception)
    text = shown(error)
    assert [label for label in labels if gemini.key(label).value in text] == []


def echoing(code: int, form: str) -> Any:
    """Make a reply that repeats the key of the request, as Google does."""

    def body(request: Any) -> Any:
        echo = f"api_key:{request.value}"
        details: Any = [{"@type": "x", "reason": "CONSUMER_SUSPENDED", "metadata": {"c": echo}}]
        if form == "deep":
            for _ in range(40):
                details = [{"deeper": details, echo: "as a name"}]
        message = f"Permission denied: Consumer '{echo}' has been suspended."
        error = {"error": {"code": code, "message": message, "status": "X", "details": details}}
        if form == "text":
            return message
        return [error] if form == "list" else error

    kind = "text/plain" if form == "text" else "application/json"
    return Reply.custom(code, body, content_type=kind)


@pytest.mark.parametrize(
    ("mode", "code", "form"), spread(MODES, CODES, ["json", "list", "deep", "text"])
)
def test_no_frame_shows_a_key_that_google_repeats(mode, code, form, gemini, pool, connect) -> None:
    """Neither the last error nor one before it, whichever class of failure it is."""
    pool("A", "B", max_retries=0, max_wait_s=0)
    gemini.always_any(echoing(code, form))
    (error,) = calls(mode, connect(gemini.add_key("own").value), 1)
    check_no_key(error, gemini, "A", "B", "own")


@pytest.mark.parametrize(("name", "mode"), spread(["KEY_SUSPENDED", "QUOTA_DAY"], STREAMS))
def test_no_frame_shows_a_key_that_a_stream_repeats(mode, name, gemini, pool, connect) -> None:
    """An error in the middle of a stream came with a 200, and was read by the SDK already."""
    pool("A", "B")
    gemini.always_any(Reply.all()[name].in_stream(1))
    (error,) = calls(mode, connect(), 1)
    check_no_key(error, gemini, "A", "B")


@pytest.mark.parametrize("mode", MODES)
def test_an_error_inside_bypass_shows_no_key_of_the_pool(mode, gemini, pool, connect) -> None:
    """The pool's key is redacted; a client's own is not, and the SDK's error is untouched."""
    pool("A", strategy="fill")
    gemini.always_any(echoing(403, "json"))
    own = gemini.add_key("own").value
    with keyrot_middleware.bypass():
        with pytest.raises(genai.errors.ClientError, match="suspended") as caught:
            ask(mode, connect())
        check_no_key(caught.value, gemini, "A")
        with pytest.raises(genai.errors.ClientError, match=own):
            ask(mode, connect(own))


@pytest.mark.parametrize("kind", ["plain", "list"])
def test_a_failing_install_shows_no_key(kind, gemini) -> None:
    """The keys are among the arguments of functions of ours when the error leaves them."""
    values = [gemini.add_key(label).value for label in "AB"]
    keys = values if kind == "list" else ",".join(values)
    for attempt in (keyrot_middleware.install, keyrot_middleware.KeyManager):
        with pytest.raises(keyrot_middleware.ConfigError) as caught:
            attempt(keys=keys, gemini_api_key=values[0], strategy="nope", max_retries=-1)
        frames = [frame for frame, _ in walk_tb(caught.value.__traceback__)][1:]
        held = repr([[repr(value) for value in frame.f_locals.values()] for frame in frames])
        assert [value for value in values if value in held] == []


def test_the_request_of_the_program_is_not_redacted(gemini, pool, connect) -> None:
    """A prompt may quote text that looks like a key: an error does not change the next attempt."""
    pool("A", "B", strategy="fill")
    gemini.script("A", echoing(403, "json"))
    text = "what is " + "AIza" + "k" * 35
    ask("sync", connect(), contents=text)
    bodies = [json.dumps(request.body) for request in gemini.log]
    assert [text in body for body in bodies] == [True, True]
