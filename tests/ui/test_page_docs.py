"""docs/page.md names each field of the API, each option of the command, and no other."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi import TOKEN, request
from fake_source import sample
from google import genai

import keyrot_middleware
from keyrot_middleware import ui
from keyrot_middleware.testing import FakeGemini, Reply

PAGE = (Path(__file__).parents[2] / "docs" / "page.md").read_text("utf-8")
MODEL = "gemini-3.1-flash-lite"


def section(heading: str) -> str:
    return PAGE.partition(f"### {heading}\n")[2].partition("\n### ")[0]


def fields(content: Any, under: str = "") -> Iterator[str]:
    if isinstance(content, list):
        for one in content:
            yield from fields(one)
    elif isinstance(content, dict):
        for name, value in content.items():
            if under not in ("used", "models", "states", "projects", "workloads", "series", "usd"):
                yield name
            yield from fields(value, name)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Mount the page over a pool that has been used, with a failure."""
    (tmp_path / "keys.json").write_text(
        json.dumps([{"key_id": "one", "usd": {"day": 5}}, {"key_id": "two"}])
    )
    with FakeGemini() as gemini:
        for label in ("one", "two"):
            monkeypatch.setenv(f"GEMINI_KEY_{label}", gemini.add_key(label).value)
        app = ui.app(token=TOKEN)
        keyrot_middleware.install(allowed_hosts=(gemini.host,), strategy="fill")
        gemini.script("one", Reply.QUOTA_MINUTE)
        client = genai.Client(http_options=gemini.http_options)
        client.models.generate_content(model=MODEL, contents="hello")
        yield app
        client.close()
        keyrot_middleware.uninstall()


@pytest.mark.parametrize(
    ("heading", "path"),
    [
        ("GET api/status", "/api/status"),
        ("GET api/attempts", "/api/attempts"),
        ("GET api/history", "/api/history?by=model"),
        ("GET api/explain", f"/api/explain?model={MODEL}"),
    ],
)
def test_each_field_is_documented(app: Any, heading: str, path: str) -> None:
    """The answer of a real pool has the fields that the page lists, and no other."""
    text = section(heading)
    found = set(fields(request(app, path).content))
    named = {part for name in re.findall(r"`([\w.]+)`", text) for part in name.split(".")}
    whole = {"/api/attempts": "calls", "/api/history": "series"}.get(path.partition("?")[0], "keys")
    assert {"at", whole} <= found
    assert sorted(found - named) == []
    table = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    listed = {name.split(".")[-1] for name in re.findall(r"`([\w.]+)`", table)}
    assert sorted(listed - found) == []


def test_the_fake_of_the_tests_has_the_same_fields(app: Any) -> None:
    """The data of the other tests has the fields of a real pool."""
    fake = ui.app(token=TOKEN, source=sample())
    paths = ("/api/status", "/api/attempts", "/api/history?by=model")
    for path in (*paths, f"/api/explain?model={MODEL}"):
        real, made = (set(fields(request(one, path).content)) for one in (app, fake))
        assert sorted(real ^ made) == [], path


def test_arguments_and_options_are_documented() -> None:
    """The tables name each argument of app() and each option of keyrot ui."""
    arguments = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert {*inspect.signature(ui.app).parameters} <= {*arguments}
    from typer.main import get_command

    from keyrot_middleware.cli.app import app as cli

    command = get_command(cli).commands["ui"]  # type: ignore[attr-defined] # it is a group
    options = {name for option in command.params for name in option.opts} - {"--help"}
    assert set(re.findall(r"^\| `(--[\w-]+)` \|", PAGE, re.MULTILINE)) == options
