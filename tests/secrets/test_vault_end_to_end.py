"""A pool from a real OpenBao under an unchanged program: a leaked key is replaced meanwhile."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.servers import wait_for
from support.store_servers.vault import VaultServer
from support.vault_proxy import Reply as Answer
from support.vault_proxy import vault_proxy

import keyrot_middleware

TTL_S = 0.2


@pytest.fixture
def server(gemini, here, monkeypatch) -> Iterator[VaultServer]:
    made = VaultServer()
    for key_id in ("A", "B"):
        made.put(key_id, gemini.add_key(key_id, tier="paid").value)
    (here / "keys.json").write_text(json.dumps([{"key_id": "A"}, {"key_id": "B"}]))
    more = {
        "SECRET_STORE_TYPE": "vault",
        "KEYROT_SECRETS_TTL_S": str(TTL_S),
        "KEYROT_STRATEGY": "fill",
        "KEYROT_ALLOWED_HOSTS": gemini.host,
    }
    for name, value in {**made.variables, **more}.items():
        monkeypatch.setenv(name, value)
    yield made
    keyrot_middleware.uninstall()
    made.close()


def call(client: Any) -> str:
    return str(client.models.generate_content(model="gemini-2.5-flash", contents="x").text)


def test_with_vault_down_at_the_start_the_single_key_is_used(
    server, gemini, connect, clock, monkeypatch, caplog
) -> None:
    """It is used at once, the log has the reason, and when Vault is up its keys are used."""
    monkeypatch.setenv("GEMINI_API_KEY", gemini.add_key("single", tier="paid").value)
    down = [True]

    def answer(handler: Any, body: bytes) -> Answer | None:
        return (503, b"{}", {}) if down[0] else None

    with vault_proxy(answer, server.bao.url) as url:
        monkeypatch.setenv("VAULT_ADDR", url)
        keyrot_middleware.install(clock=clock)
        client = connect()
        call(client)
        assert gemini.sent("single") == 1
        assert "VaultDown" in caplog.text
        down[0] = False
        wait_for(lambda: call(client) and gemini.sent("A") > 0)
        keyrot_middleware.uninstall()
