"""Which bodies of a 200 are errors, and what an error without a status means."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyrot_middleware import providers
from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.core.model import CallInfo
from keyrot_middleware.providers.hidden_errors import find_error

NOW = 1_790_000_000.0
INFO = CallInfo("m", "chat", 10, 10)
LIKE_OPENAI = [
    name for name in providers.platforms() if name not in ("gemini_api", "vertex_express")
]

ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"error": "not you"}, "unknown_refusal none"),
    ({"error": {"message": "No.", "type": "odd"}}, "unknown_refusal none"),
    ({"error": {"code": "40100", "message": "Invalid API key"}}, "key_invalid key"),
    ({"error": {"code": 502, "message": "Provider returned error"}}, "server_error none"),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, "overloaded none"),
    ({"id": "x", "error": {"message": "No.", "code": 2}, "user_id": "u"}, "unknown_refusal none"),
    ({"object": "error", "message": "gone", "code": None}, "unknown_refusal none"),
    (
        {"id": "x", "object": "", "choices": None, "base_resp": {"status_code": 1004}},
        "unknown_refusal none",
    ),
    ({"base_resp": {"status_code": 1, "status_msg": "Too many requests"}}, "unknown_limit"),
    ({"base_resp": {"status_code": 8, "status_msg": "insufficient balance"}}, "credit_depleted"),
    ({"code": 30001, "message": "no money", "data": None}, "unknown_refusal none"),
    ({"code": "Arrearage", "message": "Access denied", "request_id": "r"}, "credit_depleted"),
    ({"error_code": 17, "error_msg": "Open api daily request limit reached"}, "unknown_refusal"),
    ({"errcode": -1, "errmsg": "no"}, "unknown_refusal none"),
    ({"code": 429, "msg": "slow down"}, "rate_limit project_model"),
    ({"success": False, "message": "no"}, "unknown_refusal none"),
    (
        {"success": False, "errors": [{"code": 10000, "message": "No."}], "result": None},
        "unknown_refusal none",
    ),
]
REPLIES: list[Any] = [
    {"choices": [{"message": {"content": '{"error": "not you"}'}}]},
    {"answer": "hi", "error": "none"},
    {"code": "Accepted", "message": "task is queued"},
    {"task_id": "t", "task_status": "PROCESSING", "code": 102, "message": "task is queued"},
    {"choices": [{"error": {"message": "x"}}], "error": {"message": "x"}},
    {"id": "resp_x", "object": "response", "error": None, "output": [{"type": "message"}]},
    {"id": "resp_x", "object": "response", "status": "failed", "error": {"code": "server_error"}},
    {"object": "list", "data": []},
    {"object": "list", "data": [{"id": "m", "object": "model"}], "error": {"message": "x"}},
    {"object": "list", "data": [{"embedding": [0.1]}], "code": 1, "msg": "x"},
    {"embeddings": {"float": [[0.1]]}, "id": "x"},
    {"id": "x", "message": {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}},
    {"id": "x", "text": "", "generation_id": "y", "message": "z", "code": "w"},
    {"id": "file-x", "object": "file", "status": "error", "status_details": "no"},
    {"id": "snippet", "code": "print(1)", "message": "hello"},
    {"code": "print(1)", "message": "hello"},
    {"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"},
    {"type": "message", "content": [], "stop_reason": "end_turn", "usage": {}},
    {"input_tokens": 9},
    {"created": 1, "data": [{"b64_json": "x"}]},
    {"text": "Hello.", "code": 3, "message": "x"},
    {"tokens": [], "token_strings": [], "meta": {}},
    {"id": "x", "deleted": True},
    {"base_resp": {"status_code": 0, "status_msg": "success"}},
    {"code": 0, "msg": "success"},
    {"code": 200, "message": "done", "success": True},
    {"code": 20000, "message": "done"},
    {"code": "SUCCESS", "message": "done"},
    {"code": 7, "message": "ok"},
    {"code": 7},
    {"message": "hello"},
    {"success": False},
    {"success": None, "msg": "x"},
    {"error": None},
    {"error": ""},
    {"error": {}},
    {"error": {"code": 0, "message": ""}},
    {"error": False},
    {},
    [{"error": "x"}],
    "error",
    None,
]


@pytest.mark.parametrize("platform", LIKE_OPENAI)
@pytest.mark.parametrize(("body", "wanted"), ERRORS, ids=lambda value: str(value)[:40])
def test_an_error_in_a_200_is_read_as_one(platform: str, body: dict[str, Any], wanted: str) -> None:
    """All providers see it; a row that knows its words gives it its class."""
    provider = providers.of(platform)
    assert provider.find_error(json.dumps(body)) == body
    if platform == "openai":
        verdict = provider.classify(FailureFacts(None, body), INFO, NOW)
        assert f"{verdict.failure} {verdict.scope.value}".startswith(wanted.removesuffix(" none"))
        assert verdict.code is None or 400 <= verdict.code < 600


@pytest.mark.parametrize("body", REPLIES, ids=lambda value: str(value)[:40])
def test_what_may_be_a_reply_is_one(body: Any) -> None:
    """A field that shows something, a fine code, or nothing that says why it should be none."""
    for indent in (None, 3):
        assert find_error(json.dumps(body, indent=indent)) is None


@pytest.mark.parametrize("text", ["", "<html></html>", "{", '{"error": "x"', "\x00", "[" * 9000])
def test_what_is_no_json_is_a_reply(text: str) -> None:
    """A file, a page, or half of an object."""
    assert find_error(text) is None


def test_gemini_has_no_errors_in_a_200() -> None:
    """Its operations and batches have an `error` that is data."""
    for name in ("gemini_api", "vertex_express"):
        assert providers.of(name).find_error('{"error": {"message": "x"}}') is None


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_NAMES = st.sampled_from(
    [
        *("error", "errors", "code", "error_code", "message", "msg", "status_msg", "success"),
        *("base_resp", "status_code", "type", "object", "id", "detail", "response", "data"),
    ]
)
_ANY = st.recursive(
    _LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150)
@given(body=st.dictionaries(_NAMES, _ANY, max_size=6), model=st.text(max_size=4))
def test_no_body_breaks_the_search_or_the_verdict(body: Any, model: str) -> None:
    """What is found is an error for each provider: it has a class, and no code but a status."""
    found = find_error(json.dumps(body))
    for platform in providers.platforms() if found is not None else ():
        info = CallInfo(model, "chat", 10, 10)
        verdict = providers.of(platform).classify(FailureFacts(None, found), info, NOW)
        assert platform not in LIKE_OPENAI or verdict.failure != "unknown"
        assert platform not in LIKE_OPENAI or verdict.code in (None, *range(400, 600))
