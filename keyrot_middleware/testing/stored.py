"""Files, cached contents, batches and interactions: each is its project's, and nobody else's."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

__all__ = ["StoredThings", "Upload", "named_things", "stamp"]

_NAME = re.compile(r"(?:^|/)((?:files|cachedContents)/[A-Za-z0-9_-]+)(?::|$)")
# The fields in which a request names a stored thing, in both of the SDK's casings.
_NAMING = frozenset(
    {"fileUri", "file_uri", "fileName", "file_name", "uri", "cachedContent", "cached_content"}
)


@dataclass(slots=True)
class _Thing:
    project: str
    value: dict[str, Any]
    data: bytes = b""


@dataclass(slots=True)
class Upload:
    """A resumable upload that was begun.

    Attributes:
        project: Whose file it will be.
        label: The label of the key that began it.
        file: What the start said of the file.
        mime: The media type.
        data: The bytes that came so far.
    """

    project: str
    label: str
    file: dict[str, Any]
    mime: str
    data: bytearray = field(default_factory=bytearray)


def stamp(now: float) -> str:
    """Write epoch seconds as Google's JSON does."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def named_things(value: Any) -> Iterator[str]:
    """Yield the `files/…` and `cachedContents/…` that a request body names."""
    if isinstance(value, list):
        for item in value:
            yield from named_things(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in _NAMING and isinstance(inner, str):
                if found := _NAME.search(inner):
                    yield found[1]
            else:
                yield from named_things(inner)


class StoredThings:
    """Things by name, each with its project; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._things: dict[str, _Thing] = {}
        self._uploads: dict[str, Upload] = {}

    def new_name(self, collection: str) -> str:
        """Return a name that is free."""
        return f"{collection}/{secrets.token_hex(20 if collection == 'cachedContents' else 6)}"

    def put(self, name: str, project: str, value: dict[str, Any], data: bytes = b"") -> None:
        """Keep a thing of a project."""
        with self._lock:
            self._things[name] = _Thing(project, value, data)

    def get(self, name: str, project: str) -> dict[str, Any] | None:
        """Return a thing, or None if it is not there or another project's."""
        with self._lock:
            thing = self._things.get(name)
            return thing.value if thing and thing.project == project else None

    def data(self, name: str) -> bytes | None:
        """Return a file's bytes, or None."""
        with self._lock:
            thing = self._things.get(name)
            return thing.data if thing else None

    def delete(self, name: str, project: str) -> bool:
        """Forget a thing; return False if it is not there or another project's."""
        with self._lock:
            thing = self._things.get(name)
            if thing is None or thing.project != project:
                return False
            del self._things[name]
            return True

    def of(self, collection: str, project: str) -> list[dict[str, Any]]:
        """Return the things of one kind that a project has, oldest first."""
        with self._lock:
            return [
                thing.value
                for name, thing in self._things.items()
                if thing.project == project and name.startswith(f"{collection}/")
            ]

    def begin(self, upload: Upload) -> str:
        """Begin an upload; return its id."""
        with self._lock:
            upload_id = secrets.token_urlsafe(24)
            self._uploads[upload_id] = upload
            return upload_id

    def upload(self, upload_id: str) -> Upload | None:
        """Return an upload that was begun and not finished, or None."""
        with self._lock:
            return self._uploads.get(upload_id)

    def finish(self, upload_id: str) -> None:
        """Forget an upload."""
        with self._lock:
            self._uploads.pop(upload_id, None)
