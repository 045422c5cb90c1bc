"""Every way to log in to a real OpenBao, and the end of a token."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.openbao import ROOT_TOKEN, OpenBao
from support.store_servers.vault import VALUE
from support.stores import resolve_one
from support.vault_proxy import Reply, vault_proxy

from keyrot_middleware.secrets.vault import open_vault


def test_a_token(at: dict[str, str], bao: OpenBao, reading: str) -> None:
    """VAULT_TOKEN is used as it is."""
    assert resolve_one(open_vault({**at, "VAULT_TOKEN": bao.token(reading)})) == VALUE


@pytest.mark.parametrize("name", ["VAULT_TOKEN_FILE", "HOME"])
def test_a_token_file_is_read_again_when_its_token_is_refused(
    name: str,
    at: dict[str, str],
    bao: OpenBao,
    reading: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file of a variable, or the one of `vault login`; an agent may rewrite it."""
    path = here / (".vault-token" if name == "HOME" else "sink")
    monkeypatch.setenv("HOME", str(here))
    store = open_vault({**at, name: str(path)})
    assert f"{path} cannot be read: No such file" in resolve_one(store)
    first = bao.token(reading)
    path.write_text(f"{first}\n")
    assert resolve_one(store) == VALUE
    bao.admin("POST", "auth/token/revoke", {"token": first})
    refused = resolve_one(store)
    assert f"the token in {path} (accessor " in refused
    assert first not in refused
    path.write_text(bao.token(reading))
    assert resolve_one(store) == VALUE


def test_a_missing_identity_is_an_error(
    at: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any, the error names the ways to log in."""
    monkeypatch.setenv("HOME", str(here))
    text = resolve_one(open_vault(at))
    assert f"{here}/.vault-token cannot be read" in text
    assert "VAULT_ROLE_ID with VAULT_SECRET_ID" in text


def test_an_approle_logs_in_once_for_many_look_ups(
    at: dict[str, str], bao: OpenBao, reading: str
) -> None:
    """The token is kept between look-ups; opening sends nothing."""
    role = bao.role(reading)
    store = open_vault({**at, **role})
    assert bao.logins(role) == 0
    assert [resolve_one(store) for _ in range(3)] == [VALUE] * 3
    assert bao.logins(role) == 1


def test_a_secret_id_in_a_file_is_read_at_each_login(
    at: dict[str, str], bao: OpenBao, reading: str, here: Path
) -> None:
    """The file may change between logins."""
    role = bao.role(reading)
    path = here / "secret-id"
    path.write_text("wrong-FAKE-secret-id")
    secret_id = role.pop("VAULT_SECRET_ID")
    store = open_vault({**at, **role, "VAULT_SECRET_ID_FILE": str(path)})
    refused = resolve_one(store)
    assert f"the AppRole login at auth/{role['VAULT_AUTH_MOUNT']} failed" in refused
    assert f"are VAULT_ROLE_ID and {path} right?" in refused
    path.write_text(secret_id)
    assert resolve_one(store) == VALUE


def test_a_role_without_a_secret_id(at: dict[str, str], bao: OpenBao, reading: str) -> None:
    """A role may be bound to networks instead."""
    role = bao.role(reading, bind_secret_id=False, token_bound_cidrs=["127.0.0.0/8"])
    assert "VAULT_SECRET_ID" not in role
    assert resolve_one(open_vault({**at, **role})) == VALUE


@pytest.fixture(scope="module")
def signer() -> ec.EllipticCurvePrivateKey:
    """Return an issuer of tokens that OpenBao trusts."""
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("where", ["VAULT_JWT", "VAULT_JWT_FILE"])
def test_a_jwt(
    where: str,
    at: dict[str, str],
    bao: OpenBao,
    reading: str,
    here: Path,
    signer: ec.EllipticCurvePrivateKey,
) -> None:
    """A signed token of a provider is exchanged; one of another audience is refused."""
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
        text = resolve_one(
            open_vault({**at, "VAULT_AUTH_MOUNT": mount, "VAULT_JWT_ROLE": "ci", **given})
        )
        assert token not in text
        return text

    assert opened("keyrot") == VALUE
    assert f"the JWT login as ci at auth/{mount} failed: " in opened("other")
    assert "aud" in opened("other").partition("failed: ")[2]


def pod_token(signer: ec.EllipticCurvePrivateKey, account: str) -> str:
    """Make a token like the one Kubernetes gives to a pod of a service account."""
    of = {"namespace": "apps", "serviceaccount": {"name": account, "uid": "u-1"}}
    claims = {"sub": f"system:serviceaccount:apps:{account}", "exp": int(time.time()) + 60}
    return jwt.encode({**claims, "kubernetes.io": of}, signer, "ES256")


def test_kubernetes(
    at: dict[str, str],
    bao: OpenBao,
    reading: str,
    here: Path,
    signer: ec.EllipticCurvePrivateKey,
) -> None:
    """The pod's token is reviewed by the cluster; an unknown one is refused."""
    good, unknown = pod_token(signer, "gemini"), pod_token(signer, "unknown")

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

    with vault_proxy(review) as cluster:
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
        refused = resolve_one(store)
        assert unknown not in refused
        assert f"the Kubernetes login as pods at auth/{mount} failed" in refused
        assert f"are {path} right?" in refused
        path.write_text(good)
        assert resolve_one(store) == VALUE


def test_the_first_of_several_logins_is_taken(
    at: dict[str, str], bao: OpenBao, reading: str
) -> None:
    """A token in a variable has priority over a role."""
    role = bao.role(reading)
    assert resolve_one(open_vault({**at, **role, "VAULT_TOKEN": ROOT_TOKEN})) == VALUE
    assert bao.logins(role) == 0
