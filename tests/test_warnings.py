"""Urgent problems of a user are Python warnings, which point at the user's own line."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import keyrot_middleware
from keyrot_middleware import KeyrotWarning

KEY = "FAKE-value-of-a-key"
HERE = str(Path(__file__))


@pytest.fixture(autouse=True)
def _clean() -> Any:
    yield
    keyrot_middleware.uninstall()


def warnings_of(**settings: Any) -> list[str]:
    """Install a pool; return the texts of its warnings, each at the line below."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        keyrot_middleware.install(**settings)
    ours = [one for one in found if issubclass(one.category, KeyrotWarning)]
    assert {one.filename for one in ours} <= {HERE}
    return [str(one.message) for one in ours]


def test_a_working_pool_has_no_warnings(monkeypatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEYS", KEY)
    assert warnings_of() == []
    assert warnings_of() == []


def test_no_key_at_all_is_a_warning() -> None:
    (text,) = warnings_of()
    assert text.startswith("no Gemini API key found: set GEMINI_API_KEYS")
    assert keyrot_middleware.status()["installed"] is False


def test_a_base_url_that_is_not_allowed_is_a_warning(monkeypatch) -> None:
    """Every call of the program bypasses the pool, which must not go unnoticed."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "https://gateway.example:8443/v1")
    (text,) = warnings_of(keys=[KEY])
    assert "GOOGLE_GEMINI_BASE_URL points to https://gateway.example:8443" in text
    keyrot_middleware.uninstall()
    assert warnings_of(keys=[KEY], allowed_hosts="gateway.example:8443") == []


def test_a_second_install_with_other_settings_is_a_warning(caplog) -> None:
    """They are ignored; the same settings, or none, are no reason."""
    assert warnings_of(keys=[KEY], strategy="fill", pool="one") == []
    assert warnings_of() == []
    assert warnings_of(keys=[KEY], strategy="fill") == []
    (text,) = warnings_of(strategy="sticky", pool="two")
    assert text.startswith(
        "install() was called before, so strategy, pool of this call are ignored"
    )
    assert keyrot_middleware.status()["pool"] == "one"
    assert "install() was called before" not in caplog.text


@pytest.mark.parametrize(
    ("value", "text"),
    [("sk-" + "x" * 40, "begins with sk-"), ("your-key-here", "looks like a placeholder")],
)
def test_a_value_that_is_no_gemini_key_is_a_warning(value, text) -> None:
    """It is still used; the warning shows nothing of it."""
    (found,) = warnings_of(keys=[value])
    assert text in found
    assert "key key_1" in found
    assert value[4:] not in found
    assert keyrot_middleware.status()["installed"]


def test_a_key_of_another_provider_is_skipped_with_a_warning_that_names_both() -> None:
    """The other keys serve; with none there is no pool."""
    foreign = "sk-proj-" + "x" * 40
    for keys, has_pool in (([foreign], False), ([foreign, KEY], True)):
        found = warnings_of(keys=keys)
        assert "key key_1: its value begins with sk-proj-, as keys of openai do" in found[0]
        assert "it is for gemini" in found[0]
        assert keyrot_middleware.status()["installed"] is has_pool
        keyrot_middleware.uninstall()


@pytest.mark.parametrize(
    "settings", [{}, {"keys": ["your-key-here"]}, {"keys": [KEY], "state_url": "memory://"}]
)
def test_a_warning_as_an_error_installs_nothing(settings, monkeypatch) -> None:
    """-W error: install() raises, and nothing is installed; without the cause it succeeds."""
    monkeypatch.setenv("KEYROT_STRATGY", "fill")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "https://gateway.example")
    with warnings.catch_warnings():
        warnings.simplefilter("error", KeyrotWarning)
        with pytest.raises(KeyrotWarning):
            keyrot_middleware.install(**settings)
    assert keyrot_middleware.status() == {"installed": False, "keys": {}}
    monkeypatch.delenv("KEYROT_STRATGY")
    monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL")
    assert warnings_of(keys=[KEY]) == []


def test_a_client_of_a_host_that_is_not_allowed_is_a_warning_once(gemini, connect) -> None:
    """At the line of its call; as an error it does not fail the call."""
    gemini.add_key("own", tier="paid")
    assert warnings_of(keys=[KEY]) == []
    client = connect(gemini.key("own").value)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(3):
            client.models.generate_content(model="gemini-3.1-flash-lite", contents="hi")
    ours = [one for one in found if issubclass(one.category, KeyrotWarning)]
    assert [(one.filename, gemini.host in str(one.message)) for one in ours] == [(HERE, True)]
    keyrot_middleware.uninstall()
    assert warnings_of(keys=[KEY]) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", KeyrotWarning)
        client.models.generate_content(model="gemini-3.1-flash-lite", contents="hi")


PROGRAM = """\
import keyrot_middleware
keyrot_middleware.install()
"""


def test_a_program_without_logging_shows_the_warning(tmp_path) -> None:
    """On stderr, with the line of the program."""
    (tmp_path / "app.py").write_text(PROGRAM)
    command = [sys.executable, "app.py"]
    ran = subprocess.run(
        command, cwd=tmp_path, text=True, capture_output=True, timeout=240, check=False
    )
    assert ran.stderr.count("no Gemini API key found") == 1
    assert "app.py:2: KeyrotWarning" in ran.stderr
