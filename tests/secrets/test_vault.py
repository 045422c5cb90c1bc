"""The Vault store on a real OpenBao: versions of KV, logins, and what it never says."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.openbao import ROOT_TOKEN, OpenBao, policy, unique
from support.store_servers.vault import VALUE
from support.stores import all_output, resolve_all, resolve_one
from support.vault_proxy import Reply, vault_proxy

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets import SecretStore
from keyrot_middleware.secrets.remote import open_vault

TOKEN = "hvs.FAKE" + "t" * 24
ROLE = {"VAULT_ROLE_ID": "role-id-FAKE-5678", "VAULT_SECRET_ID": "secret-id-FAKE-1234"}


def opened(bao: OpenBao, token: str = ROOT_TOKEN, **more: str) -> SecretStore:
    return open_vault({"VAULT_ADDR": bao.url, "VAULT_TOKEN": token, **more})


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", ["", "/er"])
def test_both_versions_of_kv_are_distinguished(bao: OpenBao, version: int, path: str) -> None:
    """A place is the same for both, in nested mounts too, and least privilege is enough."""
    mount = bao.mount(version, path=unique("kv") + path)
    real = f"{mount}/data/team/a" if version == 2 else f"{mount}/team/a"
    fields = {"flash": VALUE, "pro": "second"}
    bao.admin("POST", real, {"data": fields} if version == 2 else fields)
    store = opened(bao, bao.token(bao.allow(policy(real))))
    places = {"a": f"vault://{mount}/team/a#flash", "pro": f"vault://{mount}/team/a/"}
    assert resolve_all(store, **places) == {"a": VALUE, "pro": "second"}


@pytest.mark.promise(number=6)
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("trust", ["VAULT_CACERT", "VAULT_SKIP_VERIFY"])
def test_tls(bao: OpenBao, at: dict[str, str], trust: str) -> None:
    """With a CA of one's own, or without verification; else nothing is sent."""
    at = {**at, "VAULT_ADDR": bao.tls_url, "VAULT_TOKEN": ROOT_TOKEN}
    assert resolve_one(open_vault(at)).endswith(": SSLError")
    trusted = bao.ca if trust == "VAULT_CACERT" else "true"
    assert resolve_one(open_vault({**at, trust: trusted})) == VALUE


# Logins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["VAULT_TOKEN_FILE", "HOME"])
def test_a_token_file_is_read_again_when_its_token_is_refused(
    name, at, bao, reading, here, monkeypatch
) -> None:
    """The file of a variable, or the one of `vault login`; an agent may rewrite it."""
    path = here / (".vault-token" if name == "HOME" else "sink")
    monkeypatch.setenv("HOME", str(here))
    store = open_vault({**at, name: str(path)})
    assert resolve_one(store).startswith("key a: ")
    first = bao.token(reading)
    path.write_text(f"{first}\n")
    assert resolve_one(store) == VALUE
    bao.admin("POST", "auth/token/revoke", {"token": first})
    assert resolve_one(store).endswith(": Forbidden")
    path.write_text(bao.token(reading))
    assert resolve_one(store) == VALUE


@pytest.mark.parametrize("secret_id", [True, False])
def test_an_approle_logs_in_once_and_again_when_its_token_is_refused(
    at, bao, reading, here, secret_id
) -> None:
    """The token is kept between look-ups; a secret id may be in a file, or not needed."""
    bound: dict[str, Any] = (
        {} if secret_id else {"bind_secret_id": False, "token_bound_cidrs": ["127.0.0.0/8"]}
    )
    role = bao.role(reading, **bound)
    if secret_id:
        (here / "secret-id").write_text(role.pop("VAULT_SECRET_ID"))
        role["VAULT_SECRET_ID_FILE"] = str(here / "secret-id")
    store = open_vault({**at, **role})
    assert bao.logins(role) == 0
    assert [resolve_one(store) for _ in range(3)] == [VALUE] * 3
    assert bao.logins(role) == 1
    store._client.token = "s.FAKE-of-nobody"  # type: ignore[attr-defined]
    assert resolve_one(store) == VALUE
    assert bao.logins(role) == 2


@pytest.fixture(scope="module")
def signer() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_kubernetes(at, bao, reading, here, signer) -> None:
    """The pod's token is reviewed by the cluster; an unknown one is refused."""

    def pod_token(account: str) -> str:
        of = {"namespace": "apps", "serviceaccount": {"name": account, "uid": "u-1"}}
        claims = {"sub": f"system:serviceaccount:apps:{account}", "exp": int(time.time()) + 60}
        return jwt.encode({**claims, "kubernetes.io": of}, signer, "ES256")

    good, unknown = pod_token("gemini"), pod_token("unknown")

    def review(handler: Any, body: bytes) -> Reply:
        known = json.loads(body)["spec"]["token"] == good
        user = {"username": "system:serviceaccount:apps:gemini", "uid": "u-1", "groups": []}
        status = {"authenticated": known, **({"user": user} if known else {})}
        kind = {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1"}
        answer = json.dumps({**kind, "status": status}).encode()
        return 201, answer, {"Content-Type": "application/json"}

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
        pod = {"VAULT_K8S_ROLE": "pods", "VAULT_K8S_TOKEN_FILE": str(path)}
        store = open_vault({**at, "VAULT_AUTH_MOUNT": f"auth/{mount}/", **pod})
        path.write_text(unknown)
        assert resolve_one(store).endswith(": Forbidden")
        path.write_text(good)
        assert resolve_one(store) == VALUE


# Settings and outages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "VAULT_ADDR: found nothing; allowed: https://host:port"),
        ({"VAULT_ADDR": "nowhere"}, 'VAULT_ADDR: found "nowhere"'),
        ({"VAULT_ADDR": "http://vault.example"}, "KEYROT_VAULT_ALLOW_HTTP=true allows it"),
    ],
)
def test_a_wrong_variable_is_an_error(variables: dict[str, str], message: str) -> None:
    """Name, value and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        open_vault(variables)
    assert message in str(caught.value)


# Secrecy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 429, 503])
@pytest.mark.parametrize("identity", [{"VAULT_TOKEN": TOKEN}, ROLE], ids=["token", "role"])
def test_a_server_that_echoes_secrets_is_not_quoted(status, identity, caplog) -> None:
    """Neither in an error, its causes and its store nor in a log."""
    caplog.set_level(logging.DEBUG)

    def echo(handler: Any, body: bytes) -> Reply:
        repeated = [*handler.headers.values(), body.decode(), VALUE]
        return status, json.dumps({"errors": repeated}).encode(), {}

    with vault_proxy(echo) as url:
        text = all_output([open_vault({"VAULT_ADDR": url, **identity})], {"a": None})
    for hidden in (VALUE, TOKEN, *ROLE.values()):
        assert hidden not in text + caplog.text


@pytest.mark.promise(number=6)
@pytest.mark.parametrize("identity", [{"VAULT_TOKEN": TOKEN}, ROLE], ids=["token", "role"])
def test_no_redirect_takes_token_or_login_to_another_server(identity: dict[str, str]) -> None:
    """It is not followed."""
    seen: list[str] = []

    def listen(handler: Any, body: bytes) -> Reply:
        seen.append(handler.path)
        return 200, b"{}", {"Content-Type": "application/json"}

    with vault_proxy(listen) as other:

        def on(handler: Any, body: bytes) -> Reply:
            return 307, b"", {"Location": f"{other}{handler.path}"}

        with vault_proxy(on) as url:
            text = resolve_one(open_vault({"VAULT_ADDR": url, **identity}))
    assert seen == []
    assert text.startswith("key a: vault://secret/keyrot#a: ")
