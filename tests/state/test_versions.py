"""Two versions of this package on one state, as while the workers of a service are replaced.

`last_version.zip` has the state of the last version that was out, with what it imports: its
records and its script stand for those that run somewhere. When another version is out, it is
replaced: see CONTRIBUTING.md.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
import redis
from support.pool import INFO, key
from support.servers import wait_for
from support.states import acquire, failed, granted, opened, settle, used, warnings_of

import keyrot_middleware
from keyrot_middleware.core.activity import ActivityRows, versions_name
from keyrot_middleware.core.model import (
    NANO,
    Budget,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Scope,
    Usage,
)
from keyrot_middleware.state import State
from keyrot_middleware.state.base import OtherVersionError
from keyrot_middleware.state.fallback import PAUSE_S
from keyrot_middleware.state.sqlite import SCHEMA, path_of_url

HERE = Path(__file__).parent
LAST = HERE / "last_version.zip"
NOW = Path(keyrot_middleware.__file__).parents[1]
LIMIT = 60
WORKER = """
import inspect, json, logging, sys, time
from datetime import UTC, datetime
from keyrot_middleware.core.model import *
from keyrot_middleware.state import State, open_state
from keyrot_middleware.state.redis import RedisState

said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("keyrot_middleware").addHandler(handler)
url, limit, first = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "first"
number, has_minutes = 0, sys.argv[3] == "minutes"
noon = datetime(2026, 11, 20, 20, tzinfo=UTC).timestamp()
clock = (lambda: noon + 60.0 * (number // 10)) if has_minutes else time.time
if has_minutes and url.startswith("redis"):  # whose clock decides
    state = RedisState(url, RetryPolicy(), pool="versions", test_clock=clock)
else:
    state = open_state(url, RetryPolicy(), clock, pool="versions")
keys = tuple(
    (0, Candidate(name, project=name, billing_account=name, limits=Limits(rpd=limit)))
    for name in ("a", "b")
)
all_terms = (Terms("chat", first=True), Terms("batch", behind="chat")) if first else (None,)
is_last = "spread" in inspect.signature(State.acquire).parameters
how = {"spread": True} if is_last else {"strategy": "spread"}
is_replaced = sys.argv[3] == "replaced" and "replaced_by" in CallInfo._fields
by = {"replaced_by": "n"} if is_replaced else {}
print("ready", flush=True)
sys.stdin.readline()
granted = degraded = 0
for number in range(3 * limit):
    terms = all_terms[number % len(all_terms)]
    info = CallInfo("m", "generateContent", tokens=10, terms=terms, **by)
    reply = state.acquire(info, keys, **how)
    if isinstance(reply, Lease):
        state.settle(reply, Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=12)))
        granted, degraded = granted + 1, degraded + reply.degraded
    time.sleep(0.002)
