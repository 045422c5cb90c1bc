"""install() and uninstall(): when, how often, with which keys, and without remains."""

import logging
import subprocess
import sys
import textwrap

import pytest
from google import genai
from google.genai._api_client import BaseApiClient
from support.modes import MODES, ask

import keyrot_middleware
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.testing import Reply

SEAMS = ("__init__", "_request", "_async_request")


def methods() -> dict[str, object]:
    return dict(vars(BaseApiClient))


def test_uninstall_restores_the_very_same_objects(pool) -> None:
    """Every attribute of the api client's class is the object that it was."""
    before = methods()
    pool("A")
    during = methods()
    assert {name for name in before if before[name] is not during[name]} == set(SEAMS)
    keyrot_middleware.uninstall()
    keyrot_middleware.uninstall()
    after = methods()
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    with pytest.raises(ValueError, match="API key"):
        genai.Client()


def test_install_twice_is_once(gemini, pool, connect) -> None:
    first = pool("A")
    layers = methods()
    keyrot_middleware.install(keys=[gemini.add_key("B").value])
    assert current_pool() is first
    assert all(methods()[name] is layers[name] for name in SEAMS)
    assert ask("sync", connect()) == "ok from A"
    assert gemini.count() == 1


@pytest.mark.parametrize("mode", MODES)
def test_clients_made_before_install_are_covered(mode, gemini, pool, connect) -> None:
    """The key they were made with is their home key; their calls go through the pool."""
    client = connect(gemini.add_key("own").value)
    assert ask(mode, client) == "ok from own"
    pool("A")
    assert ask(mode, client) == "ok from A"
    keyrot_middleware.uninstall()
    assert ask(mode, client) == "ok from own"


@pytest.mark.parametrize("where", ["argument", "before", "GEMINI_API_KEY", "GOOGLE_API_KEY"])
@pytest.mark.parametrize("key", [None, "", keyrot_middleware.POOL_KEY])
def test_a_client_needs_no_key(key, where, gemini, pool, connect, monkeypatch) -> None:
    """None, an empty one and the placeholder all mean the pool; none of them is ever sent."""
    if where.endswith("KEY") and key is not None:
        monkeypatch.setenv(where, key)
    before = connect(keyrot_middleware.POOL_KEY) if where == "before" else None
    pool("A")
    client = before or connect(key if where == "argument" else None)
    assert ask("sync", client) == "ok from A"
    assert list(client.files.list()) == []
    assert client._api_client.api_key == keyrot_middleware.POOL_KEY
    values = [request.header_values("x-goog-api-key") for request in gemini.log]
    assert values == [[gemini.key("A").value]] * 2


def test_the_environments_key_is_the_last_resort(gemini, pool, connect, monkeypatch) -> None:
    """The single key serves stored resources at once, and models only when no other can."""
    monkeypatch.setenv("GEMINI_API_KEY", gemini.add_key("single").value)
    pool("A")
    client = connect()
    assert client._api_client.api_key == gemini.key("single").value
    assert list(client.files.list()) == []
    assert gemini.sent("single") == 1
    assert ask("sync", client) == "ok from A"
    gemini.always("A", Reply.QUOTA_DAY)
    assert ask("sync", client) == "ok from single"


def test_switched_off_or_without_a_key_nothing_is_patched(gemini, monkeypatch, caplog) -> None:
    """The program runs as without us, and a warning names what to set."""
    before = methods()
    monkeypatch.setenv("ENABLE_KEY_ROTATION", "false")
    keyrot_middleware.install(keys=[gemini.add_key("A").value])
    assert (methods(), current_pool()) == (before, None)
    monkeypatch.delenv("ENABLE_KEY_ROTATION")
    with caplog.at_level(logging.WARNING, "keyrot_middleware"):
        keyrot_middleware.install()
    assert "GEMINI_API_KEYS" in caplog.text
    with pytest.raises(ValueError, match="API key"):
        genai.Client()
    keyrot_middleware.uninstall()
    assert methods() == before
    assert keyrot_middleware.status() == {"installed": False, "keys": {}}


@pytest.mark.parametrize("mode", MODES)
def test_bypass_sends_as_the_sdk_would(mode, gemini, pool, connect) -> None:
    """Inside bypass() the client's own key is used, once; the SDK's error is unchanged."""
    pool("A")
    client = connect(gemini.add_key("own").value)
    with keyrot_middleware.bypass():
        assert ask(mode, client) == "ok from own"
        gemini.script("own", Reply.QUOTA_MINUTE)
        with pytest.raises(genai.errors.ClientError) as caught:
            ask(mode, client)
    assert not hasattr(caught.value, "__notes__")
    assert (gemini.sent("own"), gemini.sent("A")) == (2, 0)
    assert ask(mode, client) == "ok from A"


PROGRAM = """
    import sys
    from keyrot_middleware.testing import FakeGemini
    {before}
    import keyrot_middleware
    keyrot_middleware.install(keys="FAKE-key")
    keyrot_middleware.uninstall()
    assert ("google.genai" in sys.modules) is {imported}, "importing us must not import the SDK"
    with FakeGemini() as gemini:
        good, bad = gemini.add_key("good"), gemini.add_key("bad")
        gemini.remove_key("bad")
        keyrot_middleware.install(
            keys=[bad.value, good.value], allowed_hosts=[gemini.host], strategy="fill"
        )
        assert ("google.genai" in sys.modules) is {imported}, "nor must install()"
        from google import genai
        client = genai.Client(http_options=gemini.http_options)
        print(client.models.generate_content(model="gemini-3.1-flash-lite", contents="hi").text)
        keyrot_middleware.uninstall()
        assert not hasattr(genai._api_client.BaseApiClient._request, "__wrapped__")
        print([r.status for r in gemini.log])
"""


@pytest.mark.parametrize(
    ("before", "imported"), [("", False), ("import google.genai", True)], ids=["before", "after"]
)
def test_install_before_and_after_the_sdk_is_imported(before, imported) -> None:
    program = textwrap.dedent(PROGRAM).format(before=before, imported=imported)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stdout.split("\n")[:2] == ["ok from good", "[400, 200]"], done.stderr
    assert done.stderr.count("Warning") == 1  # Python 3.13 shows the line of the program too
    assert (
        "KeyrotWarning: pool default, gemini-3.1-flash-lite: key key_1 is rejected" in done.stderr
    )
