"""Where `keyrot status` and `keyrot explain` read from: the shared state, or a status socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from ..config import load
from ..core.availability import KeyState
from ..core.text import one_line
from ..errors import KeyrotError
from ..monitoring.report import StatusSource
from .shared_pool import report_of_shared, shared_pool

__all__ = ["SocketSource", "open_source"]

TIMEOUT_S = 10.0
"""For a whole answer, however slowly it comes."""
MAX_BYTES = 16 * 2**20
"""The longest answer."""
MAX_TEXT = 500
"""Characters of an error that are shown."""


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


# The socket may be another program's: /tmp is everybody's ----------------------------------------


class _BoundedSocket(socket.socket):
    """A Unix socket of this user whose answers end, in time and in size."""

    def open(self, path: str) -> None:
        """Connect.

        Raises:
            PermissionError: Another user's program answers there.
        """
        self.until, self.left = time.monotonic() + TIMEOUT_S, MAX_BYTES
        self.settimeout(TIMEOUT_S)
        self.connect(path)
        owner = _peer(self) if hasattr(socket, "SO_PEERCRED") else Path(path).stat().st_uid
        if owner != os.geteuid():
            raise PermissionError(owner)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """Read what is there."""
        self.settimeout(max(self.until - time.monotonic(), 0.001))
        count = super().recv_into(*args, **kwargs)
        self.left -= count
        if self.left < 0:
            raise OSError(f"the answer is longer than {MAX_BYTES:,} bytes")
        if time.monotonic() >= self.until:
            raise TimeoutError(f"the answer takes longer than {TIMEOUT_S:g} s")
        return count


def _peer(connected: socket.socket) -> int:
    """Return the user id of the process that listens at the other end."""
    size = struct.calcsize("3i")
    found: tuple[int, int, int] = struct.unpack(
        "3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return found[1]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix domain socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = _BoundedSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.open(self._path)


# What an answer must have: of the fields in docs/page.md those that the commands show ------------


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True)


_Time = Annotated[str, AfterValidator(datetime.fromisoformat)]


class _Window(_Shape):
    used: float
    limit: float | None


class _Used(_Shape):
    available: bool
    available_at: _Time | None
    reason: str | None
    rpm: _Window
    tpm: _Window
    rpd: _Window


class _Key(_Shape):
    key_id: str
    platform: str
    model: str | None
    state: KeyState
    reason: str | None
    available: bool
    available_at: _Time | None
    last_error: str | None
    usd_today: float | None
    used: dict[str, _Used]


class _Counts(_Shape):
    available: int
    keys: int


class _Sentence(_Shape):
    sentence: str
    key_id: str | None
    available_at: _Time | None


class _Headline(_Shape):
    keys: _Sentence
    models: list[_Sentence]
    calls: str
    requests: str


class _Cost(_Shape):
    usd_today: float | None
    usd_per_day: float | None


class _Today(_Shape):
    cost_usd: float | None


class _Summary(_Counts):
    models: dict[str, _Counts]
    headline: _Headline
    projects: dict[str, _Cost]
    today: _Today


class _Status(_Shape):
    pool: str
    shared: bool
    state_url: str
    degraded: bool
    at: _Time
    has_records: bool
    summary: _Summary
    total: int
    keys: list[_Key]


class _Attempts(_Shape):
    calls: list[dict[str, Any]]


class _History(_Shape):
    series: dict[str, list[int] | None]
    shares: list[dict[str, Any]]


class _Explained(_Shape):
    key_id: str
    project: str | None
    position: int | None
    available: bool
    available_at: _Time | None
    sentence: str


class _Explanation(_Shape):
    at: _Time
    key_id: str | None
    sentence: str
    keys: list[_Explained]


_SHAPES: dict[str, type[_Shape]] = {
    "status": _Status,
    "attempts": _Attempts,
    "history": _History,
    "explain": _Explanation,
}


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

    def history(self, *, by: str = "", name: str = "", hours: int = 1) -> dict[str, Any]:
        """Return the counts of the last hours; see `StatusSource.history`."""
        return self._get("history", by=by, name=name, hours=hours)

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
        where = f"KEYROT_STATUS_SOCKET: {one_line(self._path)}"
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", f"/api/{quote(what)}?{urlencode(query)}")
            body = connection.getresponse().read()
            found: Any = json.loads(body)
        except FileNotFoundError:
            raise KeyrotError(
                f"{where}: there is no such socket; is the program running, with the same setting "
                "and the extra ui?"
            ) from None
        except PermissionError:
            raise KeyrotError(
                f"{where} is not a socket of this user; run the command as the user who runs the "
                "program"
            ) from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise KeyrotError(
                f"{where}: nothing answers as a pool does ({one_line(str(error))[:MAX_TEXT]}); is "
                "the program still running?"
            ) from None
        finally:
            connection.close()
        if isinstance(found, dict) and "error" in found:
            raise KeyrotError(one_line(str(found["error"])[:MAX_TEXT]))
        try:
            _SHAPES[what].model_validate_json(body)
        except ValidationError as error:
            field = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
            raise KeyrotError(
                f"{where}: what answers is not a pool of this version of keyrot; wrong or missing: "
                f"{one_line(field)[:MAX_TEXT] or 'everything'}"
            ) from None
        return dict(found)
