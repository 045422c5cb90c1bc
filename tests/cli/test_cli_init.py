"""`keyrot init`: a first keys.json and .env."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from keyrot_middleware import KeyManager
from keyrot_middleware.cli.app import app
from keyrot_middleware.config import load

Init = Callable[..., Any]


@pytest.fixture
def init(clean_environment: None) -> Init:
    """Run `keyrot init ARGUMENTS…` in the test's empty directory; *answers* are typed."""

    def run(*arguments: str, answers: str = "", **env: str) -> Any:
        return CliRunner().invoke(app, ["init", *arguments], input=answers, env=env)

    return run


def test_keys_of_the_environment_are_written(init: Init, here: Path) -> None:
    """`--yes` asks nothing; a value that is there twice is one key."""
    done = init("--yes", GEMINI_API_KEYS="FAKE-1, FAKE-2,FAKE-1,")
    assert done.exit_code == 0
    assert json.loads((here / "keys.json").read_text()) == [
        {"key_id": "key_1"},
        {"key_id": "key_2"},
    ]
    assert "GEMINI_KEY_key_2=FAKE-2\n" in (here / ".env").read_text()
    assert "FAKE" not in (here / "keys.json").read_text() + done.output
    assert "Unset GEMINI_API_KEYS" in done.output
    assert "keyrot check --live" in done.output


def test_only_the_owner_can_read_the_values(init: Init, here: Path) -> None:
    """.env has mode 0600, also where it was there before with another mode."""
    (here / ".env").write_text("OTHER=1\nexport GEMINI_KEY_key_1=FAKE-old\n")
    (here / ".env").chmod(0o644)
    assert init("--yes", "--force", GEMINI_API_KEYS="FAKE-1").exit_code == 0
    assert stat.S_IMODE((here / ".env").stat().st_mode) == 0o600
    assert (here / ".env").read_text().splitlines() == [
        "OTHER=1",
        "# Values of the keys in keys.json",
        "GEMINI_KEY_key_1=FAKE-1",
    ]


def test_the_questions_make_a_pool_that_can_be_used(init: Init) -> None:
    """Names, values and projects are requested, and invalid ones are requested again."""
    first = "free_1\nFAKE-one\nmy-project\n"
    second = "9\nfree_1\npaid_1\nFAKE-one\nhas spaces\nFAKE-two\n\n"
    done = init(answers=f"many\n2\n{first}{second}\n")
    assert done.exit_code == 0, done.output
    for text in ("no digit first", "name of another key", "value of another key", "not a key"):
        assert text in done.output
    config = load()
    assert [(key.key_id, key.project) for key in config.keys] == [
        ("free_1", "my-project"),
        ("paid_1", None),
    ]
    manager = KeyManager()
    assert manager.select_key(exclude="paid_1").api_key == "FAKE-one"
    assert manager.select_key(exclude="free_1").api_key == "FAKE-two"
    assert "FAKE" not in Path("keys.json").read_text()


def test_keys_of_the_environment_are_offered(init: Init) -> None:
    """Without `--yes` one Enter accepts them, and only their projects are requested."""
    done = init(answers="\nshared\nshared\n\n", GEMINI_API_KEYS="FAKE-1,FAKE-2")
    assert done.exit_code == 0, done.output
    assert [key["project"] for key in json.loads(Path("keys.json").read_text())] == ["shared"] * 2


def test_a_value_can_be_filled_in_later(init: Init) -> None:
    """Its line is there, empty, and the next steps name it."""
    done = init(answers="1\nfree_1\n\n\n\n")
    assert "Fill in GEMINI_KEY_free_1 in .env." in done.output
    assert "GEMINI_KEY_free_1=\n" in Path(".env").read_text()


def test_an_existing_list_is_not_overwritten(init: Init) -> None:
    """It stops the command before any question, with what to do."""
    Path("keys.json").write_text("mine")
    done = init("--yes", GEMINI_API_KEYS="FAKE-1")
    assert done.exit_code == 1
    assert "keys.json exists already; nothing was written. With --force" in done.output
    assert [path.read_text() for path in Path().iterdir()] == ["mine"]


def test_values_are_added_to_an_existing_env_file(init: Init) -> None:
    """Its own lines stay, and only its owner can read it."""
    Path(".env").write_text("OTHER=1\n")
    assert init("--yes", GEMINI_API_KEYS="FAKE-1").exit_code == 0
    lines = Path(".env").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("OTHER=1", "GEMINI_KEY_key_1=FAKE-1")
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600


