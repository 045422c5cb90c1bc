"""A day on call: three processes of one pool, all that an operator reads of them, and what is true.

No thread and no real time. A step does something; then each process does what its refresher and
its alerts do, and all that is said is compared with the judgement, with what the server has counted
and with what the next call gets.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.genai import errors
from support.receivers import Events
from support.replies import MODEL
from support.servers import wait_for
from support.states import Faulty

import keyrot_middleware
from keyrot_middleware import KeyPoolExhausted, _install
from keyrot_middleware.cli import status as command
from keyrot_middleware.clients import Binding
from keyrot_middleware.core.judgement import Judgement, describe_block
from keyrot_middleware.core.model import CallInfo, RetryPolicy
from keyrot_middleware.core.wording import utc
from keyrot_middleware.monitoring import alerts, report
from keyrot_middleware.monitoring.facts import read_facts
from keyrot_middleware.monitoring.levels import Levels
from keyrot_middleware.monitoring.view import UNKNOWN, is_well, sentence_of
from keyrot_middleware.runtime import pool as runtime
from keyrot_middleware.runtime.rotations import Rotation, add_rotation
from keyrot_middleware.secrets import Secret
from keyrot_middleware.settings import SettingArguments, load
from keyrot_middleware.state import FallbackState, MemoryState
from keyrot_middleware.state.fallback import PAUSE_S, Breaker
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.state.sqlite import SqliteState
from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

KEYS: dict[str, dict[str, Any]] = {
    "a": {"project": "a", "rpm": 10, "rpd": 100},
    "b": {"project": "b", "rpm": 10, "rpd": 100, "usd": {"day": 0.05}},
    "c": {"project": "c", "rpm": 10, "rpd": 100},
}
SETTINGS: SettingArguments = {
    **{"state_url": "sqlite", "pool": "day", "strategy": "fill"},
    **{"max_wait_s": 62, "max_retries": 0, "workloads": {"batch": {"share": 0.2}}},
}
WORKLOADS = (None, "batch")
ENDS = {event: end for event, (end, _) in alerts._ENDS.items()}
REFUSALS = {"SPEND_CAP_PROJECT": "project_blocked"}
REFUSALS |= dict.fromkeys(("KEY_INVALID", "KEY_LEAKED"), "key_rejected")
"""What is so while this is the server's last reply to a key."""


def _came_to(error: Exception | None) -> str:
    if error is None:
        return "good"
    if isinstance(error, KeyPoolExhausted):
        return "no_key"
    is_own = isinstance(error, errors.ClientError) and error.code == 400
    return "refused" if is_own else "failed"


class Process:
    """One process of the pool."""

    def __init__(self, day: Day) -> None:
        pool = _install.open_pool(day.load(), day.clock, on_event=day.events)
        assert pool is not None
        pool.random = float  # no wait is longer by chance
        self.pool, self.report = pool, report.source_of(pool)
        self.alerts, self.refresher = pool.background

    def turn(self) -> None:
        """Do what its threads do."""
        for _ in range(2):  # keys.json is read when it has not changed since the last turn
            self.refresher.turn()
        self.alerts.look()