snapshot = state.snapshot([key for _, key in keys])
counted = sum(used.requests_day for key in snapshot.values() for used in key.used)
state.close()
print(json.dumps([granted, degraded, counted, said]))
"""


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """Return a version whose records have one number more, behind what is known here."""
    shutil.copytree(NOW / "keyrot_middleware", tmp_path / "next" / "keyrot_middleware")
    for name, old, new in (
        (
            "core/windows.py",
            "    day_requests: int = 0\n    rest: Sequence[Any] = ()\n",
            "    day_requests: int = 0\n    rest: Sequence[Any] = (0, 0, 0, 7.5)\n",
        ),
        (
            "state/ledger.lua",
            "{ -1, 0, 0, 0, 0, day_end, 0 }",
            "{ -1, 0, 0, 0, 0, day_end, 0, 0, 0, 0, 7.5 }",
        ),
    ):
        file = tmp_path / "next" / "keyrot_middleware" / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
    return tmp_path / "next"


def run(url: str, where: Path, *versions: Path, mode: str = "plain") -> list[list[object]]:
    """Let a worker of each version use keys until none has room; return what each one says."""
    began = []
    for version in versions:
        environ = {name: value for name, value in os.environ.items() if "KEYROT" not in name}
        began.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", WORKER, url, str(LIMIT), mode],
                env=environ | {"PYTHONPATH": str(version)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=where,
            )
        )
    try:
        for one in began:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in began:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        return [json.loads(one.communicate(timeout=240)[0]) for one in began]
    finally:
        for one in began:
            one.kill()
            one.communicate()


MODES = ["plain", "first", "replaced", "minutes"]
"""Of calls: alike, of workloads, by a replaced name, ten in a minute."""


@pytest.mark.parametrize("mode", MODES)
def test_limits_are_exact_beside_the_last_version(url: str, mode: str, tmp_path: Path) -> None:
    """Four workers, two of each version, share a limit of each key; nobody falls back."""
    found = run(url, tmp_path, LAST, NOW, LAST, NOW, mode=mode)
    assert [said for *_, said in found] == [[]] * 4
    assert sum(granted for granted, *_ in found) == 2 * LIMIT  # type: ignore[misc]
    assert [degraded for _, degraded, *_ in found] == [0] * 4


@pytest.mark.parametrize("mode", ["plain", "first", "minutes"])
@pytest.mark.parametrize("first", [LAST, NOW], ids=["last", "now"])
def test_counts_of_one_version_hold_for_the_other(
    url: str, first: Path, mode: str, tmp_path: Path
) -> None:
    """After an upgrade, and after a roll-back, nothing of a limit is left that was used."""
    second = NOW if first is LAST else LAST
    assert run(url, tmp_path, first, mode=mode)[0][0] == 2 * LIMIT
    assert run(url, tmp_path, second, mode=mode) == [[0, 0, 2 * LIMIT, []]]


@pytest.mark.parametrize("mode", ["plain", "minutes"])
def test_a_newer_version_may_keep_more_in_a_record(
    url: str, mode: str, tmp_path: Path, next_version: Path
) -> None:
    """It is written back by this one as it was."""
    found = run(url, tmp_path, next_version, NOW, mode=mode)
    assert sum(granted for granted, *_ in found) == 2 * LIMIT  # type: ignore[misc]
    assert [(degraded, said) for _, degraded, _, said in found] == [(0, [])] * 2
    assert run(url, tmp_path, next_version, mode=mode) == [[0, 0, 2 * LIMIT, []]]


MORE = [7.5, "new"]


def with_more(table: str, text: str) -> str:
    """Return a record as a version writes it that keeps more in it."""
    found = json.loads(text)
    for row in found.values() if table == "cooldowns" else [found]:
        if table == "quotas":  # of which what the minutes of the day were may be missing
            row.extend([0] * (10 - len(row)))
        if table == "learned":  # of which what was read may be missing at the end
            row.extend([None] * (8 - len(row)))
        row.extend(MORE)
    return json.dumps(found)


@pytest.mark.parametrize("table", ["quotas", "learned", "cooldowns", "purses", "health"])
def test_what_a_newer_version_has_added_to_a_record_stays_there(url: str, table: str) -> None:
    """Whatever this one changes in the fields that it knows."""
    one = key("a", Limits(rpd=100), project="p", usd=Budget(day=10**12))

    def change(state: State, rpm: int) -> None:
        if table != "cooldowns":  # which a success ends
            settle(state, one, Outcome(LeaseOutcome.SUCCESS, None, Usage(10, cost_usd=0.5)))
        settle(state, one, failed(Scope.PROJECT_MODEL, 1.0, learned=Limits(rpm=rpm)))

    with opened(url) as state:
        change(state, 900)
        before = {name: with_more(table, text) for name, text in records_of(url, table).items()}
        assert before
        write(url, before)
        change(state, 800)
        after = records_of(url, table)
        assert not state.degraded
    for name, text in before.items():
        assert after[name] != text, "it was changed"
        found = json.loads(after[name])
        rows = list(found.values()) if table == "cooldowns" else [found]
        assert [row[-2:] for row in rows] == [MORE]


# What this version does not know -----------------------------------------------------------------


def records_of(url: str, table: str) -> dict[str, str]:
    """Return the records of a table of the pool `test`, by their names."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(path_of_url(url, "test"))) as db:
            sql = "SELECT name, value FROM records WHERE name LIKE ?"
            return dict(db.execute(sql, (f"test:{table}:%",)).fetchall())
    with closing(redis.Redis.from_url(url, decode_responses=True)) as client:
        names = client.keys(f"keyrot:v2:{{test}}:{table}*")
        return {
            f"{name}|{one}": text for name in names for one, text in client.hgetall(name).items()
        }


