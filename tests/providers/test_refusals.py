"""Refusals as providers and gateways word them, and the rule for those that no row knows."""

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from support.json_server import JsonServer, Request, Response
from support.pool import INFO, Rig, key
from support.replies import OK, GoogleError

import keyrot_middleware
from keyrot_middleware import providers
from keyrot_middleware.core.commands import Failed
from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.core.model import CallInfo
from keyrot_middleware.monitoring.report import source_of
from keyrot_middleware.monitoring.view import lines_of
from keyrot_middleware.runtime import current_pool

NOW = 1_790_000_000.0
"""21 September 2026, 14:13:20 UTC."""
REFUSALS = [
    json.loads(line)
    for line in (Path(__file__).parent / "refusals.jsonl").read_text("utf-8").splitlines()
]


def _facts(status: int, body: Any, headers: Any) -> FailureFacts:
    return FailureFacts(status, body, headers.get("retry-after"), headers=headers)


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: f"{row['of']}-{row['status']}")
def test_a_refusal_means_what_an_engineer_would_say(row: dict[str, Any]) -> None:
    """Its class and what cools down, and until when where words or headers say it."""
    facts = _facts(row["status"], row["body"], row["headers"])
    verdict = providers.of(row["of"]).classify(facts, CallInfo("m", "chat", 10, 10), NOW)
    assert f"{verdict.failure} {verdict.scope.value}" == row["wanted"]
    after_s = row["after_s"]
    assert (verdict.until and verdict.until - NOW) == pytest.approx(after_s, abs=0.001)


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (403, "<html><title>Denied</title><body>by policy</body></html>", "Denied by policy"),
        (404, "404 page not found", "404 page not found"),
        (404, {"error": {"code": 404, "message": "models/x is not found for API"}}, "models/x is"),
        (400, {"error": {"code": 400, "message": "Invalid value: my prompt"}}, ""),
        (413, "<html>your prompt</html>", ""),
    ],
)
def test_a_failure_says_what_the_service_wrote_unless_that_may_quote_the_request(
    code: int, body: Any, said: str
) -> None:
    """A page by its text; of what is the request's own nothing, since it may quote a prompt."""
    verdict = providers.of("gemini_api").classify(FailureFacts(code, body), INFO, NOW)
    assert verdict.message.startswith(said)
    assert bool(verdict.message) is bool(said)


# The call -------------------------------------------------------------------------------------

RAISED = frozenset(range(400, 500)) - {401, 402, 403, 408, 409, 425, 429}
_TEXT = st.sampled_from(["", "Invalid API Key", "per day", "retry in 3s", "Forbidden", "x" * 9])
_VALUE = st.none() | st.booleans() | st.integers() | _TEXT | st.text(max_size=8)
_NAMES = st.sampled_from(["error", "message", "detail", "code", "type", "errors", "metadata"])
_OBJECT = st.dictionaries(_NAMES, _VALUE, max_size=4)
_JSON = st.dictionaries(_NAMES, _VALUE | _OBJECT | st.lists(_OBJECT, max_size=2)) | st.lists(
    _OBJECT
)
_HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset", "x-should-retry"]),
    st.sampled_from(["", "3", "0", "-1", "1e999", "6m0s", "1790000040000", "soon", "x"]),
)


def _pool(platform: str, **policy: Any) -> Rig:
    return Rig(*(key(one, platform=platform) for one in "abc"), **policy)


@pytest.mark.parametrize("platform", providers.platforms())
@settings(max_examples=40)
@given(status=st.integers(400, 599), headers=_HEADERS, body=_JSON | st.text())
def test_no_call_fails_beside_two_good_keys(
    platform: str, status: int, headers: dict[str, str], body: Any
) -> None:
    """Whatever one key of three is answered, only a reply about the request fails the call.

    Google counts a refused request, so its 403 is not tried with another key.
    """
    rig = _pool(platform, max_wait_s=0)
    info = INFO._replace(platform=platform)
    rig.will("a", *[Failed(_facts(status, body, headers), GoogleError(str(status)))] * 20)
    for _ in range(4):
        try:
            assert rig.call(info) == OK.response
        except GoogleError:
            is_google = platform in ("gemini_api", "vertex_express")
            assert status in RAISED or (is_google and status == 403)
    rig.check()


