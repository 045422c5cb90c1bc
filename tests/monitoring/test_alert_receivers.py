"""How events reach their receivers: in the background, bounded, independently of each other."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from traceback import TracebackException
from typing import Any

import pytest
from pydantic import SecretStr
from support.receivers import Events, Mailbox, Webhook, dead_receiver
from support.servers import wait_for

from keyrot_middleware.config import load
from keyrot_middleware.errors import ConfigError, MissingExtraError
from keyrot_middleware.events import EVENTS, PoolEvent
from keyrot_middleware.monitoring import alert_receivers
from keyrot_middleware.monitoring.alert_receivers import QUEUE_MAX, TRIES, Receiver, open_receivers

PATIENCE_S = 60


def event(name: Any = "key_rejected", sentence: str = "pool p: <b>key a</b> & more.") -> PoolEvent:
    """Make an event."""
    return PoolEvent(name, "p", "a", datetime.now(UTC), "key_invalid", sentence)


def opened(*urls: str, events: Any = EVENTS) -> list[Receiver]:
    """Open receivers by URL."""
    return open_receivers(None, [SecretStr(url) for url in urls], events)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """Run a webhook until the test ends."""
    made = Webhook()
    yield made
    made.close()


def alert_threads() -> list[threading.Thread]:
    """List the threads that deliver events."""
    return [one for one in threading.enumerate() if one.name == alert_receivers.THREAD_NAME]


def test_a_webhook_gets_title_text_and_kind(webhook: Webhook) -> None:
    """In the form of Apprise's json://; the thread ends when no event is left."""
    (receiver,) = opened(webhook.url)
    receiver.put(event())
    wait_for(lambda: webhook.messages, PATIENCE_S)
    (message,) = webhook.messages
    assert message["title"] == "keyrot: key_rejected in pool p"
    assert message["message"] == "pool p: <b>key a</b> & more."
    assert message["type"] == "failure"
    wait_for(lambda: not alert_threads(), PATIENCE_S)


def test_a_mail_server_gets_a_mail() -> None:
    """By Apprise's mailto://."""
    mailbox = Mailbox()
    try:
        (receiver,) = opened(mailbox.url)
        receiver.put(event())
        wait_for(lambda: mailbox.events, PATIENCE_S)
        assert mailbox.events == {"key_rejected": 1}
        assert b"pool p: <b>key a</b> & more." in mailbox.received[0]
        assert b"text/plain" in mailbox.received[0]
        receiver.close(time.monotonic() + PATIENCE_S)
    finally:
        mailbox.close()


def test_a_dead_receiver_delays_no_other(webhook: Webhook) -> None:
    """One accepts and never answers; the other, and the function, get all events."""
    events = Events()
    with dead_receiver() as url:
        urls = [SecretStr(url), SecretStr(webhook.url)]
        receivers = open_receivers(events, urls, EVENTS)
        for _ in range(20):
            for receiver in receivers:
                receiver.put(event())
        wait_for(lambda: len(webhook.requests) == 20 and len(events.all) == 20, PATIENCE_S)
        dead = receivers[1]
        assert len(alert_threads()) <= 1 + len(receivers)
        for _ in range(2 * QUEUE_MAX):
            dead.put(event())
        assert len(dead._queue) == QUEUE_MAX
        dead.close(0.0)
    wait_for(lambda: not alert_threads(), PATIENCE_S)


def test_a_full_queue_drops_the_oldest_and_logs_it_once(caplog: pytest.LogCaptureFixture) -> None:
    """The newest events are the ones that matter."""
    go, got = threading.Event(), Events()

    def slow(one: PoolEvent) -> None:
        go.wait(PATIENCE_S)
        got.put(one)

    receiver = Receiver("on_event", slow)
    receiver.put(event(sentence="first"))
    wait_for(lambda: not receiver._queue)
    for number in range(QUEUE_MAX + 5):
        receiver.put(event(sentence=str(number)))
    go.set()
    wait_for(lambda: len(got.all) == QUEUE_MAX + 1, PATIENCE_S)
    assert [one.sentence for one in got.all] == ["first", *map(str, range(5, QUEUE_MAX + 5))]
    assert sum("the oldest are dropped" in text for text in caplog.messages) == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit], ids=lambda error: error.__name__)
