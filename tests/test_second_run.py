"""`make test-newest` repeats without aiohttp what needs it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[1] / "tools"

TESTS = """
import asyncio, subprocess, sys
import pytest
from google import genai

async def send():
    client = genai.Client(api_key="FAKE", http_options={"base_url": "http://127.0.0.1:9"})
    with pytest.raises(Exception):
        await client.aio.models.generate_content(model="m", contents="hello")

def test_that_sends_nothing():
    pass

def test_that_sends():
    asyncio.run(send())

def test_that_starts_a_program():
    subprocess.run([sys.executable, "-c", ""], check=True)

@pytest.mark.parametrize("number", [1, 2])
def test_that_may_be_skipped(number):
    number == 1 or pytest.skip("not now")
"""

RUN = """
import sys
if sys.argv.pop(1) == "without":
    sys.modules["aiohttp"] = None
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_the_second_run_has_what_the_first_sent_by_aiohttp(here: Path) -> None:
    """Also what starts a program, and what was skipped: all that is not known to be the same."""
    (here / "test_some.py").write_text(TESTS)
    (here / "same").mkdir()

    def passed(how: str) -> list[str]:
        options = ["-rA", "-p", "aiohttp_use", "--same-without-aiohttp", "same"]
        ended = subprocess.run(
            [sys.executable, "-c", RUN, how, *options, "-W", "ignore", "test_some.py"],
            env=os.environ | {"PYTHONPATH": str(TOOLS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stdout
        return sorted(
            line.rpartition("::")[2] for line in ended.stdout.splitlines() if "PASSED " in line
        )

    assert passed("with") == [
        "test_that_may_be_skipped[1]",
        "test_that_sends",
        "test_that_sends_nothing",
        "test_that_starts_a_program",
    ]
    assert passed("without") == ["test_that_sends", "test_that_starts_a_program"]
