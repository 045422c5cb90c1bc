"""Secret stores for tests: one behind a gate, some plugged in; and helpers that read a store."""

import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret, SecretStore
from keyrot_middleware.secrets.cache import SecretCache, SecretLocation
from support.plugged_in import write_distribution
from support.servers import wait_for


class GatedStore:
    """A store behind a gate; open unless `gate.clear()` shuts it."""

    scheme = "slow"

    def __init__(self, **values: str) -> None:
        self.values = values
        self.gate = threading.Event()
        self.gate.set()
        self.down = False
        self.lookups: list[tuple[str, ...]] = []

    def resolve(self, refs: Mapping[str, str | None]) -> Mapping[str, Secret | SecretError]:
        self.lookups.append(tuple(refs))
        assert self.gate.wait(20), "the test never opened the gate"
        if self.down:
            raise ConnectionError("FAKE-token-of-the-store")
        return {
            key_id: Secret(self.values[key_id])
            if key_id in self.values
            else SecretError(f"key {key_id}: not there")
            for key_id in refs
        }


def record_changes(cache: SecretCache) -> list[frozenset[str]]:
    changes: list[frozenset[str]] = []
    cache.on_change = changes.append
    return changes


def cache_of(
    store: GatedStore, *key_ids: str, ttl_s: float = 300.0, start_timeout_s: float = 5.0
) -> SecretCache:
    locations = {key_id: SecretLocation(store) for key_id in key_ids or store.values}
    return SecretCache(locations, ttl_s=ttl_s, start_timeout_s=start_timeout_s)


def tick_until(cache: SecretCache, true: Callable[[], Any]) -> None:
    """Tick until something is true, as the refresher does: a busy store is passed over."""
    wait_for(lambda: cache.tick() >= 0 and true())


def resolve_all(store: SecretStore, **refs: str | None) -> dict[str, str]:
    found = store.resolve(refs)
    assert found.keys() == refs.keys()
    return {k: v.reveal() if isinstance(v, Secret) else str(v) for k, v in found.items()}


def resolve_one(store: SecretStore, ref: str | None = None, key_id: str = "a") -> str:
    return resolve_all(store, **{key_id: ref})[key_id]


def all_output(stores: Iterable[SecretStore], refs: dict[str, str | None]) -> str:
    """Resolve several stores; return all that can be printed of them and of their answers."""
    printed = []
    for store in stores:
        found = store.resolve(refs)
        printed += [repr(store), repr(vars(store)), repr(found)]
        errors = [answer for answer in found.values() if isinstance(answer, SecretError)]
        printed += [line for error in errors for line in traceback.format_exception(error)]
        assert [e for e in errors if e.__cause__ or e.__context__] == []
    return "\n".join(printed)


OPENED: list[Mapping[str, str]] = []
"""The arguments of the openers."""


class SafeStore:
    scheme = "safe"

    def resolve(self, refs: Mapping[str, str | None]) -> Mapping[str, Secret | SecretError]:
        return {
            key_id: SecretError(f"key {key_id}: not in the safe")
            if key_id == "missing"
            else Secret(f"FAKE-{key_id}-of-{ref or 'default'}")
            for key_id, ref in refs.items()
        }


def open_safe(environ: Mapping[str, str]) -> SafeStore:
    OPENED.append(environ)
    return SafeStore()


def open_broken(environ: Mapping[str, str]) -> SafeStore:
    OPENED.append(environ)
    raise ConnectionRefusedError(environ["SAFE_TOKEN"])


def open_flawed(environ: Mapping[str, str]) -> SafeStore:
    raise AttributeError("safe")


def plug_in(folder: Path, *schemes: str) -> str:
    """Write the metadata of a distribution with these stores; return the path to import from."""
    points = {name: f"{__name__}:open_{name}" for name in schemes}
    write_distribution(folder, "safe-keyrot", "keyrot_middleware.secret_stores", **points)
    return str(folder)
