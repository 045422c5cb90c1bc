"""`.env` names where keys are; it runs no program and sends this machine's logins nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_secret_manager import PROJECT, READER, SecretManager
from support.moto_server import REGION, moto_server
from support.openbao import ROOT_TOKEN, OpenBao
from support.store_servers.vault import VALUE
from support.stores import resolve_one
from support.unreachable import closed_port
from support.vault_proxy import Reply, vault_proxy

import keyrot_middleware
from keyrot_middleware.config import load
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets.registry import open_store

AMBIENT = "hvs.FAKE" + "m" * 24
PRINCIPAL = {
    "AZURE_TENANT_ID": "11111111-2222-3333-4444-555555555555",
    "AZURE_CLIENT_ID": "66666666-7777-8888-9999-000000000000",
    "AZURE_CLIENT_SECRET": "FAKE-client-secret",
}


@pytest.fixture(autouse=True)
def _no_way_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that would leave this machine meet a closed port."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", str(here))


@pytest.fixture
def unexpected_server() -> Iterator[tuple[str, list[Any]]]:
    """Start a server that must not be called; return its address and the requests."""
    seen: list[Any] = []

    def answer(handler: Any, body: bytes) -> Reply:
        seen.append((handler.path, dict(handler.headers), body))
        return 403, b'{"errors": ["permission denied"]}', {"Content-Type": "application/json"}

    with vault_proxy(answer) as url:
        yield url, seen


def write(here: Path, **variables: object) -> None:
    """Write `.env`."""
    (here / ".env").write_text("".join(f"{n}={value}\n" for n, value in variables.items()))


def marker(here: Path) -> tuple[Path, Path]:
    """Make a program that leaves a mark; return both."""
    mark, program = here / "mark", here / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    return program, mark


def test_no_program_that_a_config_file_of_aws_names_is_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """install() runs no `credential_process` that is configured only by `.env`."""
    program, mark = marker(here)
    (here / "config").write_text(f"[default]\ncredential_process = {program}\n")
    write(here, SECRET_STORE_TYPE="aws", AWS_REGION=REGION, AWS_CONFIG_FILE=here / "config")
    (here / "keys.json").write_text('[{"key_id": "a"}]')
    try:
        keyrot_middleware.install()
    finally:
        keyrot_middleware.uninstall()
    assert not mark.exists()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(here / "config"))
    resolve_one(open_store("aws"))
    assert mark.exists(), "the environment may: it is the program's own"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SECRETS_MANAGER"])
def test_no_request_goes_to_an_endpoint_of_aws_that_a_file_names(
    name: str,
    here: Path,
    unexpected_server: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine's own access key signs no request to it."""
    url, seen = unexpected_server
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FAKEACCESSKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "FAKE-secret-access-key")
    write(here, AWS_REGION=REGION, **{name: url})
    assert "Secrets Manager cannot be reached" in resolve_one(open_store("aws"))
    assert seen == []


def test_aws_settings_of_a_file_are_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Region, access key and the name of the secret may be in `.env`."""
    server = moto_server()
    server.admin.create_secret(Name="env-file/pool", SecretString='{"a": "FAKE-a"}')
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    write(
        here,
        AWS_REGION=REGION,
        AWS_ACCESS_KEY_ID="FAKEACCESSKEY",
        AWS_SECRET_ACCESS_KEY="FAKE-secret-access-key",
        KEYROT_AWS_SECRET="env-file/pool",
    )
    try:
        assert resolve_one(open_store("aws")) == "FAKE-a"
    finally:
        server.admin.delete_secret(SecretId="env-file/pool", ForceDeleteWithoutRecovery=True)


def test_ignored_variables_of_the_file_are_reported(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pool uses the store, and the environment does not have the variable too."""
    write(here, AWS_ENDPOINT_URL="http://127.0.0.1:1", CLOUDSDK_CONFIG="x", SECRET_STORE_TYPE="aws")
    (text,) = load(keys=["FAKE-a"]).warnings
    assert text.startswith(".env: AWS_ENDPOINT_URL: not read from a file")
    assert load(keys=["FAKE-a"], secret_store="env").warnings == ()
    (here / "keys.json").write_text('[{"key_id": "a", "secret": "gcp://project/x"}]')
    (text,) = load(secret_store="env").warnings
    assert "CLOUDSDK_CONFIG" in text
    monkeypatch.setenv("CLOUDSDK_CONFIG", "x")
    assert load(secret_store="env").warnings == ()


def test_alerts_are_not_read_from_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs of Apprise can start programs, read files, and send to anyone."""
    write(here, KEYROT_ALERTS="json://attacker.invalid/hook")
    found = load(keys=["FAKE-a"])
    assert found.settings.alerts == ()
    (text,) = found.warnings
    assert text.startswith(".env: KEYROT_ALERTS: not read from a file")
    assert "attacker" not in text
    monkeypatch.setenv("KEYROT_ALERTS", "json://127.0.0.1/hook")
    found = load(keys=["FAKE-a"])
    assert [url.get_secret_value() for url in found.settings.alerts] == ["json://127.0.0.1/hook"]
    assert found.warnings == ()


def logins(here: Path) -> list[tuple[dict[str, str], dict[str, object]]]:
    """List logins of this machine: from its environment, and the text in `.env` about them."""
    return [
        ({}, {}),
        ({}, {"VAULT_TOKEN_FILE": here / ".vault-token"}),
        ({}, {"VAULT_ROLE_ID": "role-FAKE", "VAULT_SECRET_ID_FILE": here / ".vault-token"}),
        ({}, {"VAULT_JWT_ROLE": "ci", "VAULT_JWT_FILE": here / ".vault-token"}),
        ({}, {"VAULT_K8S_ROLE": "app", "VAULT_K8S_TOKEN_FILE": here / ".vault-token"}),
        ({"VAULT_K8S_ROLE": "app"}, {}),
    ]


@pytest.mark.parametrize("number", range(6))
def test_no_login_of_this_machine_is_sent_to_a_vault_in_the_file(
    number: int,
    here: Path,
    unexpected_server: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """~/.vault-token, a pod's token, or any file whose path is only in `.env`."""
    url, seen = unexpected_server
    (here / ".vault-token").write_text(AMBIENT)
    environment, file = logins(here)[number]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    write(here, SECRET_STORE_TYPE="vault", VAULT_ADDR=url, **file)
    (here / "keys.json").write_text('[{"key_id": "a"}]')
    try:
        with pytest.raises(ConfigError, match=r"VAULT_ADDR comes from \.env, so .* is not sent"):
            keyrot_middleware.install()
    finally:
        keyrot_middleware.uninstall()
    assert seen == []
    monkeypatch.setenv("VAULT_ADDR", url)
    if number == 0:
        resolve_one(open_store("vault"))
        assert AMBIENT in [request[1].get("X-Vault-Token") for request in seen]


