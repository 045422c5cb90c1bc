"""Alerts of an installed pool: exactly one of each event."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from traceback import TracebackException
from types import SimpleNamespace
from typing import Any

import pytest
from google.genai import errors
from pydantic import SecretStr
from support.pool import INFO, Rig, key
from support.receivers import Events, Webhook
from support.replies import MODEL, day, denied, expired, failure
from support.servers import wait_for
from support.states import degrading

import keyrot_middleware
from keyrot_middleware.core.model import (
    DEFAULT_ZONE,
    NANO,
    Budget,
    CallInfo,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Usage,
)
from keyrot_middleware.core.windows import next_midnight
from keyrot_middleware.core.wording import utc
from keyrot_middleware.errors import EVENTS, ConfigError, PoolEvent
from keyrot_middleware.monitoring import alerts
from keyrot_middleware.monitoring.alerts import Receiver, open_receivers
from keyrot_middleware.monitoring.report import source_of
from keyrot_middleware.state.fallback import PAUSE_S
from keyrot_middleware.testing import FakeGemini, Reply

PATIENCE_S = 240
TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "LOOK_S", 0.02)
    monkeypatch.setattr(alerts, "RETRY_S", 0.01)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


PROGRAM = """
import sys
from contextlib import suppress
from google import genai
import keyrot_middleware
url, host, alerts = sys.argv[1:]
keyrot_middleware.install(allowed_hosts=[host], alerts=alerts, max_wait_s=0)
client = genai.Client(http_options={"base_url": url})
for _ in range(2):
    with suppress(genai.errors.ClientError):
        client.models.generate_content(model="gemini-3.1-flash-lite", contents="hello")
print("end", flush=True)
"""


@pytest.fixture
def start(here, monkeypatch) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a program with a rejected key, which sends its alerts to a URL."""
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    with FakeGemini() as gemini, ExitStack() as stack:
        monkeypatch.setenv("GEMINI_API_KEYS", gemini.add_key("a").value)
        gemini.always("a", Reply.KEY_INVALID)

        def start(url: str) -> subprocess.Popen[str]:
            args = [sys.executable, "-c", PROGRAM, gemini.url, gemini.host, url]
            process = subprocess.Popen(args, text=True, stdout=subprocess.PIPE)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


def test_the_last_event_of_a_program_is_delivered(start, webhook) -> None:
    """The interpreter exits right after the call."""
    assert start(webhook.url).wait(PATIENCE_S) == 0
    assert webhook.events == {"key_rejected": 1, "pool_exhausted": 1}


# Which events there are, without a thread ---------------------------------------------------------


class Watched:
    """A pool whose calls a test makes, and looks at, one after the other."""

    def __init__(self, *keys: Any, **policy: Any) -> None:
        self.rig = Rig(*keys, **{"strategy": "fill", "max_wait_s": 0, **policy})
        self.events = Events()
        self.watch()

    def watch(self) -> None:
        """Watch from now on, as a process does that has just begun."""
        self.alerts = alerts.Alerts(self.rig.pool, [Receiver("test", self.events)])
        self.alerts.look_in = lambda _: None  # type: ignore[method-assign]
        self.rig.pool.observers = (self.alerts,)

    def look(self) -> list[tuple[str, str | None]]:
        self.alerts.look()
        return self.events.names

    def call(self, *replies: Any, info: CallInfo = INFO, sleep: float = 0) -> list[Any]:
        """Make a call with these replies of the first key, and return the new events."""
        self.events.take()
        self.rig.clock.sleep(sleep)
        self.rig.will("a", *replies)
        with suppress(Exception):  # the results of the calls are tested elsewhere
            self.rig.call(info)
        return self.look()

    @property
    def sentence(self) -> str:
        """What was said last."""
        return self.events.all[-1].sentence


AGAIN = "key_available_again"


