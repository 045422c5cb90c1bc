"""Processes that fork, as servers with workers do: each goes on with the pool."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keyrot_middleware.testing import FakeGemini, Reply

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of POSIX")


@pytest.mark.parametrize(
    ("mode", "fork"),
    [
        ("httpx-sync", "before"),
        ("httpx2-astream", "after"),
        ("requests-stream", "before"),
        ("openai-async", "after"),
    ],
)
def test_both_processes_are_served(mode, fork) -> None:
    """The child knows what its parent has learned until the fork, and each learns the rest."""
    with FakeGemini() as gemini:
        keys = [gemini.add_key(label).value for label in "ABC"]
        gemini.always("A", Reply.QUOTA_DAY)
        gemini.always("B", Reply.KEY_INVALID)
        run = subprocess.run(
            [sys.executable, "-m", "support.fork_program", mode, gemini.host, fork, *keys],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        sent = [gemini.sent(label) for label in "ABC"]
    assert run.returncode == 0, run.stderr
    texts = [json.loads(line) for line in run.stdout.splitlines()]
    assert texts == [["ok from C"] * 3] * 2
    assert sent == ([1, 1, 7] if fork == "after" else [2, 2, 6])
