"""Every backend, and a server of a test's own."""

from collections.abc import Iterator

import pytest
from support.states import URIS, open_at

from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock


@pytest.fixture(params=URIS)
def state(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[State]:
    made = open_at(request.param, clock.time)
    yield made
    made.close()


@pytest.fixture(params=["server", "file"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "file":
        return f"sqlite://{request.getfixturevalue('tmp_path')}/state/keyrot.sqlite3"
    return str(request.getfixturevalue("valkey").url)