def test_a_rejected_key_is_reported_once_until_it_works_again() -> None:
    """With what its provider says, and what to type; also by a process that comes later."""
    pool = Watched(key("a"), key("b"))
    assert pool.call(expired()) == [("key_rejected", "a")]
    (event,) = pool.events.all
    assert (event.pool, event.reason, event.at) == ("test", "key_expired", utc(pool.rig.time()))
    assert event.sentence == (
        'pool test: Gemini rejects key a (key_expired: "API key expired. Please renew the API '
        'key."); replace its value. Type: keyrot rotate a'
    )
    assert event.available_at is not None
    pool.watch()  # after a deploy
    assert pool.call(expired(), sleep=3_600) == []  # its probe, which is no success
    assert pool.call(sleep=7_200) == [(AGAIN, "a")]
    assert pool.sentence == "pool test: key a is no longer rejected, after 3 h."
    assert pool.call(expired(), sleep=60) == [("key_rejected", "a")]
    pool.rig.clock.sleep(60)
    pool.rig.pool.reset("a")
    assert pool.call(sleep=1) == [(AGAIN, "a")]
    assert pool.sentence == "pool test: key a is no longer rejected, after 61 s."


@pytest.mark.parametrize("reply", [expired(), denied()])
def test_what_a_person_ends_is_not_reported_as_a_success(reply: Any) -> None:
    """A reset, after which nothing was sent; the next refusal is a new one."""
    pool = Watched(key("a"), key("b"))
    ((event, _),) = pool.call(reply)
    pool.rig.clock.sleep(1_200)
    pool.rig.pool.reset("a")
    pool.events.take()
    assert pool.look() == [(AGAIN, "a")]
    whom = "key a" if event == "key_rejected" else "project a"
    assert pool.sentence == (
        f"pool test: a person reset or replaced {whom}, after 20 min; the next call shows whether "
        "it works."
    )
    assert sent_as(pool.events.all[-1]) == "warning"
    assert pool.call(reply) == [(event, "a")]
    pool.rig.pool.reset("a")
    assert pool.call(sleep=700) == [(AGAIN, "a")]
    assert sent_as(pool.events.all[-1]) == "success"


@pytest.mark.parametrize("reply", [expired(), denied()])
@pytest.mark.parametrize("is_removed", [False, True])
def test_a_refused_key_that_a_person_takes_away_is_not_promised_to_work(
    reply: Any, is_removed: bool
) -> None:
    """Switched off, or out of keys.json: no next call shows whether it works."""
    pool = Watched(key("a"), key("b"))
    ((event, _),) = pool.call(reply)
    pool.rig.clock.sleep(1_200)
    if is_removed:
        pool.rig.pool.configured = [key("b")]
        pool.rig.pool.selector.update([key("b")])
    else:
        source_of(pool.rig.pool).set_active("a", False)
    pool.events.take()
    assert pool.look() == [(AGAIN, "a")]
    whom = "key a" if event == "key_rejected" else "project a"
    verb = "removed" if is_removed else "switched off"
    assert pool.sentence == f"pool test: a person {verb} {whom}, after 20 min."
    assert sent_as(pool.events.all[-1]) == "warning"


def sent_as(event: PoolEvent) -> str:
    """Return as what kind of message an event is sent by Apprise, which has a color of its own."""
    kinds = list[str]()
    service = SimpleNamespace(notify=lambda notify_type, **_: [kinds.append(notify_type)])
    alerts._send(service, event)
    return kinds[0]


def test_another_key_of_the_account_that_works_ends_its_refusal() -> None:
    """It is a success, though not of the key that the report named."""
    pool = Watched(key("a", project="p"), key("b", project="p"), key("c"))
    assert pool.call(denied()) == [("project_blocked", "a")]
    pool.rig.pool.reset("b")
    assert pool.call(failure(503), sleep=60) == [(AGAIN, "a")]
    known = pool.rig.pool.state.snapshot(pool.rig.pool.configured)
    assert (known["a"].success_count, known["b"].success_count) == (0, 1)
    assert pool.sentence == "pool test: project p is no longer refused, after 60 s."


