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
CALL = "/gemini/v1beta/models/gemini-3.1-flash-lite:generateContent"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def message(
    path: str = CALL,
    *lines: str | bytes,
    body: str | bytes = BODY,
    method: str = "POST",
    **more: str,
) -> bytes:
    """Return the bytes of a request whose connection ends.

    Args:
        path: With its query.
        lines: More headers.
        body: What is sent of it; its length is added where no line frames it.
        method: Of the request.
        more: Its `host`, and its `version` of HTTP.
    """
    content = body if isinstance(body, bytes) else body.encode()
    encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
    head = [f"{method} {path} HTTP/{more.get('version', '1.1')}".encode(), b"Connection: close"]
    head.append(f"Host: {more.get('host', 'localhost')}".encode())
    if content and not any(
        line.lower().startswith((b"content-length", b"transfer-encoding")) for line in encoded
    ):
        head.append(b"Content-Length: %d" % len(content))
    return b"\r\n".join([*head, *encoded, b"", b""]) + content


class Door:
    def __init__(self, *options: str, before: str = "", **env: str | None) -> None:
        """Start it.

        Args:
            options: Of the command.
            before: A statement that its process runs first, such as one that shortens a time.
            env: Its environment; a variable of None is left out, as that of the state is by default
                in a shell.
        """
        run = "import runpy; runpy.run_module('keyrot_middleware', run_name='__main__')"
        program = ["-c", f"{before}\n{run}"] if before else ["-m", "keyrot_middleware"]
        given = {**os.environ, "NO_PROXY": "127.0.0.1", "KEYROT_STATE_URL": "memory://", **env}
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", "--port", "0", *options],
            env={name: value for name, value in given.items() if value is not None},
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

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)

    def raw(self, request: str | bytes) -> str:
        """Send bytes as they are; return what comes back until the connection is closed."""
        with self.connect() as connection:
            connection.sendall(request if isinstance(request, bytes) else request.encode("latin-1"))
            return b"".join(iter(lambda: connection.recv(65_536), b"")).decode("latin-1")

    def stop(self) -> str:
        """End it as systemd does; return what it wrote since it began."""
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate(timeout=120)
        return output + errors

    def end(self) -> None:
        """End it at once, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def over(server: Any, *labels: str) -> dict[str, str]:
    """Return the environment of a pool whose keys are those of a fake Gemini."""
    values = [server.add_key(label, tier="paid").value for label in labels]
    return {"KEYROT_ALLOWED_HOSTS": server.host, "GEMINI_API_KEYS": ",".join(values)}