class Day:
    """The processes, the server, and the changes of the day."""

    def __init__(self, gemini: FakeGemini, clock: FakeClock, folder: Path, valkey: Any) -> None:
        self.gemini, self.clock, self.folder, self.valkey = gemini, clock, folder, valkey
        self.events, self.states, self.gone = Events(), list[Faulty](), list[Process]()
        self.ended: list[tuple[float, bool]] = []
        """When each call ended, and whether it failed."""
        self.came_to: dict[str | None, list[str]] = {}
        """To what, by workload: `good`, `no_key`, `refused` (a 400), `failed`."""
        self.last = ""
        self.lost, self.turns = Counter[str](), 0
        """Requests that a process had begun when it was killed, by key."""
        self.is_up = self.is_counted = True
        """The state can be reached; it has all calls of the day."""
        self.keys = {name: dict(one) for name, one in KEYS.items()}
        self.labels = {name: name for name in KEYS}
        """Of the value of each key at the server."""
        for name in KEYS:
            gemini.add_key(name, tier="paid", rpm=10, rpd=100)
        self.write()

    def load(self) -> Any:
        file, hosts = self.folder / "keys.json", (self.gemini.host,)
        return load(keys_file=file, allowed_hosts=hosts, **SETTINGS)

    def write(self) -> None:
        entries = [{"key_id": name, **one} for name, one in self.keys.items()]
        (self.folder / "keys.json").write_text(json.dumps(entries))
        values = {name: self.gemini.key(label).value for name, label in self.labels.items()}
        lines = [f"KEYROT_KEY_{name}={values.get(name, 'FAKE-value')}" for name in self.keys]
        (self.folder / ".env").write_text("\n".join(lines))

    def shared(self) -> Any:
        policy, now = RetryPolicy(), self.clock.time
        if self.valkey is None:
            return SqliteState(self.folder / "day.sqlite3", policy, now, pool="day")
        return RedisState(self.valkey.url, policy, pool="day", test_clock=now)

    def open_state(self, *_: Any, **__: Any) -> Any:
        faulty: Any = Faulty(self.shared())
        self.states.append(faulty)
        local = MemoryState(RetryPolicy(), self.clock.time)
        return FallbackState(faulty, local, "day", self.clock.time, Breaker(self.clock.monotonic))

    def start(self, connect: Callable[[], Any]) -> None:
        self.processes = [Process(self) for _ in range(3)]
        self.binding = Binding(self.processes[0].pool, self.load().allowed, ("google-genai",))
        self.binding.install()
        self.client, self.outside = connect(), self.shared()

    @property
    def command(self) -> Any:
        """What `keyrot status` and `keyrot explain` read."""
        return command._report(self.load(), self.outside)

    def call(self, workload: str | None = None, process: int = 0, times: int = 1) -> Any:
        """Make calls in a process, and return the error of the last one."""
        assert self.binding._calls is not None
        self.binding._calls.pool = self.processes[process].pool
        error = None
        for _ in range(times):
            error = None
            try:
                with keyrot_middleware.workload(workload) if workload else nullcontext():
                    self.client.models.generate_content(model=MODEL, contents="hello")
            except Exception as raised:  # also of an HTTP library, or of JSON
                error = raised
            self.ended.append((self.clock.time(), error is not None))
            self.came_to.setdefault(workload, []).append(_came_to(error))
            self.last = _came_to(error)
        self.processes[process].pool.activity.send()
        return error

    # What happens ---------------------------------------------------------------------------------

    def answer(self, reply: Any, label: str = "", times: int = 1) -> None:
        """Answer each request so from now on, or those with a value; make calls."""
        if label:
            self.gemini.always(label, reply)
        else:
            self.gemini.always_any(reply)
        self.call(times=times)

    def rotate(self, name: str) -> None:
        """Write a new value, as `keyrot rotate` does."""
        old = self.gemini.key(name)
        new = self.gemini.add_key(f"{name}2", project=old.project, tier="paid")
        self.labels[name] = new.label
        self.write()
        prints = [Secret(one.value).fingerprint for one in (old, new)]
        add_rotation(self.outside, Rotation("r", name, *prints, self.clock.time(), "begun"))

    def reach_share(self) -> None:
        for _ in range(10):
            self.clock.advance(60)
            self.call("batch", times=2)

    def own_fault(self) -> None:
        """Send what the provider refuses, in both workloads."""
        self.answer(Reply.BAD_REQUEST, times=4)
        self.call("batch", times=3)

    def correct(self) -> None:
        self.answer(None)
        self.call("batch")

    def flap(self) -> None:
        """Fail, but for one call in between."""
        for _ in range(2):
            self.answer(Reply.OVERLOADED, times=7)
            self.answer(None)
        self.answer(Reply.OVERLOADED, times=0)

    def spend(self) -> None:
        self.gemini.tokens(lambda _: 100_000)
        self.call(times=3)  # the last one gets no key
        self.gemini.tokens(None)

    def switch_off(self, name: str) -> None:
        """Switch a key off, and make a call."""
        self.command.set_active(name, False)
        self.call()

    def change(self, name: str, **fields: Any) -> None:
        """Change keys.json."""
        self.keys[name] = self.keys.get(name, {}) | fields
        self.write()

    def kill(self) -> None:
        """End a process in the middle of a request: nothing is settled, closed or reported."""
        state, key = self.processes[2].pool.state, self.processes[2].pool.selector.keys["b"]
        state.acquire(CallInfo(MODEL, "generateContent", tokens=1), ((0, key),), strategy="fill")
        self.lost["b"] += 1
        self.gone.append(self.processes.pop())

    def deploy(self) -> None:
        self.processes.pop().pool.close()
        self.processes += [Process(self), Process(self)]

    def cut(self) -> None:
        for state in self.states:
            state.cut()
        self.is_up = self.is_counted = False

    def restore(self) -> None:
        for state in self.states:
            state.restore()
        for _ in range(2):
            self.clock.advance(2 * PAUSE_S)
            for number, one in enumerate(self.processes):
                self.call(process=number)
                wait_for(lambda state=one.pool.state: not state._breaker.is_open)
        self.is_up = True

    def empty(self) -> None:
        if self.valkey is not None:
            self.valkey.execute("FLUSHALL")
        for file in self.folder.glob("day.sqlite3*"):
            file.unlink()

    # What is said ---------------------------------------------------------------------------------

    def look(self) -> list[Judgement]:
        """Let each process do what is due; all that they say is the same, and is true."""
        for process in self.processes:
            process.turn()
        judged = self.processes[0].report.look().calls
        for one in self.processes:
            self.check(one.report, judged)
            metric = Levels(one.pool).read("keyrot.call.answers")
            answers = [labels["keyrot.call.answer"] for _, labels in metric]
            assert answers == [here.answer for here in judged]
        if self.is_up:
            self.check(self.command, judged)
            self.check_facts(judged)
        return judged

    def check(self, said: Any, judged: list[Judgement]) -> None:
        """Check headline, JSON and explain of one who looks."""
        found = said.status()
        summary, head = found["summary"], found["summary"]["headline"]
        if not self.is_up:
            assert (head["sentences"], head["hour"]) == ([UNKNOWN], UNKNOWN)
            return
        assert said.look().calls == judged
        fields = ("model", "workload", "answer", "is_trouble", "keys", "ends_by")
        for one, here in zip(judged, summary["calls"], strict=True):
            assert [here[name] for name in fields] == [getattr(one, name) for name in fields]
        reported = {sentence_of(one, self.clock.time()) for one in judged if not is_well(one)}
        assert {one for one in head["sentences"] if MODEL in one} == reported
        assert head["keys"]["sentence"].startswith(f"{summary['available']} of {summary['keys']}")
        for one in judged:
            why = said.explain(MODEL, workload=one.workload or "")
            able = [key for key in why["keys"] if key["available"]]
            assert (why["answer"], len(able)) == (one.answer, one.able)
            assert (why["key_id"] is not None) == (one.able > 0)
        if self.is_counted:
            self.check_counts(found)

    def check_counts(self, found: dict[str, Any]) -> None:
        """Check what is said of numbers against the server's log."""
        now, summary = self.clock.time(), found["summary"]
        log = [one for one in self.gemini.log if one.at // 60 > now // 60 - 60]
        ended = [failed for at, failed in self.ended if at // 60 > now // 60 - 60]
        bad = sum(one.status != 200 or one.reply == "CUSTOM" for one in log)
        counts = len(ended), sum(ended), len(log), bad
        names = ("calls", "failed_calls", "requests", "failures")
        assert tuple(summary["last_hour"][name] for name in names) == counts
        if ended:
            hour = summary["headline"]["hour"]
            assert hour.startswith(f"{counts[1]} of {counts[0]} call")
            assert f"{counts[3]} of {counts[2]} request" in hour
        midnight = datetime.fromisoformat(summary["midnight"]).timestamp()
        sent = Counter(str(one.key)[0] for one in self.gemini.log if one.at >= midnight)
        for key in found["keys"]:
            used = key["used"].get(MODEL, {}).get("requests_day", 0)
            assert used == (sent + self.lost)[key["key_id"]]

    def check_facts(self, judged: list[Judgement]) -> None:
        """Check what is on against the judgement and the server's last replies."""
        facts = {one for one in read_facts(self.outside).values() if one.is_on}
        on = {(one.event, one.workload or one.key_id) for one in facts}
        last = {one.key: one.reply for one in self.gemini.log}
        refused = {(REFUSALS.get(last.get(label, "")), key) for key, label in self.labels.items()}
        if self.is_counted:
            said = {one for one in on if one[0] in REFUSALS.values()}
            assert said == {one for one in refused if one[0] is not None}
        failing = [one for one in judged if one.runs.failing]
        is_on = any(one.runs.failing.is_on for one in failing if one.runs.failing)
        is_reported = "model_failing" in {event for event, _ in on}
        assert is_on <= is_reported <= bool(failing)
        rows = [[one for one in row if one != "no_key"] for row in self.came_to.values()]
        assert is_on or not self.is_counted or all(row[-6:] != ["failed"] * 6 for row in rows)
        assert not is_on or any("failed" in row[-3:] for row in rows)
        out = [one for one in judged if one.answer == "no" and one.runs.shortage]
        none = {one.workload if one.is_own else None for one in out}
        reported = {name for event, name in on if event == "pool_exhausted"}
        short = {one.workload for one in judged if one.answer == "no" or one.runs.shortage}
        assert none <= reported <= none | short | {None for one in short}

    def probe(self, judged: list[Judgement]) -> None:
        """Make the calls that were judged, each in another process."""
        for one in judged or [Judgement(MODEL, name, "served", 1, 3) for name in WORKLOADS]:
            self.turns, before = self.turns + 1, self.clock.time()
            why = self.command.explain(MODEL, workload=one.workload or "") if self.is_up else {}
            error = self.call(one.workload, self.turns % len(self.processes))
            block = one.block
            if one.answer == "failing":
                assert _came_to(error) == "failed"
            elif one.answer == "refused":
                assert _came_to(error) == "refused"
            elif one.answer == "no":
                assert isinstance(error, KeyPoolExhausted)
                assert block is not None and one.key_id is not None
                assert error.retry_at == utc(block.until)
                assert error.reasons[one.key_id] == describe_block(block)
                for key in filter(lambda key: key["available_at"], why["keys"]):
                    at = datetime.fromisoformat(key["available_at"])
                    assert f"{at:%Y-%m-%d %H:%M:%SZ}" in error.reasons[key["key_id"]]
            else:
                assert error is None
                assert (self.clock.time() > before) == (one.answer == "waits" and judged[0] is one)


YES, SHARE, NO, FAILING = "served served", "served no", "no no", "failing failing"
OUT, AGAIN, CAP = "pool_exhausted", "key_available_again", "project_blocked b"
DOWN, UP = "model_failing", "model_recovered"
LOST, FINE, R = "The shared state was emptied at 11:42:09 UTC", "All calls are served.", Reply
WAS = f"{MODEL}: {{}} calls failed from {{}}"
OUTAGE = f"{MODEL}: the last {{}} calls failed since {{}} UTC: {{}}"
GONE = OUTAGE.format(4, "09:17:01", "404, there is no such model")
OWN = f"{MODEL}: the last 4 calls were refused (400): the requests are at fault, no key is."
FULL = f"{MODEL}: no key until 2026-01-02 08:00 UTC (quota_day)."
MINE = f"batch: no key for {MODEL} until 2026-01-02 08:00 UTC (share of batch: 20 of 100 a day)."
WAITS = f"{MODEL}: calls wait for a key until 12:31:01 UTC (rpm)."
THREE, FIVE = (OUTAGE.format(n, "15:07:01", '503 "The model is overloaded') for n in (3, 5))
STEPS: tuple[tuple[str, float, Callable[[Day], object], str, str, str], ...] = (
    # Name; minutes before it; what happens; the answers to calls of no workload, and of batch;
    # what the processes report, in any order; how the headline begins.
    ("morning", 0, lambda d: [d.call(w, n) for n in range(3) for w in WORKLOADS], YES, "", FINE),
    ("minute full", 0, lambda d: d.call(times=22), "waits waits", "", WAITS),
    ("next minute", 1, lambda d: None, YES, "", FINE),
    ("others use a", 15, lambda d: (d.gemini.spend("a", MODEL, 90), d.call()), YES, "", FINE),
    ("revoked", 15, lambda d: d.answer(R.KEY_INVALID, "b"), YES, "key_rejected b", FINE),
    ("leaked", 15, lambda d: d.answer(R.KEY_LEAKED, "c"), NO, f"key_rejected c, {OUT}", FULL),
    ("rotated", 15, lambda d: d.rotate("b"), YES, f"{AGAIN} b, {AGAIN}", FINE),
    ("cap", 15, lambda d: d.answer(R.SPEND_CAP_PROJECT, "b2"), NO, f"{CAP}, {OUT}", FULL),
    ("cap raised", 65, lambda d: d.answer(None, "b2"), YES, f"{AGAIN} b, {AGAIN}", FINE),
    ("outage", 15, lambda d: d.answer(R.OVERLOADED, times=3), FAILING, "model_failing", THREE),
    ("outage goes on", 15, lambda d: d.call(process=1), FAILING, "", FIVE),
    (
        "outage over",
        15,
        lambda d: d.answer(None),
        YES,
        "",
        f"{MODEL}: 6 of 6 calls failed from 15:07",
    ),
    ("share reached", 15, lambda d: d.reach_share(), SHARE, f"{OUT} batch, {UP}", MINE),
    ("budget spent", 15, lambda d: d.spend(), NO, f"budget_reached b, {OUT}", FULL),
    ("budget raised", 15, lambda d: d.change("b", usd={"day": 5}), SHARE, AGAIN, MINE),
    ("provider added", 15, lambda d: d.change("o", provider="openai"), SHARE, "", MINE),
    ("kill -9", 15, lambda d: d.kill(), SHARE, "", MINE),
    ("deploy", 15, lambda d: d.deploy(), SHARE, "", MINE),
    ("switched off", 15, lambda d: d.switch_off("b"), NO, OUT, FULL),
    ("switched on", 15, lambda d: d.command.set_active("b", True), SHARE, AGAIN, MINE),
    ("midnight", 15 * 60, lambda d: (d.lost.clear(), d.call()), "served", f"{AGAIN} batch", FINE),
    ("both", 15, lambda d: d.call("batch"), YES, "", FINE),
    ("model gone", 15, lambda d: d.answer(R.MODEL_NOT_FOUND, times=4), FAILING, DOWN, GONE),
    (
        "model back",
        15,
        lambda d: d.answer(None),
        YES,
        "",
        f"{MODEL}: 5 of 5 calls failed from 09:17",
    ),
    ("still back", 15, lambda d: d.call(), YES, UP, FINE),
    ("own fault", 15, lambda d: d.own_fault(), "refused refused", "", OWN),
    ("corrected", 15, lambda d: d.correct(), YES, "", FINE),
    ("comes and goes", 15, lambda d: d.flap(), FAILING, DOWN, f"{MODEL}: 14 of the last 16 calls"),
    ("goes on", 5, lambda d: d.flap(), FAILING, "", f"{MODEL}: 29 of the last 33 calls"),
    ("is over", 5, lambda d: d.answer(None, times=3), YES, "", f"{MODEL}: 30 of 34 calls failed"),
    ("all well", 15, lambda d: d.call(), YES, UP, FINE),
    ("state down", 15, lambda d: d.cut(), "", ", ".join(["state_degraded"] * 3), UNKNOWN),
    ("state back", 15, lambda d: d.restore(), YES, ", ".join(["state_recovered"] * 3), FINE),
    ("state emptied", 15, lambda d: d.empty(), "", "state_emptied", LOST),
    ("c met again", 65, lambda d: d.call(times=21), YES, "key_rejected c", FINE),
    ("c fixed", 25 * 60, lambda d: d.answer(None, "c", 21), "served", f"{AGAIN} c", FINE),
)


@pytest.fixture(params=["sqlite", "valkey"])
def day(
    request: pytest.FixtureRequest,
    gemini: FakeGemini,
    clock: FakeClock,
    connect: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    here: Path,
) -> Iterator[Day]:
    made = Day(gemini, clock, here, None)
    if request.param == "valkey":
        made.valkey = request.getfixturevalue("valkey")

    monkeypatch.setattr(report, "FRESH_S", -1.0)
    monkeypatch.setattr(runtime, "LOOK_S", 0.0)
    monkeypatch.setattr(runtime.Refresher, "start", lambda one: setattr(one, "_on", True))
    monkeypatch.setattr(alerts.Alerts, "look_in", lambda *_: None)
    monkeypatch.setattr(command, "time", SimpleNamespace(time=clock.time))
    monkeypatch.setattr(_install, "open_state", made.open_state)
    made.start(connect)
    yield made
    made.binding.pool = None
    made.binding.close()
    for process in made.processes + made.gone:
        process.pool.close()
    made.outside.close()


def test_a_day_on_call(day: Day) -> None:
    """No contradiction at any step; all processes report each fact once, and so its end."""
    begun = Counter[Any]()
    for name, minutes, do, answers, reported, head in STEPS:
        day.clock.advance(minutes * 60)
        do(day)
        day.is_counted |= name == "c fixed"  # on another day
        judged = day.look()
        found = sorted((one.workload or "", one.answer) for one in judged)
        assert " ".join(answer for _, answer in found) == answers, name
        said = day.processes[0].report.status()["summary"]["headline"]["sentences"]
        assert said[0].startswith(head), (name, said)
        events, day.events.all = day.events.all, []
        names = [f"{one.event} {one.workload or one.key_id or ''}".strip() for one in events]
        assert sorted(names) == sorted(filter(None, reported.split(", "))), name
        for one in events:
            about = one.key_id, one.model, one.workload
            begun[ENDS.get(one.event), *about] += one.event in ENDS
            begun[one.event, *about] -= one.event in ENDS.values()
            if one.event == "state_emptied":  # it has lost the list of facts
                begun.clear()
        assert min(begun.values(), default=0) >= 0, name
        day.probe(judged)
        for process in day.processes:
            process.turn()
        assert day.events.all == [], name
    assert +begun == Counter()


PAGE = "<html><head><title>Access Denied</title></head><body>Policy</body></html>"
ILLS = {
    "outage": R.OVERLOADED,
    "error": R.INTERNAL,
    "lost": R.RESET,
    "gone": R.MODEL_NOT_FOUND,
    "proxy": R.custom(403, PAGE, content_type="text/html"),
    "login": R.custom(407, PAGE, content_type="text/html"),
    "portal": R.custom(200, PAGE, content_type="text/html"),
    "own fault": R.BAD_REQUEST,
    "good": None,
}
"""What each request gets from some moment on."""
MATCHES = {"failing": {"failed"}, "refused": {"refused"}, "no": {"no_key"}}
MATCHES |= {"served": {"good"}, "waits": {"good"}}
"""What a call comes to of which that was said; *due* and *busy* promise nothing."""
EVENTS: dict[str, Callable[[Day], object]] = {
    "revoked": lambda d: d.answer(R.KEY_LEAKED, "c"),
    "restored": lambda d: d.answer(None, "c"),
    "deploy": lambda d: d.deploy(),
    "calls": lambda d: None,
}
STEPS_DRAWN, KNOWN = 14, 3


@pytest.mark.parametrize("seed", range(5))
def test_days_drawn_at_random(day: Day, seed: int) -> None:
    """All say the same, it is what a call then gets, and no alarm stays when all is well."""
    draw, begun, known = random.Random(seed), Counter[Any](), 0
    for _ in range(STEPS_DRAWN):
        day.clock.advance(60 * draw.choice((0, 1, 3, 11, 70)))
        what = draw.choice([*EVENTS, *ILLS])
        if what in ILLS:
            day.answer(ILLS[what])
            known = 1
        else:
            EVENTS[what](day)
        for _ in range(draw.choice((0, 1, 2, 4))):
            workload = draw.choice(WORKLOADS)
            day.call(workload, draw.randrange(len(day.processes)))
            known += workload is None
        judged = day.look()
        note_events(day, begun)
        one = next((one for one in judged if one.workload is None), None)
        if one is not None and known >= KNOWN:
            day.call(process=draw.randrange(len(day.processes)))
            assert day.last in MATCHES.get(one.answer, {day.last}), (what, one, day.came_to)
            known += 1
    day.answer(None)
    day.answer(None, "c")
    for name in KEYS:
        day.command.reset(name)
    for minutes in (2, 11, 11):
        day.clock.advance(60 * minutes)
        for workload in WORKLOADS:
            day.call(workload, times=2)
        day.look()
        note_events(day, begun)
    assert +begun == Counter()
    said = day.processes[0].report.status()["summary"]["headline"]["sentences"]
    assert said == [FINE]


def note_events(day: Day, begun: Counter[Any]) -> None:
    """Count what has begun and not ended; nothing begins or ends twice."""
    events, day.events.all = day.events.all, []
    for one in events:
        about = one.key_id, one.model, one.workload
        begun[ENDS.get(one.event), *about] += one.event in ENDS
        for end in {name for name in begun if name[0] == one.event and name[1:] == about}:
            begun[end] -= one.event in ENDS.values()
    assert {*begun.values()} <= {0, 1}, events