def test_a_vault_in_the_file_gets_the_login_that_is_meant_for_it(
    at: dict[str, str], bao: OpenBao, reading: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token in `.env` itself, or one that a variable of the environment has or names."""
    token, sink = bao.token(reading), here / "sink"
    sink.write_text(token)
    write(here, **at, VAULT_TOKEN=token)
    assert resolve_one(open_store("vault")) == VALUE
    write(here, **at)
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(sink))
    assert resolve_one(open_store("vault")) == VALUE
    monkeypatch.delenv("VAULT_TOKEN_FILE")
    monkeypatch.setenv("VAULT_TOKEN", ROOT_TOKEN)
    assert resolve_one(open_store("vault")) == VALUE


def test_the_file_sets_no_authorities_for_the_environments_address(
    bao: OpenBao, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the environment has VAULT_ADDR, it has the authorities too."""
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv("VAULT_ADDR", bao.tls_url)
    monkeypatch.setenv("VAULT_TOKEN", ROOT_TOKEN)
    monkeypatch.setenv("KEYROT_VAULT_PLACE", "secret/no-such-secret")
    for trust in ({"VAULT_SKIP_VERIFY": "true"}, {"VAULT_CACERT": bao.ca}):
        write(here, **trust)
        assert "found no way to trust each other" in resolve_one(open_store("vault"))
    write(here, VAULT_ADDR=bao.tls_url, VAULT_TOKEN=ROOT_TOKEN, VAULT_CACERT=bao.ca)
    monkeypatch.delenv("VAULT_ADDR")
    assert "there is no such secret" in resolve_one(open_store("vault"))


@pytest.fixture
def manager(here: Path) -> Iterator[SecretManager]:
    """Start Secret Manager with the key `a` in it."""
    made = SecretManager(here)
    made.write("keyrot", json.dumps({"a": "FAKE-a"}))
    yield made
    made.server.close()


def test_no_program_that_a_credentials_file_of_google_names_is_run(
    here: Path, manager: SecretManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the environment allows executables to google-auth."""
    program, mark = marker(here)
    monkeypatch.setenv("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
    external = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/providers/p",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {
            "executable": {"command": str(program), "timeout_millis": 5000, "output_file": ""}
        },
    }
    (here / "external.json").write_text(json.dumps(external))
    file = {"GOOGLE_APPLICATION_CREDENTIALS": here / "external.json"}
    write(here, GOOGLE_CLOUD_PROJECT=PROJECT, **file)
    text = resolve_one(open_store("gcp"))
    assert "that .env names must be of type service_account or authorized_user" in text
    assert not mark.exists()


def test_a_service_account_that_a_file_names_is_used_at_googles_own_address(
    here: Path, manager: SecretManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another endpoint must be named in the environment."""
    file = {"GOOGLE_APPLICATION_CREDENTIALS": manager.credentials(READER)}
    endpoint = {"CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": manager.url}
    write(here, GOOGLE_CLOUD_PROJECT=PROJECT, **file, **endpoint)
    assert "Secret Manager cannot be reached" in resolve_one(open_store("gcp"))
    assert manager.count(":access") == 0
    monkeypatch.setenv(*next(iter(endpoint.items())))
    assert resolve_one(open_store("gcp")) == "FAKE-a"


def test_no_login_of_this_machine_is_sent_to_a_key_vault_in_the_file(
    here: Path, unexpected_server: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is one of Azure's own, or the login is in `.env` too."""
    host = unexpected_server[0].removeprefix("http://")
    for name, value in PRINCIPAL.items():
        monkeypatch.setenv(name, value)
    for other in (host, "vault.example", "mine.vault.azure.net.example", "evil-vault.azure.net"):
        write(here, AZURE_KEY_VAULT_URL=f"https://{other}")
        with pytest.raises(ConfigError, match=r"AZURE_KEY_VAULT_URL in \.env: found "):
            open_store("azure")
    for own in ("mine.vault.azure.net", "mine.vault.azure.cn", "Mine.managedhsm.azure.net:443"):
        write(here, AZURE_KEY_VAULT_URL=f"https://{own}")
        assert open_store("azure").scheme == "azure"
    for name in PRINCIPAL:
        monkeypatch.delenv(name)
    write(here, AZURE_KEY_VAULT_URL=f"https://{host}", **PRINCIPAL)
    assert open_store("azure").scheme == "azure"
    write(here)
    monkeypatch.setenv("AZURE_KEY_VAULT_URL", f"https://{host}")
    assert open_store("azure").scheme == "azure"
    assert unexpected_server[1] == []