def test_what_is_used_up_is_reported_with_its_amount_and_its_end() -> None:
    """Requests of the day, and the budgets of the day and of the month."""
    budget = Budget(None, 5 * NANO, 2_000 * NANO)
    pool = Watched(key("a", Limits(rpd=100), project="p", usd=budget), key("b"))
    state, (one, _) = pool.rig.pool.state, pool.rig.pool.configured
    for cost in (4.0, 1.0, 2_000.0):
        lease = state.acquire(INFO._replace(requests=40), ((0, one),), strategy="fill")
        if isinstance(lease, Lease):
            usage = Usage(1, 1, cost_usd=cost)
            state.settle(lease, Outcome(LeaseOutcome.SUCCESS, usage=usage))
    pool.look()
    found = {found.sentence: found.available_at for found in pool.events.all}
    midnight, month_end = datetime(2026, 1, 2, 8, tzinfo=UTC), datetime(2026, 2, 1, 8, tzinfo=UTC)
    status = " Type: keyrot status"
    day = "project p has spent $5.00 of $5.00 of the day, until 2026-01-02 08:00 UTC."
    used = f"project p has used 80 of 100 requests of the day (RPD) for {MODEL}, until 2026-01-02 "
    assert found == {
        f"pool test: {day}{status}": midnight,
        f"pool test: {used}08:00 UTC.{status}": midnight,
    }
    pool.rig.clock.advance(24 * 3_600)
    lease = state.acquire(INFO, ((0, one),), strategy="fill")
    assert isinstance(lease, Lease)
    state.settle(lease, Outcome(LeaseOutcome.SUCCESS, usage=Usage(1, 1, cost_usd=1_995.0)))
    pool.look()
    assert {found.sentence for found in pool.events.all if found.available_at == month_end} == {
        "pool test: project p has spent $2,000.00 of $2,000.00 of the month, until 2026-02-01 "
        f"08:00 UTC.{status}"
    }


def test_an_exhausted_pool_is_one_message_until_calls_are_served_again() -> None:
    """It says until when without rejected keys, and its end says of what, and how long."""
    pool = Watched(key("a"), key("b"))
    pool.rig.will("b", day())
    assert ("pool_exhausted", None) in pool.call(expired())
    event = next(one for one in pool.events.all if one.event == "pool_exhausted")
    assert (event.reason, event.model, event.workload) == ("quota_day", MODEL, None)
    until = "no key until 2026-01-02 08:00 UTC (quota_day)"
    assert event.sentence == f"pool test: {MODEL}: {until}. Type: keyrot explain {MODEL}"
    for _ in range(12):
        assert pool.call(sleep=60) == []
    other = INFO._replace(model="gemini-2.5-flash-lite")
    pool.rig.will("b", day())
    assert pool.call(info=other) == [("pool_exhausted", None)]
    assert pool.call(sleep=86_400) == [(AGAIN, None), (AGAIN, "a"), (AGAIN, None)]
    said = {one.sentence for one in pool.events.all if one.key_id is None}
    assert any(one.startswith(f"pool test: {MODEL} is served again, after 24 h") for one in said)


def test_what_flaps_is_not_reported_again_for_ten_minutes() -> None:
    """Neither its beginning nor its end."""
    pool = Watched(key("a"))
    assert pool.call(day()) == [("pool_exhausted", None)]
    pool.rig.pool.reset("a")
    assert pool.call(sleep=121) == [(AGAIN, None)]
    assert pool.call(day(), sleep=121) == []
    pool.rig.pool.reset("a")
    assert pool.call(sleep=121) == []
    assert ("pool_exhausted", None) in pool.call(day(), sleep=601)


def test_what_begins_again_and_lasts_is_reported_when_ten_minutes_are_over() -> None:
    """Once, and then its end: the last message must not say that all is well."""
    pool = Watched(key("a"))
    assert pool.call(day()) == [("pool_exhausted", None)]
    pool.rig.pool.reset("a")
    assert pool.call(sleep=121) == [(AGAIN, None)]
    assert pool.call(day(), sleep=121) == []
    assert pool.call(sleep=alerts.REPEAT_S) == [("pool_exhausted", None)]
    assert pool.call(sleep=alerts.REPEAT_S) == []
    pool.rig.pool.reset("a")
    assert pool.call(sleep=121) == []  # calls got no key for twenty minutes
    assert pool.call(sleep=alerts.REPEAT_S) == [(AGAIN, None)]


