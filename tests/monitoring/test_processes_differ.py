"""Processes of one pool that differ, and a keys.json that some of them do not read.

Each process is a pool of this program with a file of its own. No thread, no real time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.receivers import Events

from keyrot_middleware import _install
from keyrot_middleware.cli import status as command
from keyrot_middleware.core.activity import ActivityRows
from keyrot_middleware.core.model import NANO, Budget, Candidate, Limits, RetryPolicy
from keyrot_middleware.monitoring import alerts, report
from keyrot_middleware.runtime import pool as runtime
from keyrot_middleware.runtime.processes import ALIVE_S, dump_keys, read_keys, texts_of_keys
from keyrot_middleware.settings import load
from keyrot_middleware.state import MemoryState
from keyrot_middleware.testing import FakeClock

KEYS = {"a": {"rpm": 10, "project": "p"}, "b": {"rpm": 10}}


class Process:
    """One process of the pool, with a keys.json of its own."""

    def __init__(self, host: Host, name: str, **settings: Any) -> None:
        self.file, self.host = host.folder / f"{name}.json", host
        self.write(host.keys)
        url = f"sqlite://{host.folder}/p.sqlite3"
        known = {"state_url": url, "pool": "p", "keys_file": self.file} | settings
        pool = _install.open_pool(load(**known), host.clock, on_event=host.events)
        assert pool is not None
        self.pool, self.report = pool, report.source_of(pool)
        self.alerts, self.refresher = pool.background

    def write(self, keys: dict[str, Any] | str) -> None:
        """Write keys.json."""
        entries = keys if isinstance(keys, str) else None
        rows = [{"key_id": name, **one} for name, one in KEYS.items()]
        if isinstance(keys, dict):
            rows = [{"key_id": name, **one} for name, one in keys.items()]
        self.file.write_text(json.dumps(rows) if entries is None else entries)

    def turn(self) -> None:
        """Do what its threads do."""
        for _ in range(2):  # what it has found in its keys.json is written in the next turn
            self.refresher.turn()
        self.alerts.look()

    @property
    def lines(self) -> list[str]:
        """What its page says first."""
        found: list[str] = self.report.status()["summary"]["headline"]["sentences"]
        return found[1:]


class Host:
    """The processes, and their time."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.folder, self.clock, self.events = folder, clock, Events()
        self.processes: list[Process] = []
        self.keys: dict[str, Any] = KEYS

    def start(self, *names: str, **settings: Any) -> list[Process]:
        """Start processes."""
        made = [Process(self, name, **settings) for name in names]
        self.processes += made
        return made

    def turn(self, minutes: int = 0) -> list[str]:
        """Let each process do what is due, now and each minute; return what they report."""
        for _ in range(minutes + 1):
            for one in self.processes:
                one.turn()
            for one in self.processes:
                one.alerts.look()
            self.clock.advance(60 if minutes else 0)
        reported, self.events.all = [one.event for one in self.events.all], []
        return reported


@pytest.fixture
def host(clock: FakeClock, monkeypatch: pytest.MonkeyPatch, here: Path) -> Iterator[Host]:
    for name in KEYS:
        monkeypatch.setenv(f"KEYROT_KEY_{name}", f"FAKE-value-{name}")
    known: list[object] = []
    monkeypatch.setattr(report, "FRESH_S", -1.0)
    monkeypatch.setattr(runtime, "LOOK_S", 0.0)
    monkeypatch.setattr(runtime.Refresher, "start", lambda one: setattr(one, "_on", True))
    monkeypatch.setattr(alerts.Alerts, "look_in", lambda *_: None)

    def own_name(pool: object) -> str:
        if pool not in known:
            known.append(pool)
        return f"web:{known.index(pool) + 1}/1"

    monkeypatch.setattr("keyrot_middleware.runtime.rotations.own_name", own_name)
    made = Host(here, clock)
    yield made
    for process in made.processes:
        process.pool.close()


