"""A state in Redis without its libraries, or with ones that are too old."""

from __future__ import annotations

import importlib
import sys
import time
from types import ModuleType

import pytest

from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.errors import ConfigError, MissingExtraError
from keyrot_middleware.state import open_state


@pytest.fixture(params=["no redis", "no argument"])
def complaint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Remove something that the library should have; return the complaint."""
    if request.param == "no argument":
        monkeypatch.setattr(redis_py("redis"), "Redis", lambda host, port: None)
        return "unexpected keyword argument"
    for name in [n for n in sys.modules if ".state.redis" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    return "needs the package 'redis', which is not installed"


def redis_py(name: str) -> ModuleType:
    """Import a module of the library."""
    return importlib.import_module(name)


def test_an_unusable_library_is_an_error_that_names_what_to_install(complaint: str) -> None:
    """The error names the package, a version if there is one, and the pip line; no password."""
    with pytest.raises(ConfigError) as caught:
        open_state("redis://:hunter2@localhost", RetryPolicy(), time.time)
    message = str(caught.value)
    assert message.startswith("KEYROT_STATE_URL=redis://… ")
    assert complaint in message
    assert "'keyrot-middleware[redis]'" in message
    assert "hunter2" not in message
    assert isinstance(caught.value, MissingExtraError) == ("not installed" in complaint)
