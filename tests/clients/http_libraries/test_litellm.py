"""litellm, unchanged, over a pool: each of its ways to send, and its own errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import litellm_program
from support.http_modes import LITELLM


@pytest.fixture(scope="module")
def found() -> Any:
    """Run the program once, and return what it printed."""
    pytest.importorskip("litellm")
    tests = str(Path(__file__).parents[2])
    program = [sys.executable, "-W", "ignore", "-m", litellm_program.__name__]
    run = subprocess.run(
        program, cwd=tests, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr[-3_000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("mode", LITELLM)
def test_twelve_calls_meet_each_bad_key_once(mode, found) -> None:
    """An exhausted and an invalid key cost one request each, and none of the calls fails."""
    assert found["rotated"][mode] == {"texts": ["ok from C"], "sent": [1, 1, 12]}


@pytest.mark.parametrize("mode", ["litellm-completion", "litellm-stream", "litellm-acompletion"])
def test_no_key_is_litellms_own_rate_limit_error(mode, found) -> None:
    """Its RateLimitError names each key and why, and nothing is sent for a second call."""
    exhausted = found["exhausted"][mode]
    assert exhausted["sent"] == [1, 1]
    assert [name for name, _ in exhausted["errors"]] == ["RateLimitError"] * 2
    for _, text in exhausted["errors"]:
        assert "No Gemini API key of pool" in text
        assert "key_1: quota_day until 20" in text


def test_a_bad_request_is_litellms_own_error(found) -> None:
    """A 400 about the request is raised at once, and no other key is tried."""
    assert found["refused"] == {"error": "BadRequestError", "sent": [1, 0]}
