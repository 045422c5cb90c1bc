"""Where `keyrot status` and `keyrot explain` read from: the shared state, or a status socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from ..config import load
from ..core.text import one_line
from ..errors import KeyrotError
from ..runtime.report import StatusSource
from .shared import report_of_shared, shared_pool

__all__ = ["SocketSource", "open_source"]

TIMEOUT_S = 10.0
_FIELD = {"status": "summary", "attempts": "calls", "explain": "sentence"}
"""What each answer has."""


@contextmanager
def open_source() -> Iterator[StatusSource | None]:
    """Open what the settings name; None where the state is in memory and there is no socket.

    Raises:
        KeyrotError: A setting is wrong, there is no key, or the state cannot be read.
    """
    path = load().settings.status_socket
    if path is not None:
        yield SocketSource(path)
        return
    with shared_pool() as pool:
        yield report_of_shared(pool) if pool is not None else None


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix domain socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class SocketSource:
    """The `StatusSource` of a program that runs with KEYROT_STATUS_SOCKET."""

    def __init__(self, path: str) -> None:
        """Connect to nothing yet; *path* is that of the socket."""
        self._path = path

    def status(
        self, *, offset: int = 0, limit: int = 100, query: str = "", state: str = ""
    ) -> dict[str, Any]:
        """Return the pool and a part of its keys; see `StatusSource.status`."""
        return self._get("status", offset=offset, limit=limit, query=query, state=state)

    def attempts(self, *, key: str = "", limit: int = 100) -> dict[str, Any]:
        """Return the latest calls; see `StatusSource.attempts`."""
        return self._get("attempts", key=key, limit=limit)

    def explain(self, model: str, tokens: int = 0, workload: str = "") -> dict[str, Any]:
        """Return which key a call would get now; see `StatusSource.explain`."""
        return self._get("explain", model=model, tokens=tokens, workload=workload)

    def reset(self, key_id: str) -> str:
        """Raise: a socket only shows."""
        raise self._read_only(key_id)

    def set_active(self, key_id: str, active: bool) -> str:
        """Raise: a socket only shows."""
        raise self._read_only(key_id)

    def check(self, key_id: str) -> str:
        """Raise: a socket only shows."""
        raise self._read_only(key_id)

    def _read_only(self, key_id: str) -> KeyrotError:
        return KeyrotError(
            f"key {key_id}: the status socket only shows; in the program, call "
            f"keyrot_middleware.reset({key_id!r})"
        )

    def _get(self, what: str, **query: object) -> dict[str, Any]:
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", f"/api/{quote(what)}?{urlencode(query)}")
            answer = connection.getresponse()
            found: Any = json.loads(answer.read())
        except FileNotFoundError:
            raise KeyrotError(
                f"KEYROT_STATUS_SOCKET: there is no socket {self._path}; is the program running, "
                "with the same setting and the extra ui?"
            ) from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise KeyrotError(
                f"KEYROT_STATUS_SOCKET: nothing answers at {self._path} ({one_line(str(error))}); "
                "is the program still running?"
            ) from None
        finally:
            connection.close()
        if isinstance(found, dict) and "error" in found:
            raise KeyrotError(one_line(str(found["error"])))
        if not isinstance(found, dict) or _FIELD[what] not in found:
            raise KeyrotError(
                f"KEYROT_STATUS_SOCKET: what answers at {self._path} is not a pool of keyrot"
            )
        return found
