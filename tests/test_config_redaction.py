"""Errors of settings or keys.json show no text that looks similar to a key."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.modes import spread

import keyrot_middleware
from keyrot_middleware import ConfigError

pytestmark = pytest.mark.promise(number=2)

_TAIL = "SyFAKE" + "kB7xQ2mZ9" * 3
NEAR = {
    "one character short": "AIza" + _TAIL[:34].ljust(34, "q"),
    "without its first character": "Iza" + _TAIL.ljust(35, "q"),
    "of another maker": "sk-proj-" + _TAIL + "FAKE",
    "without its beginning": _TAIL[2:].ljust(33, "Q"),
}

Wrong = Callable[[str, Path], dict[str, Any]]


def _in_file(entry: Callable[[str], Any]) -> Wrong:
    def wrong(near: str, folder: Path) -> dict[str, Any]:
        (folder / "keys.json").write_text(json.dumps(entry(near)))
        return {}

    return wrong


WRONG: dict[str, Wrong] = {
    "strategy": lambda near, _: {"strategy": near},
    "pool": lambda near, _: {"pool": f"{near}!"},
    "state_url": lambda near, _: {"state_url": near},
    "secret_store": lambda near, _: {"secret_store": near},
    "allowed_hosts": lambda near, _: {"allowed_hosts": f"https://{near}"},
    "keys_file": lambda near, _: {"keys_file": near},
    "max_retries": lambda near, _: {"max_retries": near},
    "argument": lambda near, _: {near: "x"},
    "key_id": _in_file(lambda near: [{"key_id": f"{near}!"}]),
    "id of a wrong key": _in_file(lambda near: [{"key_id": near.replace("-", "_"), "rpm": -1}]),
    "id twice": _in_file(lambda near: [{"key_id": near.replace("-", "_")}] * 2),
    "field": _in_file(lambda near: [{"key_id": "a", near: "x"}]),
    "tier": _in_file(lambda near: [{"key_id": "a", "tier": near}]),
    "entry": _in_file(lambda near: [near]),
    "file": _in_file(lambda near: near),
    "secret": _in_file(lambda near: [{"key_id": "a", "secret": near}]),
    "scheme": _in_file(lambda near: [{"key_id": "a", "secret": f"envv://{near}"}]),
}


@pytest.mark.parametrize(("place", "kind"), spread(WRONG, NEAR))
def test_no_error_shows_it(kind, place, tmp_path, monkeypatch) -> None:
    """A key that was copied badly may be in the wrong place too."""
    monkeypatch.chdir(tmp_path)
    near = NEAR[kind]
    with pytest.raises(ConfigError) as caught:
        keyrot_middleware.install(**WRONG[place](near, tmp_path))
    text = "".join(traceback.format_exception(caught.value))
    parts = (near[8:28], near[8:28].lower())
    assert not any(part in text.replace(near, near) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    "value", ["gemini-2.5-flash-image-preview-customtools", "a" * 60, "generate-content-per-day-2"]
)
def test_ordinary_text_is_shown(value) -> None:
    with pytest.raises(ConfigError, match=value):
        keyrot_middleware.install(strategy=value)


@pytest.mark.parametrize("url", ["redis://:{}@127.0.0.1/0?nope=1", "redis:///:{}@host"])
def test_no_frame_shows_the_password_of_the_state(url) -> None:
    with pytest.raises(ConfigError) as caught:
        keyrot_middleware.install(keys=["FAKE-a"], state_url=url.format("FAKE-password"))
    frames = traceback.walk_tb(caught.tb)
    own = [frame for frame, _ in frames if "keyrot_middleware" in frame.f_code.co_filename]
    assert own
    shown = [repr(value) for frame in own for value in frame.f_locals.values()]
    assert "FAKE-password" not in "".join(shown) + str(caught.value)