def test_a_value_in_an_existing_env_file_is_not_replaced(init: Init) -> None:
    """It may exist nowhere else: nothing is written without --force."""
    Path(".env").write_text("export GEMINI_KEY_key_1=mine\n")
    done = init("--yes", GEMINI_API_KEYS="FAKE-1")
    assert done.exit_code == 1
    assert ".env sets GEMINI_KEY_key_1 already; nothing was written. With --force" in done.output
    assert [path.read_text() for path in Path().iterdir()] == ["export GEMINI_KEY_key_1=mine\n"]


@pytest.mark.parametrize(
    ("value", "message"),
    [("", "GEMINI_API_KEYS is not set"), ("FAKE one", "is not a key"), ("a$b", "is not a key")],
)
def test_wrong_keys_are_errors(init: Init, value: str, message: str) -> None:
    """No key, and one that cannot be written to .env: nothing is written, no value is shown."""
    done = init("--yes", GEMINI_API_KEYS=value)
    assert done.exit_code == 1
    assert message in done.output
    assert not value or value not in done.output
    assert list(Path().iterdir()) == []


def test_an_end_of_input_writes_nothing(init: Init) -> None:
    """Ctrl-D at a question leaves the directory empty."""
    assert init(answers="1\n").exit_code == 1
    assert list(Path().iterdir()) == []


def test_a_directory_without_permission_is_reported(init: Init, monkeypatch: Any) -> None:
    """The error of the system is one sentence."""

    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied", ".env")

    monkeypatch.setattr("keyrot_middleware.cli.init.os.open", refuse)
    done = init("--yes", GEMINI_API_KEYS="FAKE-1")
    assert (done.exit_code, done.output) == (1, "keyrot init: .env: Permission denied\n")


def test_other_lines_of_env_stay_as_they_are(init: Init, here: Path) -> None:
    """Also a value with a separator that some programs treat as the end of a line."""
    (here / ".env").write_text("OTHER='a\u2028b'\n\nLAST=1", "utf-8")
    assert init("--yes", "--force", GEMINI_API_KEYS="FAKE-1").exit_code == 0
    assert (here / ".env").read_text("utf-8").startswith("OTHER='a\u2028b'\n\nLAST=1\n#")


def test_a_full_disk_leaves_both_files_as_they_were(
    init: Init, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its values may exist nowhere else."""
    (here / ".env").write_text("OTHER=1\n")

    def full(file: int, mode: str, encoding: str) -> Any:
        if not os.path.exists(".env.new"):  # keys.json comes first
            return os.fdopen(file, mode, encoding=encoding)
        os.close(file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    done = init("--yes", "--force", GEMINI_API_KEYS="FAKE-1")
    monkeypatch.undo()
    assert (done.exit_code, ".env: No space left" in done.output) == (1, True)
    assert (here / ".env").read_text() == "OTHER=1\n"
    assert [path.name for path in here.iterdir()] == [".env"]


def test_a_link_stays_a_link(init: Init, here: Path) -> None:
    """Its target is replaced."""
    (here / "real").write_text("OTHER=1\n")
    (here / ".env").symlink_to("real")
    assert init("--yes", "--force", GEMINI_API_KEYS="FAKE-1").exit_code == 0
    assert (here / ".env").is_symlink()
    assert "FAKE-1" in (here / "real").read_text()
    assert stat.S_IMODE((here / "real").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("answer", "url"),
    [
        ("no\n", None),
        ("maybe\non this host\n", "sqlite"),
        ("this\n", "sqlite"),
        ("on several hosts\nredis://r:6379/0\n", "redis://r:6379/0"),
        ("several\n\n", "redis://localhost:6379/0"),
    ],
)
def test_several_processes_get_one_state(
    init: Init, here: Path, answer: str, url: str | None
) -> None:
    """Of one host in a file, of several hosts in Redis; a new answer replaces the old one."""
    (here / ".env").write_text("KEYROT_STATE_URL=memory://\nOTHER=1\n")
    done = init("--force", answers=f"1\nfree_1\nFAKE-1\n\n{answer}")
    assert done.exit_code == 0, done.output
    assert load().state_url == (url or "memory://")
    lines = (here / ".env").read_text().splitlines()
    assert lines.count("OTHER=1") == 1
    assert sum(line.startswith("KEYROT_STATE_URL=") for line in lines) == 1
    assert init("--force", answers="1\nfree_1\nFAKE-1\n\nthis host\n").exit_code == 0
    assert load().state_url == "sqlite"
    assert (here / ".env").read_text().count("# The limits") == 1
