"""Record the outcome of every test, without a pool, or with one installed before the first.

A pytest plugin, loaded in both runs, so that they differ in one thing only, ``COEXIST_POOL``.
A global tracer provider is set in both, so that our spans are recorded and exported.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from loopback import only_loopback

POOL = os.environ.get("COEXIST_POOL")
KEYS = ("FAKE-key-01", "FAKE-key-02")
OUTCOMES: dict[str, str] = {}
DETAILS: dict[str, str] = {}


def pytest_configure() -> None:
    """Block the network, and record spans."""
    from opentelemetry import trace  # noqa: PLC0415 - nothing may be imported before pytest is up
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

    only_loopback()
    trace.set_tracer_provider(TracerProvider())


def pytest_sessionstart() -> None:
    """Install the pool; one of google-genai's tests has the keys of their fake service."""
    if POOL:
        import keyrot_middleware  # noqa: PLC0415 - the run without a pool must not import it

        keyrot_middleware.install(**({} if "GEMINI_API_KEYS" in os.environ else {"keys": KEYS}))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the call's outcome, or the setup's or teardown's if that is what failed."""
    if report.when == "call" or report.outcome != "passed":
        outcome = report.outcome if report.when == "call" else f"{report.when} {report.outcome}"
        _record(report.nodeid, outcome, report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a file that cannot be imported: it must be so in both runs."""
    if report.failed:
        _record(report.nodeid, "uncollected", report)


def pytest_sessionfinish() -> None:
    """Write the results; a pool that is gone has sent nothing."""
    sent = 0
    if POOL:
        import keyrot_middleware  # noqa: PLC0415

        keys = keyrot_middleware.status().get("keys", {}).values()
        sent = sum(key["success_count"] + key["error_count"] for key in keys)
    seen = {"outcomes": OUTCOMES, "details": DETAILS, "sent": sent}
    Path(os.environ["COEXIST_OUTCOMES"]).write_text(json.dumps(seen, indent=1), encoding="utf-8")


def _record(nodeid: str, outcome: str, report: Any) -> None:
    """Add one outcome; a failure has its exception's class too: two causes are two outcomes."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr).strip().splitlines()[-1]
        DETAILS[nodeid] = text[:2000]
        outcome = f"{outcome}: {text.removeprefix('E   ').split(':')[0].split()[0]}"
    before = OUTCOMES.get(nodeid)
    OUTCOMES[nodeid] = f"{before}, {outcome}" if before else outcome
