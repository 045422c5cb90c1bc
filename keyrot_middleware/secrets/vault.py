"""Keys in HashiCorp Vault or OpenBao: secrets engine KV, version 1 or 2.

    vault://MOUNT/path/of/secret#field

A path is read once per look-up, however many keys are fields of it. The page for people is
docs/stores/vault.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ..core.text import mask_keys, nearest, shown
from ..errors import SecretError
from .base import Secret, SecretStore
from .extra import need
from .vault_desk import Desk
from .vault_faults import Fault
from .vault_paths import SCHEME, Fields, Shelf, Spot, spot
from .vault_round import Round
from .vault_settings import VaultSettings, read_settings

__all__ = ["VaultStore", "open_vault"]

_MOST_NAMES = 10
_TYPES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    dict: "an object",
    list: "a list",
}


def open_vault(environ: Mapping[str, str]) -> SecretStore:
    """Open the store by the variables of *environ*; the first look-up is the first request.

    Args:
        environ: The environment, laid over `.env`.

    Raises:
        ConfigError: A variable is wrong or missing.
        MissingExtraError: The extra `vault` is not installed.
    """
    need("vault", {"hvac": "hvac"})
    return VaultStore(read_settings(environ))


class VaultStore:
    """Look keys up in one Vault server, as one identity; safe from several threads."""

    scheme = "vault"

    def __init__(
        self, settings: VaultSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Send nothing yet; the life of a token is measured by *clock*, in seconds."""
        self._settings = settings
        self._desk = Desk(settings, clock)
        self._shelf = Shelf()

    def __repr__(self) -> str:
        return f"<VaultStore: {self._settings.server}>"

    def place(self, key_id: str) -> str:
        """Tell where a key is kept unless told otherwise."""
        return f"{SCHEME}{self._settings.place}#{key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up: one request for each path, and what a login may need."""
        places = {key_id: ref or self.place(key_id) for key_id, ref in refs.items()}
        spots = {key_id: spot(place, key_id) for key_id, place in places.items()}
        found = self._read(list(dict.fromkeys(at.path for at in spots.values() if at)))
        return {
            key_id: _pick(key_id, at, found[at.path]) if at else _no_place(key_id, places[key_id])
            for key_id, at in spots.items()
        }

    def _read(self, paths: list[str]) -> dict[str, Fields | Fault]:
        if not paths:
            return {}
        before = self._desk.held
        identity = self._desk.identity()
        if isinstance(identity, Fault):
            return dict.fromkeys(paths, identity)
        # A login of this moment is not repeated: nothing can have changed since.
        with Round(
            self._settings, self._desk, self._shelf, identity, may_log_in=identity is before
        ) as round_:
            return {path: round_.read(path) for path in paths}


def _pick(key_id: str, at: Spot, found: Fields | Fault) -> Secret | SecretError:
    """Take a key's field out of its secret, or say why there is none."""
    if isinstance(found, Fault):
        return _error(key_id, at, found.text)
    value = found.get(at.field)
    if isinstance(value, str) and (secret := Secret(value)):
        return secret
    if at.field not in found:
        return _error(key_id, at, f"the secret has no such field; {_names(at.field, found)}")
    if isinstance(value, str):
        return _error(key_id, at, "its value is empty")
    kind = _TYPES.get(type(value), "null")
    return _error(key_id, at, f"its value is {kind}; allowed: a text")


def _names(field: str, found: Fields) -> str:
    """Name the fields that are there: names are no secrets."""
    if not found:
        return "it has none at all"
    names = sorted(found)
    more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"it has: {', '.join(names[:_MOST_NAMES])}{more}.{nearest(field, names)}"


def _error(key_id: str, at: Spot, text: str) -> SecretError:
    return SecretError(mask_keys(f"key {key_id}: {SCHEME}{at.path}#{at.field}: {text}"))


def _no_place(key_id: str, place: str) -> SecretError:
    return SecretError(
        f"key {key_id}: found the place {shown(place)}; allowed: vault://MOUNT/path/of/secret#field"
    )
