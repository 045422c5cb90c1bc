"""A typo in keys.json while a service runs, seen by the command in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.states import acquire

from keyrot_middleware import _install
from keyrot_middleware.cli import status as command
from keyrot_middleware.core.model import Lease, LeaseOutcome, Outcome
from keyrot_middleware.runtime import pool as runtime
from keyrot_middleware.runtime.pool import Pool
from keyrot_middleware.settings import load

pytestmark = pytest.mark.filterwarnings("ignore::keyrot_middleware.KeyrotWarning")
SAME = (
    "key_id",
    "project",
    "platform",
    "state",
    "limits",
    "usd",
    "priority",
    "reason",
    "used",
    "expires",
)


@pytest.fixture
def start(
    here: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> Iterator[Callable[..., Pool]]:
    """Start a service with these keys, and the threads of the test."""
    pools: list[Pool] = []
    monkeypatch.setenv("KEYROT_STATE_URL", f"sqlite://{here}/state.sqlite3")
    monkeypatch.setenv("KEYROT_POOL", "typo")
    monkeypatch.setattr(runtime.Refresher, "start", lambda one: setattr(one, "_on", True))

    def started(keys: list[dict[str, Any]]) -> Pool:
        (here / "keys.json").write_text(json.dumps(keys))
        pool = _install.open_pool(load(), runtime.SystemClock())
        assert pool is not None
        pools.append(pool)
        pool.background[0].turn()
        return pool

    yield started
    for pool in pools:
        pool.close()


@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_all_is_shown_as_before(
    start: Any, keyrot: Any, here: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """Limits, and what is used of them: the day of a pool ends where its processes say."""
    monkeypatch.setenv("KEYROT_KEY_a", "FAKE-one")
    monkeypatch.setenv("KEYROT_KEY_b", "FAKE-two")
    one = {"key_id": "a", "provider": provider, "project": "p", "rpd": 10, "usd": {"day": 5}}
    one["expires"] = "2026-01-01"
    pool = start([one, {"key_id": "b", "provider": provider, "priority": 1}])
    lease = acquire(pool.state, *pool.selector.keys.values())
    assert isinstance(lease, Lease)
    pool.state.settle(lease, Outcome(LeaseOutcome.SUCCESS))
    before = json.loads(keyrot("status", "--json").stdout)
    (here / "keys.json").write_text('[{"key_id": "a",}]')
    shown = keyrot("status", "--json")
    assert "this is no JSON that can be read" in shown.stderr
    found = json.loads(shown.stdout)
    for key, was in zip(found["keys"], before["keys"], strict=True):
        assert [key[name] for name in SAME] == [was[name] for name in SAME]
    assert found["summary"]["midnight"] == before["summary"]["midnight"]
    assert any(line.startswith("Key a ended on 2026-01-01") for line in said(found))
    assert said(found) == said(before)


def said(status: dict[str, Any]) -> list[str]:
    lines: list[str] = status["summary"]["headline"]["sentences"]
    return lines


def test_a_page_that_runs_reads_a_changed_file_as_services_do(
    start: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with a mistake is not used; one that was wrong when it began is, once it is mended."""
    for name in "abc":
        monkeypatch.setenv(f"KEYROT_KEY_{name}", f"FAKE-value-{name}")
    file = here / "keys.json"
    start([{"key_id": "a"}])

    def keys(report: Any) -> list[str]:
        return sorted(row.key.key_id for row in report.look(anew=True).rows)

    with command.open_report() as report:
        assert keys(report) == ["a"]
        file.write_text('[{"key_id": "a"}, {"key_id": "b"}]')
        assert keys(report) == ["a", "b"]
        for text in ("[{", '[{"key_id": "a", "rpm": -1}]'):
            file.write_text(text)
            assert keys(report) == ["a", "b"]
        file.unlink()
        assert keys(report) == ["a", "b"]
        file.write_text('[{"key_id": "c"}]')
        assert keys(report) == ["c"]
    file.write_text("[")
    with command.open_report() as report:
        assert keys(report) == ["a"]
        file.write_text('[{"key_id": "a"}, {"key_id": "b"}]')
        assert keys(report) == ["a", "b"]


def test_keys_without_a_value_are_not_shown_as_available(
    start: Any, keyrot: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key has a value anywhere: what runs knows that, and this machine need not."""
    start([{"key_id": "a", "secret": f"file://{here}/a"}])
    before = json.loads(keyrot("status", "--json").stdout)
    assert [key["state"] for key in before["keys"]] == ["unresolved"]
    (here / "keys.json").write_text("[")
    found = json.loads(keyrot("status", "--json").stdout)
    assert [key["state"] for key in found["keys"]] == ["unresolved"]


def test_days_end_where_those_of_the_processes_do(
    start: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hours in which it is another day there than for keys of Gemini."""
    monkeypatch.setenv("KEYROT_KEY_a", "FAKE-one")
    start([{"key_id": "a", "provider": "openai"}])
    (here / "keys.json").write_text("[")
    with command.open_report() as found:
        assert found is not None
        state: Any = found.state
        assert state._ledger._policy.zone == "UTC"
        assert found.activity.zone == "UTC"
