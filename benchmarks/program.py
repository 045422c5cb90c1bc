"""A program's view: the time of the import, and good calls over a pool with bad keys."""

from __future__ import annotations

import subprocess
import sys

from google import genai
from google.genai import types

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply

from .calls import MODEL, p50

__all__ = ["HEAVY", "import_time", "install_time", "three_keys"]

HEAVY = ("google.genai", "redis", "boto3", "hvac", "opentelemetry.sdk")


def import_time() -> tuple[float, list[str]]:
    """Import the package alone; return the median in ms and the heavy modules."""
    shown = f"*[m for m in {HEAVY!r} if m in sys.modules]"
    taken, runs = _timed("", "import keyrot_middleware", shown)
    return taken, runs[1:]


def install_time() -> float:
    """Import the package and install a pool behind the SDK's import; return the median in ms."""
    install = "import keyrot_middleware as k; k.install(keys=['FAKE-a', 'FAKE-b'])"
    return _timed("from google import genai", install, "")[0]


def _timed(before: str, what: str, shown: str) -> tuple[float, list[str]]:
    """Run seven programs; return the median of what they time, in ms, and what the last shows."""
    program = (
        f"import sys, time; {before}; t = time.perf_counter(); {what}; "
        f"print((time.perf_counter() - t) * 1e3, {shown})"
    ).replace("; ; ", "; ")
    runs = [
        subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-W", "ignore", "-c", program],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(7)
    ]
    return p50([float(run[0]) for run in runs]), runs[-1]


def three_keys() -> tuple[dict[str, int], int]:
    """Call 60 times over A = 429, B = invalid, C = good; requests per key, failures."""
    failed = 0
    with FakeGemini() as gemini:
        keys = [gemini.add_key(label).value for label in "ABC"]
        gemini.always("A", Reply.QUOTA_MINUTE)
        gemini.always("B", Reply.KEY_INVALID)
        keyrot_middleware.install(keys=keys, allowed_hosts=(gemini.host,))
        client = genai.Client(http_options=types.HttpOptions(base_url=gemini.url))
        for _ in range(60):
            try:
                client.models.generate_content(model=MODEL, contents="hi")
            except genai.errors.APIError:
                failed += 1
        keyrot_middleware.uninstall()
        return {label: gemini.sent(label) for label in "ABC"}, failed
