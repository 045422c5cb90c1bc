"""States of other distributions, by entry points: the one of docs/sqlite.md, and some that fail.

It passes the contract of every state too: it is one of `URIS`.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.forks import run_fork
from support.plugged_in import write_distribution
from support.pool import key
from support.states import (
    OK,
    granted,
    jar_module,
    jar_state,
    lease_of,
    opened,
    settle,
    warnings_of,
)

from keyrot_middleware.core.activity import ActivityRows
from keyrot_middleware.core.model import LeaseOutcome, Limits, Outcome, RetryPolicy, Usage
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.settings import STATE_SCHEMES, STATES_GROUP, load
from keyrot_middleware.state import RecordState, StoreError, open_state, records
from keyrot_middleware.state.base import UnreadableRecordError
from keyrot_middleware.testing import FakeClock, FakeGemini

FIVE = key("a", Limits(rpd=5))
BROKEN = """
import no_such_library
"""
WRONG = """
from keyrot_middleware import ConfigError


def refused(url, policy, clock, *, pool):
    raise ConfigError("jar: found no name; allowed: jar:///path")


def failing(url, policy, clock, *, pool):
    raise ConnectionRefusedError(url)


def another(url, policy, clock, *, pool):
    return object()
"""
PROGRAM = """
import sys
import keyrot_middleware
from google import genai

keyrot_middleware.install(max_wait_s=0)
assert "jar_state" in sys.modules
client, served = genai.Client(), 0
try:
    for _ in range(4):
        client.models.generate_content(model="gemini-3.1-flash-lite", contents="hello")
        served += 1
except keyrot_middleware.KeyPoolExhausted:
    pass
print(served)
"""
PlugIn = Callable[..., Path]


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlugIn:
    """Return what makes a distribution with these states, and the folder that it is in."""

    def install(**points: str) -> Path:
        write_distribution(tmp_path, "jar-keyrot", STATES_GROUP, **points)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    (tmp_path / "jar_state.py").write_text(jar_module())
    (tmp_path / "jar_broken.py").write_text(BROKEN)
    (tmp_path / "jar_wrong.py").write_text(WRONG)
    for name in ("jar_state", "jar_broken", "jar_wrong"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return install


@pytest.fixture
def jar(tmp_path: Path, clock: FakeClock) -> Any:
    return jar_state()(f"jar://{tmp_path}/jar.json", RetryPolicy(), clock.time, pool="p")


# By entry point --------------------------------------------------------------------------------


def test_programs_share_limits_by_a_state_that_plugs_in(plug_in: PlugIn) -> None:
    """Each of two programs sends what the other one has left of a day; `keyrot status` shows it."""
    folder = plug_in(jar="jar_state:JarState")
    with FakeGemini() as gemini:
        value = gemini.add_key("a", tier="paid").value
        (folder / "keys.json").write_text(json.dumps([{"key_id": "a", "rpd": 5}]))
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
            "KEYROT_KEYS_FILE": str(folder / "keys.json"),
            "KEYROT_KEY_a": value,
            "KEYROT_STATE_URL": f"jar://{folder}/jar.json",
            "KEYROT_POOL": "jars",
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
        }
        args = [sys.executable, "-W", "ignore", "-c", PROGRAM]
        done = [
            subprocess.run(
                args, env=environ, capture_output=True, text=True, timeout=60, check=False
            )
            for _ in range(2)
        ]
        assert [one.stderr for one in done] == ["", ""]
        assert [int(one.stdout) for one in done] == [4, 1]
        assert gemini.count("a") == 5
        shown = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "keyrot_middleware", "status", "--json"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert '"rpd"' in shown.stdout, shown.stderr


def test_its_scheme_is_one_of_those_that_are_allowed(plug_in: PlugIn, monkeypatch) -> None:
    """What follows it is its own; a message about another scheme names it."""
    monkeypatch.setenv("KEYROT_POOL", "jars")
    with pytest.raises(ConfigError) as caught:
        load(state_url="jar://a@b/c#d")
    assert "jar://" not in str(caught.value).partition("allowed:")[2]
    plug_in(jar="jar_state:JarState")
    for url in ("jar://", "jar://user:hunter2@host/a#b?c"):
        config = load(state_url=url)
        assert (config.state_url, config.warnings) == (url, ())
        assert "hunter2" not in repr(config)
    with pytest.raises(ConfigError, match=r"allowed: memory://, .*rediss\+sentinel://, jar://, "):
        load(state_url="bottle://x")
    with pytest.raises(ConfigError, match=r"no state backend for 'bottle'.*, jar://$"):
        open_state("bottle://x", RetryPolicy(), time.time)


def test_our_states_cannot_be_replaced(plug_in: PlugIn) -> None:
    """An entry point with the name of one is not loaded."""
    folder = plug_in(**dict.fromkeys(STATE_SCHEMES, "jar_wrong:failing"))
    for url in ("memory://", f"sqlite://{folder}/state.sqlite3"):
        open_state(url, RetryPolicy(), time.time).close()
    assert "jar_wrong" not in sys.modules


@pytest.mark.parametrize(
    ("point", "why"),
    [
        ("jar_missing:JarState", "ModuleNotFoundError"),
        ("jar_broken:JarState", "ModuleNotFoundError"),
        ("jar_state:Other", "AttributeError"),
        ("jar_wrong:failing", "ConnectionRefusedError"),
        ("jar_wrong:another", "it is no State"),
    ],
)
def test_one_that_cannot_be_opened_is_an_error_without_its_text(
    plug_in: PlugIn, point: str, why: str
) -> None:
    """It names the variable and the entry point; the URL may hold a password."""
    plug_in(jar=point)
    with pytest.raises(ConfigError) as caught:
        open_state("jar://:hunter2@host", RetryPolicy(), time.time)
    text = f"KEYROT_STATE_URL=jar://…: the state {point} cannot be opened: {why}"
    assert str(caught.value) == text
    assert caught.value.__context__ is None


def test_what_it_says_about_its_url_is_shown(plug_in: PlugIn) -> None:
    """A `ConfigError` is for people."""
    plug_in(jar="jar_wrong:refused")
    with pytest.raises(ConfigError, match=r"^jar: found no name; allowed: jar:///path$"):
        open_state("jar://", RetryPolicy(), time.time)


def test_a_redis_url_is_one_of_redis(plug_in: PlugIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that REDIS_URL names by accident is not opened, and none but Redis is proposed."""
    plug_in(jar="jar_state:JarState")
    for url in ("jar://x", "sqlite:///x", "memory://"):
        monkeypatch.setenv("REDIS_URL", url)
        with pytest.raises(ConfigError) as caught:
            load(state_url="redis")
        allowed = str(caught.value).partition("allowed: ")[2]
        assert allowed.startswith("redis://, rediss://, unix://")
        assert "memory" not in allowed
        assert "sqlite" not in allowed


