"""Alerts of an installed pool: exactly one of each event, under any load."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apprise
import pytest
from google.genai import errors
from support.modes import close_connections
from support.receivers import Events, Mailbox, Webhook, dead_receiver
from support.servers import BINARIES, Server, server, wait_for

import keyrot_middleware
from keyrot_middleware import exits
from keyrot_middleware.events import PoolEvent
from keyrot_middleware.exits import EXIT_S
from keyrot_middleware.monitoring import alerts
from keyrot_middleware.monitoring.alert_receivers import Receiver
from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

CALLERS = 64
MODEL = "gemini-2.5-flash"
PATIENCE_S = 60
TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check often, and do not wait for slow checks."""
    monkeypatch.setattr(alerts, "LOOK_S", 0.05)
    monkeypatch.setattr(alerts, "LOOK_SHARE", 1)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """Run a webhook until the test ends."""
    made = Webhook()
    yield made
    made.close()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """Run a mail server until the test ends."""
    made = Mailbox()
    yield made
    made.close()


def call_in_threads(client: Any, times: int = 1) -> None:
    """Make calls from 64 threads; errors are expected."""

    def call(_: int) -> None:
        for _ in range(times):
            with suppress(errors.ClientError):
                client.models.generate_content(model=MODEL, contents="hello")

    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(call, range(CALLERS)))


def call_in_tasks(client: Any, times: int = 1) -> None:
    """Make calls from 64 tasks; errors are expected."""

    async def call() -> None:
        for _ in range(times):
            with suppress(errors.ClientError):
                await client.aio.models.generate_content(model=MODEL, contents="hello")

    async def everyone() -> None:
        await asyncio.gather(*(call() for _ in range(CALLERS)))
        await close_connections(client)

    asyncio.run(everyone())


