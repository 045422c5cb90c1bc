"""A pool whose keys are in files, and the keys and values it currently uses."""

import json
from pathlib import Path
from typing import Any

import keyrot_middleware
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.testing import FakeGemini

TTL_S = 0.2
"""For tests: how often values are looked up."""


class Files:
    """A pool whose keys are in files, as an orchestrator mounts them, and its keys.json."""

    def __init__(self, gemini: FakeGemini, folder: Path, clock: Any) -> None:
        self._gemini, self.folder, self._clock = gemini, folder, clock
        self.keys_file = folder / "the-keys.json"

    def put(self, key_id: str, label: str | None = None) -> None:
        """Write the value of the fake service's key *label* for *key_id*; at once, as mounts do."""
        label = label or key_id
        try:
            value = self._gemini.key(label).value
        except KeyError:
            value = self._gemini.add_key(label, tier="paid").value
        draft = self.folder / "draft"
        draft.write_text(f"{value}\n")
        draft.rename(self.folder / key_id)

    def list(self, *entries: str | dict[str, Any]) -> None:
        found = [{"key_id": one} if isinstance(one, str) else one for one in entries]
        self.write(json.dumps(found))

    def write(self, content: str) -> None:
        """Write keys.json; at once, so that no half of it is read."""
        draft = self.folder / "draft.json"
        draft.write_text(content)
        draft.rename(self.keys_file)

    def start(self, *key_ids: str, **settings: Any) -> None:
        """Write values of these keys and list them, and install the pool."""
        for key_id in key_ids:
            self.put(key_id)
        self.list(*key_ids)
        self.install(**settings)

    def install(self, **settings: Any) -> None:
        given = {"secret_store": "file", "secrets_ttl_s": TTL_S, "strategy": "fill", **settings}
        keyrot_middleware.install(
            clock=self._clock,
            keys_file=self.keys_file,
            allowed_hosts=(self._gemini.host,),
            **given,
        )


def serving_keys() -> list[str]:
    pool = current_pool()
    assert pool is not None
    return list(pool.selector.keys)


def value_of(key_id: str) -> str:
    pool = current_pool()
    assert pool is not None
    return pool.secrets.value(key_id).reveal()
