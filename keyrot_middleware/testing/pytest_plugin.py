"""The pytest plugin: fixtures `fake_gemini`, `keyrot_pool` and `keyrot_clock`.

pytest loads this file at start-up in every project that has the package installed. So it imports
nothing beyond pytest itself: a fixture imports what it needs when a test uses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from keyrot_middleware import KeyManager
    from keyrot_middleware.runtime.pool import PoolClock
    from keyrot_middleware.testing import FakeGemini

__all__ = ["PoolFactory", "fake_gemini", "keyrot_clock", "keyrot_pool"]

_SWITCHES_TO_VERTEX = ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE")


@pytest.fixture
def keyrot_clock() -> PoolClock:
    """Return the clock of `fake_gemini` and `keyrot_pool`: a `FakeClock` at 12:30:30 UTC.

    A wait for the next minute passes at once, and `keyrot_clock.advance(86400)` is tomorrow.
    Override it in a conftest.py to return a `SystemClock` for tests that need real time.
    """
    from keyrot_middleware.testing import FakeClock  # noqa: PLC0415 - see above

    return FakeClock()


@pytest.fixture
def fake_gemini(keyrot_clock: PoolClock) -> Iterator[FakeGemini]:
    """Run a `FakeGemini` until the test ends."""
    from keyrot_middleware.testing import FakeGemini  # noqa: PLC0415 - see above

    with FakeGemini(keyrot_clock) as server:
        yield server


@pytest.fixture
def keyrot_pool(
    fake_gemini: FakeGemini,
    keyrot_clock: PoolClock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[PoolFactory]:
    """Install a pool over `fake_gemini`.

    Examples:
        >>> pool = keyrot_pool("A", "B", strategy="fill")
    """
    from keyrot_middleware import uninstall  # noqa: PLC0415 - see above

    factory = PoolFactory(
        fake_gemini, keyrot_clock, monkeypatch, tmp_path_factory.mktemp("keyrot") / "keys.json"
    )
    yield factory
    if factory.installed:
        uninstall()


class PoolFactory:
    """Install a pool of keys that the fake service knows; the fixture `keyrot_pool`."""

    def __init__(
        self,
        gemini: FakeGemini,
        clock: PoolClock,
        monkeypatch: pytest.MonkeyPatch,
        keys_file: Path,
    ) -> None:
        self._gemini = gemini
        self._clock = clock
        self._monkeypatch = monkeypatch
        self._keys_file = keys_file
        self.installed = False
        """Whether it has installed a pool, which the fixture uninstalls."""

    def __call__(self, *keys: str | dict[str, Any], **settings: Any) -> KeyManager:
        """Install a pool of *keys*, in place of one that it installed before.

        No setting of this machine is used: neither the environment nor `.env` nor `keys.json`.
        `genai.Client()` without arguments talks to the fake service.

        Args:
            keys: Key ids, or entries of keys.json with a `key_id`. A key that the fake service
                does not know by this label is added to it, without limits.
            settings: Arguments of `install()`.

        Returns:
            The manager of the pool, with `get_health_status()` and `reset()`.

        Raises:
            ValueError: No key was named.
            RuntimeError: A pool is installed that is not from this fixture.
            ConfigError: A setting is wrong.
        """
        import keyrot_middleware  # noqa: PLC0415 - see above

        if not keys:
            raise ValueError('keyrot_pool: name at least one key, as in keyrot_pool("A", "B")')
        if self.installed:
            keyrot_middleware.uninstall()
        elif keyrot_middleware.status()["installed"]:
            raise RuntimeError(
                "keyrot_pool: a pool is installed already; call keyrot_middleware.uninstall() "
                "before the test"
            )
        entries = [{"key_id": key} if isinstance(key, str) else dict(key) for key in keys]
        self._isolate()
        for entry in entries:
            value = self._value(entry["key_id"], entry.get("project"))
            self._monkeypatch.setenv(f"GEMINI_KEY_{entry['key_id']}", value)
        self._keys_file.write_text(json.dumps(entries), "utf-8")
        self.installed = True
        keyrot_middleware.install(
            clock=self._clock,
            **{"keys_file": self._keys_file, "allowed_hosts": (self._gemini.host,), **settings},
        )
        return keyrot_middleware.get_key_manager()

    def _isolate(self) -> None:
        """Hide the settings of this machine, and lead the SDK to the fake service."""
        from keyrot_middleware.settings import ENV_NAMES  # noqa: PLC0415 - see above

        for name in ENV_NAMES.values():
            self._monkeypatch.setenv(name, "")  # hides a line of .env too
        for name in _SWITCHES_TO_VERTEX:
            self._monkeypatch.delenv(name, raising=False)
        self._monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", self._gemini.url)
        for name in ("NO_PROXY", "no_proxy"):
            self._monkeypatch.setenv(name, "127.0.0.1")

    def _value(self, label: str, project: str | None) -> str:
        try:
            return self._gemini.key(label).value
        except KeyError:
            return self._gemini.add_key(label, project=project).value
