"""Fake keys, a keys.json with entries, and the messages with which settings are refused."""

import json
from pathlib import Path

import pytest

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.settings import load

A, B, C = ("AIza" + "FAKE" + letter * 31 for letter in "abc")
AUTH = "AQ." + "FAKE" + "z" * 46


def wrong(**overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**overrides)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "pydantic" not in str(caught.value)
    return str(caught.value)


def write_keys(path: Path, *entries: dict[str, object]) -> Path:
    path.write_text(json.dumps(entries))
    return path
