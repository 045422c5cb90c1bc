"""moto's server, one for all tests of a session, in a thread; and one that refuses as AWS does."""

import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import boto3
import botocore.session
import requests
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from support.json_server import JsonServer, Request, Response

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


class RefusingServer(JsonServer):
    """A server that answers as Secrets Manager does where a request is refused.

    Args:
        answers: Status and body for an operation (`GetSecretValue`) and the request's body.
    """

    def __init__(self, answers: Callable[[str, dict[str, Any]], tuple[int, Any]]) -> None:
        kind = {"Content-Type": "application/x-amz-json-1.1"}
        super().__init__(
            lambda request: Response(*answers(_target(request), json.loads(request.body)), kind)
        )

    @property
    def targets(self) -> list[str]:
        return [_target(request) for request in self.requests]


def _target(request: Request) -> str:
    return request.headers["x-amz-target"].rpartition(".")[2]