def test_a_process_with_other_limits_is_named_with_what_differs(host: Host) -> None:
    """By all processes alike, at once on the page, and as an event after two minutes."""
    one, two, three = host.start("one", "two", "three")
    assert host.turn() == []
    assert [process.lines for process in host.processes] == [[]] * 3
    three.write({"a": {"rpm": 2, "project": "p"}, "b": {"rpm": 10}})
    assert host.turn() == []
    said = "1 of 3 processes differs: web:3 (key a: rpm 2, elsewhere 10)."
    assert [process.lines for process in host.processes] == [[said]] * 3
    found = one.report.status()["summary"]["processes"]
    assert found == {
        "running": 3,
        "differ": ["web:3"],
        "differences": ["key a: rpm 2, elsewhere 10"],
        "keys_file": None,
    }
    assert host.turn(minutes=1) == []
    assert host.turn(minutes=2) == ["processes_differ"]
    assert host.turn(minutes=3) == []
    three.write(KEYS)
    assert host.turn() == []
    assert two.lines == []
    assert not any(fact.is_on for fact in one.alerts._kept.values())


def test_a_rolling_update_is_no_alarm(host: Host) -> None:
    """A process that has ended differs from nobody, however it has ended."""
    old = host.start("old", "older")
    host.turn(minutes=3)
    new = host.start("new", "newer", use=0.5)
    assert host.turn() == []
    said = "2 of 4 processes differ: web:3, web:4 (key a: use 0.5, elsewhere 1.0; key b: use 0.5, "
    assert new[0].lines == [f"{said}elsewhere 1.0)."]
    host.processes = new
    assert host.turn(minutes=1) == []
    host.clock.advance(ALIVE_S)
    assert host.turn(minutes=5) == []
    assert new[0].lines == []
    host.processes += old


def test_what_differs_is_said_by_key_and_workload(host: Host) -> None:
    """Of keys that both have by field; three differences at most are in a sentence."""
    host.start("one", "two", workloads={"w": {"share": 0.1}})
    (three,) = host.start("three", workloads={"w": {"share": 0.5}})
    three.write({"b": {"rpm": 10, "usd": {"day": 5}, "project": "q"}, "c": {}})
    host.turn()
    assert host.processes[0].report.look().processes.differences == (
        "key b: project q, elsewhere none; usd day 5, elsewhere none",
        "key c: only there",
        "key a: not there",
        "workload w",
    )
    assert host.processes[0].lines[0].endswith("; key a: not there; 1 more).")


def test_what_a_service_chooses_for_its_own_calls_is_no_difference(host: Host) -> None:
    """A web service waits for less than a batch, and has other tiers, models and workloads."""
    host.keys = {"a": {"tier": "free"}, "b": {"tier": "tier1"}}
    host.start("one")
    host.start("two", tiers=("free",), max_wait_s=0, fallback_models="m>n")
    host.start("three", workloads={"w": {"share": 0.5}})
    assert host.turn(minutes=3) == []
    assert [process.lines for process in host.processes] == [[]] * 3
    assert host.processes[0].report.look().processes.differing == ()


def test_a_date_that_only_one_of_them_knows_is_no_difference(host: Host) -> None:
    """It decides about no call, and a process of an older version does not write it."""
    one, two = host.start("one", "two")
    two.write({name: fields | {"expires": "2099-12-31"} for name, fields in KEYS.items()})
    assert host.turn(minutes=4) == []
    assert (one.lines, two.lines) == ([], [])


def test_a_keys_file_that_is_not_read_is_an_event(host: Host) -> None:
    """Once for the pool, within a look of the refresher; and so is its end."""
    one, two = host.start("one", "two")
    host.turn()
    two.write('[{"key_id": "a",]')
    with pytest.warns(match="keys.json is not used"):
        assert host.turn() == ["keys_file_unreadable"]
    (said,) = one.lines
    start = "keys.json is not read: web:2 goes on with the keys it had: "
    assert said.startswith(start) and "no JSON that can be read" in said
    assert one.report.status()["summary"]["processes"]["keys_file"]
    assert host.turn(minutes=3) == []
    two.write(KEYS)
    assert host.turn() == ["keys_file_read_again"]
    assert one.lines == []


def test_a_pool_in_memory_says_that_its_file_is_not_read(host: Host) -> None:
    """On its own page, and as an event."""
    (one,) = host.start("one", state_url="memory://")
    one.write("{}")
    with pytest.warns(match="keys.json is not used"):
        assert host.turn() == ["keys_file_unreadable"]
    assert "keys.json is not read: " in one.lines[0]


