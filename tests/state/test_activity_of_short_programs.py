"""The calls of programs that end at once are on the page of those who share their state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.forks import run_fork
from support.servers import Server

from keyrot_middleware.core.activity import POOL
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.forks import EXIT_S
from keyrot_middleware.runtime.activity import Activity
from keyrot_middleware.state import open_shared
from keyrot_middleware.testing import FakeGemini

PATIENCE_S = 60.0
CALL = "client.post(PATH, json=BODY).raise_for_status()\n"
BEGIN = """\
import sys
import httpx
import keyrot_middleware
keyrot_middleware.install()
PATH = "/v1beta/models/gemini-2.5-flash:generateContent"
BODY = {"contents": [{"parts": [{"text": "hello"}]}]}
client = httpx.Client(
    base_url=sys.argv[1], headers={"x-goog-api-key": "keyrot-pool"}, trust_env=False
)
"""
WAIT = 'print("called", flush=True)\nsys.stdin.readline()\n'
CHILD = f"""\
def work():
    {CALL}
if __name__ == "__main__":
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
"""


@pytest.fixture
def gemini() -> Iterator[FakeGemini]:
    """Serve one key."""
    with FakeGemini() as running:
        yield running


@pytest.fixture
def environment(gemini: FakeGemini) -> dict[str, str]:
    """Let a program use that key."""
    value = gemini.add_key("key_1", tier="paid").value
    return {**os.environ, "GEMINI_API_KEYS": value, "KEYROT_ALLOWED_HOSTS": gemini.host}


def start(
    program: str, gemini: FakeGemini, env: dict[str, str], **pipes: int
) -> subprocess.Popen[str]:
    """Start a program."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, gemini.url]
    return subprocess.Popen(command, env=env, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def calls_in(url: str, *, is_priced: bool = False) -> int:
    """Return how many calls the page of this state counts."""
    state = open_shared(url, RetryPolicy(), time.time)
    assert state is not None
    try:
        view = Activity(state, time.time).view(["key_1"], time.time())
        if is_priced:
            assert view.today["key_1"].cost_usd == view.today[POOL].cost_usd > 0
        assert sum(view.histories[POOL].calls) == sum(view.histories["key_1"].requests)
        return len(view.calls)
    finally:
        state.close()


@pytest.mark.parametrize("place", ["server", "file"])
def test_twelve_calls_of_six_programs_are_twelve(
    place: str, tmp_path: Path, valkey: Server, gemini: FakeGemini, environment: dict[str, str]
) -> None:
    """Each sends two calls and ends, which takes less than the second between two reports."""
    url = valkey.url if place == "server" else f"sqlite://{tmp_path}/state.sqlite3"
    env = {**environment, "KEYROT_STATE_URL": url}
    for _ in range(6):  # one after the other: two programs at once take longer than a second
        run_fork(BEGIN + 2 * CALL, gemini.url, environ=env)
    assert gemini.count("key_1") == 12
    assert calls_in(url) == 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_call_of_a_child_is_counted(
    tmp_path: Path, gemini: FakeGemini, environment: dict[str, str]
) -> None:
    """A child of multiprocessing ends without exit handlers."""
    url = f"sqlite://{tmp_path}/state.sqlite3"
    process = start(BEGIN + CHILD, gemini, {**environment, "KEYROT_STATE_URL": url})
    assert process.wait(PATIENCE_S) == 0
    assert calls_in(url) == gemini.count("key_1") == 1


def test_the_last_calls_are_priced(
    tmp_path: Path, gemini: FakeGemini, environment: dict[str, str]
) -> None:
    """Where the list of prices is imported in time."""
    url = f"sqlite://{tmp_path}/state.sqlite3"
    program = "import genai_prices\n" + BEGIN + CALL
    process = start(program, gemini, {**environment, "KEYROT_STATE_URL": url})
    assert process.wait(PATIENCE_S) == 0
    assert calls_in(url, is_priced=True) == 1


def test_a_server_that_hangs_does_not_keep_a_program_alive(
    valkey: Server, gemini: FakeGemini, environment: dict[str, str]
) -> None:
    """Its last calls are lost then; the exit waits for them no longer than for anything else."""
    env = {**environment, "KEYROT_STATE_URL": f"{valkey.strict_url}?socket_timeout=30"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with start(BEGIN + CALL + WAIT, gemini, env, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == "called\n"
            valkey.signal(signal.SIGSTOP)
            process.stdin.close()
            began = time.monotonic()
            assert process.wait(PATIENCE_S) == 0
            assert time.monotonic() - began < EXIT_S + 20  # a busy machine exits slowly
        finally:
            process.kill()
            valkey.signal(signal.SIGCONT)