def test_the_end_of_the_pools_day_is_reported_an_hour_before() -> None:
    """Of all keys that can serve a model, once; again if the rate has fallen and rises again."""
    keys = [key(name, Limits(rpd=100)) for name in "ab"]
    pool = Watched(*keys, strategy="spread")
    pool.rig.clock.advance(next_midnight(pool.rig.time(), DEFAULT_ZONE) - pool.rig.time())
    texts: list[PoolEvent] = []

    def hour(calls: int) -> list[str]:
        pool.events.take()
        for _ in range(calls):
            pool.rig.clock.advance(3_600 / calls)
            with suppress(Exception):
                pool.rig.call()
            pool.look()
        texts.extend(one for one in pool.events.all if one.event == "quota_forecast")
        return [name for name, _ in pool.events.names if name != "quota_80_percent"]

    assert [hour(40), hour(40), hour(40)] == [[], [], []]  # 80 are left, for two hours
    assert hour(40) == ["quota_forecast"]
    assert [hour(10), hour(5)] == [[], []]  # 25 are left, for five hours
    assert hour(15) == ["quota_forecast"]
    assert set(hour(20)) == {"pool_exhausted"}
    first = texts[0]
    assert (first.key_id, first.reason) == (None, "rpd")
    assert first.available_at == utc(next_midnight(first.at.timestamp(), DEFAULT_ZONE))
    assert first.sentence.startswith(
        f"pool test: at the rate of the last hour, it will have no requests per day (RPD) left for "
        f"{MODEL} at 1"
    )


def test_processes_that_share_a_state_agree_who_reports_it() -> None:
    """Twelve of them find the same at once; each beginning and each end is reported once."""
    pool = Watched(key("a"), key("b"))
    watching = [(Events(), alerts.Alerts(pool.rig.pool, [])) for _ in range(12)]
    for events, one in watching:
        one._receivers = [Receiver("test", events)]
        one.look_in = lambda *_: None  # type: ignore[method-assign]
    pool.call(expired())
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda one: one[1].look(), watching))
    assert [name for events, _ in watching for name, _ in events.names] == []  # by the pool
    pool.rig.clock.sleep(7_200)
    pool.rig.call()
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda one: one[1].look(), watching))
    assert [name for events, _ in watching for name, _ in events.names] == [AGAIN]


def test_each_outage_of_the_shared_state_is_reported() -> None:
    """By each process, since nobody can agree; what was the matter before goes on meanwhile."""
    pool = Watched(key("a"), key("b"))
    clock = pool.rig.clock
    pool.rig.pool.state, shared = degrading(clock.time, inner=pool.rig.state)
    pool.watch()
    assert pool.call(expired()) == [("key_rejected", "a")]
    for _ in range(2):
        shared.cut()
        assert pool.call() == [("state_degraded", None)]
        assert pool.call(sleep=2) == []
        shared.restore()
        tried = shared.calls.count("check")
        pool.call(sleep=PAUSE_S)
        wait_for(lambda n=tried: shared.calls.count("check") > n)  # type: ignore[misc]
        wait_for(lambda: not pool.rig.pool.state._breaker.is_open)  # type: ignore[attr-defined]
        assert pool.call(sleep=PAUSE_S) == [("state_recovered", None)]
        clock.sleep(alerts.REPEAT_S)


@pytest.mark.parametrize("model", ["@everyone", "<!channel>", "[x](http://h)"])
def test_a_model_name_cannot_address_a_channel(model: str) -> None:
    """A program may let its users choose the model; a receiver may read markup in its name."""
    pool = Watched(key("a", Limits(rpd=1)))
    info = INFO._replace(model=model)
    said = []
    for _ in range(2):
        pool.call(info=info)
        said += [one.sentence for one in pool.events.all]
    assert any("a model with an unusual name: no key until" in one for one in said)
    assert all("a model with an unusual name" in one and one.isprintable() for one in said)


