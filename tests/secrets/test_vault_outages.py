"""A Vault that is down, slow, sealed, untrusted, over its quota, or no Vault at all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from support.openbao import ROOT_TOKEN, OpenBao, shared
from support.stores import resolve_all, resolve_one
from support.unreachable import SilentServer, closed_port
from support.vault_proxy import Reply, vault_proxy

from keyrot_middleware.secrets import SecretStore
from keyrot_middleware.secrets.vault import open_vault

VALUE = "AIza" + "FAKE" + "t" * 31


@pytest.fixture(autouse=True)
def _no_ca_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def bao() -> OpenBao:
    """Return the shared server, with the key `a` in a mount of its own."""
    server = shared()
    server.write("secret/data/trouble", {"a": VALUE})
    return server


def opened(url: str, **more: str) -> SecretStore:
    """Open a store as root."""
    fixed = {"VAULT_TOKEN": ROOT_TOKEN, "KEYROT_VAULT_PLACE": "secret/trouble"}
    return open_vault({"VAULT_ADDR": url, **fixed, **more})


def test_tls_with_a_ca_of_ones_own(bao: OpenBao) -> None:
    """With VAULT_CACERT the server is trusted."""
    assert resolve_one(opened(bao.tls_url, VAULT_CACERT=bao.ca)) == VALUE


def test_an_untrusted_certificate_is_an_error(bao: OpenBao) -> None:
    """Without the CA nothing is sent, and the error names the variable."""
    before = len(bao.requested_paths())
    text = resolve_one(opened(bao.tls_url))
    assert "name the CA of its certificate in VAULT_CACERT" in text
    assert bao.requested_paths()[before:] == []


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_verification_can_be_switched_off(bao: OpenBao) -> None:
    """VAULT_SKIP_VERIFY trusts any server, as in Vault's own command."""
    assert resolve_one(opened(bao.tls_url, VAULT_SKIP_VERIFY="true")) == VALUE


@pytest.mark.parametrize("name", ["VAULT_CACERT", "VAULT_CAPATH"])
def test_a_missing_ca_is_an_error(bao: OpenBao, name: str) -> None:
    """A path without a file."""
    text = resolve_one(opened(bao.tls_url, **{name: "/nowhere/ca.pem"}))
    assert "do the files exist that VAULT_CACERT" in text


def test_the_wrong_scheme_is_an_error(bao: OpenBao) -> None:
    """HTTP to a TLS port, and TLS to an HTTP port."""
    to_tls = resolve_one(opened(bao.tls_url.replace("https", "http")))
    assert "Client sent an HTTP request to an HTTPS server" in to_tls
    to_http = resolve_one(opened(bao.url.replace("http", "https")))
    assert "whether VAULT_ADDR has the right host, port and https://" in to_http


def test_without_a_listener() -> None:
    """Without a listener, or without such a host, the error is that of all paths."""
    store = opened(f"http://127.0.0.1:{closed_port()}")
    found = resolve_all(store, **{f"k{n}": f"vault://secret/p{n}#x" for n in range(50)})
    assert all("cannot be reached; does it run" in text for text in found.values())
    assert "no such host name" in resolve_one(opened("https://no-such-host.invalid:8200"))


def test_a_hanging_server_is_tried_once() -> None:
    """Fifty paths cost one wait, as long as VAULT_CLIENT_TIMEOUT."""
    with closing(SilentServer()) as silent:
        store = opened(silent.url, VAULT_CLIENT_TIMEOUT="0.3")
        started = time.monotonic()
        found = resolve_all(store, **{f"k{n}": f"vault://secret/p{n}#x" for n in range(50)})
        assert 0.3 <= time.monotonic() - started < 10, "fifty waits would be 15 s"
    assert all("did not answer within 0.3 s" in text for text in found.values())


def test_a_server_that_comes_back_is_used(bao: OpenBao) -> None:
    """Down for a while: the next look-up succeeds again."""
    down = [False]

    def answer(handler: Any, body: bytes) -> Reply | None:
        return (502, b"bad gateway", {}) if down[0] else None

    with vault_proxy(answer, bao.url) as url:
        store = opened(url)
        assert resolve_one(store) == VALUE
        down[0] = True
        assert "has a fault of its own or is not ready: bad gateway" in resolve_one(store)
        down[0] = False
        assert resolve_one(store) == VALUE


