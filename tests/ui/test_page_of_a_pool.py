"""The page over a real pool: in this process, and over Redis with other processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from asgi import request as send
from google import genai
from playwright.sync_api import Page, expect
from served import TOKEN, details, row, wait_for_rows
from support.servers import server

import keyrot_middleware
from keyrot_middleware import ui
from keyrot_middleware.testing import FakeGemini, Reply

MODEL = "gemini-2.5-flash"
PROMPT, ANSWER = "the-prompt-of-the-test", "the-answer-of-the-test"

Open = Callable[..., Any]
Serve = Callable[..., Any]


@pytest.fixture
def service() -> Iterator[FakeGemini]:
    """Serve by the machine's clock, which the page's countdowns need."""
    with FakeGemini() as running:
        running.answer(ANSWER)
        yield running


@pytest.fixture
def pool(
    service: FakeGemini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Install a pool of the given entries of keys.json, and return a client over it."""
    clients: list[Any] = []

    def install(*entries: dict[str, Any]) -> Any:
        for entry in entries:
            label = entry["key_id"]
            value = service.add_key(label, project=entry.get("project"), tier="paid").value
            monkeypatch.setenv(f"GEMINI_KEY_{label}", value)
        (tmp_path / "keys.json").write_text(json.dumps(entries))
        keyrot_middleware.install(allowed_hosts=(service.host,), strategy="fill")
        clients.append(genai.Client(http_options=service.http_options))
        return clients[-1]

    yield install
    keyrot_middleware.uninstall()
    for client in clients:
        client.close()


def call(client: Any, model: str = MODEL) -> None:
    """Send one call."""
    client.models.generate_content(model=model, contents=PROMPT)


def refusal(code: int, status: str, message: str) -> Any:
    """Let Google refuse with a message."""
    return Reply.custom(code, {"error": {"code": code, "status": status, "message": message}})


def test_a_key_that_goes_429_changes_its_row(
    service: FakeGemini, pool: Any, serve: Serve, open_tab: Open
) -> None:
    """The page of the process shows the refusal, its end, and the call that continued."""
    client = pool({"key_id": "free_1", "rpm": 100}, {"key_id": "paid_1", "priority": 1})
    page = open_tab(serve(ui.app(actions=True, token=TOKEN)).login).page
    wait_for_rows(page, 2)
    begin_within_a_minute()
    call(client)
    expect(row(page, "free_1").locator(".most")).to_have_text("RPM 1 / 100")
    service.script("free_1", Reply.QUOTA_MINUTE)
    call(client)
    expect(row(page, "free_1").locator(".state")).to_have_text("cooling down")
    expect(row(page, "free_1")).to_contain_text(re.compile(r"available in \d:\d\d"))
    first = page.locator("#calls tr").first
    expect(first.locator("li")).to_have_text(["free_1 429 quota_minute", "paid_1 ok"])
    first.get_by_role("button").first.click()
    expect(page.locator("#details-body li").first).to_contain_text("You exceeded your current")
    expect(page.locator("#details-body")).to_contain_text(re.compile(r"Tokens\d+ in, \d+ out"))
    page.keyboard.press("Escape")
    act(page, "free_1", "Reset")
    expect(row(page, "free_1").locator(".state")).to_have_text("available")
    call(client)
    expect(page.locator("#calls tr").first.locator("li")).to_have_text(["free_1 ok"])


def act(page: Page, key_id: str, action: str) -> None:
    """Do something with a key, in its details."""
    details(page, key_id).get_by_role("button", name=f"{action} {key_id}").click()
    page.locator("#confirm-yes").click()
    expect(page.locator("#toast")).to_contain_text(key_id)
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()


def test_a_check_sends_a_key_to_allowed_hosts_only(
    service: FakeGemini, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the SDK's default address is not allowed, nothing is sent, and the page reports it."""
    pool({"key_id": "a_1"})
    app = ui.app(actions=True, token="t" * 16)
    headers = {"authorization": "Bearer " + "t" * 16, "method": "POST"}
    with FakeGemini() as foreign:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", foreign.url)
        refused = send(app, "/api/keys/a_1/check", **headers)
        assert (refused.status, foreign.count()) == (409, 0)
    assert "is not in KEYROT_ALLOWED_HOSTS" in refused.error
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service.url)
    done = send(app, "/api/keys/a_1/check", **headers)
    assert (done.status, service.count("a_1")) == (200, 1)
    assert "key a_1 works" in done.content["sentence"]


