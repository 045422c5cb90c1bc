"""What stores over the network share: one read for each secret, ten at once, and errors by class.

Requests, retries, time-outs and logins are those of the store's own library. Of its exceptions a
message shows the class, and a code that is one word: their texts may hold a token or a value.
"""

from __future__ import annotations

import json
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.parse import unquote

from ..errors import SecretError
from ..forks import after_fork
from .base import Secret

CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 4.0
"""For one request."""
MAX_CONCURRENCY = 10
_WORD = re.compile(r"\w{1,60}", re.ASCII)

Stored = str | bytes | Mapping[str, object]
"""What a secret holds: a text, which may be a JSON object, or fields."""


class Unreadable(Exception):  # noqa: N818 - an answer for one secret; the others may be readable
    """The store answered that it does not give this secret."""


def codes(*found: object) -> str:
    """Return codes of a store for a message; what is not one word is left out."""
    return " ".join(word for word in map(str, found) if _WORD.fullmatch(word)) or "refused"


class RemoteStore(ABC):
    """Reads secrets with the client of a library; safe from several threads.

    The client is kept, with its login. If nothing could be read with it, there is a new one, once
    in a look-up.
    """

    scheme: str

    def __init__(self, default: str) -> None:
        """Connect to nothing yet; *default* is the secret with a field for each key."""
        self._default = default
        self._client: Any
        self._reset()
        after_fork(self, RemoteStore._reset)

    @abstractmethod
    def connect(self) -> Any:
        """Return the library's client, logged in."""

    @abstractmethod
    def read(self, client: Any, name: str) -> Stored:
        """Return what the secret *name* holds, which is the part of a place before `#`.

        Raises:
            Unreadable: The store does not give it. All else fails for all secrets.
        """

    def server_of(self, name: str) -> str:
        """Return which server has a secret; where it fails, no other of its secrets is read."""
        del name
        return self.scheme

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{self.scheme}://{self._default}#{key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up; a secret with several keys is read once."""
        places = {key_id: ref or self.place(key_id) for key_id, ref in refs.items()}
        names = {place: unquote(_path(place)) for place in places.values()}
        stored = self._read_all(list(dict.fromkeys(names.values()))) if names else {}
        return {
            key_id: _key_in(stored[names[place]], place, key_id) for key_id, place in places.items()
        }

    def _read_all(self, names: list[str]) -> dict[str, Stored | SecretError]:
        while True:
            kept = self._client
            found = self._read_each(names)
            if any(not isinstance(one, SecretError) for one in found.values()):
                return found
            self._client = None
            if kept is None:
                return found

    def _read_each(self, names: list[str]) -> dict[str, Stored | SecretError]:
        """Read the first, then the others at once; none of a server that has failed."""
        failed: dict[str, str] = {}

        def read(name: str) -> Stored | SecretError:
            server = self.server_of(name)
            try:
                if server not in failed:
                    return self.read(self._connected(), name)
            except Unreadable as error:
                return SecretError(str(error))
            except Exception as error:
                failed[server] = type(error).__name__
            return SecretError(failed[server])

        first, *rest = names
        found = {first: read(first)}
        if rest:
            with ThreadPoolExecutor(MAX_CONCURRENCY, "keyrot-secrets") as threads:
                found.update(zip(rest, threads.map(read, rest), strict=True))
        return found

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self.connect()
            return self._client

    def _reset(self) -> None:
        """Forget the client: two processes on one connection would read each other's responses."""
        self._client, self._lock = None, threading.Lock()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret store cannot be pickled: its login stays in this process")


def _path(place: str) -> str:
    return place.partition("://")[2].partition("#")[0]


def _key_in(stored: Stored | SecretError, place: str, key_id: str) -> Secret | SecretError:
    """Return the key in a stored secret: a field of it, or the whole text."""
    field = unquote(place.partition("#")[2])
    if isinstance(stored, SecretError):
        return SecretError(f"key {key_id}: {place}: {stored}")
    try:
        text = stored.decode("utf-8-sig") if isinstance(stored, bytes) else stored
    except UnicodeDecodeError:
        return SecretError(f"key {key_id}: {place}: it is no text")
    fields = text if isinstance(text, Mapping) else _parse_object(text)
    if fields is None and isinstance(text, str) and not field:
        return Secret(text)
    value = (fields or {}).get(field or key_id)
    if isinstance(value, str):
        return Secret(value)
    return SecretError(f"key {key_id}: {place}: it has no field {field or key_id} with a text")


def _parse_object(text: str) -> Mapping[str, object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
