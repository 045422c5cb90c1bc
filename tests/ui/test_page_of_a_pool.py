"""The page over the real pool of this process."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgi import request as send
from google import genai

import keyrot_middleware
from keyrot_middleware import ui
from keyrot_middleware.testing import FakeGemini, Reply

MODEL = "gemini-3.1-flash-lite"
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


@pytest.mark.promise(number=4)
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
