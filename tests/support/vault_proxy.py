"""A server in front of Vault: it passes requests on, or answers in its place."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import requests

Reply = tuple[int, bytes, dict[str, str]]


@contextmanager
def vault_proxy(
    answer: Callable[[Any, bytes], Reply | None],
    behind: str = "",
    *,
    certificate: tuple[str, str] | None = None,
) -> Iterator[str]:
    """Serve on loopback; return the address.

    Args:
        answer: Of a request (its handler and body); None: what the server *behind* answers.
        behind: The address of that server.
        certificate: Its file and that of its key, to speak TLS.
    """

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content, headers = answer(self, body) or _pass_on(self, body, behind)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _do  # noqa: N815 - the names of http.server

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _pass_on(handler: Any, body: bytes, behind: str) -> Reply:
    names = [name for name in handler.headers if name.startswith("X-Vault")]
    with requests.Session() as session:
        session.trust_env = False
        reply = session.request(
            handler.command,
            behind + handler.path,
            data=body,
            headers={name: handler.headers[name] for name in names},
            timeout=60,
        )
    return reply.status_code, reply.content, {"Content-Type": "application/json"}