@pytest.fixture
def outside(host: Host, monkeypatch: pytest.MonkeyPatch) -> Process:
    """Two processes, for a command whose keys.json, that of the first one, is broken."""
    one, _ = host.start("one", "two")
    monkeypatch.setattr(command, "time", SimpleNamespace(time=host.clock.time))
    monkeypatch.setenv("KEYROT_STATE_URL", f"sqlite://{host.folder}/p.sqlite3")
    monkeypatch.setenv("KEYROT_POOL", "p")
    monkeypatch.setenv("KEYROT_KEYS_FILE", str(one.file))
    host.turn()
    one.write('[{"key_id": "a",]')
    return one


@pytest.mark.parametrize("name", ["status", "check", "json", "explain", "disable"])
def test_commands_show_the_running_state_with_the_error_above_it(
    name: str, outside: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the exit code of what they show: calls are served."""
    with pytest.warns(match="keys.json is not used"):
        outside.turn()
    commands: dict[str, Callable[[], int]] = {
        "status": lambda: command.status(as_json=False, check=False),
        "check": lambda: command.status(as_json=False, check=True),
        "json": lambda: command.status(as_json=True, check=True),
        "explain": lambda: command.explain("gemini-3.1-flash-lite", 0, "", as_json=False),
        "disable": lambda: command.change("a", "disable"),
    }
    assert commands[name]() == 0
    out, err = capsys.readouterr()
    assert err.startswith("keyrot: KEYROT_KEYS_FILE, ")
    assert "no JSON that can be read" in err and command.RUNNING in err
    if name in ("status", "check"):
        assert "2 of 2 keys are available" in out
        assert "keys.json is not read: web:1 goes on with the keys it had" in out
    if name == "json":
        found = json.loads(out)
        assert [key["limits"]["rpm"] for key in found["keys"]] == [10, 10]
        assert "no JSON" in found["summary"]["processes"]["keys_file"]
    if name == "explain":
        assert "may get the call" in out
    if name == "disable":
        assert "key a is disabled" in out


def test_the_error_alone_stays_where_nothing_runs(
    outside: Process, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without processes that run, or in memory, there is nothing to show; other errors count."""
    host = outside.host
    host.clock.advance(ALIVE_S + 1)
    assert command.status(as_json=True, check=False) == 1
    out, err = capsys.readouterr()
    assert "no JSON that can be read" in json.loads(out)["error"]
    assert not err
    monkeypatch.setenv("KEYROT_STATE_URL", "memory://")
    assert command.explain("m", 0, "", as_json=False) == 1
    assert "no JSON that can be read" in capsys.readouterr().err
    monkeypatch.setenv("KEYROT_MAX_WAIT_S", "x")
    assert command.status(as_json=False, check=False) == 1
    err = capsys.readouterr().err
    assert "2 things are wrong" in err and "KEYROT_MAX_WAIT_S" in err and "no JSON" in err


def test_keys_in_a_state_are_as_the_pool_uses_them() -> None:
    """Without a value, its place or its fingerprint; what is no list of keys is none."""
    limits, usd = Limits(rpm=1, max_concurrency=2), Budget(day=5 * NANO)
    full = Candidate("a", "p", "acc", limits, "m", "w", "free", 1, 2.0, None, "openai", usd, 0.5)
    keys = [full, Candidate("b", "key:b", "project:key:b", disabled="active=false")]
    state = MemoryState(RetryPolicy(), lambda: 0.0)
    texts, digest = texts_of_keys([keys[0].with_value("0123"), keys[1]])
    assert "0123" not in str(texts)
    state.add_activity(ActivityRows({}, texts))
    assert read_keys(state, digest) == keys
    assert dump_keys(keys)[1] == digest != dump_keys(keys[:1])[1]
    assert read_keys(state, "other") == []
    for odd in ("5", "[5]", "[{}]", '[{"key_id": 1, "project": "", "billing_account": ""}]', "["):
        state.add_activity(ActivityRows({}, {"keys:odd": ([odd], 1)}))
        assert read_keys(state, "odd") == []
    assert texts_of_keys(keys * 300)[0] == {}
