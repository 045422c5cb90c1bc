"""A library may rename what is patched: nobody loses the pool without a word."""

import sys
from typing import Any

import pytest
from google.genai import live

import keyrot_middleware

assert live  # some names are in it

LIBRARIES = ("google.", "httpx.", "httpx2.", "requests.", "aiohttp.")
INHERITED = ("__init__",)
"""What a class has in any case."""


def place_of(label: str) -> tuple[Any, list[str]]:
    """Return the module of a patched name, and the name's parts in it."""
    parts = label.split(".")
    size = max(n for n in range(1, len(parts)) if ".".join(parts[:n]) in sys.modules)
    return sys.modules[".".join(parts[:size])], parts[size:]


def without(label: str, parts: int, pool: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is said where only the first *parts* of a name are left."""
    owner, path = place_of(label)
    for part in path[:parts]:
        owner = getattr(owner, part)
    with monkeypatch.context() as renamed:
        renamed.delattr(owner, path[parts])
        with pytest.warns(keyrot_middleware.KeyrotWarning) as said:
            pool("A")
        assert keyrot_middleware.status()["patched"][label] is False
        keyrot_middleware.uninstall()
    return [str(warning.message) for warning in said]


def test_each_name_that_is_gone_is_reported(pool, monkeypatch) -> None:
    """A method, or its class: `install()` warns, and `status()` says that it is not in place."""
    pool("A")
    found = keyrot_middleware.status()["patched"]
    keyrot_middleware.uninstall()
    labels = [one for one in found if one.startswith(LIBRARIES) and not one.endswith(INHERITED)]
    assert len(labels) > 8
    for label in labels:
        _, path = place_of(label)
        for parts in range(len(path)):
            said = without(label, parts, pool, monkeypatch)
            assert any(f"has no {'.'.join(path)}," in text for text in said), (label, parts)
    pool("A")
    assert keyrot_middleware.status()["patched"] == found