# What is promised to its author ----------------------------------------------------------------


WORKER = """
import sys, time
from keyrot_middleware.core.model import Limits, RetryPolicy
from support.pool import key
from support.states import granted, jar_state

state = jar_state()(sys.argv[1], RetryPolicy(), time.time, pool="p")
print(granted(state, key("a", Limits(rpd=60)), most=25))
state.close()
"""


def test_processes_get_exactly_the_limit(tmp_path: Path) -> None:
    """Whatever others write in between: a decision that came too late is made again."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    began = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, f"jar://{tmp_path}/jar.json"],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert sum(int(one.communicate(timeout=60)[0]) for one in began) == 60


def test_a_store_that_fails_is_named_by_the_class_of_its_error(
    plug_in: PlugIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls go on with the limits of their process, and share them again when it is back."""
    folder = plug_in(jar="jar_state:JarState")
    caplog.set_level(logging.WARNING)
    with opened(f"jar://{folder}/jar.json") as state:
        assert not lease_of(state, FIVE).degraded
        (folder / "jar.json").rename(folder / "away")
        (folder / "jar.json").mkdir()
        assert lease_of(state, FIVE).degraded
        (text,) = warnings_of(caplog, "cannot be used")
        assert "(IsADirectoryError in " in text
        (folder / "jar.json").rmdir()
        (folder / "away").rename(folder / "jar.json")
        until = time.monotonic() + 20
        while lease_of(state, key("b")).degraded:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_what_a_store_raises_at_the_end_is_not_raised(jar: RecordState, tmp_path: Path) -> None:
    """A plain success waits for the next decision; what cannot be written is lost."""
    settle(jar, FIVE)
    (tmp_path / "jar.json").unlink()
    (tmp_path / "jar.json").mkdir()
    jar.close()
    with pytest.raises(StoreError, match=r"^IsADirectoryError in \w+$"):
        jar.check()


def test_a_plain_success_is_written_with_the_next_decision(jar: RecordState) -> None:
    """So a call is one write; after `close` each settle is one too."""
    writes, write = [], jar.write
    jar.write = lambda changes: writes.append(len(changes)) or write(changes)  # type: ignore[method-assign, func-returns-value]
    settle(jar, FIVE, OK)
    settle(jar, FIVE, OK)
    assert len(writes) == 2
    lease = lease_of(jar, FIVE)
    jar.close()
    settle(jar, lease, OK)
    assert jar.snapshot([FIVE])["a"].success_count == 3


