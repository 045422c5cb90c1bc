"""`keyrot serve` in a process of its own, and clients that are no Python library."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any, NamedTuple

BODY = json.dumps({"contents": [{"parts": [{"text": "Hi"}]}]})
CALL = "/gemini/v1beta/models/gemini-2.5-flash:generateContent"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Door:
    def __init__(self, *options: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keyrot_middleware", "serve", "--port", "0", *options],
            env={**os.environ, "NO_PROXY": "127.0.0.1", "KEYROT_STATE_URL": "memory://", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        while not self.lines or "Ctrl-C" not in self.lines[-1]:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()
            self.lines.append(line.rstrip())
        found = next(line for line in self.lines if "://" in line)
        self.url = found.partition("=")[2].rsplit("/", 1 + found.endswith("/v1"))[0]
        self.port = int(self.url.rpartition(":")[2])

    def __call__(
        self, path: str = CALL, body: str | None = BODY, method: str = "POST", **headers: str
    ) -> Answer:
        """Send a request with the standard library, which no pool patches."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            got = connection.getresponse()
            return Answer(got.status, dict(got.getheaders()), got.read())
        finally:
            connection.close()

    def raw(self, request: str) -> str:
        """Send bytes as they are; return what comes back until the connection is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
            connection.sendall(request.encode("latin-1"))
            return b"".join(iter(lambda: connection.recv(65_536), b"")).decode("latin-1")

    def stop(self) -> str:
        """End it as systemd does; return what it wrote to stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=120)
        return errors


def over(server: Any, *labels: str) -> dict[str, str]:
    """Return the environment of a pool whose keys are those of a fake Gemini."""
    values = [server.add_key(label, tier="paid").value for label in labels]
    return {"KEYROT_ALLOWED_HOSTS": server.host, "GEMINI_API_KEYS": ",".join(values)}
