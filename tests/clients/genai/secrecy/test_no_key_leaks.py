"""No key of the pool, nor the client's own, is in anything that a program may print or hold."""

import gc
import json
import logging
import pickle
import sys
import threading
from collections.abc import Iterator
from itertools import cycle
from traceback import TracebackException, walk_tb
from types import FrameType, FunctionType, ModuleType
from typing import Any

import httpx
import pytest
from google import genai
from support.interactions import SDK_WARNINGS
from support.key_search import hold_no_key, texts_of
from support.modes import (
    MODES,
    STREAMS,
    ask,
    ask_async,
    calls,
    skip_where_the_sdk_reconnects,
    spread,
)
from support.raw_server import answer
from support.scenes import SURFACES, error_of, surfaces

import keyrot_middleware
from keyrot_middleware.clients.redaction import redact_exception
from keyrot_middleware.monitoring.report import source_of
from keyrot_middleware.providers.gemini import KEY_HEADER
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.secrets import Secret
from keyrot_middleware.testing import FakeGemini, FakeOpenAI, Reply

FAILURES = sorted(set(Reply.all()) - {"OK", "CONTINUATION", "LATE"})


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
    for error in answers:
        if isinstance(error, Exception):
            hold_no_key(error, gemini, "A", "B", "own")
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


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_programs_own_exception_keeps_its_variables_and_text(
    mode, gemini, pool, connect, no_aiohttp
) -> None:
    """What a program handles while it calls is behind the error of the call, and not redacted."""
    no_aiohttp()
    pool("A", max_retries=0, max_wait_s=0)
    gemini.always("A", Reply.CLOSE)
    text = "AIza" + "FAKE" + "x" * 31

    def broken() -> None:
        kept = text
        raise ValueError(kept)

    try:
        broken()
    except ValueError as own:
        with pytest.raises(Exception, match="disconnected") as caught:
            ask(mode, connect())
        link: BaseException | None = caught.value
        while link is not None and link is not own:
            link = link.__cause__ or link.__context__
        variables = [frame.f_locals.get("kept") for frame, _ in walk_tb(own.__traceback__)]
        assert (link is own, str(own), variables[-1]) == (True, text, text)


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


def test_a_key_without_a_shape_in_place_of_the_model_is_shown_nowhere(monkeypatch, caplog) -> None:
    """As that of Gemini, for providers whose keys look like nothing."""
    caplog.set_level(logging.DEBUG, "keyrot_middleware")
    with FakeOpenAI("mistral") as fake:
        key = fake.add_key("a").value
        monkeypatch.setenv("MISTRAL_API_KEYS", key)
        keyrot_middleware.install(allowed_hosts=[f"mistral={fake.url}"])
        url, bearer = f"{fake.url}/v1/chat/completions", {"authorization": "Bearer keyrot-pool"}
        body = {"model": key, "messages": [{"role": "user", "content": "x"}]}
        assert httpx.post(url, json=body, headers=bearer).status_code == 200
        report = source_of(current_pool())
        shown = [keyrot_middleware.status(), report.status(), report.attempts(), caplog.text]
        keyrot_middleware.uninstall()
    assert "[redacted]" in str(shown)
    assert key not in str(shown)


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
    assert "clients failed (<class 'RuntimeError'>" in caplog.text


pytestmark = [
    pytest.mark.promise(number=2),
    *SDK_WARNINGS,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


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
    assert isinstance(error, Exception)
    text = shown(error)
    assert [label for label in labels if gemini.key(label).value in text] == []


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
    gemini.always_any(Reply.KEY_SUSPENDED)
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
    gemini.script("A", Reply.KEY_SUSPENDED)
    text = "what is " + "AIza" + "k" * 35
    ask("sync", connect(), contents=text)
    bodies = [json.dumps(request.body) for request in gemini.log]
    assert [text in body for body in bodies] == [True, True]


def reached(*roots: Any) -> Iterator[Any]:
    """Yield all that an object reaches, without modules, classes and the inside of secrets."""
    modules = {id(vars(module)) for module in [*sys.modules.values()] if module is not None}
    seen: set[int] = set()
    found = list(roots)
    while found:
        one = found.pop()
        if id(one) in seen or id(one) in modules:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, FunctionType):
            found += [cell.cell_contents for cell in one.__closure__ or () if cell]
        elif not isinstance(one, Secret | ModuleType | type | threading.Thread | FrameType):
            found += gc.get_referents(one)


def test_the_pool_holds_no_plain_value(gemini, pool, connect) -> None:
    """Neither at rest, nor for a key that an SDK's client, a manager or a lease has."""
    pool("A", {"key_id": "odd", "project": "p"}, max_wait_s=0)
    values = {gemini.key(label).value for label in ("A", "odd")}
    manager = keyrot_middleware.get_key_manager()
    selected = manager.select_key("gemini-3.1-flash-lite")
    client = connect()
    surfaces(client)["sync"]()
    with manager.lease("gemini-3.1-flash-lite") as leased:
        assert {selected.api_key, leased.api_key} <= values
        everything = reached(current_pool(), manager, selected, leased)
        assert [one for one in everything if isinstance(one, str) and one in values] == []
    manager.report_success(selected.key_id)
    for key in (selected, leased):
        with pytest.raises(TypeError):
            pickle.dumps(key)


@pytest.mark.parametrize("surface", [name for name in SURFACES if name != "async upload"])
def test_no_frame_of_ours_holds_a_plain_value_while_it_is_sent(surface, scene) -> None:
    """A log of Sentry's with `attach_stacktrace`, or a debugger, shows the frames that run."""
    shown: list[str] = []
    caller = threading.get_ident()

    def talk(connection: Any, value: str) -> None:
        frame: FrameType | None = sys._current_frames()[caller]
        while frame is not None:
            if "/keyrot_middleware/" in frame.f_code.co_filename:
                shown.extend(texts(frame.f_locals))
            frame = frame.f_back
        connection.sendall(answer(error_of(value)))

    server = scene.serve(talk)
    client = scene.client(server.url)
    with pytest.raises(Exception, match="suspended"):
        surfaces(client)[surface]()
    assert surface.startswith(("async", "interaction async")) or shown
    assert server.keys
    assert [text for text in shown for key in server.keys if key in text] == []


def texts(value: Any, depth: int = 4) -> Iterator[str]:
    yield repr(value)
    if depth and isinstance(value, dict):
        for item in value.values():
            yield from texts(item, depth - 1)
    elif depth and isinstance(value, tuple | list):
        for item in value:
            yield from texts(item, depth - 1)