def test_much_is_read_and_written_in_pieces(jar: RecordState) -> None:
    """A service that writes all of its changes or none may take a hundred of them at most."""
    writes, write = [], jar.write
    jar.write = lambda changes: writes.append(len(changes)) or write(changes)  # type: ignore[method-assign, func-returns-value]
    reads, read = [], jar.read
    jar.read = lambda names: reads.append(len(names)) or read(names)  # type: ignore[method-assign, func-returns-value]
    keys = [key(f"k{number}", FIVE.limits) for number in range(60)]
    for lease in [lease_of(jar, one) for one in keys]:
        jar.settle(lease, Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=7)))
    lease_of(jar, FIVE)
    jar.close()
    assert [one.success_count for one in jar.snapshot(keys).values()] == [1] * 60
    days = [f"day:{number}" for number in range(1_100)]
    texts = {f"failures:{number}": (["one"], 2) for number in range(60)}
    jar.add_activity(ActivityRows({name: {"n": 1} for name in days}, texts))
    assert jar.activity(days, ["n"]) == [{"n": 1}] * 1_100
    assert jar.activity_log("failures:59") == ["one"]
    assert max(writes) <= 60
    assert max(reads) == 500


def test_a_decision_is_made_again_until_nobody_was_faster(
    jar: RecordState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two seconds it fails, and the call goes on with the limits of its process."""
    write, faster = jar.write, [False, False]
    jar.write = lambda changes: faster.pop() if faster else write(changes)  # type: ignore[method-assign]
    assert granted(jar, FIVE) == 5
    monkeypatch.setattr(records, "WAIT_S", 0.05)
    jar.write = lambda _: False  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=r"^other processes were faster for 0\.05 s$"):
        lease_of(jar, key("b"))


def test_a_record_of_a_limit_that_cannot_be_read_is_not_begun_anew(
    jar: RecordState, tmp_path: Path, clock: FakeClock
) -> None:
    """Calls, and the check that would bring the state back, fail and name it."""
    lease_of(jar, FIVE)
    file = tmp_path / "jar.json"
    found = json.loads(file.read_text())
    (name,) = (one for one in found if ":quotas:" in one)
    found[name][0] = '["odd"]'
    file.write_text(json.dumps(found))
    for use in (lambda: lease_of(jar, FIVE), jar.check):
        with pytest.raises(UnreadableRecordError, match="quotas of p:quotas:a"):
            use()


def test_what_is_over_is_dropped(jar: RecordState, tmp_path: Path, clock: FakeClock) -> None:
    """By the time that comes with each record; a store may do it at any time after."""
    settle(jar, FIVE, OK, "files/x")
    jar.check()
    jar.add_activity(ActivityRows({"minute:1": {"n": 1}}, {"calls": (["one"], 2)}))
    clock.advance(86_400 * 400)
    jar.check()
    assert [name for name in json.loads((tmp_path / "jar.json").read_text())] == ["p:check"]


def test_activity_adds_up(jar: RecordState, clock: FakeClock) -> None:
    """Counts by field, and the latest texts; what is over, or of a clock ahead, is not added to."""
    for texts in (["one", "two"], ["three"]):
        jar.add_activity(ActivityRows({"day:1": {"n": 2, "m": 1}}, {"calls": (texts, 2)}))
    assert jar.activity(["day:1", "day:2"], None) == [{"n": 4, "m": 2}, {}]
    assert jar.activity(["day:1"], ["m", "x"]) == [{"m": 2}]
    assert jar.activity_log("calls") == ["three", "two"]
    assert jar.activity_log("failures:a") == []
    clock.advance(-86_400)
    assert jar.activity(["day:1"], None) == [{}]
    clock.advance(86_400 * 5)
    assert jar.activity_log("calls") == []


def test_a_process_that_is_forked_goes_on(tmp_path: Path) -> None:
    """The child does not write the settles of its parent, and gets what is left."""
    run_fork(
        f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from keyrot_middleware.core.model import Limits, RetryPolicy
from support.pool import key
from support.states import granted, jar_state, settle
state = jar_state()("jar://{tmp_path}/jar.json", RetryPolicy(), time.time, pool="p")
one = key("a", Limits(rpd=5))
settle(state, one)
if not (child := os.fork()):
    os._exit(granted(state, one, most=2))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
assert granted(state, one) == 2
assert state.snapshot([one])["a"].success_count == 1
"""
    )
