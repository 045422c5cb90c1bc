"""The page over a real pool: in this process, and over Redis with other processes."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgi import request as send
from google import genai
from playwright.sync_api import Page, expect
from served import TOKEN, details, row, wait_for_rows

import keyrot_middleware
from keyrot_middleware import ui
from keyrot_middleware.testing import FakeGemini, Reply

MODEL = "gemini-2.5-flash"
PROMPT, ANSWER = "the-prompt-of-the-test", "the-answer-of-the-test"

Serve = Callable[..., Any]


@pytest.fixture
def service(clock) -> Iterator[FakeGemini]:
    """Serve by a clock that stands still: no minute ends, however slow the browser is."""
    with FakeGemini(clock) as running:
        running.answer(ANSWER)
        yield running


@pytest.fixture
def pool(service, clock, tmp_path, monkeypatch) -> Iterator[Callable[..., Any]]:
    clients: list[Any] = []

    def install(*entries: dict[str, Any]) -> Any:
        for entry in entries:
            label = entry["key_id"]
            value = service.add_key(label, project=entry.get("project"), tier="paid").value
            monkeypatch.setenv(f"GEMINI_KEY_{label}", value)
        (tmp_path / "keys.json").write_text(json.dumps(entries))
        keyrot_middleware.install(clock=clock, allowed_hosts=(service.host,), strategy="fill")
        clients.append(genai.Client(http_options=service.http_options))
        return clients[-1]

    yield install
    keyrot_middleware.uninstall()
    for client in clients:
        client.close()


def call(client: Any, model: str = MODEL) -> None:
    client.models.generate_content(model=model, contents=PROMPT)


def refusal(code: int, status: str, message: str) -> Any:
    return Reply.custom(code, {"error": {"code": code, "status": status, "message": message}})


def test_a_key_that_goes_429_changes_its_row(service, pool, serve, open_tab) -> None:
    """The page of the process shows the refusal, its end, and the call that continued."""
    client = pool({"key_id": "free_1", "rpm": 100}, {"key_id": "paid_1", "priority": 1})
    page = open_tab(serve(ui.app(actions=True, token=TOKEN)).login).page
    wait_for_rows(page, 2)
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
    details(page, key_id).get_by_role("button", name=f"{action} {key_id}").click()
    page.locator("#confirm-yes").click()
    expect(page.locator("#toast")).to_contain_text(key_id)
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()


def test_no_value_prompt_or_answer_is_in_any_response(service, pool, monkeypatch) -> None:
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
    posts = [f"/api/keys/a_1/{action}" for action in ("disable", "enable", "reset")]
    headers = {"authorization": "Bearer " + "t" * 16}
    replies = [send(app, path, **headers) for path in paths]
    replies += [send(app, path, method="POST", **headers) for path in posts]
    assert {reply.status for reply in replies} == {200}
    everything = "".join(f"{reply.text}{reply.headers}" for reply in replies)
    assert "key_invalid" in everything
    parts = [part for value in values for part in (value, value[6:30])]
    assert [one for one in (*parts, PROMPT, ANSWER) if one in everything] == []