def test_no_value_prompt_or_answer_is_in_any_response(
    service: FakeGemini, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After good, refused and failed calls no body or header of the app holds any of them."""
    client = pool({"key_id": "a_1"}, {"key_id": "a_2"}, {"key_id": "a_3"})
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service.url)
    values = [service.key(label).value for label in ("a_1", "a_2", "a_3")]
    service.script("a_1", Reply.KEY_INVALID)
    service.script("a_2", refusal(429, "RESOURCE_EXHAUSTED", f"key {values[1]} is exhausted"))
    call(client)
    app = ui.app(actions=True, token="t" * 16)
    paths = ["/", "/api/status", "/api/attempts", f"/api/explain?model={MODEL}&tokens=5"]
    paths += [f"/static/{name}" for name in ("app.js", "parts.js")]
    posts = [f"/api/keys/a_1/{action}" for action in ("disable", "enable", "check", "reset")]
    headers = {"authorization": "Bearer " + "t" * 16}
    replies = [send(app, path, **headers) for path in paths]
    replies += [send(app, path, method="POST", **headers) for path in posts]
    assert {reply.status for reply in replies} == {200}
    everything = "".join(f"{reply.text}{reply.headers}" for reply in replies)
    assert "key_invalid" in everything
    parts = [part for value in values for part in (value, value[6:30])]
    assert [one for one in (*parts, PROMPT, ANSWER) if one in everything] == []


def begin_within_a_minute() -> None:
    """Wait if the minute ends soon: otherwise usage would count in the next one."""
    left = 60 - time.time() % 60
    if left < 8:
        time.sleep(left + 1.5)


PROGRAM = """\
import sys
import keyrot_middleware
from google import genai
keyrot_middleware.install(allowed_hosts=(sys.argv[2],), strategy="fill")
client = genai.Client(http_options={"base_url": sys.argv[1]})
print("ready", flush=True)
for line in sys.stdin:
    print(client.models.generate_content(model=line.strip(), contents="hello").text, flush=True)
"""


class Program:
    """A process that sends a call for each line."""

    def __init__(self, service: FakeGemini, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, service.url, service.host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def call(self) -> str:
        """Send a call; return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{MODEL}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def stop(self) -> None:
        """Stop it."""
        self._process.communicate(timeout=20)


def test_calls_of_two_processes_are_on_one_page(
    service: FakeGemini, tmp_path: Path, open_tab: Open
) -> None:
    """`keyrot ui` shows over Redis what other processes do, in one table, and changes it."""
    values = {label: service.add_key(label, tier="paid").value for label in ("one", "two")}
    entries = [{"key_id": "one", "rpm": 50}, {"key_id": "two", "priority": 1}]
    (tmp_path / "keys.json").write_text(json.dumps(entries))
    env = {f"GEMINI_KEY_{label}": value for label, value in values.items()}
    env |= {"KEYROT_STATE_URL": server("valkey").url, "KEYROT_POOL": f"pool-{uuid4().hex[:8]}"}
    env |= {"GOOGLE_GEMINI_BASE_URL": service.url, "KEYROT_ALLOWED_HOSTS": service.host}
    first, second = Program(service, env), Program(service, env)
    shown = subprocess.Popen(
        [sys.executable, "-m", "keyrot_middleware", "ui", "--port", "0", "--no-open", "--actions"],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert shown.stdout is not None
        lines = [shown.stdout.readline() for _ in range(3)]
        url = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", "".join(lines))
        assert url is not None, lines
        page = open_tab(url[0]).page
        wait_for_rows(page, 2)
        expect(page.locator("#place")).to_contain_text("shared in redis://127.0.0.1:")
        begin_within_a_minute()
        assert [first.call(), second.call(), second.call()] == [ANSWER] * 3
        expect(row(page, "one")).to_contain_text("3 ok")
        expect(row(page, "one").locator(".most")).to_have_text("RPM 3 / 50")
        expect(page.locator("#calls tr")).to_have_count(3)
        service.script("one", Reply.QUOTA_MINUTE)
        assert first.call() == ANSWER
        expect(row(page, "one").locator(".state")).to_have_text("cooling down")
        expect(page.locator("#calls tr").first.locator("li")).to_have_text(
            ["one 429 quota_minute", "two ok"]
        )
        act(page, "one", "Reset")
        expect(row(page, "one").locator(".state")).to_have_text("available")
        act(page, "one", "Disable")
        expect(row(page, "one").locator(".state")).to_have_text("disabled")
        assert second.call() == ANSWER
        expect(page.locator("#calls tr").first.locator("li")).to_have_text(["two ok"])
        act(page, "two", "Check")
        expect(page.locator("#toast")).to_contain_text("Key two works")
    finally:
        first.stop()
        second.stop()
        shown.send_signal(signal.SIGINT)
        out, err = shown.communicate(timeout=20)
    assert (shown.returncode, err) == (0, ""), out
