"""`keyrot-pool` means no key: it is never sent, and an error names what to set."""

import contextlib
import logging

import pytest
from google import genai
from support.modes import MODES, ask, spread
from support.scenes import OTHERS, other_calls

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini

KEY = "x-goog-api-key"
POOL_KEY = keyrot_middleware.POOL_KEY

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def sent(gemini: FakeGemini) -> list[list[str]]:
    assert POOL_KEY not in repr([(request.headers, request.path) for request in gemini.log])
    return [request.header_values(KEY) for request in gemini.log]


@pytest.fixture
def no_key(gemini, caplog) -> None:
    """Install without any key; the warning is tested elsewhere."""
    caplog.set_level(logging.ERROR, "keyrot_middleware")
    keyrot_middleware.install(allowed_hosts=[gemini.host])
    yield
    keyrot_middleware.uninstall()


@pytest.mark.parametrize("mode", MODES)
def test_a_call_without_any_key_names_what_to_set(mode, gemini, no_key, connect) -> None:
    """Before anything is sent; a client with a key of its own works as without the pool."""
    with pytest.raises(genai.errors.ClientError, match="set GEMINI_API_KEYS") as caught:
        ask(mode, connect(POOL_KEY))
    error = caught.value
    assert (error.code, error.status) == (401, "UNAUTHENTICATED")
    assert ask(mode, connect(gemini.add_key("own").value)) == "ok from own"
    assert sent(gemini) == [[gemini.key("own").value]]


@pytest.mark.parametrize(("call", "bypassed"), spread(OTHERS, [False, True]))
def test_other_calls_without_any_key(call, bypassed, gemini, no_key, connect) -> None:
    inside = keyrot_middleware.bypass() if bypassed else contextlib.nullcontext()
    with inside, pytest.raises(Exception, match="set GEMINI_API_KEYS"):
        other_calls(connect(POOL_KEY))[call]()
    assert sent(gemini) == []


@pytest.mark.parametrize(
    ("given", "call", "bypassed"), spread([None, POOL_KEY], OTHERS, [False, True])
)
def test_the_pools_key_is_sent_in_its_place(call, bypassed, given, gemini, pool, connect) -> None:
    """In calls that do not rotate, and inside bypass(), it is the home key.

    Both keys are of one project, or the owner of the file would be searched for in the other.
    """
    pool(*({"key_id": name, "project": "one"} for name in "AB"), strategy="fill")
    inside = keyrot_middleware.bypass() if bypassed else contextlib.nullcontext()
    with inside, contextlib.suppress(Exception):
        other_calls(connect(given))[call]()
    assert sent(gemini)
    assert {value for values in sent(gemini) for value in values} == {gemini.key("A").value}


@pytest.mark.parametrize("call", ["sync", "files.get", "interactions"])
def test_a_client_outlives_its_pool(call, gemini, pool, connect) -> None:
    """Without a key of its own it has none after uninstall(); with the next pool it has one."""
    pool("A", "B", strategy="fill")
    client = connect()

    def work() -> None:
        if call in MODES:
            ask(call, client)
        else:
            other_calls(client)[call]()

    with contextlib.suppress(Exception):
        work()
    keyrot_middleware.uninstall()
    before = len(gemini.log)
    with pytest.raises(Exception):  # noqa: B017 - of each surface its own
        work()
    left = [request.header_values(KEY) for request in gemini.log[before:]]
    assert not [label for label in "AB" if gemini.key(label).value in repr(left)]
    pool("A", "B", strategy="fill")
    gemini.reset_log()
    with contextlib.suppress(Exception):
        work()
    assert sent(gemini)[0] == [gemini.key("A").value]


@pytest.mark.parametrize("named_by", ["argument", "environment"])
def test_the_placeholder_of_the_environment_replaces_no_project(
    named_by, monkeypatch, no_key
) -> None:
    """The SDK takes a key of the environment for express mode's only where no project is named."""
    monkeypatch.setenv("GEMINI_API_KEY", POOL_KEY)
    options = {"project": "web", "location": "global"} if named_by == "argument" else {}
    if not options:
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "web")
    client = genai.Client(vertexai=True, **options)
    assert (client._api_client.project, client._api_client.api_key) == ("web", None)
    client.close()
