"""Every backend, through its blocking and its awaited methods: one contract for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from doors import URIS, Asked, Awaited, Door, Open, open_at
from outage import Both
from support.servers import BINARIES, Server, stop_all

from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock


@pytest.fixture(scope="session", autouse=True)
def _servers() -> Iterator[None]:
    """Stop at the end what the tests have started."""
    yield
    stop_all()


@pytest.fixture(params=URIS)
def open_backend(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Open]:
    """Open the backend under test, with any policy; close it at the end."""
    opened: list[State] = []

    def open_it(policy: RetryPolicy | None = None) -> State:
        opened.append(open_at(request.param, policy or RetryPolicy(), clock.time))
        return opened[-1]

    yield open_it
    for state in opened:
        state.close()


@pytest.fixture(params=[Asked, Awaited], ids=["sync", "async"])
def door(request: pytest.FixtureRequest, open_backend: Open) -> Door:
    """Open a backend at the defaults; use its blocking methods, or its awaited ones."""
    door: Door = request.param(open_backend())
    return door


@pytest.fixture(params=[Asked, Awaited], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> type[Door]:
    """Choose the blocking methods, or the awaited ones."""
    found: type[Door] = request.param
    return found


@pytest.fixture
def both(kind: type[Door], clock: FakeClock) -> Both:
    """Open a state over one that can be cut off."""
    return Both(kind, clock)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Start one that tests may kill, stop and flush."""
    own = Server(BINARIES["valkey"], "--enable-debug-command", "local")
    yield own
    own.remove()


@pytest.fixture
def valkey() -> Iterator[Server]:
    """Start a server of its own."""
    made = Server(BINARIES["valkey"])
    yield made
    made.remove()