def write(url: str, records: Mapping[str, str]) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(path_of_url(url, "test"))) as db:
            for name, text in records.items():
                db.execute("UPDATE records SET value = ? WHERE name = ?", (text, name))
            db.commit()
        return
    with closing(redis.Redis.from_url(url)) as client:
        for name, text in records.items():
            client.hset(*name.split("|", 1), text)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        *product(["quotas", "learned", "purses"], ["{", '"x"', "[[[]]]", '["x", "x"]']),
        *product(["cooldowns"], ["{", '"x"', '{"project_model:gemini-3.1-flash-lite": ["x"]}']),
    ],
)
def test_a_record_of_a_limit_that_cannot_be_read_is_not_begun_anew(
    url: str, table: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The process uses a tenth of each limit, says which record it is, and looks again."""
    one = key("a", Limits(rpd=100), project="p", usd=Budget(day=10**12))
    with opened(url) as state:
        settle(state, one, used(10))
        scope = Scope.PROJECT_MODEL if table == "cooldowns" else Scope.NONE
        settle(state, one, failed(scope, 1.0, learned=Limits(rpm=900)))
        known = records_of(url, table)
        assert known
        state.add_activity(ActivityRows({versions_name(time.time()): {"0.2.0": 1, "0.1.0": 3}}, {}))
        write(url, dict.fromkeys(known, text))
        for _ in range(20):  # a trial every 0.1 to 2 s
            reply = acquire(state, one)
            assert not isinstance(reply, Lease) or reply.degraded
            state.snapshot([one])
            time.sleep(0.05)
        if table != "cooldowns":  # in which it is the time for a probe
            assert granted(state, one) == 0
            assert state.snapshot([one])["a"].used[0].requests_day == 10
        (said,) = warnings_of(caplog)
        assert f"its record {table} of " in said
        assert "; versions that used it today: 0.1.0, 0.2.0)" in said
        assert "in-process limits, of which this process uses 10%" in said
        write(url, known)
        wait_for(lambda: not getattr(acquire(state, one), "degraded", True))


def test_a_broken_record_of_a_key_that_is_not_used_is_said_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However often a page looks at all keys; `reset` ends it."""
    idle, one = key("idle"), key("a")
    with opened(url) as state:
        settle(state, idle, failed(Scope.NONE, learned=Limits(rpm=900)))
        write(url, dict.fromkeys(records_of(url, "learned"), "{"))
        for _ in range(2):
            state.snapshot([idle, one])
            for _ in range(5):  # a trial, and long enough after it for the state to be back
                assert getattr(acquire(state, one), "degraded", True)
                time.sleep(PAUSE_S / 4)
        assert len(warnings_of(caplog)) == 1
        state.reset(idle)
        wait_for(lambda: not getattr(acquire(state, one), "degraded", True))


def test_beside_a_newer_version_that_it_does_not_know(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once and uses a tenth of each limit, until that one is gone."""
    one, paid = key("a", Limits(rpd=50)), key("paid", usd=Budget(day=10 * NANO))
    call = INFO._replace(input_cost=1, longest_cost=NANO // 4)
    with opened(url) as state:
        settle(state, one)
        announce_newer(url, 1)
        with pytest.raises(OtherVersionError):
            state._shared.snapshot([one])  # as `keyrot status` and the page do
        state.add_activity(ActivityRows({"minute:1": {"x": 1}}, {}))
        assert state.degraded, "it looks with what it counts anyway"
        for _ in range(10):
            state.check()
            acquire(state, one)
            time.sleep(0.1)
        assert granted(state, one) == 0
        assert state.snapshot([one])["a"].used[0].requests_day == 5
        assert granted(state, paid, info=call) == 4
        (said,) = warnings_of(caplog)
        assert "a newer version of keyrot_middleware uses it" in said
        announce_newer(url, 0)
        wait_for(lambda: not getattr(acquire(state, one), "degraded", True))


def announce_newer(url: str, more: int) -> None:
    """Do what a version would do whose records have another meaning."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(path_of_url(url, "test"))) as db:
            db.execute(f"PRAGMA user_version = {SCHEMA + more}")
        return
    with closing(redis.Redis.from_url(url)) as client:
        name = "keyrot:v2:{test}:newer"
        client.set(name, "3", ex=60) if more else client.delete(name)
