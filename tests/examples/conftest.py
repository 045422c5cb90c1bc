"""The examples as a user runs them, against a fake service on the machine's time."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keyrot_middleware.testing import FakeGemini, Reply

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def service() -> Iterator[FakeGemini]:
    with FakeGemini() as server:
        for label in ("exhausted", "dead", "good"):
            server.add_key(label)
        server.always("exhausted", Reply.QUOTA_DAY)  # not free again while a test runs
        server.always("dead", Reply.KEY_INVALID)
        yield server


@pytest.fixture
def pool(service: FakeGemini) -> dict[str, str]:
    values = [service.key(label).value for label in ("exhausted", "dead", "good")]
    return {"GEMINI_API_KEYS": ",".join(values), "KEYROT_STRATEGY": "fill"}


@pytest.fixture
def example(service, clean_environment) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(
        name: str, *arguments: str, settings: dict[str, str], by: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        where = {"GOOGLE_GEMINI_BASE_URL": service.url, "KEYROT_ALLOWED_HOSTS": service.host}
        return subprocess.run(
            [sys.executable, *by, str(EXAMPLES / name), *arguments],
            env={**os.environ, "NO_PROXY": "127.0.0.1", **where, **settings},
            text=True,
            capture_output=True,
            timeout=240,
            check=False,
        )

    return run
