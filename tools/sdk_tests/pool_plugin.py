"""Record the outcome of every SDK test, with a key pool installed or without one.

A pytest plugin, loaded by ``-p pool_plugin`` in both runs, so that they differ in one thing only:
with ``SDK_TESTS_POOL`` set, ``keyrot_middleware.install()`` is called before the first test.

The tests that use the ``client`` fixture of the SDK's conftest replay recorded answers, and the
recordings are not in the wheel. Those that call a model of the Gemini API run against a stand-in on
loopback instead; the others are skipped, in both runs alike. Only loopback can be reached.
"""

from __future__ import annotations

import json
import os
import socketserver
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import stand_in
from loopback import only_loopback

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

CALLS_A_MODEL = (
    *("afc", "chats", "models", "public_samples"),
    *("shared/afc", "shared/chats", "shared/models"),
)
"""Folders of the SDK's tests whose recorded calls the stand-in can answer."""
SLEEPS = "generate_videos"
"""Part of the name of every file whose tests wait 20 s and more for a job to end."""
TESTS = "google/genai/tests/"
OUTCOMES: dict[str, str] = {}
DETAILS: dict[str, str] = {}
FACTS: dict[str, Any] = {"left_out": 0, "wrapped": [], "sent": 0, "refused": 0}


def pytest_configure() -> None:
    """Block every host but this one, and let the tests' own servers end at once."""
    only_loopback()
    socketserver.BaseServer.serve_forever.__defaults__ = (0.02,)  # poll; 0.5 s, a hundred times
    os.environ["SDK_TESTS_STAND_IN"] = stand_in.start()


def pytest_sessionstart() -> None:
    """Install the pool, in the run that has one."""
    if os.environ.get("SDK_TESTS_POOL"):
        import keyrot_middleware  # noqa: PLC0415 - the other run must not import it

        google = "generativelanguage.googleapis.com"
        keyrot_middleware.install(allowed_hosts=[google, os.environ["SDK_TESTS_STAND_IN"]])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that need a recording and cannot use the stand-in."""
    _send_recorded_calls_to_stand_in()
    left_out = {item for item in items if _is_recorded(item) and not _can_be_answered(item)}
    config.hook.pytest_deselected(items=list(left_out))
    FACTS["left_out"] = len(left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Give a recorded test's client a key of its own, and no other test one."""
    if not _is_recorded(item):
        return (yield)
    with mock.patch.dict(os.environ, {"GEMINI_API_KEY": stand_in.HOME}):
        return (yield)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a file that cannot be imported: it must be so in both runs."""
    if report.failed:
        _record(report.nodeid, "uncollected", report)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the call's outcome, or the setup's or teardown's if that is what failed."""
    if report.when == "call" or report.outcome != "passed":
        outcome = report.outcome if report.when == "call" else f"{report.when} {report.outcome}"
        _record(report.nodeid, outcome, report)


def pytest_sessionfinish() -> None:
    """Write the results, and whether the pool is still installed after all these tests."""
    if os.environ.get("SDK_TESTS_POOL"):
        FACTS.update(wrapped=_wrapped_methods(), **_pool_counts())
    seen = {"outcomes": OUTCOMES, "details": DETAILS, "facts": FACTS}
    Path(os.environ["SDK_TESTS_OUTCOMES"]).write_text(json.dumps(seen, indent=1), encoding="utf-8")


def _record(nodeid: str, outcome: str, report: pytest.CollectReport | pytest.TestReport) -> None:
    """Add one outcome; a failure has its exception's class too: two causes are two outcomes."""
    nodeid = nodeid.removeprefix(TESTS)
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr).strip().splitlines()[-1]
        DETAILS[nodeid] = text[:2000]
        outcome = f"{outcome}: {text.removeprefix('E   ').split(':')[0].split()[0]}"
    before = OUTCOMES.get(nodeid)
    OUTCOMES[nodeid] = f"{before}, {outcome}" if before else outcome


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


def _send_recorded_calls_to_stand_in() -> None:
    """Point the SDK's replaying client at the stand-in; it has no setting for that."""
    from google.genai._replay_api_client import ReplayApiClient  # noqa: PLC0415

    plain = ReplayApiClient.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if not self.vertexai:
            self._http_options.base_url = f"http://{os.environ['SDK_TESTS_STAND_IN']}/"

    ReplayApiClient.__init__ = init  # type: ignore[method-assign]


def _wrapped_methods() -> list[str]:
    """Return which of the SDK's request methods are wrapped; with none the run proves nothing."""
    from google.genai._api_client import BaseApiClient  # noqa: PLC0415

    names = ("_request", "_async_request")
    return [name for name in names if hasattr(getattr(BaseApiClient, name), "__wrapped__")]


def _pool_counts() -> dict[str, int]:
    """Return how many requests used a pool key and how many were refused, by the pool's counts."""
    import keyrot_middleware  # noqa: PLC0415

    keys = keyrot_middleware.status()["keys"].values()
    refused = sum(key["error_count"] for key in keys)
    return {"sent": refused + sum(key["success_count"] for key in keys), "refused": refused}
