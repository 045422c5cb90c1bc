"""The pytest plugin, in a pytest of its own as a user's project runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

PLUGIN = "keyrot_middleware.testing.pytest_plugin"
WITH_PLUGIN = ("-p", "no:keyrot", "-p", PLUGIN)
"""Load it by its module, whether or not the entry point is installed here."""

APP = """
from google import genai


def summary(text):
    with genai.Client() as client:
        return client.models.generate_content(model="gemini-3.1-flash-lite", contents=text).text
"""
USES_POOL = """
import os

import pytest

import keyrot_middleware
from app import summary
from keyrot_middleware.testing import Reply, SystemClock


def test_another_key_answers(fake_gemini, keyrot_pool):
    pool = keyrot_pool("A", "B", strategy="fill")
    fake_gemini.script("A", Reply.QUOTA_MINUTE)
    assert summary("hi") == "ok from B"
    assert pool.get_health_status()["A"]["state"] == "cooling_down"
    assert [fake_gemini.sent("A"), fake_gemini.sent("B")] == [1, 1]


def test_a_minute_passes_at_once(fake_gemini, keyrot_pool):
    fake_gemini.add_key("A", rpm=1)
    keyrot_pool("A")
    assert [summary("hi"), summary("hi")] == ["ok from A", "ok from A"]


def test_entries_of_keys_json(fake_gemini, keyrot_pool):
    keyrot_pool({"key_id": "late", "priority": 1}, {"key_id": "first", "project": "p"})
    assert summary("hi") == "ok from first"
    assert fake_gemini.key("first").project == "p"


def test_the_last_pool_counts(fake_gemini, keyrot_pool):
    keyrot_pool("A")
    pool = keyrot_pool("B")
    assert summary("hi") == "ok from B"
    assert list(pool.get_health_status()) == ["B"]


def test_the_clock_is_shared(keyrot_clock, fake_gemini, keyrot_pool):
    keyrot_pool("A", "B", strategy="fill")
    fake_gemini.script("A", Reply.QUOTA_DAY)
    summary("hi")
    keyrot_clock.advance(86400)
    assert summary("hi") == "ok from A"


class TestRealTime:
    @pytest.fixture
    def keyrot_clock(self):
        return SystemClock()

    def test_a_retry_waits(self, fake_gemini, keyrot_pool):
        keyrot_pool("A")
        fake_gemini.script("A", Reply.OVERLOADED)
        assert summary("hi") == "ok from A"


def test_no_key_is_a_mistake(keyrot_pool):
    with pytest.raises(ValueError, match="name at least one key"):
        keyrot_pool()


def test_a_foreign_pool_is_a_mistake(keyrot_pool):
    keyrot_middleware.install(keys=["FAKE-value"])
    with pytest.raises(RuntimeError, match="a pool is installed already"):
        keyrot_pool("A")
    keyrot_middleware.uninstall()


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    before = dict(os.environ)
    yield
    assert not keyrot_middleware.status()["installed"]


def test_the_environment_is_restored():
    assert os.environ["GEMINI_API_KEYS"] == "FAKE-of-this-machine"
    assert "GOOGLE_GEMINI_BASE_URL" not in os.environ
"""
PLAIN = "def test_plain():\n    pass\n"
COUNTS_MODULES = """
import json, sys
from pathlib import Path

HEAVY = ("google.genai", "pydantic", "wrapt", "h11", "opentelemetry", "redis", "typer")


def pytest_unconfigure(config):
    Path("loaded.json").write_text(json.dumps([name for name in HEAVY if name in sys.modules]))
"""


def run_pytest(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *WITH_PLUGIN, *arguments],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_fixtures_serve_a_users_tests(tmp_path: Path) -> None:
    """Pools of fake keys replace each other, and leave pool and environment as they were.

    Warnings are errors, and the machine has keys of its own in the environment and in `.env`.
    """
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "test_app.py").write_text(USES_POOL)
    (tmp_path / ".env").write_text("GEMINI_API_KEY=FAKE-in-a-file\nKEYROT_MAX_WAIT_S=0\n")
    done = run_pytest(
        tmp_path,
        "-W",
        "error",
        "-W",
        "ignore:Inheritance class AiohttpClientSession:DeprecationWarning",
        GEMINI_API_KEYS="FAKE-of-this-machine",
        SECRET_STORE_TYPE="file",
        HTTP_PROXY="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout


def test_a_project_without_the_plugin_is_unchanged(tmp_path: Path) -> None:
    """Pytest starts without any library of ours, in strict mode, and lists the fixtures."""
    (tmp_path / "conftest.py").write_text(COUNTS_MODULES)
    (tmp_path / "test_plain.py").write_text(PLAIN)
    done = run_pytest(tmp_path, "-W", "error", "--strict-markers", "--strict-config")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert json.loads((tmp_path / "loaded.json").read_text()) == []
    assert "keyrot_pool -- " in run_pytest(tmp_path, "--fixtures").stdout
