"""docs/stores/vault.md is true: its commands are run, its tables agree with the code."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from inspect import getsource
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.openbao import BINARY, ROOT_TOKEN, OpenBao
from support.stores import resolve_all, resolve_one

from keyrot_middleware.secrets.remote import VaultStore, open_vault

PAGE = Path(__file__).resolve().parents[2] / "docs" / "stores" / "vault.md"
ADDRESS, CA = "https://vault.example:8200", "/etc/ssl/company-ca.pem"


def commands() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def bao() -> Iterator[OpenBao]:
    server = OpenBao()
    yield server
    server.stop()


def run(command: str, bao: OpenBao, here: Path) -> dict[str, str]:
    command = command.replace(ADDRESS, bao.tls_url).replace(CA, bao.ca)
    done = subprocess.run(
        ["bash", "-euc", f"{command}\nenv -0 > environment"],
        cwd=here,
        env={
            "PATH": f"{here}/bin{os.pathsep}{os.environ['PATH']}",
            "HOME": str(here),
            "VAULT_ADDR": bao.tls_url,
            "VAULT_CACERT": bao.ca,
            "VAULT_TOKEN": ROOT_TOKEN,
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    pairs = (here / "environment").read_text("utf-8").rstrip("\0").split("\0")
    return dict(pair.split("=", 1) for pair in pairs)


def by_jwt(bao: OpenBao, signer: ec.EllipticCurvePrivateKey, **claims: str) -> str:
    now = int(time.time())
    times = {"iat": now - 60, "nbf": now - 60, "exp": now + 600}
    token = jwt.encode({"sub": "s", "aud": "keyrot", **times, **claims}, signer, "ES256")
    variables = {"VAULT_ADDR": bao.url, "VAULT_JWT_ROLE": "keyrot", "VAULT_JWT": token}
    return resolve_one(open_vault(variables), key_id="pro_01")


def test_the_commands_lead_to_keys_that_are_found(bao: OpenBao, here: Path) -> None:
    """From an empty server to a program that finds its keys, by the page alone."""
    (here / "bin").mkdir()
    (here / "bin" / "vault").symlink_to(BINARY)
    for name in ("flash_01", "pro_01"):
        (here / f"{name}.txt").write_text(f"FAKE-value-of-{name}\n")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    signer = ec.generate_private_key(ec.SECP256R1())
    public = signer.public_key().public_bytes(serialization.Encoding.PEM, form)
    (here / "provider.pem").write_bytes(public)
    (here / "cluster-ca.pem").write_text(Path(bao.ca).read_text())
    program: dict[str, str] = {}
    for command in commands():
        environment = run(command, bao, here)
        if "SECRET_STORE_TYPE" in environment:
            program = environment
    assert program.pop("VAULT_TOKEN") == ROOT_TOKEN  # the reader's own, not the program's
    found = resolve_all(open_vault(program), flash_01=None, pro_01=None)
    assert found == {key_id: f"FAKE-value-of-{key_id}" for key_id in ("flash_01", "pro_01")}
    refused = resolve_all(open_vault(program), other="vault://secret/other#x")["other"]
    assert refused.endswith(": Forbidden")
    assert (here / "secret-id").stat().st_mode & 0o077 == 0
    other = by_jwt(bao, signer, repository="my-org/other", ref="refs/heads/main")
    assert other.endswith(": InvalidRequest")
    assert by_jwt(bao, signer).endswith(": InvalidRequest")
    claims = {"repository": "my-org/my-app", "ref": "refs/heads/main"}
    assert by_jwt(bao, signer, **claims) == "FAKE-value-of-pro_01"
    roles = [bao.admin("GET", f"auth/{way}/role/keyrot") for way in ("kubernetes", "jwt")]
    assert [role["token_policies"] for role in roles] == [["keyrot"], ["keyrot"]]


def test_the_table_of_settings_is_complete() -> None:
    """Every variable that the code reads is in the table, and no other."""
    table = PAGE.read_text("utf-8").partition("## Settings")[2].partition("\n## ")[0]
    rows = "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    documented = set(re.findall(r"`((?:VAULT|KEYROT)_\w+)`", rows)) - {"VAULT_TOKEN_FILE"}
    code = getsource(open_vault) + getsource(VaultStore)
    read = set(re.findall(r'"((?:VAULT|KEYROT)_\w+)"', code))
    assert documented == read
