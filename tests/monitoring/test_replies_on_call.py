"""A gateway's page and an ended account, as an operator lives them: two processes of one pool.

No thread of ours and no real time; the calls go to a server on loopback. At each step both
processes and `keyrot status` say the same, and what they say is compared with what is true.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from support.json_server import JsonServer, Request, Response
from support.receivers import Events

from keyrot_middleware import _install
from keyrot_middleware.cli import status as command
from keyrot_middleware.clients import Binding
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.monitoring import alerts, report
from keyrot_middleware.runtime import pool as runtime
from keyrot_middleware.settings import load
from keyrot_middleware.state.sqlite import SqliteState
from keyrot_middleware.testing import FakeClock

PAGE = b"<html><head><title>403 Forbidden</title></head><body>nginx</body></html>"
FINE = ["All calls are served."]
POOL_KEY = {"authorization": "Bearer keyrot-pool"}
IT_IS = "403 … Forbidden nginx. They are a gateway's or the requests' own; no key is penalized"
PLAN = "401 odd The plan has ended"


class OnCall:
    """The server, its keys, and two processes of their pool."""

    def __init__(self, clock: FakeClock, folder: Path, keys: list[dict[str, str]]) -> None:
        self.clock, self.folder, self.events = clock, folder, Events()
        self.page_each, self.ended, self.sent, self.failed = 0, set[str](), 0, 0
        """Each how many-th request gets the page; keys whose account has ended."""
        self.refusal = {"error": {"message": "The plan has ended.", "type": "odd"}}
        self.server = JsonServer(self.answer)
        names = [one["key_id"] for one in keys]
        entries = [{"provider": "openai", **one} for one in keys]
        (folder / "keys.json").write_text(json.dumps(entries))
        (folder / ".env").write_text("".join(f"KEYROT_KEY_{n}=sk-FAKE-{n}\n" for n in names))

    def answer(self, request: Request) -> Response:
        self.sent += 1
        key = request.headers["authorization"].rpartition("-")[2]
        if self.page_each and self.sent % self.page_each == 0:
            return Response(403, PAGE, {"Content-Type": "text/html"})
        return Response(401, self.refusal) if key in self.ended else Response(200, {"id": "x"})

    def load(self) -> Any:
        hosts, file = (f"openai={self.server.url}",), self.folder / "keys.json"
        return load(keys_file=file, allowed_hosts=hosts, state_url="sqlite", max_wait_s=0)

    def shared(self, *_: Any, **__: Any) -> Any:
        file = self.folder / "state.sqlite3"
        return SqliteState(file, RetryPolicy(), self.clock.time, pool="day")

    def start(self) -> None:
        self.processes = []
        for _ in range(2):
            pool = _install.open_pool(self.load(), self.clock, on_event=self.events)
            assert pool is not None
            pool.random = Random(7).random
            self.processes.append(pool)
        self.binding = Binding(self.processes[0], self.load().allowed, ("httpx",))
        self.binding.install()
        self.client, self.outside = httpx.Client(headers=POOL_KEY), self.shared()

    def close(self) -> None:
        self.client.close()
        self.binding.close()
        self.processes[1].close()
        self.outside.close()
        self.server.close()

    def minutes(self, number: int, each: int = 6) -> list[str]:
        """Make calls in each of some minutes, and return the events that both have reported."""
        self.events.all, self.failed = [], 0
        for _ in range(number):
            for _ in range(each):
                self.clock.advance(60 / each)
                url = f"{self.server.url}/v1/chat/completions"
                self.failed += self.client.post(url, json={"model": "m"}).status_code != 200
            self.processes[0].activity.send()
            for pool in self.processes:
                pool.background[0].look()
        return [f"{one.event}: {one.sentence}" for one in self.events.all]

    def look(self) -> tuple[list[str], dict[str, str], list[str]]:
        """Return the headline, how each key is that is not available, and the lines of replies."""
        outside = command._report(self.load(), self.outside)
        reports = *map(report.source_of, self.processes), outside
        first, *others = [one.status() for one in reports]
        assert [one["summary"] for one in others] == [first["summary"]] * 2
        head = first["summary"]["headline"]
        out = {one["key_id"]: one["state"] for one in first["keys"] if not one["available"]}
        return head["sentences"], out, head["unknown"]


@pytest.fixture
def on_call(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, here: Path
) -> Iterator[Callable[..., OnCall]]:
    made: list[OnCall] = []
    monkeypatch.setattr(report, "FRESH_S", -1.0)
    monkeypatch.setattr(runtime.Refresher, "start", lambda one: setattr(one, "_on", True))
    monkeypatch.setattr(alerts.Alerts, "look_in", lambda *_: None)
    monkeypatch.setattr(command, "time", SimpleNamespace(time=clock.time))

    def start(*keys: dict[str, str]) -> OnCall:
        made.append(OnCall(clock, here, list(keys)))
        monkeypatch.setattr(_install, "open_state", made[-1].shared)
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.close()


def names_many(texts: list[str]) -> bool:
    """Return whether a text lists the keys of a pool one by one."""
    return any(len(set(re.findall(r"\bk\d", text))) > 2 for text in texts)


def test_a_gateways_page_is_one_line_and_one_alert_and_takes_no_key_out(on_call: Any) -> None:
    """It comes to one request in three for ten minutes; an hour later each key works."""
    names = [{"key_id": f"k{n}", "billing_account": f"b{n}"} for n in range(10)]
    pool = on_call(*names)
    assert (pool.minutes(5), pool.look()) == ([], (FINE, {}, []))
    pool.page_each, events, lines = 3, list[str](), list[str]()
    for _ in range(10):
        events += pool.minutes(1)
        sentences, out, said = pool.look()
        assert (sentences, pool.failed) == (FINE, 0)
        assert len(out) <= 1  # the first one, until it has answered again
        assert len(said) == 1
        assert not names_many(said)
        lines += said
    [event] = events
    assert re.fullmatch(
        r"replies_not_known: pool default: \d replies of OpenAI not known, to \d keys that work: "
        rf"{re.escape(IT_IS)}\. Type: keyrot status",
        event,
    )
    line = f"29 replies of OpenAI not known, to 10 keys that work: {IT_IS}."
    assert lines[-1] == line
    pool.page_each = 0
    for _ in range(5):
        assert (pool.minutes(10, 1), pool.look(), pool.failed) == ([], (FINE, {}, [line]), 0)
    assert pool.minutes(15, 1) == []
    assert pool.look() == (FINE, {}, ["29 replies of OpenAI not known: 403 … Forbidden nginx"])
    pool.page_each = 3  # later it comes again, and is reported again
    assert [one.partition(":")[0] for one in pool.minutes(5)] == ["replies_not_known"]


def test_an_account_that_has_ended_is_one_line_and_one_alert_until_it_works_again(
    on_call: Any,
) -> None:
    """Two of four keys belong to it; no call fails, and what is said is the account's name."""
    names = [{"key_id": f"k{n}", "billing_account": f"b{n // 2}"} for n in range(4)]
    pool = on_call(*names)
    assert (pool.minutes(5), pool.look()) == ([], (FINE, {}, []))
    pool.ended = {"k0", "k1"}
    why = f"set aside: {PLAN}; not known here, other keys are used"
    events = pool.minutes(1)  # three refusals in a row show that the second one is out too
    first = "replies_not_known: pool default: key k1 (billing account b0/openai) is"
    assert events == [f"{first} {why}. Type: keyrot status"]
    assert pool.look() == (
        FINE,
        {"k1": "cooling_down"},
        [f"Key k1 (billing account b0/openai) is {why}."],
    )
    assert (pool.minutes(2), pool.failed) == ([], 0)
    line = f"Billing account b0/openai (keys k0 and k1) is {why}."
    assert pool.look() == (FINE, dict.fromkeys(("k0", "k1"), "cooling_down"), [line])
    for _ in range(60):  # 5 hours: it is tried again each time a cooldown ends
        assert (pool.minutes(5, 1), pool.failed) == ([], 0)
        sentences, out, [line] = pool.look()
        assert (sentences, "Billing account b0/openai (keys k0 and k1) " in line) == (FINE, True)
        assert set(out) <= {"k0", "k1"}
    pool.ended, events = set(), []
    for _ in range(80):
        events += pool.minutes(5, 1)
        assert pool.failed == 0
    [event] = events
    assert event.startswith(
        "key_available_again: pool default: billing account b0/openai has no key "
    )
    sentences, out, [line] = pool.look()
    assert (sentences, out) == (FINE, {})
    assert line.endswith(f" replies of OpenAI not known: {PLAN}.")


