"""`keyrot status` shows what a call sent now would find."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.pool import INFO
from support.servers import server

import keyrot_middleware
from keyrot_middleware import KeyrotWarning
from keyrot_middleware.core.model import Lease, LeaseOutcome, Outcome, RetryPolicy, Scope, Verdict
from keyrot_middleware.keys_file import KeySpec
from keyrot_middleware.secrets import Secret
from keyrot_middleware.state import State, open_shared

Keyrot = Callable[..., Any]


KEYS: list[dict[str, Any]] = [{"key_id": "one", "rpd": 2}, {"key_id": "two", "rpd": 2}]
OTHER = "gemini-2.5-pro"


@pytest.fixture
def shared(tmp_path: Path, clean_environment: None) -> Iterator[tuple[State, dict[str, str]]]:
    """Write keys.json, and open its pool."""
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    url, pool = server("valkey").url, f"pool-{uuid4().hex[:8]}"
    state = open_shared(url, RetryPolicy(), time.time, pool=pool)
    assert state is not None
    yield state, {"KEYROT_STATE_URL": url, "KEYROT_POOL": pool}
    state.close()


def exhaust(state: State, model: str) -> None:
    """Use up the day of both keys for a model."""
    for entry in KEYS:
        offer = ((0, KeySpec.model_validate(entry).candidate),)
        for _ in range(2):
            lease = state.acquire(INFO._replace(model=model), offer, spread=False)
            assert isinstance(lease, Lease)
            state.settle(lease, Outcome(LeaseOutcome.SUCCESS))


def test_check_counts_what_the_shared_state_has_left(keyrot, shared) -> None:
    """Values are found, but no call can get a key until the day ends."""
    state, env = shared
    env = {**env, "GEMINI_KEY_one": "FAKE-value-of-one", "GEMINI_KEY_two": "FAKE-value-of-two"}
    assert "2 of 2 keys are available" in keyrot("check", **env).stdout
    for entry in KEYS:
        candidate = KeySpec.model_validate(entry).candidate
        value = Secret(env[f"GEMINI_KEY_{entry['key_id']}"]).fingerprint
        for _ in range(2):
            offer = ((0, candidate.with_value(value)),)
            lease = state.acquire(INFO, offer, spread=False)
            assert isinstance(lease, Lease)
            state.settle(lease, Outcome(LeaseOutcome.SUCCESS))
    ran = keyrot("check", **env)
    assert (ran.returncode, "0 of 2 keys are available" in ran.stdout) == (0, True)
    one = json.loads(keyrot("check", "--json", **env).stdout)["keys"][0]
    assert (one["state"], one["available"], one["resolved"]) == ("limited", False, True)
    assert one["available_at"].endswith("Z")


def test_models_are_counted_separately_where_they_differ(keyrot, shared) -> None:
    """A key that is exhausted for one model counts for another, used with it or not."""
    state, env = shared
    exhaust(state, INFO.model)
    info, offer = INFO._replace(model=OTHER), ((0, KeySpec(key_id="one").candidate),)
    lease = state.acquire(info, offer, spread=False)
    assert isinstance(lease, Lease)
    state.settle(lease, Outcome(LeaseOutcome.SUCCESS))
    lines = keyrot("status", **env).stdout.splitlines()
    assert lines[0] == "2 of 2 keys are available."
    assert f"  {INFO.model}: 0 of 2" in lines
    assert f"  {OTHER}: 2 of 2" in lines


def test_a_pool_name_without_records_is_reported(keyrot, shared) -> None:
    """A misspelt KEYROT_POOL must not look like a pool whose keys are all available."""
    state, env = shared
    exhaust(state, INFO.model)
    wrong = {**env, "KEYROT_POOL": "no-such-pool", "GEMINI_KEY_one": "FAKE-value-of-one"}
    ran = keyrot("status", **wrong)
    assert "There are no records of a pool 'no-such-pool'" in " ".join(ran.stdout.split())
    assert json.loads(keyrot("status", "--json", **wrong).stdout)["has_records"] is False
    assert json.loads(keyrot("status", "--json", **env).stdout)["has_records"] is True
    assert "no records" not in keyrot("status", **env).stdout


def test_the_state_of_a_key_is_the_same_from_every_terminal(
    keyrot, shared, here, monkeypatch
) -> None:
    """A value that only a service has is one; a value that only the terminal has is none."""
    _, env = shared
    (here / "keys.json").write_text(json.dumps([*KEYS, {"key_id": "new"}]))
    for name in ("one", "two"):
        monkeypatch.setenv(f"GEMINI_KEY_{name}", f"FAKE-value-of-{name}")
    arguments = {"state_url": env["KEYROT_STATE_URL"], "pool": env["KEYROT_POOL"]}
    with pytest.warns(KeyrotWarning, match="1 of 3 keys have no value"):
        keyrot_middleware.install(**arguments)  # type: ignore[arg-type]
    keyrot_middleware.uninstall()
    for name in ("one", "two"):
        monkeypatch.delenv(f"GEMINI_KEY_{name}")
    for more in ({}, {"GEMINI_KEY_new": "FAKE-value-of-new"}):
        found = json.loads(keyrot("status", "--json", **env, **more).stdout)["keys"]
        assert {one["key_id"]: one["state"] for one in found} == {
            "new": "unresolved",
            "one": "available",
            "two": "available",
        }
    assert found[0]["sentence"] == "no value: no service that uses this pool has reported one"
    explained = json.loads(keyrot("explain", OTHER, "--json", **env).stdout)
    assert explained["key_id"] in (None, "one", "two")
    assert "of 2 keys now" in explained["sentence"]


@pytest.mark.parametrize("kind", ["server", "file"])
def test_a_rejected_key_stays_so_when_its_probe_is_due(
    keyrot, tmp_path, clean_environment, kind
) -> None:
    """From outside too: no request has shown that it works again; a success does."""
    (tmp_path / "keys.json").write_text(json.dumps([{"key_id": "one"}, {"key_id": "two"}]))
    url = server("valkey").url if kind == "server" else f"sqlite://{tmp_path}/state.sqlite3"
    env = {"KEYROT_STATE_URL": url, "KEYROT_POOL": f"pool-{uuid4().hex[:8]}"}
    state = open_shared(url, RetryPolicy(), time.time, pool=env["KEYROT_POOL"])
    assert state is not None
    offer = ((0, KeySpec(key_id="one").candidate),)
    try:
        lease = state.acquire(INFO, offer, spread=False)
        assert isinstance(lease, Lease)
        until = time.time() + 0.2
        verdict = Verdict("key_expired", 400, Scope.KEY, until=until, rejected=True)
        state.settle(lease, Outcome(LeaseOutcome.FAILURE, verdict))
        while not isinstance(lease := state.acquire(INFO, offer, spread=False), Lease):
            time.sleep(0.05)
        found = json.loads(keyrot("status", "--json", **env).stdout)["keys"]
        one = next(key for key in found if key["key_id"] == "one")
        assert (one["state"], one["reason"]) == ("rejected", "key_expired")
        state.settle(lease, Outcome(LeaseOutcome.SUCCESS))
        found = json.loads(keyrot("status", "--json", **env).stdout)["keys"]
        assert "rejected" not in [key["state"] for key in found]
    finally:
        state.close()