def test_a_function_that_raises_is_logged_once(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """It still gets the next events; the text of its error is not in the log."""
    calls = []

    def on_event(one: PoolEvent) -> None:
        calls.append(one)
        if len(calls) != 3:
            raise error("FAKE-secret")

    (receiver,) = open_receivers(on_event, (), EVENTS)
    for _ in range(5):
        receiver.put(event())
    wait_for(lambda: len(calls) == 5, PATIENCE_S)
    wait_for(lambda: not alert_threads(), PATIENCE_S)
    messages = [text for text in caplog.messages if "on_event failed" in text]
    assert len(messages) == 2  # the first failure, and the first one after a success
    assert error.__name__ in messages[0]
    assert "test_alert_receivers.py" in messages[0]
    assert "FAKE" not in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_is_started_again_by_the_next_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here a handler of the program's log raises SystemExit."""
    calls = []

    class Ends(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit

    def on_event(one: PoolEvent) -> None:
        calls.append(one)
        raise ValueError

    monkeypatch.setattr(logging.getLogger("keyrot_middleware"), "handlers", [Ends()])
    (receiver,) = open_receivers(on_event, (), EVENTS)
    for count in (1, 2):
        receiver.put(event())
        wait_for(lambda count=count: len(calls) == count, PATIENCE_S)
        wait_for(lambda: not alert_threads(), PATIENCE_S)


def test_a_delivery_that_fails_is_tried_three_times(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the next event is delivered, and the log names the receiver without its URL."""
    monkeypatch.setattr(alert_receivers, "RETRY_S", 0.01)
    answers = iter([500] * TRIES + [503, 200])
    webhook = Webhook(lambda: next(answers))
    try:
        (receiver,) = opened(webhook.url)
        receiver.put(event())
        receiver.put(event("state_degraded"))
        wait_for(lambda: len(webhook.requests) == TRIES + 2, PATIENCE_S)
        wait_for(lambda: not alert_threads(), PATIENCE_S)
        assert webhook.events == {"key_rejected": TRIES, "state_degraded": 2}
    finally:
        webhook.close()
    messages = [text for text in caplog.messages if "failed on" in text]
    assert len(messages) == 1
    assert "KEYROT_ALERTS, entry 1 (json://)" in messages[0]
    assert "hook-secret" not in caplog.text


def test_only_the_events_of_the_setting_are_sent(webhook: Webhook) -> None:
    """The function gets all events."""
    events = Events()
    chosen = load(keys="FAKE-a", alert_events="pool_exhausted, state_degraded").settings
    receivers = open_receivers(events, [SecretStr(webhook.url)], chosen.alert_events)  # type: ignore[arg-type]
    for name in EVENTS:
        for receiver in receivers:
            receiver.put(event(name))
    wait_for(lambda: len(events.all) == len(EVENTS), PATIENCE_S)
    wait_for(lambda: not alert_threads(), PATIENCE_S)
    assert webhook.events == {"pool_exhausted": 1, "state_degraded": 1}


def test_urls_are_in_no_log(webhook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    """Not at DEBUG either, where Apprise and urllib3 log them; the program's own lines are kept."""
    with caplog.at_level(logging.DEBUG):
        (receiver,) = opened(webhook.url)
        assert "hook-secret" not in repr(receiver)
        receiver.put(event())
        wait_for(lambda: webhook.requests, PATIENCE_S)
        wait_for(lambda: not alert_threads(), PATIENCE_S)
        logging.getLogger("apprise").debug("of the program")
    assert "hook-secret" not in caplog.text
    assert "of the program" in caplog.text


def test_urls_are_in_no_log_while_another_delivery_ends(caplog: pytest.LogCaptureFixture) -> None:
    """It ends while the logger's filters are being called."""
    begun, end, ended = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with alert_receivers._hidden_urls():
            begun.set()
            end.wait(PATIENCE_S)
        ended.set()

    def wait_for_the_end(_: logging.LogRecord) -> bool:
        end.set()
        return ended.wait(PATIENCE_S)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(PATIENCE_S)
    logger = logging.getLogger("apprise")
    logger.addFilter(wait_for_the_end)
    try:
        with caplog.at_level(logging.DEBUG), alert_receivers._hidden_urls():
            logger.debug("hook-secret")
    finally:
        logger.removeFilter(wait_for_the_end)
        end.set()
        thread.join()
    assert "hook-secret" not in caplog.text


SECRET = "FAKE-token-in-url"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"jsno://user:{SECRET}@host", 'unknown scheme "jsno"; allowed: URLs of Apprise'),
        (f"jsno://user:{SECRET}@host", 'Did you mean "json"?'),
        (f"slack://{SECRET}", "Apprise cannot use this slack:// URL (not shown)"),
        (f"mailto://{SECRET}", "Apprise cannot use this mailto:// URL (not shown)"),
    ],
)
def test_a_url_that_cannot_be_used_is_an_error(
    url: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the setting and what is allowed, without the URL; nor do local variables hold it."""
    urls = [SecretStr("json://127.0.0.1:9"), SecretStr(url)]
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError) as caught:
        open_receivers(None, urls, EVENTS)
    trace = TracebackException(caught.type, caught.value, caught.tb.tb_next, capture_locals=True)
    assert SECRET not in "".join(trace.format())
    assert str(caught.value).startswith("KEYROT_ALERTS, entry 2: ")
    assert message in str(caught.value)
    assert SECRET not in str(caught.value) + caplog.text


@pytest.mark.parametrize("value", [SECRET, f"json://127.0.0.1 {SECRET}", f"://{SECRET}"])
def test_a_value_that_is_no_url_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found together with the other settings, so that `keyrot check` finds it too."""
    monkeypatch.setenv("KEYROT_ALERTS", value)
    with pytest.raises(ConfigError) as caught:
        load(keys="FAKE-a")
    assert str(caught.value).startswith("KEYROT_ALERTS: entry 1 is no URL (not shown); allowed: ")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["json://a,json://b", "json://a json://b", "json://a,\n json://b,"]
)
def test_urls_are_separated_by_commas_or_blanks(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comma inside a URL is part of it; settings show no URL."""
    monkeypatch.setenv("KEYROT_ALERTS", value)
    settings = load(keys="FAKE-a").settings
    assert [url.get_secret_value() for url in settings.alerts] == ["json://a", "json://b"]
    assert "json" not in repr(settings)
    (one,) = load(keys="FAKE-a", alerts="mailto://h?to=a@b.c,d@b.c").settings.alerts
    assert one.get_secret_value() == "mailto://h?to=a@b.c,d@b.c"
    assert len(load(keys="FAKE-a", alerts=["json://a", "json://b"]).settings.alerts) == 2


def test_an_unknown_event_is_an_error() -> None:
    """It lists the known events, and the one that was probably meant."""
    with pytest.raises(ConfigError) as caught:
        load(keys="FAKE-a", alert_events="key_rejected,pool_exhaused")
    assert 'found "pool_exhaused"; allowed: pool_exhausted, ' in str(caught.value)
    assert 'Did you mean "pool_exhausted"?' in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting and what to install."""
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(MissingExtraError) as caught:
        opened("json://127.0.0.1:9")
    assert "KEYROT_ALERTS needs the package 'apprise'" in str(caught.value)
    assert "keyrot-middleware[alerts]" in str(caught.value)


async def _async(_: PoolEvent) -> None:
    """Do nothing."""


@pytest.mark.parametrize("value", [3, "text", _async], ids=["number", "text", "async"])
def test_a_value_that_is_no_function_is_an_error(value: Any) -> None:
    """An async function would never be awaited."""
    with pytest.raises(ConfigError, match=r"on_event=…\): found .*; allowed: a function of one"):
        open_receivers(value, (), EVENTS)
