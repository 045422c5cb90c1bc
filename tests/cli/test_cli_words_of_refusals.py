"""What a person should do about a refusal: the same on page, status, alert, log and error."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google import genai
from support.receivers import Events

import keyrot_middleware
from keyrot_middleware import KeyPoolExhausted, KeyrotWarning
from keyrot_middleware.monitoring import alerts
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.testing import FakeGemini, Reply
from keyrot_middleware.testing.replies import Scripted, plain

MODEL = "gemini-3.1-flash-lite"
KEYS = [
    {"key_id": "a", "project": "web", "billing_account": "co"},
    {"key_id": "b", "project": "other", "priority": 1},
]
REFERRER = "Requests from referer <empty> are blocked."
CONSOLE = (
    "https://console.developers.google.com/apis/api/generativelanguage.googleapis.com/"
    "overview?project="
)
CHANGE = "change its restrictions or its project, not its value"

Case = tuple[Scripted, str, str, str, str | None]
CASES: dict[str, Case] = {
    "key_restricted": (
        Reply.IP_BLOCKED,
        "originating IP address of the call (127.0.0.1)",
        "Gemini rejects the key (",
        CHANGE,
        "keyrot reset a",
    ),
    "key_restricted by referrer": (
        Scripted(403, plain(403, "PERMISSION_DENIED", REFERRER)),
        REFERRER,
        "Gemini rejects the key (",
        CHANGE,
        "keyrot reset a",
    ),
    "service_disabled": (
        Reply.SERVICE_DISABLED,
        CONSOLE,
        "Gemini refuses project web (",
        "",
        "keyrot reset a",
    ),
    "model_withdrawn": (
        Reply.NEW_USERS,
        "use models/gemini-3.5-flash-lite.",
        f"Gemini does not offer model {MODEL} to project web (",
        "",
        None,
    ),
    "key_leaked": (
        Reply.KEY_LEAKED,
        "Your API key was reported as leaked.",
        "Gemini rejects the key (",
        "replace its value",
        "keyrot rotate a",
    ),
    "credit_depleted": (
        Reply.PREPAY,
        "https://ai.studio/projects",
        "Gemini refuses billing account co (",
        "",
        "keyrot reset a",
    ),
}


@pytest.fixture
def gemini(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGemini]:
    monkeypatch.setattr(alerts.Alerts, "look_in", lambda _self, _seconds: None)
    with FakeGemini() as server:
        for key in KEYS:
            monkeypatch.setenv(f"GEMINI_KEY_{key['key_id']}", server.add_key(key["key_id"]).value)
        server.always("b", Reply.QUOTA_DAY)
        yield server
    keyrot_middleware.uninstall()


def call(gemini: FakeGemini) -> KeyPoolExhausted:
    """Make a call that no key serves."""
    client = genai.Client(http_options={"base_url": gemini.url})
    with pytest.raises(KeyPoolExhausted) as raised:
        client.models.generate_content(model=MODEL, contents="hello")
    return raised.value


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_says_the_same_everywhere(
    name: str,
    gemini: FakeGemini,
    tmp_path: Path,
    keyrot: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The provider's sentence with its address or link, and "replace its value" where that helps.

    A second call finds the block in the state and quotes the same.
    """
    reply, quoted, begins, remedy, command = CASES[name]
    failure = name.split(maxsplit=1)[0]
    gemini.always("a", reply)
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    state, events = f"sqlite://{tmp_path / 'state.db'}", Events()
    keyrot_middleware.install(
        keys_file=tmp_path / "keys.json",
        state_url=state,
        allowed_hosts=[gemini.host],
        max_wait_s=0,
    )
    caplog.set_level(logging.INFO, "keyrot_middleware")
    with warnings.catch_warnings(action="ignore", category=KeyrotWarning):
        errors = [call(gemini).reasons["a"] for _ in range(2)]
    log = next(one for one in caplog.messages if failure in one)
    page = keyrot_middleware.status()["keys"]["a"]["sentence"]
    shared = {"KEYROT_STATE_URL": state, "KEYROT_KEYS_FILE": str(tmp_path / "keys.json")}
    found = json.loads(keyrot("status", "--json", **shared).stdout)
    status = next(one for one in found["keys"] if one["key_id"] == "a")["sentence"]
    found = json.loads(keyrot("explain", MODEL, "--json", **shared).stdout)
    explained = next(one for one in found["keys"] if one["key_id"] == "a")["sentence"]
    for text in (page, status, explained, log, *errors):
        assert failure in text and quoted in text and remedy in text
        assert ("replace its value" in text) == (remedy == "replace its value")
        assert "cut off" not in text and "cooling down until" not in text
    assert page == status == explained and page.startswith(begins)
    assert "tried again at 20" in errors[0] and "tried again at 20" in log
    pool = current_pool()
    assert pool is not None
    watching = alerts.Alerts(pool, [alerts.Receiver("test", events)])
    watching.look()
    watching.stop()
    sentences = [one.sentence for one in events.all if one.key_id == "a"]
    if command is None:
        assert sentences == []
    else:
        subject = begins.replace("the key", "key a")
        assert sentences[0].startswith(f"pool default: {subject}") and quoted in sentences[0]
        assert sentences[0].endswith(f"Type: {command}")
        assert sentences[0].count("billing account co") == (name == "credit_depleted")
