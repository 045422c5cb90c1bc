"""A small HTTP server for emulators: one function answers, and every request is kept."""

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit


class Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; a body of None closes the connection without one."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Put head and body into one piece: in two, Nagle's algorithm costs 44 ms."""
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        own = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = [f"{name}: {value}" for name, value in {**own, **self.headers}.items()]
        return "\r\n".join([f"HTTP/1.1 {self.status} -", *lines, "", ""]).encode() + body


class JsonServer:
    def __init__(
        self, answer: Callable[[Request], Response], tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[Request] = []
        self._answer = answer
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        if tls:
            # The handshake runs in the connection's own thread.
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_port
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http{'s' if tls else ''}://{self.host}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: Request) -> Response:
        self.requests.append(request)
        return self._answer(request)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _handler(server: JsonServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            response = server.answer(Request(self.command, urlsplit(self.path).path, headers, body))
            if response.body is None:
                self.close_connection = True
                return
            self.wfile.write(response.encode())

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

        def handle(self) -> None:
            """Serve a connection; a client may disconnect or refuse our certificate at any time."""
            try:
                super().handle()
            except OSError:
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            """Log nothing."""

    return Handler
