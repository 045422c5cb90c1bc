"""Every way to log in to a real OpenBao, and what happens when a token ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from asking import ask, ask_all
from bao import ROOT_TOKEN, Bao, policy, shared
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from front import Reply, front
from house_vault import VaultHouse

from keyrot_middleware.secrets.vault import VaultStore, open_vault
from keyrot_middleware.secrets.vault_settings import read_settings

VALUE = "AIza" + "FAKE" + "v" * 31


@pytest.fixture(scope="module")
def house() -> Iterator[VaultHouse]:
    """One mount with the key `a` in it."""
    made = VaultHouse()
    made.put("a", VALUE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def bao() -> Bao:
    """The shared server."""
    return shared()


@pytest.fixture
def at(house: VaultHouse, bao: Bao) -> dict[str, str]:
    """Where it is: variables without an identity."""
    return {"VAULT_ADDR": bao.url, "KEYROT_VAULT_PLACE": f"{house.mount}/keyrot"}


@pytest.fixture(scope="module")
def reading(house: VaultHouse, bao: Bao) -> str:
    """A policy that may read the keys."""
    return bao.allow(policy(f"{house.mount}/data/keyrot"))


def by_clock(now: list[float], environ: dict[str, str]) -> VaultStore:
    """Open a store for which it is as late as the test says."""
    return VaultStore(read_settings(environ), clock=lambda: now[0])


def logins(bao: Bao, role: dict[str, str]) -> int:
    """Count the logins at a mount."""
    return len(bao.asked(f"auth/{role['VAULT_AUTH_MOUNT']}/login"))


def revoke_all(bao: Bao, role: dict[str, str]) -> None:
    """Take away every token that was given out by an auth mount."""
    bao.admin("PUT", f"sys/leases/revoke-prefix/auth/{role['VAULT_AUTH_MOUNT']}")


def test_a_token(at: dict[str, str], bao: Bao, reading: str) -> None:
    """VAULT_TOKEN is used as it is."""
    assert ask(open_vault({**at, "VAULT_TOKEN": bao.token(reading)})) == VALUE


@pytest.mark.parametrize("name", ["VAULT_TOKEN_FILE", "HOME"])
def test_a_token_file_is_read_again_when_its_token_is_refused(
    name: str,
    at: dict[str, str],
    bao: Bao,
    reading: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file that a variable names, or the one of `vault login`; an agent may write it anew."""
    path = here / (".vault-token" if name == "HOME" else "sink")
    monkeypatch.setenv("HOME", str(here))
    store = open_vault({**at, name: str(path)})
    assert f"{path} cannot be read: No such file" in ask(store)
    first = bao.token(reading)
    path.write_text(f"{first}\n")
    assert ask(store) == VALUE
    bao.admin("POST", "auth/token/revoke", {"token": first})
    refused = ask(store)
    assert f"the token in {path} (accessor " in refused
    assert first not in refused
    path.write_text(bao.token(reading))
    assert ask(store) == VALUE


