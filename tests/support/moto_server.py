"""moto's server, one for all tests of a session, in a thread; and one that refuses as AWS does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import botocore.session
import requests
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

REGION = "eu-central-1"

# A session reads a megabyte of JSON, and each store of a test has one: they share what is read.
botocore.session.create_loader = cache(botocore.session.create_loader)


def options_for(port: int, **more: str) -> dict[str, Any]:
    """Give options of boto3's client that lead to a port of this machine."""
    return {
        "aws_access_key_id": "FAKEACCESSKEY",
        "aws_secret_access_key": "FAKE-secret-access-key",
        "region_name": REGION,
        "endpoint_url": f"http://127.0.0.1:{port}",
        **more,
    }


class MotoServer:
    """Secrets Manager as moto implements it; the requests are counted."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self.targets: list[str] = []
        """The operation of each request, in order."""
        self._server = make_server("127.0.0.1", 0, self._count, threaded=True)
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.admin = self.client("secretsmanager")

    def client(self, service: str) -> Any:
        """Make a client of any service of AWS, for who may do everything."""
        return boto3.session.Session().client(service, **options_for(self.port))

    def _count(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        target = str(environ.get("HTTP_X_AMZ_TARGET", ""))
        with self._lock:
            self.targets.append(target.rpartition(".")[2])
        answer: Iterable[bytes] = self._app(environ, start)
        return answer

    def empty(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.post(f"http://127.0.0.1:{self.port}/moto-api/reset", timeout=30)

    def write(self, name: str, value: str | bytes) -> str:
        """Make a secret, or a new version of it; return its ARN.

        In a thread whose logs are off: some tests search those at DEBUG for values.
        """
        with ThreadPoolExecutor(1, "keyrot-secrets") as threads:
            return threads.submit(self._write, name, value).result()

    def _write(self, name: str, value: str | bytes) -> str:
        kind = "SecretString" if isinstance(value, str) else "SecretBinary"
        try:
            made = self.admin.create_secret(Name=name, **{kind: value})
        except self.admin.exceptions.ResourceExistsException:
            made = self.admin.put_secret_value(SecretId=name, **{kind: value})
        return str(made["ARN"])


@cache
def moto_server() -> MotoServer:
    """Start the server at the first call; its thread ends with the process."""
    return MotoServer()


class RefusingServer:
    """A server that answers as Secrets Manager does where a request is refused.

    Args:
        answers: Status and body for an operation (`GetSecretValue`) and the request's body.
    """

    def __init__(self, answers: Callable[[str, dict[str, Any]], tuple[int, Any]]) -> None:
        self.targets: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                target = self.headers["X-Amz-Target"].rpartition(".")[2]
                outer.targets.append(target)
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = answers(target, sent)
                body = json.dumps(answer).encode()
                # In one write, or Nagle's algorithm costs 44 ms.
                head = f"HTTP/1.1 {status} -\r\nContent-Type: application/x-amz-json-1.1\r\n"
                self.wfile.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
