"""What google-genai's own tests need beside `coexist_plugin`: a service that answers them.

Those that use the ``client`` fixture of the SDK's conftest replay recorded answers, and the
recordings are not in the wheel. Those that call a model of the Gemini API run against a FakeGemini
instead, where two keys of the pool never work, so that it rotates; the others are skipped.
"""

from __future__ import annotations

import os
import socketserver
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from keyrot_middleware.testing import FakeGemini, Reply

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

CALLS_A_MODEL = (
    *("afc", "chats", "models", "public_samples"),
    *("shared/afc", "shared/chats", "shared/models"),
)
"""Folders of the SDK's tests whose recorded calls the service can answer."""
SLEEPS = "generate_videos"
"""Part of the name of every file whose tests wait 20 s and more for a job to end."""
TESTS = "google/genai/tests/"
SERVICE = FakeGemini(keep_log=10)
SERVICE.add_key("home", tier="paid")
POOL = [SERVICE.add_key(f"key-{number}", tier="paid").value for number in range(5)]
SERVICE.always("key-0", Reply.QUOTA_DAY)
SERVICE.remove_key("key-1")


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Start the service, and let the tests' own servers end at once."""
    socketserver.BaseServer.serve_forever.__defaults__ = (0.02,)  # poll; 0.5 s, a hundred times
    SERVICE.start()
    if os.environ["COEXIST_POOL"]:
        hosts = ("generativelanguage.googleapis.com", SERVICE.host)
        os.environ["KEYROT_ALLOWED_HOSTS"] = ",".join(hosts)
        os.environ["GEMINI_API_KEYS"] = ",".join(POOL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that need a recording and cannot use the service."""
    _send_recorded_calls_to_the_service()
    left_out = {item for item in items if _is_recorded(item) and not _can_be_answered(item)}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Give a recorded test's client a key of its own, and no other test one."""
    if not _is_recorded(item):
        return (yield)
    with mock.patch.dict(os.environ, {"GEMINI_API_KEY": SERVICE.key("home").value}):
        return (yield)


def _is_recorded(item: pytest.Item) -> bool:
    """Return whether a test uses the replaying ``client`` of the SDK's own top conftest."""
    fixtures: dict[str, Sequence[Any]] = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009
    return any(
        definition.func.__module__ == "google.genai.tests.conftest"
        for definition in fixtures.get("client", ())[-1:]
    )


def _can_be_answered(item: pytest.Item) -> bool:
    """Return whether a recorded test is about a model of the Gemini API, and does not sleep."""
    folder, _, file = item.nodeid.removeprefix(TESTS).partition("::")[0].rpartition("/")
    vertex = getattr(item, "callspec").params.get("use_vertex")  # noqa: B009
    return folder in CALLS_A_MODEL and SLEEPS not in file and vertex is False


def _send_recorded_calls_to_the_service() -> None:
    """Point the SDK's replaying client at the service; it has no setting for that."""
    from google.genai._replay_api_client import ReplayApiClient  # noqa: PLC0415

    plain = ReplayApiClient.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if not self.vertexai:
            self._http_options.base_url = SERVICE.url

    ReplayApiClient.__init__ = init  # type: ignore[method-assign]