def test_no_identity_is_said(
    at: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any, the error names the ways to have one."""
    monkeypatch.setenv("HOME", str(here))
    text = ask(open_vault(at))
    assert f"{here}/.vault-token cannot be read" in text
    assert "VAULT_ROLE_ID with VAULT_SECRET_ID" in text


def test_an_approle_logs_in_once_for_many_look_ups(
    at: dict[str, str], bao: Bao, reading: str
) -> None:
    """The token is kept between look-ups; opening asks nothing."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    assert logins(bao, role) == 0
    assert [ask(store) for _ in range(3)] == [VALUE] * 3
    assert logins(bao, role) == 1


def test_a_secret_id_in_a_file_is_read_at_each_login(
    at: dict[str, str], bao: Bao, reading: str, here: Path
) -> None:
    """Whoever keeps the file may change it."""
    role = bao.role(reading)
    path = here / "secret-id"
    path.write_text("wrong-FAKE-secret-id")
    secret_id = role.pop("VAULT_SECRET_ID")
    store = open_vault({**at, **role, "VAULT_SECRET_ID_FILE": str(path)})
    refused = ask(store)
    assert f"the AppRole login at auth/{role['VAULT_AUTH_MOUNT']} failed" in refused
    assert f"are VAULT_ROLE_ID and {path} right?" in refused
    path.write_text(secret_id)
    assert ask(store) == VALUE


def test_a_role_without_a_secret_id(at: dict[str, str], bao: Bao, reading: str) -> None:
    """A role may be bound to networks instead."""
    role = bao.role(reading, bind_secret_id=False, token_bound_cidrs=["127.0.0.0/8"])
    assert "VAULT_SECRET_ID" not in role
    assert ask(open_vault({**at, **role})) == VALUE


def test_a_refused_token_is_replaced_by_one_login(
    at: dict[str, str], bao: Bao, reading: str
) -> None:
    """Revoked before its time: the look-up that finds out logs in again, and only once."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    assert ask(store) == VALUE
    revoke_all(bao, role)
    assert ask(store) == VALUE
    assert logins(bao, role) == 2


def test_an_expired_token_is_replaced_before_it_is_tried(
    at: dict[str, str], bao: Bao, reading: str
) -> None:
    """A token of one second: after it, a look-up logs in and then reads, with no denial between."""
    role = bao.role(reading, token_ttl="1s", token_max_ttl="1s")
    store = open_vault({**at, **role})
    assert ask(store) == VALUE
    time.sleep(1.05)  # the life of a real token is real time
    before = len(bao.asked())
    assert ask(store) == VALUE
    mount = f"{at['KEYROT_VAULT_PLACE'].partition('/')[0]}/data/keyrot"
    assert bao.asked()[before:] == [f"auth/{role['VAULT_AUTH_MOUNT']}/login", mount]


def test_who_stays_refused_logs_in_once_more_and_is_named(
    at: dict[str, str], bao: Bao, reading: str
) -> None:
    """The error says path, role and the accessor of the token; no endless logins."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    assert ask(store) == VALUE
    bao.admin("PUT", f"sys/policies/acl/{reading}", {"policy": policy("secret/data/else")})
    try:
        refused = ask(store)
        path = at["KEYROT_VAULT_PLACE"].replace("/", "/data/")
        assert f'to read {path}; its policy needs: path "{path}"' in refused
        assert "denies the AppRole role role-" in refused
        assert "(token accessor " in refused
        assert logins(bao, role) == 2
    finally:
        bao.admin("PUT", f"sys/policies/acl/{reading}", {"policy": policy(path)})


def test_a_login_that_fails_after_a_denial_is_said(
    at: dict[str, str], bao: Bao, reading: str
) -> None:
    """The role is gone: the error has both, the denial and why no other login helped."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    assert ask(store) == VALUE
    bao.admin("DELETE", f"sys/auth/{role['VAULT_AUTH_MOUNT']}")
    refused = ask(store)
    assert "denies the AppRole role" in refused
    assert "logging in again failed: the AppRole login at auth/" in refused


def test_a_renewable_token_is_renewed_in_time(at: dict[str, str], bao: Bao, reading: str) -> None:
    """Past two thirds of its life a token is renewed, whether given or logged in for."""
    now = [0.0]
    role = bao.role(reading, token_ttl="60s")
    given = {"VAULT_TOKEN": bao.token(reading, ttl="60s")}
    for identity in (role, given):
        store = by_clock(now, {**at, **identity})
        for second, renewals in ((0, 0), (39, 0), (2, 1), (1, 0), (39, 1)):
            now[0] += second
            before = len(bao.asked("renew-self"))
            assert ask(store) == VALUE
            assert len(bao.asked("renew-self")) - before == renewals
    assert logins(bao, role) == 1


def test_a_token_that_cannot_be_renewed_is_replaced_in_time(
    at: dict[str, str], bao: Bao, reading: str
) -> None:
    """A batch token: a new login before the end; a given one is used to its end."""
    now = [0.0]
    role = bao.role(reading, token_ttl="60s", token_type="batch")
    store = by_clock(now, {**at, **role})
    given = by_clock(now, {**at, "VAULT_TOKEN": bao.token(reading, ttl="60s", renewable=False)})
    assert (ask(store), ask(given)) == (VALUE, VALUE)
    now[0] += 45
    assert (ask(store), ask(given)) == (VALUE, VALUE)
    assert logins(bao, role) == 2


def test_a_renewal_that_fails_does_not_cost_the_token(
    at: dict[str, str], bao: Bao, reading: str
) -> None:
    """The renewal meets an outage, then a login does: the old token reads as long as it lives."""
    now = [0.0]
    role = bao.role(reading, token_ttl="60s")
    broken = ["nothing"]

    def answer(handler: Any, body: bytes) -> Reply | None:
        return (500, b"{}", {}) if any(part in handler.path for part in broken) else None

    with front(answer, bao.url) as url:
        store = by_clock(now, {**at, **role, "VAULT_ADDR": url})
        assert ask(store) == VALUE
        broken[:] = ["renew-self", "login"]
        now[0] += 45
        assert ask(store) == VALUE
        now[0] += 20
        assert "has a fault of its own or is not ready" in ask(store)


def test_eight_threads_that_are_refused_log_in_once(
    at: dict[str, str], bao: Bao, reading: str
) -> None:
    """The first gets a new token, and the others use it."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    found: list[str] = []

    def look() -> None:
        start.wait(10)
        found.append(ask(store))

    for wanted in (1, 2):
        start = threading.Barrier(8)
        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert logins(bao, role) == wanted
        revoke_all(bao, role)
    assert found == [VALUE] * 16


@pytest.fixture(scope="module")
def signer() -> ec.EllipticCurvePrivateKey:
    """Who signs tokens that OpenBao trusts."""
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("where", ["VAULT_JWT", "VAULT_JWT_FILE"])
def test_a_jwt(
    where: str,
    at: dict[str, str],
    bao: Bao,
    reading: str,
    here: Path,
    signer: ec.EllipticCurvePrivateKey,
) -> None:
    """A signed token of a provider is exchanged; one of another audience is refused in words."""
    mount, pem = bao.enable("jwt"), serialization.PublicFormat.SubjectPublicKeyInfo
    public = signer.public_key().public_bytes(serialization.Encoding.PEM, pem).decode()
    bao.admin("POST", f"auth/{mount}/config", {"jwt_validation_pubkeys": [public]})
    bao.admin(
        "POST",
        f"auth/{mount}/role/ci",
        {
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": ["keyrot"],
            "token_policies": [reading],
        },
    )

    def opened(audience: str) -> str:
        claims = {"sub": "build", "aud": audience, "exp": int(time.time()) + 60}
        token = jwt.encode(claims, signer, "ES256")
        path = here / audience
        path.write_text(token)
        given = {where: str(path) if where.endswith("_FILE") else token}
        text = ask(open_vault({**at, "VAULT_AUTH_MOUNT": mount, "VAULT_JWT_ROLE": "ci", **given}))
        assert token not in text
        return text

    assert opened("keyrot") == VALUE
    assert f"the JWT login as ci at auth/{mount} failed: " in opened("other")
    assert "aud" in opened("other").partition("failed: ")[2]


def pod_token(signer: ec.EllipticCurvePrivateKey, account: str) -> str:
    """Make a token as Kubernetes gives one to a pod of a service account."""
    of = {"namespace": "apps", "serviceaccount": {"name": account, "uid": "u-1"}}
    claims = {"sub": f"system:serviceaccount:apps:{account}", "exp": int(time.time()) + 60}
    return jwt.encode({**claims, "kubernetes.io": of}, signer, "ES256")


def test_kubernetes(
    at: dict[str, str],
    bao: Bao,
    reading: str,
    here: Path,
    signer: ec.EllipticCurvePrivateKey,
) -> None:
    """The pod's token is reviewed by the cluster; one it does not know is refused."""
    good, unknown = pod_token(signer, "gemini"), pod_token(signer, "nobody")

    def review(handler: Any, body: bytes) -> Reply:
        known = json.loads(body)["spec"]["token"] == good
        user = {"username": "system:serviceaccount:apps:gemini", "uid": "u-1", "groups": []}
        status = {"authenticated": known, "user": user} if known else {"authenticated": False}
        answer = {
            "kind": "TokenReview",
            "apiVersion": "authentication.k8s.io/v1",
            "status": status,
        }
        return 201, json.dumps(answer).encode(), {"Content-Type": "application/json"}

    with front(review) as cluster:
        mount, path = bao.enable("kubernetes"), here / "token"
        config = {
            "kubernetes_host": cluster,
            "kubernetes_ca_cert": Path(bao.ca).read_text(),
            "disable_local_ca_jwt": True,
            "token_reviewer_jwt": good,
        }
        bao.admin("POST", f"auth/{mount}/config", config)
        bound = {
            "bound_service_account_names": ["gemini"],
            "bound_service_account_namespaces": ["apps"],
        }
        bao.admin("POST", f"auth/{mount}/role/pods", {**bound, "token_policies": [reading]})
        store = open_vault(
            {
                **at,
                "VAULT_AUTH_MOUNT": f"auth/{mount}/",
                "VAULT_K8S_ROLE": "pods",
                "VAULT_K8S_TOKEN_FILE": str(path),
            }
        )
        path.write_text(unknown)
        refused = ask(store)
        assert unknown not in refused
        assert f"the Kubernetes login as pods at auth/{mount} failed" in refused
        assert f"are {path} right?" in refused
        path.write_text(good)
        assert ask(store) == VALUE


def test_the_first_of_several_logins_is_taken(at: dict[str, str], bao: Bao, reading: str) -> None:
    """A token in a variable goes before a role."""
    role = bao.role(reading)
    assert ask(open_vault({**at, **role, "VAULT_TOKEN": ROOT_TOKEN})) == VALUE
    assert logins(bao, role) == 0


def test_a_token_with_few_uses_is_replaced(at: dict[str, str], bao: Bao, reading: str) -> None:
    """When the uses of a token are spent it is refused, and the role logs in again."""
    role = bao.role(reading, token_num_uses=2)
    store = open_vault({**at, **role})
    assert ask_all(store, a=None) == {"a": VALUE}
    assert [ask(store) for _ in range(3)] == [VALUE] * 3
    assert 2 <= logins(bao, role) <= 3
