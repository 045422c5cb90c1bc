"""`keyrot init`: a first keys.json and .env."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from keyrot_middleware import KeyManager
from keyrot_middleware.cli.app import app

Init = Callable[..., Any]


@pytest.fixture
def init(clean_environment: None) -> Init:
    def run(*arguments: str, answers: str = "", **env: str) -> Any:
        return CliRunner().invoke(app, ["init", *arguments], input=answers, env=env)

    return run


def test_keys_of_the_environment_are_written(init: Init, here: Path) -> None:
    """Nothing is asked; a value that is there twice is one key; other lines of .env stay."""
    (here / "real").write_text("OTHER='a\u2028b'\n\nLAST=1", "utf-8")
    (here / ".env").symlink_to("real")
    done = init(GEMINI_API_KEYS="FAKE-1, FAKE-2,FAKE-1,")
    assert done.exit_code == 0, done.output
    entries = [{"key_id": "key_1"}, {"key_id": "key_2"}]
    assert json.loads((here / "keys.json").read_text()) == entries
    lines = "OTHER='a\u2028b'\n\nLAST=1\nGEMINI_KEY_key_1=FAKE-1\nGEMINI_KEY_key_2=FAKE-2\n"
    assert (here / ".env").read_text("utf-8") == lines
    assert (here / ".env").is_symlink()
    assert stat.S_IMODE((here / "real").stat().st_mode) == 0o600
    assert "FAKE" not in (here / "keys.json").read_text() + done.output
    assert "keyrot check --live" in done.output


def test_keys_that_are_pasted_make_a_pool_that_can_be_used(init: Init) -> None:
    """Where GEMINI_API_KEYS has none they are asked for; an empty line ends the list."""
    done = init(answers="FAKE-one\nFAKE-two\n\n", GEMINI_API_KEY="FAKE-single")
    assert done.exit_code == 0, done.output
    assert "FAKE" not in done.output
    manager = KeyManager()
    assert manager.select_key(exclude="key_2").api_key == "FAKE-one"
    assert manager.select_key(exclude="key_1").api_key == "FAKE-two"


@pytest.mark.parametrize(
    ("name", "content"), [("keys.json", "mine"), (".env", "export GEMINI_KEY_key_1=FAKE-mine\n")]
)
def test_what_is_there_is_not_overwritten(init: Init, name: str, content: str) -> None:
    """A value may exist nowhere else."""
    Path(name).write_text(content)
    done = init(GEMINI_API_KEYS="FAKE-1")
    assert (done.exit_code, "nothing was written" in done.output) == (1, True)
    assert [path.read_text() for path in Path().iterdir()] == [content]


@pytest.mark.parametrize(
    ("value", "message"),
    [("", "no key to write"), ("FAKE one", "is not a key"), ("a$b", "is not a key")],
)
def test_wrong_keys_are_errors(init: Init, value: str, message: str) -> None:
    """No key, and one that cannot be written to .env: nothing is written, no value is shown."""
    done = init(answers="\n", GEMINI_API_KEYS=value)
    assert (done.exit_code, message in done.output) == (1, True)
    assert not value or value not in done.output
    assert list(Path().iterdir()) == []


def test_a_disk_that_takes_nothing_is_a_sentence(init: Init, monkeypatch: Any) -> None:
    """The files are as they were."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", ".env")

    monkeypatch.setattr("keyrot_middleware.cli.app.set_key", refuse)
    done = init(GEMINI_API_KEYS="FAKE-1")
    message = "keyrot: keys.json was not written: Permission denied\n"
    assert (done.exit_code, done.output) == (1, message)
