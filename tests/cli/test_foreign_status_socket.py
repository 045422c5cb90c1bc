"""What answers at KEYROT_STATUS_SOCKET may be anybody's: the command trusts none of it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keyrot_middleware import KeyrotError
from keyrot_middleware.cli import sources
from keyrot_middleware.cli.explain import explain
from keyrot_middleware.cli.sources import SocketSource
from keyrot_middleware.cli.status import status

AT = "2026-11-28T12:00:00Z"
WINDOW = {"used": 3, "limit": 5}
USED = {"available": False, "available_at": AT, "reason": "rpm"} | dict.fromkeys(
    ("rpm", "tpm", "rpd"), WINDOW
)
KEY = {
    "key_id": "free_1",
    "platform": "vertex_express",
    "model": "gemini",
    "state": "limited",
    "reason": "rpm",
    "available": False,
    "available_at": AT,
    "last_error": "429",
    "usd_today": 0.5,
    "used": {"gemini": USED},
}
STATUS = {
    "pool": "default",
    "shared": True,
    "state_url": "redis://host",
    "degraded": True,
    "at": AT,
    "has_records": False,
    "summary": {
        "available": 1,
        "keys": 2,
        "models": {"one": {"available": 1, "keys": 2}, "two": {"available": 0, "keys": 2}},
        "headline": {
            "keys": {"sentence": "No key is available.", "key_id": "free_1", "available_at": AT},
            "models": [{"sentence": "None for two.", "key_id": None, "available_at": None}],
            "calls": "1 of 2 calls failed.",
            "requests": "3 of 4 requests failed.",
        },
        "projects": {
            "proj-a": {"usd_today": 0.5, "usd_per_day": 1.0},
            "proj-b": {"usd_today": 0.5, "usd_per_day": None},
        },
        "today": {"cost_usd": 0.5},
    },
    "total": 2,
    "keys": [KEY, KEY | {"model": "another", "used": {}, "available": True, "usd_today": None}],
}
EXPLANATION = {
    "at": AT,
    "key_id": "free_1",
    "sentence": "A call would get key free_1 now.",
    "keys": [
        {
            "key_id": "free_1",
            "project": "proj-a",
            "position": 1,
            "available": True,
            "available_at": None,
            "sentence": "would get the call",
        },
        {
            "key_id": "free_2",
            "project": "proj-b",
            "position": 2,
            "available": False,
            "available_at": AT,
            "sentence": "cooling down",
        },
    ],
}
HOSTILE = "\x1b]0;owned\x07\x1b[31m\r\n\u202e[bold]x[/]\x9b2J"
VALUES = (HOSTILE, None, [], {}, [HOSTILE], True, -1, 10**300, float("inf"))


class Squatter:
    """A program of somebody else's on a Unix socket."""

    def __init__(self, path: str) -> None:
        self.path, self.asked = path, 0
        self.answer: Callable[[socket.socket], None] = lambda client: None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def say(self, content: object) -> None:
        """Answer with JSON from now on."""
        body = json.dumps(content).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.answer = lambda client: client.sendall(head + body)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, contextlib.suppress(OSError):
                    self.asked += bool(client.recv(4096))
                    self.answer(client)

    def close(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def squatter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> Iterator[Squatter]:
    """Run one where the command looks for the program."""
    path = str(tmp_path / "s")
    monkeypatch.setenv("KEYROT_STATUS_SOCKET", path)
    made = Squatter(path)
    yield made
    made.close()


def show_status() -> int:
    """Run `keyrot status`."""
    return status(as_json=False, watch=False)


def show_explanation() -> int:
    """Run `keyrot explain`."""
    return explain("gemini", 0, "", as_json=False)


def changed(content: Any) -> Iterator[Any]:
    """Yield *content* with one value replaced, for each value and each of `VALUES`; or missing."""

    def places(inside: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        entries = inside.items() if isinstance(inside, dict) else enumerate(inside)
        for name, value in list(entries):
            yield (*path, name)
            if isinstance(value, dict | list):
                yield from places(value, (*path, name))

    for path in places(content, ()):
        for value in (*VALUES, ...):
            made = copy.deepcopy(content)
            inside = made
            for name in path[:-1]:
                inside = inside[name]
            if value is ...:
                del inside[path[-1]]
            else:
                inside[path[-1]] = value
            yield made


def hostile(content: Any, name: str = "") -> Any:
    """Return *content* with a hostile text for each text that is free, and for each name."""
    if isinstance(content, dict):
        free = name in ("models", "projects", "used")
        return {
            (key + HOSTILE if free else key): hostile(value, key) for key, value in content.items()
        }
    if isinstance(content, list):
        return [hostile(one) for one in content]
    is_free = isinstance(content, str) and name not in ("state", "at", "available_at")
    return content + HOSTILE if is_free else content


COMMANDS = pytest.mark.parametrize(
    ("content", "show"),
    [(STATUS, show_status), (EXPLANATION, show_explanation)],
    ids=["status", "explain"],
)


@COMMANDS
def test_every_text_is_escaped(
    squatter: Squatter, capsys: pytest.CaptureFixture[str], content: Any, show: Callable[[], int]
) -> None:
    """No cell moves the cursor, colors the terminal, sets its title or is read as markup."""
    squatter.say(hostile(content))
    assert show() == 0
    out = capsys.readouterr().out
    assert re.findall(r"[^\n -~…]", out) == []
    texts = str(hostile(content)).count("owned")
    assert out.count("owned") >= texts / 2  # each is shown; some only where they are in force


@COMMANDS
def test_a_wrong_shape_is_a_sentence(
    squatter: Squatter,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: Any,
    show: Callable[[], int],
) -> None:
    """Each value of the answer, replaced by a value of another kind, or missing."""
    monkeypatch.setattr("keyrot_middleware.cli.status.LOOK_MAX_S", 0.1)
    refused = 0
    for wrong in (*changed(content), [], None, "text", 1):
        squatter.say(wrong)
        code = show()
        out, err = capsys.readouterr()
        assert re.findall(r"[^\n -~…]", out + err) == []
        if code == 1 and err:
            assert re.fullmatch(r"keyrot: .*\n", err)
            refused += 1
    assert refused > 100


def endless_headers(client: socket.socket) -> None:
    """Send `100 Continue` without end."""
    while True:
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def endless_body(client: socket.socket) -> None:
    """Send a body without end."""
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
    while True:
        client.sendall(b"[]," * 1000)


def drip(client: socket.socket) -> None:
    """Send a right answer, of which each byte comes soon after the one before."""
    body = json.dumps(STATUS | {"keys": [], "total": 0}).encode()
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body):
        client.sendall(bytes([byte]))
        time.sleep(0.01)


@pytest.mark.parametrize("answer", [endless_headers, endless_body, drip])
def test_an_answer_ends(
    squatter: Squatter, answer: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In size and in time, also if each part of it comes in time."""
    monkeypatch.setattr(sources, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(sources, "MAX_BYTES", 100_000)
    squatter.answer = answer
    with pytest.raises(KeyrotError, match=r"the answer (is longer|takes longer) than|timed out"):
        SocketSource(squatter.path).status()


def test_an_error_is_shown_in_part(squatter: Squatter) -> None:
    """A long one does not fill the terminal."""
    squatter.say({"error": HOSTILE * 10_000})
    with pytest.raises(KeyrotError) as raised:
        SocketSource(squatter.path).status()
    assert len(str(raised.value)) < 4 * sources.MAX_TEXT
    assert "\x1b" not in str(raised.value)


def test_keys_that_never_end_are_not_read_for_ever(
    squatter: Squatter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that has more keys each time it is asked."""
    monkeypatch.setattr("keyrot_middleware.cli.status.LOOK_MAX_S", 0.5)
    squatter.say(STATUS | {"total": 10**12})
    assert show_status() == 1
    assert "could not be read within" in capsys.readouterr().err


def test_the_socket_of_another_user_is_not_asked(
    squatter: Squatter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made the socket, the command says so and sends nothing."""
    squatter.say(STATUS)
    here = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: here + 1)
    with pytest.raises(KeyrotError, match="is not a socket of this user; run the command as"):
        SocketSource(squatter.path).status()
    assert squatter.asked == 0
