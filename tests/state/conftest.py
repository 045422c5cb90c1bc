"""Every backend, through its blocking and its awaited methods: one contract for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.fallback import FallbackSetup
from support.servers import BINARIES, Server
from support.sync_async import URIS, AsyncClient, OpenBackend, StateClient, SyncClient, open_at

from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock


@pytest.fixture(params=URIS)
def open_backend(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[OpenBackend]:
    """Open the backend under test, with any policy; close it at the end."""
    opened: list[State] = []

    def open_it(policy: RetryPolicy | None = None) -> State:
        opened.append(open_at(request.param, policy or RetryPolicy(), clock.time))
        return opened[-1]

    yield open_it
    for state in opened:
        state.close()


@pytest.fixture
def client(open_backend: OpenBackend) -> StateClient:
    """Open a backend at the defaults; use its blocking methods."""
    return SyncClient(open_backend())


@pytest.fixture(params=[SyncClient, AsyncClient], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> type[StateClient]:
    """Choose the blocking methods, or the awaited ones."""
    found: type[StateClient] = request.param
    return found


@pytest.fixture
def setup(kind: type[StateClient], clock: FakeClock) -> FallbackSetup:
    """Open a state over one that can be cut off."""
    return FallbackSetup(kind, clock)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Start a server that tests may kill, stop and flush."""
    own = Server(BINARIES["valkey"], "--enable-debug-command", "local")
    yield own
    own.remove()


@pytest.fixture
def valkey() -> Iterator[Server]:
    """Start a server of its own."""
    made = Server(BINARIES["valkey"])
    yield made
    made.remove()