@pytest.mark.parametrize("call", [call_in_threads, call_in_tasks], ids=["threads", "tasks"])
def test_each_event_arrives_once_with_64_callers(
    call: Any,
    pool: Any,
    gemini: FakeGemini,
    clock: FakeClock,
    connect: Any,
    webhook: Webhook,
    mailbox: Mailbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By e-mail, by webhook and in a function; a dead receiver beside them changes nothing."""
    events = Events()
    gemini.always_any(None)
    gemini.always(_label(pool, "bad"), Reply.KEY_INVALID)
    with dead_receiver() as dead:
        installed = pool(
            {"key_id": "bad"},
            {"key_id": "good", "rpd": 40},
            alerts=[dead, webhook.url, mailbox.url],
            on_event=events,
            max_wait_s=0,
        )
        mail = apprise.NotificationManager()["mailto"]
        monkeypatch.setattr(mail, "request_rate_per_sec", 0)  # otherwise one mail in 5.5 s
        client = connect()
        call(client, times=2)  # a caller that fails at first gets the error of the rejected key
        wait_for(lambda: len(events.all) == 3, PATIENCE_S)
        gemini.always("bad", None)
        keyrot_middleware.reset("bad")
        wait_for(lambda: len(events.all) == 4, PATIENCE_S)
        call(client)
        state = installed.state
        monkeypatch.setattr(type(state), "degraded", True)
        wait_for(lambda: len(events.all) == 5, PATIENCE_S)
        monkeypatch.setattr(type(state), "degraded", False)
        wait_for(lambda: len(events.all) == 6, PATIENCE_S)
        call(client)
        expected = {
            "key_rejected": 1,
            "quota_80_percent": 1,
            "pool_exhausted": 1,
            "key_available_again": 1,
            "state_degraded": 1,
            "state_recovered": 1,
        }
        wait_for(lambda: webhook.events.total() >= 6 <= mailbox.events.total(), PATIENCE_S)
        assert Counter(name for name, _ in events.names) == expected
        assert webhook.events == mailbox.events == expected
        texts = json.dumps(webhook.messages) + repr(mailbox.received) + repr(events.all)
        for label in ("bad", "good"):
            assert gemini.key(label).value not in texts
        keyrot_middleware.uninstall()


def _label(pool: Any, key_id: str) -> str:
    pool.key(key_id)
    return key_id


def test_a_dead_receiver_delays_no_call(pool: Any, connect: Any) -> None:
    """Calls continue while the delivery hangs, and uninstall() waits for a short time only."""
    with dead_receiver() as dead:
        pool({"key_id": "a", "rpd": 1}, alerts=dead, max_wait_s=0)
        client = connect()
        client.models.generate_content(model=MODEL, contents="hello")
        with suppress(errors.ClientError):
            client.models.generate_content(model=MODEL, contents="hello")
        wait_for(lambda: "keyrot-alert" in _threads(), PATIENCE_S)
        keyrot_middleware.reset("a")
        for _ in range(20):
            with suppress(errors.ClientError):
                client.models.generate_content(model=MODEL, contents="hello")
        assert "keyrot-alert" in _threads()  # it still hangs, and all calls have ended
        began = time.monotonic()
        keyrot_middleware.uninstall()
        assert time.monotonic() - began < alerts.STOP_S + 10
    wait_for(lambda: "keyrot-alert" not in _threads(), PATIENCE_S)


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_a_pool_without_receivers_has_no_thread(pool: Any) -> None:
    """Without a receiver there is no listener and no watcher."""
    made = pool("a")
    assert not any(isinstance(work, alerts.AlertWatcher) for work in made.background)
    assert not any(name.startswith("keyrot-alert") for name in _threads())
    assert len(made.event_listeners) == 1


def test_the_thread_ends_with_uninstall(pool: Any) -> None:
    """And install() starts one again; another function meanwhile is reported."""
    for _ in range(2):
        pool("a", on_event=Events())
        assert "keyrot-alerts-default" in _threads()
        with pytest.warns(keyrot_middleware.KeyrotWarning, match="on_event of this call is ign"):
            keyrot_middleware.install(on_event=print)
        keyrot_middleware.uninstall()
        wait_for(lambda: "keyrot-alerts-default" not in _threads(), PATIENCE_S)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watcher_that_ended_is_started_again_by_the_next_call(
    pool: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ended it: events are delivered again."""
    events = Events()
    made = pool({"key_id": "a", "rpd": 1}, on_event=events, max_wait_s=0)

    def end() -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(made.background[0], "look", end)
        wait_for(lambda: "keyrot-alerts-default" not in _threads(), PATIENCE_S)
    client = connect()
    for _ in range(2):
        with suppress(errors.ClientError):
            client.models.generate_content(model=MODEL, contents="hello")
    wait_for(lambda: ("pool_exhausted", None) in events.names, PATIENCE_S)


def test_a_key_manager_reports_an_exhausted_pool(pool: Any) -> None:
    """Keys that are selected by hand belong to the same pool."""
    events = Events()
    pool({"key_id": "a", "rpd": 1}, on_event=events)
    manager = keyrot_middleware.get_key_manager()
    manager.select_key("gemini-2.5-flash")
    manager.report_success("a", 10)
    with pytest.raises(keyrot_middleware.KeyPoolExhausted):
        manager.select_key("gemini-2.5-flash")
    wait_for(lambda: ("pool_exhausted", None) in events.names, PATIENCE_S)


def test_an_outage_of_redis_and_its_end_are_reported(pool: Any) -> None:
    """Without any call the checks notice it."""
    events, valkey_server = Events(), Server(BINARIES["valkey"])
    try:
        pool("a", on_event=events, state_url=valkey_server.url, pool="outage")
        pool.ledger.checked = False  # it records states in memory only
        valkey_server.stop()
        wait_for(lambda: events.names == [("state_degraded", None)], PATIENCE_S)
        valkey_server.start()
        wait_for(lambda: events.names[1:] == [("state_recovered", None)], PATIENCE_S)
        keyrot_middleware.uninstall()
        assert len(events.all) == 2
    finally:
        valkey_server.remove()


def test_a_wrong_url_installs_nothing(pool: Any) -> None:
    """install() raises, and no pool is installed."""
    with pytest.raises(keyrot_middleware.ConfigError, match="KEYROT_ALERTS, entry 1: "):
        pool("a", alerts="nosuch://host")
    assert not keyrot_middleware.status()["installed"]


PROGRAM = textwrap.dedent(
    """
    import os, sys, time
    from contextlib import suppress
    from google import genai
    import keyrot_middleware
    from keyrot_middleware.monitoring import alerts

    alerts.LOOK_S = 0.05
    URL, HOST, STATE, ALERTS, MODE = sys.argv[1:]
    keyrot_middleware.install(
        allowed_hosts=[HOST], state_url=STATE, alerts=ALERTS, pool="alerts", max_wait_s=0,
        keys_file="keys.json",
    )
    client = genai.Client(http_options={"base_url": URL})


    def call():
        with suppress(genai.errors.ClientError):
            client.models.generate_content(model="gemini-2.5-flash", contents="hello")


    if MODE == "fork":
        child = os.fork()
        if child:
            sys.exit(os.waitpid(child, 0)[1])
    if MODE != "late":
        print("ready", flush=True)
        sys.stdin.readline()
    call()
    call()
    if MODE == "wait":
        print("called", flush=True)
        sys.stdin.readline()
    print("end", flush=True)
    """
)


class Programs:
    """Programs with a pool of one key, which is rejected."""

    def __init__(self, gemini: FakeGemini, where: Path) -> None:
        self._gemini, self._where = gemini, where
        value = gemini.add_key("a").value
        gemini.always("a", Reply.KEY_INVALID)
        (where / "keys.json").write_text('[{"key_id": "a"}]')
        path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
        self._env = {**os.environ, "PYTHONPATH": path, "GEMINI_KEY_a": value}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, url: str, mode: str, state: str = "memory://") -> subprocess.Popen[str]:
        """Start one that sends its alerts to *url*."""
        gemini = self._gemini
        args = ["-c", PROGRAM, gemini.url, gemini.host, state, url, mode]
        process = subprocess.Popen(
            [sys.executable, *args],
            cwd=self._where,
            env=self._env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.started.append(process)
        return process


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Start programs; end them with the test."""
    with FakeGemini() as gemini:
        made = Programs(gemini, tmp_path)
        yield made
        for process in made.started:
            process.kill()
            process.communicate()


def resume(process: subprocess.Popen[str], word: str = "ready") -> None:
    """Wait until a program prints *word*, and let it continue."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def valkey() -> Server:
    """Return the shared server."""
    return server("valkey")


def test_two_processes_with_redis_send_one_alert(
    programs: Programs, webhook: Webhook, valkey: Server
) -> None:
    """Both find the key rejected and the pool exhausted; one of them reports it."""
    both = [programs.start(webhook.url, "wait", valkey.url) for _ in range(2)]
    for process in both:
        resume(process)
    for process in both:
        resume(process, "called")
    for process in both:
        assert process.wait(PATIENCE_S) == 0
    assert webhook.events == {"key_rejected": 1, "pool_exhausted": 1}


def test_the_last_event_of_a_program_is_delivered(programs: Programs, webhook: Webhook) -> None:
    """The interpreter exits right after the call."""
    process = programs.start(webhook.url, "late")
    assert process.wait(PATIENCE_S) == 0
    assert webhook.events == {"key_rejected": 1, "pool_exhausted": 1}


def test_a_dead_receiver_does_not_keep_a_program_alive(programs: Programs) -> None:
    """It would answer after a minute or more; the exit waits a second and a half for it."""
    with dead_receiver() as url:
        process = programs.start(url, "late")
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "end"
        began = time.monotonic()
        assert process.wait(PATIENCE_S) == 0
        assert time.monotonic() - began < EXIT_S + 20  # a busy machine exits slowly


def test_all_pools_share_the_time_of_the_exit(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six pools with ten receivers that hang do not wait six times."""
    monkeypatch.setattr(exits, "_until", None)
    go = threading.Event()
    event = PoolEvent("key_rejected", "p", "a", datetime.now(UTC), None, "hello")
    receivers = [
        [Receiver("on_event", lambda _: go.wait(PATIENCE_S)) for _ in range(10)] for _ in range(6)
    ]
    watchers = [alerts.AlertWatcher(pool("a"), some) for some in receivers]
    for watcher, some in zip(watchers, receivers, strict=True):
        watcher.start()
        for receiver in some:
            receiver.put(event)
    began = time.monotonic()
    for watcher in watchers:
        alerts._at_exit(weakref.ref(watcher))
    took = time.monotonic() - began
    go.set()
    assert EXIT_S <= took < 5 * EXIT_S
    wait_for(lambda: "keyrot-alert" not in _threads(), PATIENCE_S)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_sends_alerts(programs: Programs, webhook: Webhook) -> None:
    """It has a thread of its own, although its parent's was started before the fork."""
    process = programs.start(webhook.url, "fork")
    resume(process)
    assert process.wait(PATIENCE_S) == 0
    assert webhook.events == {"key_rejected": 1, "pool_exhausted": 1}
