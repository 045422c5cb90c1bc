"""Two variables have a second name, with the prefix of all others: KEYROT_."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_settings import wrong

from keyrot_middleware.cli.check_report import build_report
from keyrot_middleware.config import load
from keyrot_middleware.settings import ALIASES

pytestmark = pytest.mark.usefixtures("here")

PAIRS: list[tuple[str, str, str, object]] = [
    ("KEYROT_ENABLE_KEY_ROTATION", "false", "enabled", False),
    ("KEYROT_SECRET_STORE_TYPE", "file", "secret_store", "file"),
]
"""Second name, a value, the setting, and the parsed value."""


@pytest.mark.parametrize("in_file", [False, True], ids=["environment", "file"])
@pytest.mark.parametrize(("alias", "value", "setting", "meant"), PAIRS)
def test_both_names_work(
    alias: str,
    value: str,
    setting: str,
    meant: object,
    in_file: bool,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The environment and .env may use either name, or both with one value."""
    for names in ((alias,), (ALIASES[alias],), (alias, ALIASES[alias])):
        if in_file:
            (here / ".env").write_text("".join(f"{name}={value}\n" for name in names))
        for name in () if in_file else names:
            monkeypatch.setenv(name, value)
        config = load()
        assert getattr(config.settings, setting) == meant, names
        assert config.warnings == ()
        for name in names:
            monkeypatch.delenv(name, raising=False)


def test_an_alias_in_the_environment_beats_the_first_name_in_the_file(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer beats the next one, with either name in each; an argument beats both."""
    (here / ".env").write_text("ENABLE_KEY_ROTATION=true\nSECRET_STORE_TYPE=vault\n")
    monkeypatch.setenv("KEYROT_SECRET_STORE_TYPE", "file")
    assert load().settings.secret_store == "file"
    assert load(secret_store="aws").settings.secret_store == "aws"
    monkeypatch.setenv("KEYROT_ENABLE_KEY_ROTATION", "")
    assert load().settings.enabled
    monkeypatch.setenv("KEYROT_ENABLE_KEY_ROTATION", "false")
    assert not load().settings.enabled


def test_an_empty_name_does_not_contradict_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty means the default, as for every variable; case and blanks do not matter."""
    monkeypatch.setenv("SECRET_STORE_TYPE", " ")
    monkeypatch.setenv("KEYROT_SECRET_STORE_TYPE", "file")
    assert load().settings.secret_store == "file"
    monkeypatch.setenv("SECRET_STORE_TYPE", "FILE ")
    assert load().settings.secret_store == "file"


@pytest.mark.parametrize(
    ("alias", "first", "second"),
    [
        ("KEYROT_ENABLE_KEY_ROTATION", "true", "false"),
        ("KEYROT_SECRET_STORE_TYPE", "file", "vault"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True], ids=["environment", "file"])
def test_two_values_for_one_setting_are_refused(
    alias: str,
    first: str,
    second: str,
    in_file: bool,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names both variables, both values and what is allowed."""
    if in_file:
        (here / ".env").write_text(f"{ALIASES[alias]}={first}\n{alias}={second}\n")
    else:
        monkeypatch.setenv(ALIASES[alias], first)
        monkeypatch.setenv(alias, second)
    expected = f'{ALIASES[alias]}{" in .env" if in_file else ""}: found "{first}", and "{second}" '
    assert wrong().startswith(f"{expected}in {alias}, which is the same setting; set one of the")


def test_a_wrong_value_is_reported_by_the_name_that_has_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error uses the name that the owner wrote."""
    (here / ".env").write_text("KEYROT_SECRET_STORE_TYPE=safe\n")
    assert wrong().startswith('KEYROT_SECRET_STORE_TYPE in .env: found "safe"; allowed: env')
    monkeypatch.setenv("KEYROT_SECRET_STORE_TYPE", "safe")
    assert wrong().startswith('KEYROT_SECRET_STORE_TYPE: found "safe"; allowed: env')


def test_check_shows_where_an_alias_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """`keyrot check` lists the setting by its first name, with the right source."""
    monkeypatch.setenv("KEYROT_SECRET_STORE_TYPE", "file")
    settings = {one.variable: one for one in build_report(load(keys="FAKE-key")).settings}
    found = settings["SECRET_STORE_TYPE"]
    assert (found.value, found.source) == ("file", "environment")