def test_one_odd_reply_is_no_alert(on_call: Any) -> None:
    """Its key is set aside for a minute, and says so, until it has answered again."""
    pool = on_call({"key_id": "k0"}, {"key_id": "k1"})
    pool.ended = {"k0"}
    pool.minutes(1, 2)
    pool.ended = set()
    text = f"set aside: {PLAN}; not known here"
    assert pool.look()[2] == [f"Key k0 is {text}, other keys are used."]
    pool.clock.advance(60)
    assert pool.look()[2] == [f"Key k0 was {text}, calls try it again."]
    assert pool.minutes(5) == []
    assert pool.look() == (FINE, {}, [f"1 reply of OpenAI not known: {PLAN}."])


def test_an_alert_quotes_no_markup_and_not_much(on_call: Any) -> None:
    """Nobody here has read the words; a receiver may read a mention or a link in them."""
    pool = on_call({"key_id": "k0"}, {"key_id": "k1"})
    pool.refusal = {"error": {"message": f"<!channel> @all [x](http://h) {'y' * 300}"}}
    pool.minutes(5)
    pool.ended = {"k0"}
    [event] = pool.minutes(5)
    quoted = f"401 all x (http h) {'y' * 81}…"
    assert f"set aside: {quoted}; not known here" in event
    pool.ended = set()
    assert [one for one in pool.minutes(10) if f"OpenAI ({quoted}) has no key" in one]
