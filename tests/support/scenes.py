"""A pool, a server that misbehaves, and one call of each kind whose error is recorded."""

import io
import json
from collections.abc import Callable
from typing import Any

from keyrot_middleware.testing import FakeGemini
from support.interactions import create
from support.modes import MODEL, MODES, ask, run
from support.raw_server import RawServer
from support.reporters import recorded

TIMEOUT_MS = 30_000
"""Of a call that should not end by it."""


def error_of(value: str, code: int = 403) -> bytes:
    message = f"Permission denied: Consumer 'api_key:{value}' has been suspended."
    return json.dumps({"error": {"code": code, "message": message, "status": "X"}}).encode()


class Scene:
    """A pool, a server on which something goes wrong, and a client of both."""

    def __init__(self, pool: Any, gemini: FakeGemini, connect: Callable[..., Any]) -> None:
        self._pool, self._gemini, self._connect = pool, gemini, connect
        self.server: RawServer | None = None

    def serve(self, talk: Callable[[Any, str], Any]) -> RawServer:
        self.server = RawServer(talk)
        return self.server

    def client(self, url: str, key: str | None = None, **options: Any) -> Any:
        """Install a pool of two keys that may go to the server, and make a client of it."""
        hosts = [url.partition("//")[2]]
        self._pool("A", "B", allowed_hosts=hosts, max_retries=0, max_wait_s=0, max_attempts=2)
        self._gemini.add_key("own", value=key) if key else None
        return self._connect(
            key, client_options={"base_url": url, "timeout": TIMEOUT_MS, **options}
        )

    def check(
        self,
        error: BaseException | None,
        *,
        sent: bool = True,
        form: Callable[[str], str] = str,
        more: str = "",
    ) -> None:
        """Check that nothing shows a key, and that one was sent.

        Args:
            error: What the program catches.
            sent: The server has a request with a key.
            form: How the server writes a key.
            more: What is recorded beside the error.
        """
        assert error is not None
        values = {label: self._gemini.key(label).value for label in ("A", "B")}
        if sent:
            assert self.server is not None
            assert set(self.server.keys) & set(values.values())
        parts = {label: value[8:-1] for label, value in values.items()}
        parts |= {f"{label} as sent": form(value[8:-1]) for label, value in values.items()}
        found = {
            f"{label} in {name}": text[max(text.find(part) - 300, 0) :][:360]
            for name, text in (recorded(error) | {"beside": more}).items()
            for label, part in parts.items()
            if part in text
        }
        assert found == {}, found


def raised(work: Callable[[], Any]) -> BaseException | None:
    try:
        work()
    except BaseException as error:
        return error
    return None


CONFIG = {"mime_type": "text/plain"}


def surfaces(client: Any) -> dict[str, Callable[[], Any]]:
    aio = client and client.aio
    return {
        **{mode: lambda mode=mode: ask(mode, client) for mode in MODES},
        "download": lambda: client.files.download(file="files/abc"),
        "async download": lambda: run(client, lambda: aio.files.download(file="files/abc")),
        "upload": lambda: client.files.upload(file=io.BytesIO(b"hello"), config=CONFIG),
        "async upload": lambda: run(
            client, lambda: aio.files.upload(file=io.BytesIO(b"hello"), config=CONFIG)
        ),
        **{f"interaction {mode}": lambda mode=mode: create(mode, client) for mode in MODES},
    }


SURFACES = tuple(surfaces(None))
WAYS = [
    *((surface, "httpx") for surface in SURFACES),
    *((surface, "aiohttp") for surface in SURFACES if surface.startswith("async")),
]
"""Each kind of call with each library that sends it."""


def other_calls(client: Any) -> dict[str, Callable[[], Any]]:
    """Give calls that do not rotate."""
    aio = client and client.aio
    asked = {"model": MODEL, "input": "hello"}
    return {
        "files.get": lambda: client.files.get(name="files/abc"),
        "files.download": lambda: client.files.download(file="files/abc"),
        "aio.files.get": lambda: run(client, lambda: aio.files.get(name="files/abc")),
        "aio.files.download": lambda: run(client, lambda: aio.files.download(file="files/abc")),
        "interactions": lambda: client.interactions.create(**asked),
        "aio.interactions": lambda: run(client, lambda: aio.interactions.create(**asked)),
    }


OTHERS = tuple(other_calls(None))
