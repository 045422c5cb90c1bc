"""A fake service with a clock of its own, and SDK clients that are closed at the end."""

from collections.abc import Callable, Iterator

import pytest
from google import genai

from keyrot_middleware.testing import FakeClock, FakeGemini, FakeKey

Connect = Callable[[FakeKey], genai.Client]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gemini(clock: FakeClock) -> Iterator[FakeGemini]:
    with FakeGemini(clock) as server:
        yield server


@pytest.fixture
def connect(gemini: FakeGemini) -> Iterator[Connect]:
    clients: list[genai.Client] = []

    def make(key: FakeKey) -> genai.Client:
        clients.append(genai.Client(api_key=key.value, http_options=gemini.http_options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
