"""Shared by the tests of Live."""

from collections.abc import Iterator

import pytest

from keyrot_middleware.testing import plain_websockets


@pytest.fixture(autouse=True)
def _no_tls(v1beta: None) -> Iterator[None]:
    """Let the SDK ask for no TLS on loopback, and for the version that has Live."""
    with plain_websockets():
        yield
