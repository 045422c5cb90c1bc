"""Places in Vault, and how they are read from KV version 1 and version 2 alike.

Version 2 has the secret `team/a` of the mount `secret` at `secret/data/team/a`, and its fields one
level deeper; version 1 has it at `secret/team/a`. Which of them a mount is, the server says to
whoever may read something in it, at `sys/internal/ui/mounts/<path>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from .vault_faults import Fault, Kind

if TYPE_CHECKING:
    from .vault_wire import Line

__all__ = ["SCHEME", "Fields", "Shelf", "Spot", "clean", "spot"]

SCHEME = "vault://"
Fields = Mapping[str, object]
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f]")


class Spot(NamedTuple):
    """A field of a secret."""

    path: str
    """With the mount, without `data/`."""
    field: str


class _Mount(NamedTuple):
    path: str
    """With a slash at its end."""
    version: int

    def api(self, path: str) -> str:
        """Give the path of a secret as the API and policies have it."""
        return f"{self.path}data/{path[len(self.path) :]}" if self.version == 2 else path


def spot(ref: str, key_id: str) -> Spot | None:
    """Read a place, `vault://MOUNT/path#field`; without a field it is the key id.

    Blanks and other odd characters may be percent-encoded. None where it is no place.
    """
    path, _, field = ref.removeprefix(SCHEME).partition("#")
    cleaned = clean(unquote(path))
    return Spot(cleaned, unquote(field) or key_id) if cleaned else None


def clean(path: str) -> str | None:
    """Give a path of mount and secret without needless slashes; None where it is none."""
    parts = [part for part in path.split("/") if part]
    if len(parts) < 2 or {".", ".."} & set(parts) or _FORBIDDEN.search(path):
        return None
    return "/".join(parts)


class Shelf:
    """Read secrets, and remember the mounts. Several threads may use it at once."""

    def __init__(self) -> None:
        # Only single reads and writes, each of them whole in CPython: no lock is needed.
        self._mounts: dict[str, _Mount] = {}

    def read(self, line: Line, path: str) -> Fields | Fault:
        """Read the fields of one secret, in one request where the mount is known."""
        known = self._known(path)
        if known:
            found = _fields(line, known, path)
            # A mount can be made anew, or be upgraded to version 2, while we run.
            if not (isinstance(found, Fault) and found.kind is Kind.MISSING):
                return found
        mount = self._look(line, path)
        if isinstance(mount, Fault):
            return mount
        if mount is None:
            return self._try_both(line, path)
        self._mounts[mount.path] = mount
        return found if mount == known else _fields(line, mount, path)

    def _known(self, path: str) -> _Mount | None:
        parts = path.split("/")
        heads = ("/".join(parts[:end]) + "/" for end in range(1, len(parts)))
        return next((self._mounts[head] for head in heads if head in self._mounts), None)

    def _look(self, line: Line, path: str) -> _Mount | Fault | None:
        """Ask which mount a path is in; None: the server does not say."""
        answer = line.get(f"sys/internal/ui/mounts/{path}")
        if isinstance(answer, Fault):
            return answer if answer.kind is Kind.DOWN else None
        data = answer.get("data") or {}
        mount, kind = str(data.get("path", "")), data.get("type")
        if not mount.endswith("/") or not path.startswith(mount):
            return None
        if kind not in ("kv", "generic"):
            return Fault(Kind.MISSING, f"{mount} is a mount of the type {kind}, and not kv")
        version = (data.get("options") or {}).get("version")
        return _Mount(mount, 2 if str(version) == "2" else 1)

    def _try_both(self, line: Line, path: str) -> Fields | Fault:
        """Take the first word for the mount, and read as version 2, then as version 1."""
        head = path.partition("/")[0] + "/"
        mounts = _Mount(head, 2), _Mount(head, 1)
        faults: list[Fault] = []
        for mount in mounts:
            found = _fields(line, mount, path)
            if not isinstance(found, Fault):
                self._mounts[head] = mount
                return found
            if found.kind is Kind.DOWN:
                return found
            faults.append(found)
        if all(fault.kind is not Kind.DENIED for fault in faults):
            return faults[0]
        either = " or ".join(
            f'"{mount.api(path)}" (KV version {mount.version})' for mount in mounts
        )
        return Fault(
            Kind.DENIED,
            f"{path}, or there is no such mount; its policy needs the capability read on {either}",
        )


def _fields(line: Line, mount: _Mount, path: str) -> Fields | Fault:
    """Read a secret whose mount is known."""
    api = mount.api(path)
    answer = line.get(api)
    if isinstance(answer, Fault):
        return _told(answer, mount, path)
    data = answer.get("data")
    if mount.version == 2 and isinstance(data, dict):
        data = data.get("data") if "metadata" in data else None
    if not isinstance(data, dict):
        return Fault(Kind.MISSING, f"{api} holds no fields")
    return data


def _told(fault: Fault, mount: _Mount, path: str) -> Fault:
    """Say which path of the API it was; policies are written in these."""
    api = mount.api(path)
    doubled = mount.version == 2 and path.startswith(f"{mount.path}data/")
    hint = '; leave out "data/" after the mount, it is put in by itself' if doubled else ""
    if fault.kind is Kind.DENIED:
        needs = f'path "{api}" {{ capabilities = ["read"] }}'
        return Fault(Kind.DENIED, f"{api}; its policy needs: {needs}{hint}")
    if fault.kind is Kind.MISSING:
        return Fault(Kind.MISSING, f"{fault.text} ({api}){hint}")
    return fault