def test_an_outage_during_a_look_up_ends_it(bao: OpenBao) -> None:
    """Values read before it are kept; later paths are not requested."""
    seen: list[str] = []

    def answer(handler: Any, body: bytes) -> Reply | None:
        seen.append(handler.path)
        return (503, b"{}", {}) if "/p1" in handler.path else None

    with vault_proxy(answer, bao.url) as url:
        refs = {f"k{n}": f"vault://secret/p{n}#x" for n in range(5)}
        found = resolve_all(opened(url), a=None, **refs)
    assert found["a"] == VALUE
    assert "there is no such secret" in found["k0"]
    assert all("is not ready" in found[f"k{n}"] for n in range(1, 5))
    assert not any("/p2" in path for path in seen)


@pytest.fixture(scope="module")
def sealed() -> Iterator[OpenBao]:
    """Start a sealed server."""
    server = OpenBao()
    server.admin("PUT", "sys/seal")
    yield server
    server.stop()


def test_a_sealed_server(sealed: OpenBao) -> None:
    """A token and a login both fail, and the error says so."""
    assert "is sealed; someone with the unseal keys must unseal it" in resolve_one(
        opened(sealed.url)
    )
    role = {"VAULT_TOKEN": "", "VAULT_ROLE_ID": "role-FAKE", "VAULT_SECRET_ID": "secret-FAKE"}
    assert "is sealed; someone with the unseal keys" in resolve_one(opened(sealed.url, **role))


def test_an_exhausted_rate_limit(bao: OpenBao) -> None:
    """The server's own quota on one mount."""
    mount = bao.mount(2)
    bao.write(f"{mount}/data/k", {"a": VALUE})
    quota = f"sys/quotas/rate-limit/{mount}"
    store = opened(bao.url)
    resolve_one(store, f"vault://{mount}/k")
    bao.admin("POST", quota, {"path": f"{mount}/", "rate": 1, "interval": "60s"})
    try:
        texts = [resolve_one(store, f"vault://{mount}/k") for _ in range(2)]
        assert "gets more requests than its rate limit quota allows" in texts[1]
        assert resolve_one(store) == VALUE
    finally:
        bao.admin("DELETE", quota)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>hello</html>", "does not answer as Vault does; is VAULT_ADDR right?"),
        (200, b"[1]", "does not answer as Vault does"),
        (200, b'{"hello": "world"}', "holds no fields"),
        (204, b"", "does not answer as Vault does"),
        (400, b'{"errors": ["odd"]}', "refuses the request (400): odd"),
        (418, b"tea" * 200, "is not ready: teatea"),
        (404, b"<html>", "there is no such secret"),
        (500, b'{"errors": "no list"}', 'is not ready: {"errors": "no list"}'),
        (501, b"{}", "is not initialized"),
        (503, b'{"errors": ["Vault is sealed"]}', "is sealed"),
        (503, b"", "has a fault of its own or is not ready"),
    ],
)
def test_unexpected_answers(status: int, body: bytes, message: str) -> None:
    """Whatever is at VAULT_ADDR, the look-up ends with one message."""
    headers = {"Content-Type": "application/json"}
    with vault_proxy(lambda handler, sent: (status, body, headers)) as url:
        text = resolve_one(opened(url))
    assert message in text
    assert len(text) < 400


def test_a_redirect_within_one_server_is_not_followed_either(bao: OpenBao) -> None:
    """A gateway that normalizes paths sends one; the error names its target."""

    def on(handler: Any, body: bytes) -> Reply:
        return 307, b"", {"Location": handler.path.replace("/v1/", "/again/v1/")}

    with vault_proxy(on, bao.url) as url:
        assert 'sends its clients on to "/again/v1/' in resolve_one(opened(url))


def test_an_answer_of_many_megabytes_is_still_an_answer(bao: OpenBao) -> None:
    """A secret as large as OpenBao allows, about a megabyte, is read."""
    mount = bao.mount(2)
    bao.write(f"{mount}/data/k", {"a": VALUE, "blob": "x" * 900_000})
    assert resolve_one(opened(bao.url), f"vault://{mount}/k") == VALUE


def test_a_login_that_gives_no_token(bao: OpenBao) -> None:
    """An answer of another service at the login path."""
    body = json.dumps({"data": {"keys": []}}).encode()
    with vault_proxy(
        lambda handler, sent: (200, body, {"Content-Type": "application/json"})
    ) as url:
        text = resolve_one(opened(url, VAULT_TOKEN="", VAULT_ROLE_ID="role-FAKE"))
    assert "the AppRole login at auth/approle returned no token" in text