@pytest.mark.parametrize("state", ["memory://", "sqlite"])
def test_a_refusal_that_is_not_known_is_one_warning_and_is_shown(
    state: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any, tmp_path: Path
) -> None:
    """With the provider's own words and without a key, so that people can report it."""
    values = [f"gsk_FAKE{letter}7Zx9Lm3Np5Rt8Vw2Yb4Dd6Ff0q7Zx9Lm3Np" for letter in "ABC"]

    def answer(request: Request) -> Response:
        said = request.headers["authorization"]
        error = {"message": f"Odd {said}, request 17. {'x' * 300}", "type": "odd_key"}
        return Response(401, {"error": error}) if values[0] in said else Response(200, {})

    monkeypatch.setenv("GROQ_API_KEYS", ",".join(values))
    url = state if state.endswith("//") else f"sqlite:///{tmp_path}/pool.sqlite3"
    with closing(JsonServer(answer)) as server, caplog.at_level(logging.WARNING):
        keyrot_middleware.install(allowed_hosts=f"groq={server.url}", state_url=url)
        try:
            for _ in range(6):
                assert _ask(server.url) == 200
            pool = current_pool()
            assert pool is not None
            shown = lines_of(source_of(pool).status()["summary"]["headline"])
            states = [one["state"] for one in keyrot_middleware.status()["keys"].values()]
        finally:
            keyrot_middleware.uninstall()
    [warning] = [one.getMessage() for one in caplog.records if "not known" in one.getMessage()]
    assert 'unknown_refusal (401) "odd_key Odd Bearer gsk_…[redacted]' in warning
    assert len(warning) < 500
    [line] = [text for text in shown if "not known" in text]
    assert line.startswith("Key groq_1 is set aside: 401 odd_key Odd Bearer gsk_…[redacted]")
    assert not [value for value in values if value[8:] in warning + line]
    assert sorted(states) == ["available", "available", "cooling_down"]


LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2, requests], ids=lambda m: m.__name__)


@LIBRARIES
@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after-ms": "120000"},
        {"x-ratelimit-reset-tokens": "2m0s", "x-ratelimit-remaining-tokens": "0"},
    ],
    ids=["retry-after-ms", "reset"],
)
def test_a_time_in_any_header_is_heard_over_each_library(
    library: Any, headers: dict[str, str], clock: Any, monkeypatch: Any
) -> None:
    """A key is left alone until then; Retry-After is not the only header that says it."""
    error = {"message": "Rate limit reached", "type": "tokens", "code": "rate_limit_exceeded"}
    monkeypatch.setenv("GROQ_API_KEYS", "gsk_FAKEA7Zx9Lm3Np5Rt8Vw2Yb4Dd6Ff0q7Zx9Lm3Np")
    with closing(JsonServer(lambda _: Response(429, {"error": error}, headers))) as server:
        keyrot_middleware.install(
            allowed_hosts=f"groq={server.url}", clock=clock, max_wait_s=0, state_url="memory://"
        )
        try:
            assert _ask(server.url, library) == 429
            [key] = keyrot_middleware.status()["keys"].values()
        finally:
            keyrot_middleware.uninstall()
    assert key["cooldown_until"] == "2026-01-01T12:32:30Z"  # two minutes later


def _ask(url: str, library: Any = httpx) -> int:
    code: int = library.post(
        f"{url}/openai/v1/chat/completions",
        json={"model": "m", "messages": []},
        headers={"authorization": "Bearer keyrot-pool"},
    ).status_code
    return code
