"""Recordings of the Vault store that are replayed: dialogues with a real OpenBao.

A recording is made anew in memory and cleaned before it is text: tokens, accessors, ids and times
are replaced by made-up ones, so two recordings of one dialogue are the same to the last byte.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vcr
import yaml

from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.vault import open_vault
from support.openbao import ROOT_TOKEN, OpenBao, policy

__all__ = ["SCENARIOS", "Scenario", "play", "record", "replay"]

ADDRESS = "https://vault.example:8200"
Refs = Mapping[str, str | None]
_HEADERS = ("x-vault-token", "x-vault-namespace")
_UUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_TIME = re.compile(r"\b20\d\d-\d\d-\d\dT[\d:.]+Z")
# Fields that differ between two recordings and carry no information.
_DULL = {"accessor": "FAKE-accessor", "creation_time": 0, "ttl": 3600, "lease_duration": 3600}
_CLIENT = '"client_token":"'


@dataclass(frozen=True, slots=True)
class Scenario:
    """A dialogue.

    Attributes:
        prepare: Fills a server; gives the variables of the store.
        look_ups: The keys of each look-up, in order.
        answers: The value of each key, or the end of its error.
        between: Changes the server after the first look-up.
    """

    prepare: Callable[[OpenBao], dict[str, str]]
    look_ups: tuple[Refs, ...]
    answers: tuple[Mapping[str, str], ...]
    between: Callable[[OpenBao, dict[str, str]], object] = lambda bao, variables: None


def _role(bao: OpenBao) -> dict[str, str]:
    bao.write("secret/data/keyrot", {"flash_01": "FAKE-value-1", "pro_01": "FAKE-value-2"})
    bao.write("secret/data/team-a", {"key": "FAKE-value-3"})
    rules = bao.allow(policy("secret/data/keyrot", "secret/data/team-a"), name="keyrot")
    return bao.role(rules, mount="approle", name="keyrot", token_ttl="1h")


def _revoke(bao: OpenBao, variables: dict[str, str]) -> None:
    bao.admin("PUT", f"sys/leases/revoke-prefix/auth/{variables['VAULT_AUTH_MOUNT']}")


def _token(bao: OpenBao) -> dict[str, str]:
    mount = bao.mount(1, path="kv1")
    bao.write(f"{mount}/keyrot", {"flash_01": "FAKE-value-1", "number": 5})
    rules = bao.allow(policy(f"{mount}/keyrot", f"{mount}/none"), name="keyrot")
    token = bao.token(rules, ttl="1h")
    return {"VAULT_ADDR": bao.url, "VAULT_TOKEN": token, "KEYROT_VAULT_PLACE": f"{mount}/keyrot"}


_BOTH: Refs = {"flash_01": None, "pro_01": None, "team": "vault://secret/team-a#key"}
_FOUND = {"flash_01": "FAKE-value-1", "pro_01": "FAKE-value-2", "team": "FAKE-value-3"}

SCENARIOS = {
    "approle_kv2": Scenario(_role, (_BOTH, _BOTH), (_FOUND, _FOUND)),
    "approle_revoked": Scenario(_role, (_BOTH, _BOTH), (_FOUND, _FOUND), _revoke),
    "token_kv1": Scenario(
        _token,
        ({"flash_01": None, "number": None, "absent": None, "gone": "vault://kv1/none#a"},),
        (
            {
                "flash_01": "FAKE-value-1",
                "number": "its value is a number; allowed: a text",
                "absent": "no such field; it has: flash_01, number.",
                "gone": "there is no such secret (kv1/none)",
            },
        ),
    ),
    "denied": Scenario(
        _role,
        ({"other": "vault://secret/other#a"},),
        ({"other": 'its policy needs: path "secret/data/other" { capabilities = ["read"] }'},),
    ),
}


def play(
    scenario: Scenario, variables: dict[str, str], between: Callable[[], object] = lambda: None
) -> list[dict[str, str]]:
    """Make the look-ups; return the value of each key, or the text of its error."""
    store = open_vault(variables)
    found: list[dict[str, str]] = []
    for refs in scenario.look_ups:
        answers = store.resolve(refs)
        shown = {k: v.reveal() if isinstance(v, Secret) else str(v) for k, v in answers.items()}
        found.append(shown)
        if len(found) == 1:
            between()
    return found


def record() -> dict[str, str]:
    """Record every scenario from servers of their own; return the text of each cassette."""
    return {name: _record(scenario) for name, scenario in SCENARIOS.items()}


def _record(scenario: Scenario) -> str:
    bao = OpenBao()
    try:
        variables = scenario.prepare(bao)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "raw.yaml")
            with vcr.VCR(record_mode="all").use_cassette(str(path)):
                play(scenario, variables, lambda: scenario.between(bao, variables))
            raw = yaml.safe_load(path.read_text("utf-8"))
        return _clean(raw, variables, bao.url)
    finally:
        bao.stop()


def _clean(raw: dict[str, Any], variables: dict[str, str], url: str) -> str:
    """Keep what matters of the dialogue, with made-up secrets in place of the real ones."""
    made_up = {url: ADDRESS}
    for name in ("VAULT_ROLE_ID", "VAULT_SECRET_ID", "VAULT_TOKEN"):
        if name in variables:
            made_up[variables[name]] = f"FAKE-{name.lower()}"
    kept = []
    for one in raw["interactions"]:
        headers = {k.lower(): v for k, v in one["request"]["headers"].items()}
        if headers.get("x-vault-token") == [ROOT_TOKEN]:
            continue  # what the test did meanwhile
        body = one["response"]["body"]["string"]
        if _CLIENT in body:
            token = json.loads(body)["auth"]["client_token"]
            made_up.setdefault(token, f"FAKE-token-{len(made_up)}")
        kept.append(
            {
                "request": {
                    "method": one["request"]["method"],
                    "uri": one["request"]["uri"],
                    "body": one["request"]["body"],
                    "headers": {k: headers[k] for k in _HEADERS if k in headers},
                },
                "response": {
                    "status": one["response"]["status"],
                    "headers": {"content-type": ["application/json"]},
                    "body": {"string": _body(body)},
                },
            }
        )
    text = yaml.safe_dump(_variables(variables, kept), sort_keys=False, width=4096)
    for real, fake in made_up.items():
        text = text.replace(real, fake)
    return text


def _variables(variables: dict[str, str], kept: list[dict[str, Any]]) -> dict[str, Any]:
    return {"version": 1, "interactions": kept, "metadata": {"variables": json.dumps(variables)}}


def _body(text: str) -> str:
    """Remove ids and times from an answer."""

    def dull(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: _DULL.get(name, value) if value else value for name, value in pairs}

    body = json.dumps(json.loads(text, object_pairs_hook=dull))
    return _TIME.sub("2026-01-01T00:00:00Z", _UUID.sub("FAKE-id", body))


def replay(path: Path, scenario: Scenario) -> tuple[list[dict[str, str]], Any]:
    """Replay a scenario from its cassette; return the results, and the cassette."""
    recorded = yaml.safe_load(path.read_text("utf-8"))["metadata"]["variables"]
    machine = vcr.VCR(record_mode="none", match_on=("method", "uri", "raw_body", "same_token"))
    machine.register_matcher("same_token", _same_token)
    with machine.use_cassette(str(path)) as cassette:
        return play(scenario, json.loads(recorded)), cassette


def _same_token(one: Any, other: Any) -> None:
    assert one.headers.get("X-Vault-Token") == other.headers.get("X-Vault-Token")
