"""Servers on loopback that redirect the requests of a client, or answer all of them alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from keyrot_middleware.testing import FakeGemini

INVALID = (
    b'{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", '
    b'"status": "INVALID_ARGUMENT", "details": [{"@type": '
    b'"type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]}}'
)


class Server:
    """A server on loopback that redirects everything, or answers every request alike."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.headers, self.bodies, self.answer = headers, dict[str, bytes](), body
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                server.seen.append((self.command, self.path, str(self.headers)))
                answer = server.bodies.get(self.path, server.answer)
                self.send_response(200 if self.path in server.bodies else status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET  # noqa: N815 - the name is http.server's

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Gateway:
    """A server that redirects the requests of a client with the pool's keys."""

    def __init__(self, gemini: FakeGemini, pool: Any, connect: Callable[..., Any], server: Server):
        self.server, self._parts = server, (gemini, pool, connect)

    def client(self, *key: str, own: str = "", hosts: Sequence[str] = (), **options: Any) -> Any:
        """Install three keys that may be sent to it and *hosts*, and connect a client.

        Its key is the one given, or *own* of the pool's, or none.
        """
        gemini, pool, connect = self._parts
        pool("A", "B", "C", strategy="fill", allowed_hosts=[gemini.host, self.server.host, *hosts])
        if own:
            options["api_key"] = gemini.key(own).value
        return connect(*key, base_url=self.server.url, **options)


def held(server: Server, gemini: FakeGemini) -> list[str]:
    ours = [gemini.key(label).value for label in "ABC"]
    return [value for value in ours if value in repr(server.seen)]
