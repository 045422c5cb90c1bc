"""Shared by the tests of the HTTP libraries."""

from collections.abc import Iterator

import pytest

import keyrot_middleware
from keyrot_middleware.testing import Reply


@pytest.fixture
def one_good(gemini, pool):  # type: ignore[no-untyped-def]  # fixtures of the root
    """Install a pool in which A always answers 429, B 400, and C succeeds."""

    def install(**settings: object) -> None:
        pool("A", "B", "C", **settings)
        gemini.always("A", Reply.QUOTA_MINUTE)
        gemini.always("B", Reply.KEY_INVALID)

    return install


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    yield
    keyrot_middleware.uninstall()