# Receivers ----------------------------------------------------------------------------------------


def event(name: Any = "key_rejected", sentence: str = "pool p: <b>key a</b> & more.") -> PoolEvent:
    return PoolEvent(name, "p", "a", datetime.now(UTC), "key_invalid", sentence)


def opened(*urls: str, events: Any = EVENTS) -> list[Receiver]:
    return open_receivers(None, [SecretStr(url) for url in urls], events)


def put(receiver: Receiver, event: PoolEvent) -> None:
    receiver.put(event, threading.Event())


@pytest.mark.parametrize("error", [ValueError, SystemExit], ids=lambda error: error.__name__)
def test_a_function_that_raises_is_logged_once(error: type[BaseException], caplog: Any) -> None:
    """It still gets the next events; the text of its error is not in the log."""
    calls = []

    def on_event(one: PoolEvent) -> None:
        calls.append(one)
        if len(calls) != 3:
            raise error("FAKE-secret")

    (receiver,) = open_receivers(on_event, (), EVENTS)
    for _ in range(5):
        put(receiver, event())
    messages = [text for text in caplog.messages if "on_event failed" in text]
    assert len(messages) == 2  # the first failure, and the first one after a success
    assert error.__name__ in messages[0]
    assert "FAKE" not in caplog.text


def test_a_delivery_that_fails_is_tried_three_times(caplog: Any) -> None:
    """Then once until one is taken; the log names the receiver without its URL."""
    answers = iter([500] * alerts.TRIES + [503, 200])
    webhook = Webhook(lambda: next(answers))
    try:
        (receiver,) = opened(webhook.url)
        put(receiver, event())
        put(receiver, event("state_degraded"))
        put(receiver, event("state_degraded"))
        assert webhook.events == {"key_rejected": alerts.TRIES, "state_degraded": 2}
        assert not receiver.is_failing
    finally:
        webhook.close()
    messages = [text for text in caplog.messages if " failed (" in text]
    assert len(messages) == 1
    assert "KEYROT_ALERTS, entry 1 failed" in messages[0]


def test_urls_are_in_no_log(pool: Any, connect: Any, webhook: Webhook, caplog: Any) -> None:
    """Not at DEBUG either, where Apprise and urllib3 log them; the filters go with the pool."""
    with caplog.at_level(logging.DEBUG):
        pool({"key_id": "a", "rpd": 1}, alerts=webhook.url, max_wait_s=0)
        client = connect()
        for _ in range(2):
            with suppress(errors.ClientError):
                client.models.generate_content(model=MODEL, contents="hello")
        wait_for(lambda: webhook.requests, PATIENCE_S)
        logging.getLogger("apprise").debug("of the program")
        keyrot_middleware.uninstall()
    assert "hook-secret" not in caplog.text
    assert "of the program" in caplog.text
    assert alerts._FILTER not in logging.getLogger("apprise").filters


SECRET = "FAKE-token-in-url"


@pytest.mark.parametrize(
    "url", [f"jsno://user:{SECRET}@host", f"slack://{SECRET}", SECRET, f"://{SECRET}"]
)
def test_a_url_that_cannot_be_used_is_an_error(url: str, caplog: Any) -> None:
    """It names the setting and what is allowed, without the URL; nor do local variables hold it."""
    urls = [SecretStr("json://127.0.0.1:9"), SecretStr(url)]
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError) as caught:
        open_receivers(None, urls, EVENTS)
    trace = TracebackException(caught.type, caught.value, caught.tb.tb_next, capture_locals=True)
    assert SECRET not in "".join(trace.format())
    text = "KEYROT_ALERTS, entry 2: Apprise cannot use this URL (not shown); allowed: URLs of"
    assert str(caught.value).startswith(text)
    assert SECRET not in str(caught.value) + caplog.text
