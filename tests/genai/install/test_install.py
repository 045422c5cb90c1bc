"""install() and uninstall(): when, how often, with which keys, and without remains."""

from __future__ import annotations

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
    """Return the attributes of the class, without binding them."""
    return dict(vars(BaseApiClient))


def test_uninstall_restores_the_very_same_objects(pool) -> None:
    """Every attribute of the api client's class is the object that it was."""
    before = methods()
    pool("A")
    during = methods()
    assert {name for name in before if before[name] is not during[name]} == set(SEAMS)
    keyrot_middleware.uninstall()
    after = methods()
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_install_twice_is_once(gemini, pool, connect) -> None:
    """A second install() adds no layer and changes no pool."""
    first = pool("A")
    layers = methods()
    keyrot_middleware.install(keys=[gemini.add_key("B").value])
    assert current_pool() is first
    assert all(methods()[name] is layers[name] for name in SEAMS)
    assert ask("sync", connect()) == "ok from A"
    assert gemini.count() == 1


def test_uninstall_without_install_does_nothing() -> None:
    """It may be called at any time, and twice."""
    before = methods()
    keyrot_middleware.uninstall()
    keyrot_middleware.uninstall()
    assert methods() == before


def test_another_pool_can_follow(gemini, pool, connect) -> None:
    """install() after uninstall() is a new pool, and the old clients use it."""
    pool("A")
    client = connect()
    assert ask("sync", client) == "ok from A"
    keyrot_middleware.uninstall()
    pool("B")
    assert ask("sync", client) == "ok from B"


@pytest.mark.parametrize("mode", MODES)
def test_clients_made_before_install_are_covered(mode, gemini, pool, connect) -> None:
    """The key they were made with is their home key; their calls go through the pool."""
    client = connect(gemini.add_key("own").value)
    assert ask(mode, client) == "ok from own"
    pool("A")
    assert ask(mode, client) == "ok from A"
    keyrot_middleware.uninstall()
    assert ask(mode, client) == "ok from own"


@pytest.mark.parametrize("key", [None, "", keyrot_middleware.POOL_KEY])
def test_a_client_needs_no_key(key, gemini, pool, connect) -> None:
    """No key, an empty one and the placeholder all mean the pool; none of them is sent."""
    pool("A")
    client = connect(key)
    assert ask("sync", client) == "ok from A"
    assert client._api_client.api_key == keyrot_middleware.POOL_KEY
    assert gemini.log[0].header_values("x-goog-api-key") == [gemini.key("A").value]


@pytest.mark.parametrize("variable", ["GEMINI_API_KEY", "GOOGLE_API_KEY"])
@pytest.mark.parametrize("value", ["", keyrot_middleware.POOL_KEY])
def test_a_variable_with_the_placeholder_is_no_key(
    variable, value, gemini, pool, connect, monkeypatch
) -> None:
    """The program's variable may be empty or hold the placeholder; neither is ever sent."""
    monkeypatch.setenv(variable, value)
    pool("A")
    client = connect()
    assert ask("sync", client) == "ok from A"
    assert list(client.files.list()) == []
    values = [request.header_values("x-goog-api-key") for request in gemini.log]
    assert values == [[gemini.key("A").value]] * 2


def test_a_placeholder_client_made_before_install(gemini, pool, connect) -> None:
    """Its placeholder is never sent, not even for stored resources."""
    client = connect(keyrot_middleware.POOL_KEY)
    pool("A")
    assert ask("sync", client) == "ok from A"
    assert list(client.files.list()) == []
    values = [request.header_values("x-goog-api-key") for request in gemini.log]
    assert values == [[gemini.key("A").value]] * 2


def test_the_environments_key_is_home_key_and_last_resort(
    gemini, pool, connect, monkeypatch
) -> None:
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


def test_positional_arguments_of_the_api_client(gemini, pool) -> None:
    """A client built by position, as frameworks may do, needs no key either."""
    pool("A")
    client = BaseApiClient(None, None, None, None, None, gemini.http_options)
    assert client.api_key == keyrot_middleware.POOL_KEY
    assert client._http_options.base_url == gemini.url
    client.close()


def test_after_uninstall_a_client_needs_a_key_again(pool) -> None:
    """The SDK's own error is back."""
    pool("A")
    keyrot_middleware.uninstall()
    with pytest.raises(ValueError, match="API key"):
        genai.Client()


