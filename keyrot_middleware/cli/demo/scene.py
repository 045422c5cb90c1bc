"""The scene of the demo: four keys at a fake Gemini API, and the environment of a program."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ...testing import FakeGemini, Reply

__all__ = ["FREE_RPM", "KEYS", "Scene", "open_scene", "wait_for_room"]

FREE_RPM = 5
ROOM_S = 6.0
"""Longer than the program runs, so that its calls fall into one minute."""

KEYS = (
    {"key_id": "revoked_1", "tier": "free", "project": "first-project"},
    {"key_id": "spent_1", "tier": "free", "project": "second-project"},
    {"key_id": "free_1", "tier": "free", "project": "third-project"},
    {"key_id": "paid_1", "tier": "tier1", "project": "company", "priority": 1},
)
"""No limits: the pool learns them from what Google answers."""

_OURS = ("GEMINI_", "GOOGLE_", "KEYROT_", "OTEL_", "ENABLE_KEY_ROTATION", "SECRET_STORE", "REDIS_")


@dataclass(frozen=True, slots=True)
class Scene:
    """A server and where a program finds it."""

    gemini: FakeGemini
    directory: Path
    keys_file: Path

    def alone(self) -> dict[str, str]:
        """Give the environment of a program with one key and no pool."""
        return self._environment(GEMINI_API_KEY=self.gemini.key("free_1").value)

    def pooled(self) -> dict[str, str]:
        """Give the environment of a program with the pool."""
        values = {
            f"GEMINI_KEY_{key['key_id']}": self.gemini.key(str(key["key_id"])).value for key in KEYS
        }
        return self._environment(
            KEYROT_KEYS_FILE=str(self.keys_file),
            KEYROT_STRATEGY="fill",
            KEYROT_ALLOWED_HOSTS=self.gemini.host,
            **values,
        )

    def _environment(self, **more: str) -> dict[str, str]:
        """Keep nothing of the user's own settings, and no proxy between this machine and itself."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        here = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return {**kept, **here, "GOOGLE_GEMINI_BASE_URL": self.gemini.url, **more}


@contextmanager
def open_scene() -> Iterator[Scene]:
    """Serve with a revoked key, one at the end of its day, a free one of 5 RPM, and a paid one."""
    with FakeGemini() as gemini, TemporaryDirectory(prefix="keyrot-demo-") as directory:
        for key in KEYS:
            label, project = str(key["key_id"]), str(key["project"])
            gemini.add_key(label, project=project, tier="free" if key["tier"] == "free" else "paid")
        gemini.always("revoked_1", Reply.KEY_INVALID)
        gemini.always("spent_1", Reply.QUOTA_DAY)
        gemini.limit("third-project", rpm=FREE_RPM)
        keys_file = Path(directory) / "keys.json"
        keys_file.write_text(json.dumps(KEYS, indent=2), "utf-8")
        yield Scene(gemini, Path(directory), keys_file)


def wait_for_room() -> float:
    """Wait for the next minute if this one is about to end; return the seconds waited."""
    left = 60.0 - time.time() % 60.0
    if left >= ROOM_S:
        return 0.0
    time.sleep(left)
    return left
