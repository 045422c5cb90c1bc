"""Shared by the tests of the SDK: one certificate to read, and keys mounted as files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from support.mounted_secrets import Files
from support.redirects import INVALID, Gateway, Server
from support.scenes import Scene

import keyrot_middleware
from keyrot_middleware.runtime import pool as upkeep
from keyrot_middleware.testing import FakeGemini

_END = "-----END CERTIFICATE-----\n"


@pytest.fixture(scope="session", autouse=True)
def _one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """SDK 1.x reads the machine's certificates three times for each client: let it read one."""
    file = tmp_path_factory.mktemp("certificates") / "one.pem"
    file.write_text(Path(certifi.where()).read_text().partition(_END)[0] + _END)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture
def files(
    gemini: FakeGemini, tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Files]:
    """Return a directory of mounted secrets that is checked often; uninstall afterwards."""
    monkeypatch.setattr(upkeep, "LOOK_S", 0.05)
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    yield Files(gemini, folder, clock)
    keyrot_middleware.uninstall()


@pytest.fixture
def scene(pool: Any, gemini: FakeGemini, connect: Callable[..., Any]) -> Iterator[Scene]:
    """Set it up, and close its server."""
    made = Scene(pool, gemini, connect)
    yield made
    if made.server is not None:
        made.server.close()


@pytest.fixture
def no_aiohttp(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what lets the SDK find no aiohttp."""

    def hide() -> None:
        from google.genai import _api_client

        monkeypatch.setattr(_api_client, "has_aiohttp", False)

    return hide


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers, and end them."""
    servers: list[Server] = []

    def start(*args: Any) -> Server:
        servers.append(Server(*args))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def elsewhere(serve: Callable[..., Server]) -> Server:
    """Serve at another address, which answers that the key is invalid."""
    return serve(400, {}, INVALID)


@pytest.fixture
def redirect(
    gemini: FakeGemini, pool: Any, connect: Callable[..., Any], serve: Callable[..., Server]
) -> Callable[[int, str], Gateway]:
    """Start a gateway that answers with a code and a location."""

    def start(code: int, location: str) -> Gateway:
        return Gateway(gemini, pool, connect, serve(code, {"location": location}))

    return start
