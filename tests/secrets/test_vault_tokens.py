"""The end of a token of a real OpenBao: renewed, or replaced by one new login."""

from __future__ import annotations

import threading
import time
from typing import Any

from support.openbao import OpenBao, policy
from support.store_servers.vault import VALUE
from support.stores import resolve_all, resolve_one
from support.vault_proxy import Reply, vault_proxy

from keyrot_middleware.secrets.vault import VaultStore, open_vault
from keyrot_middleware.secrets.vault_settings import read_settings


def by_clock(now: list[float], environ: dict[str, str]) -> VaultStore:
    """Open a store whose clock the test sets."""
    return VaultStore(read_settings(environ), clock=lambda: now[0])


def test_a_refused_token_is_replaced_by_one_login(
    at: dict[str, str], bao: OpenBao, reading: str
) -> None:
    """Revoked before its time: the look-up that notices logs in again, and only once."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    assert resolve_one(store) == VALUE
    bao.revoke(role)
    assert resolve_one(store) == VALUE
    assert bao.logins(role) == 2


def test_an_expired_token_is_replaced_before_it_is_tried(
    at: dict[str, str], bao: OpenBao, reading: str
) -> None:
    """A token of one second: after it, a look-up logs in and then reads, with no denial between."""
    role = bao.role(reading, token_ttl="1s", token_max_ttl="1s")
    store = open_vault({**at, **role})
    assert resolve_one(store) == VALUE
    time.sleep(1.05)  # the life of a real token is real time
    before = len(bao.requested_paths())
    assert resolve_one(store) == VALUE
    mount = f"{at['KEYROT_VAULT_PLACE'].partition('/')[0]}/data/keyrot"
    assert bao.requested_paths()[before:] == [f"auth/{role['VAULT_AUTH_MOUNT']}/login", mount]


def test_a_role_that_stays_refused_logs_in_once_more(
    at: dict[str, str], bao: OpenBao, reading: str
) -> None:
    """The error has path, role and the accessor of the token; there are no endless logins."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    assert resolve_one(store) == VALUE
    bao.admin("PUT", f"sys/policies/acl/{reading}", {"policy": policy("secret/data/else")})
    try:
        refused = resolve_one(store)
        path = at["KEYROT_VAULT_PLACE"].replace("/", "/data/")
        assert f'to read {path}; its policy needs: path "{path}"' in refused
        assert "denies the AppRole role role-" in refused
        assert "(token accessor " in refused
        assert bao.logins(role) == 2
    finally:
        bao.admin("PUT", f"sys/policies/acl/{reading}", {"policy": policy(path)})


def test_a_login_that_fails_after_a_denial_is_reported(
    at: dict[str, str], bao: OpenBao, reading: str
) -> None:
    """The role is gone: the error has both, the denial and the failure of the other login."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    assert resolve_one(store) == VALUE
    bao.admin("DELETE", f"sys/auth/{role['VAULT_AUTH_MOUNT']}")
    refused = resolve_one(store)
    assert "denies the AppRole role" in refused
    assert "logging in again failed: the AppRole login at auth/" in refused


def test_a_renewable_token_is_renewed_in_time(
    at: dict[str, str], bao: OpenBao, reading: str
) -> None:
    """After two thirds of its lifetime a token is renewed, given or from a login."""
    now = [0.0]
    role = bao.role(reading, token_ttl="600s")
    given = {"VAULT_TOKEN": bao.token(reading, ttl="600s")}
    for identity in (role, given):
        store = by_clock(now, {**at, **identity})
        for second, renewals in ((0, 0), (390, 0), (20, 1), (10, 0), (390, 1)):
            now[0] += second
            before = len(bao.requested_paths("renew-self"))
            assert resolve_one(store) == VALUE
            assert len(bao.requested_paths("renew-self")) - before == renewals
    assert bao.logins(role) == 1


def test_a_token_that_cannot_be_renewed_is_replaced_in_time(
    at: dict[str, str], bao: OpenBao, reading: str
) -> None:
    """A batch token: a new login before the end; a given one is used to its end."""
    now = [0.0]
    role = bao.role(reading, token_ttl="60s", token_type="batch")
    store = by_clock(now, {**at, **role})
    given = by_clock(now, {**at, "VAULT_TOKEN": bao.token(reading, ttl="60s", renewable=False)})
    assert (resolve_one(store), resolve_one(given)) == (VALUE, VALUE)
    now[0] += 45
    assert (resolve_one(store), resolve_one(given)) == (VALUE, VALUE)
    assert bao.logins(role) == 2


def test_a_renewal_that_fails_does_not_cost_the_token(
    at: dict[str, str], bao: OpenBao, reading: str
) -> None:
    """The renewal fails in an outage, then a login does: the old token is used until its end."""
    now = [0.0]
    role = bao.role(reading, token_ttl="60s")
    broken = ["nothing"]

    def answer(handler: Any, body: bytes) -> Reply | None:
        return (500, b"{}", {}) if any(part in handler.path for part in broken) else None

    with vault_proxy(answer, bao.url) as url:
        store = by_clock(now, {**at, **role, "VAULT_ADDR": url})
        assert resolve_one(store) == VALUE
        broken[:] = ["renew-self", "login"]
        now[0] += 45
        assert resolve_one(store) == VALUE
        now[0] += 20
        assert "has a fault of its own or is not ready" in resolve_one(store)


def test_eight_refused_threads_log_in_once(at: dict[str, str], bao: OpenBao, reading: str) -> None:
    """The first gets a new token, and the others use it."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    found: list[str] = []

    def look() -> None:
        start.wait(10)
        found.append(resolve_one(store))

    for wanted in (1, 2):
        start = threading.Barrier(8)
        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert bao.logins(role) == wanted
        bao.revoke(role)
    assert found == [VALUE] * 16


def test_a_token_with_few_uses_is_replaced(at: dict[str, str], bao: OpenBao, reading: str) -> None:
    """When the uses of a token are exhausted it is refused, and the role logs in again."""
    role = bao.role(reading, token_num_uses=2)
    store = open_vault({**at, **role})
    assert resolve_all(store, a=None) == {"a": VALUE}
    assert [resolve_one(store) for _ in range(3)] == [VALUE] * 3
    assert 2 <= bao.logins(role) <= 3