def test_no_key_anywhere_warns_and_does_not_patch_the_sdk(caplog) -> None:
    """The program runs as without us, and a warning names what to set."""
    before = methods()
    with caplog.at_level(logging.WARNING, "keyrot_middleware"):
        keyrot_middleware.install()
    assert "GEMINI_API_KEYS" in caplog.text
    assert methods() == before
    assert keyrot_middleware.status() == {"installed": False, "keys": {}}


def test_switched_off_it_is_a_no_op(gemini, monkeypatch) -> None:
    """ENABLE_KEY_ROTATION=false leaves the SDK as it is."""
    monkeypatch.setenv("ENABLE_KEY_ROTATION", "false")
    before = methods()
    keyrot_middleware.install(keys=[gemini.add_key("A").value])
    assert methods() == before
    assert current_pool() is None
    assert keyrot_middleware.status()["keys"] == {}


def test_a_wrong_setting_is_an_error_at_install_and_changes_nothing(gemini) -> None:
    """The message names the argument and what is allowed."""
    before = methods()
    with pytest.raises(
        keyrot_middleware.ConfigError, match=r"strategy.*'spread', 'fill' or 'sticky'"
    ):
        keyrot_middleware.install(keys=[gemini.add_key("A").value], strategy="random")
    assert methods() == before


def test_status_reports_the_keys(gemini, pool, connect) -> None:
    """It has the pool, the patched methods, and the health of each key."""
    assert keyrot_middleware.status() == {"installed": False, "keys": {}}
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.KEY_INVALID)
    ask("sync", connect())
    status = keyrot_middleware.status()
    assert status["installed"] is True
    assert {f"{BaseApiClient.__module__}.BaseApiClient.{name}" for name in SEAMS} < set(
        status["patched"]
    )
    assert all(status["patched"].values())
    assert (status["keys"]["A"]["active"], status["keys"]["A"]["disabled_reason"]) == (
        False,
        "key_invalid",
    )
    assert (status["keys"]["B"]["active"], status["keys"]["B"]["success_count"]) == (True, 1)
    assert gemini.key("A").value not in repr(status)


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


@pytest.mark.parametrize("mode", MODES)
def test_workload_prefers_the_keys_of_that_work(mode, gemini, pool, connect) -> None:
    """Its keys are first inside the block, and the others still serve when those cannot."""
    pool({"key_id": "chat", "workload": "chat"}, {"key_id": "batch", "workload": "batch"})
    client = connect()
    with keyrot_middleware.workload("batch"):
        assert [ask(mode, client) for _ in range(4)] == ["ok from batch"] * 4
        gemini.script("batch", Reply.QUOTA_MINUTE)
        assert ask(mode, client) == "ok from chat"
    with keyrot_middleware.workload("chat"):
        assert ask(mode, client) == "ok from chat"


PROGRAM = """
    import sys
    from keyrot_middleware.testing import FakeGemini
    {before}
    import keyrot_middleware
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
        print(client.models.generate_content(model="gemini-2.5-flash", contents="hi").text)
        keyrot_middleware.uninstall()
        print([r.status for r in gemini.log])
"""


@pytest.mark.parametrize(
    ("before", "imported"), [("", False), ("import google.genai", True)], ids=["before", "after"]
)
def test_install_before_and_after_the_sdk_is_imported(before, imported) -> None:
    """Either order works, and we never import the SDK ourselves."""
    program = textwrap.dedent(PROGRAM).format(before=before, imported=imported)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout.split("\n")[:2] == ["ok from good", "[400, 200]"], done.stderr
    assert done.stderr.count("Warning") == 1  # Python 3.13 shows the line of the program too
    assert "KeyrotWarning: pool default, gemini-2.5-flash: key key_1 is rejected" in done.stderr


def test_uninstall_before_the_sdk_is_imported() -> None:
    """An import after uninstall() finds the SDK untouched; a later install() works."""
    program = """
        import keyrot_middleware, os
        keyrot_middleware.install(keys="FAKE-key")
        keyrot_middleware.uninstall()
        from google.genai._api_client import BaseApiClient
        plain = BaseApiClient._request
        assert not hasattr(plain, "__wrapped__")
        keyrot_middleware.install(keys="FAKE-key")
        assert hasattr(BaseApiClient._request, "__wrapped__")
        keyrot_middleware.uninstall()
        assert BaseApiClient._request is plain
        print("well")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("well\n", "")
