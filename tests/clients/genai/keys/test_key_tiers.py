"""`install(tiers=…)` and `workload(…, tiers=…)`: no call is sent with a key of another tier."""

import io
from typing import Any

import pytest
from google.genai import types
from support.modes import MODEL, MODES, ask

import keyrot_middleware
from keyrot_middleware import ConfigError, KeyPoolExhausted
from keyrot_middleware.testing import Reply

KEYS = (
    {"key_id": "free", "tier": "free"},
    {"key_id": "paid", "tier": "tier1", "priority": 1},
    {"key_id": "none", "priority": 2},
)
PAID_ONLY = ("tier1", "tier2")


def keys_of(gemini: Any) -> set[str | None]:
    return {request.key for request in gemini.log if request.key}


@pytest.fixture(params=["install", "workload"])
def paid_only(request, pool) -> Any:
    """Allow paid keys only, for the whole pool or for the calls of this test."""
    if request.param == "install":
        pool(*KEYS, tiers=PAID_ONLY, max_wait_s=0)
        yield
        return
    pool(*KEYS, max_wait_s=0)
    with keyrot_middleware.workload("eea", tiers=PAID_ONLY):
        yield


@pytest.mark.parametrize("mode", MODES)
def test_calls_use_keys_of_these_tiers_only(mode, paid_only, gemini, connect) -> None:
    """However often, whatever the client's own key, and when the key fails or is limited."""
    for client in (connect(), connect(gemini.key("free").value)):
        assert [ask(mode, client) for _ in range(4)] == ["ok from paid"] * 4
    gemini.script("paid", Reply.QUOTA_DAY)
    for _ in range(2):
        with pytest.raises(Exception, match=r"quota|day"):
            ask(mode, connect(gemini.key("free").value))
    assert keys_of(gemini) == {"paid"}


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_no_key_may_serve_is_not_sent(mode, pool, gemini, connect) -> None:
    """Waiting cannot help, so the code is not that of a rate limit."""
    pool(*KEYS)
    gemini.script("free", Reply.KEY_INVALID)
    assert ask(mode, connect()) == "ok from paid"  # the refusal of another key is no reason here
    gemini.reset_log()
    with (
        keyrot_middleware.workload("eea", tiers=["tier3"]),
        pytest.raises(KeyPoolExhausted) as raised,
    ):
        ask(mode, connect())
    assert (raised.value.code, raised.value.status) == (400, "FAILED_PRECONDITION")
    assert raised.value.reasons.keys() == {"free", "paid", "none"}
    assert raised.value.retry_at is None
    assert gemini.count() == 0


def upload(client: Any) -> types.File:
    config = types.UploadFileConfig(mime_type="text/plain")
    file: types.File = client.files.upload(file=io.BytesIO(b"hello"), config=config)
    return file


def test_a_home_key_of_another_tier_is_replaced(paid_only, gemini, connect) -> None:
    """Files and batches are made with a paid key; those of a client with a foreign key too."""
    gemini.add_key("foreign")
    for client in (connect(), *(connect(gemini.key(k).value) for k in ("free", "foreign"))):
        file = upload(client)
        ask("sync", client, contents=["look", file])
        client.files.delete(name=file.name)
        client.batches.create(model=MODEL, src=[types.InlinedRequest(contents="hello")])
        client.models.count_tokens(model=MODEL, contents="hello")
        list(client.files.list())
    assert keys_of(gemini) == {"paid"}


def test_workloads_inside_each_other_allow_what_all_allow(pool, gemini, connect) -> None:
    """One inside cannot take a condition back, and the name of each is preferred as before."""
    pool(*KEYS, {"key_id": "top", "tier": "tier2", "priority": 5, "workload": "big"})
    workload, client = keyrot_middleware.workload, connect()
    with workload("eea", tiers=PAID_ONLY):
        with workload("big"):
            assert ask("sync", client) == "ok from top"
        with workload("x", tiers=["free", "tier2"]):
            assert ask("sync", client) == "ok from top"
        with workload("x", tiers=["free"]), pytest.raises(KeyPoolExhausted):
            ask("sync", client)
        assert ask("sync", client) == "ok from paid"
    assert ask("sync", client) == "ok from free"


def test_a_workload_does_not_widen_the_tiers_of_the_pool(pool, gemini, connect) -> None:
    """KEYROT_TIERS says where prompts may go, whatever the code of a program says."""
    pool(*KEYS, tiers=PAID_ONLY, max_wait_s=0)
    with keyrot_middleware.workload("x", tiers=["free", "tier1"]):
        assert ask("sync", connect()) == "ok from paid"
    with keyrot_middleware.workload("x", tiers=["free"]), pytest.raises(KeyPoolExhausted):
        ask("sync", connect())
    assert keys_of(gemini) == {"paid"}


def test_a_pool_without_such_a_key_is_an_error(here, monkeypatch, gemini) -> None:
    """Keys of GEMINI_API_KEYS have no tier; it is said at once, and not by every call."""
    monkeypatch.setenv("KEYROT_TIERS", "tier1,tier2")
    monkeypatch.setenv("GEMINI_API_KEYS", "FAKE-1,FAKE-2")
    with pytest.raises(ConfigError) as raised:
        keyrot_middleware.install()
    assert str(raised.value) == (
        "KEYROT_TIERS: found tier1, tier2, and no key of the pool has such a tier; name the tier "
        "of each key in keys.json."
    )


@pytest.mark.parametrize(
    ("tiers", "text"),
    [
        ("tier1,teir2", 'found "teir2"'),
        (["gold"], 'found "gold"'),
        ([], "found "),
    ],
)
def test_wrong_tiers_are_errors(tiers, text) -> None:
    """They name what is allowed; an empty list is not every tier."""
    with pytest.raises(ConfigError, match=r"install\(tiers=…\): ") as raised:
        keyrot_middleware.install(keys=["FAKE-1"], tiers=tiers)
    assert text in str(raised.value)
    names = tiers.split(",") if isinstance(tiers, str) else tiers
    with (
        pytest.raises(ValueError, match="allowed: free, tier1, tier2, tier3, paid") as wrong,
        keyrot_middleware.workload("x", tiers=names),
    ):
        pass
    assert text in str(wrong.value)
