"""A server in front of Vault: it passes requests on, or answers in its place."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import requests

from support.json_server import JsonServer, Request, Response

Reply = tuple[int, bytes, dict[str, str]]


@contextmanager
def vault_proxy(
    answer: Callable[[Request, bytes], Reply | None],
    behind: str = "",
    *,
    certificate: tuple[str, str] | None = None,
) -> Iterator[str]:
    """Serve on loopback; return the address.

    Args:
        answer: Of a request (with its body); None: what the server *behind* answers.
        behind: The address of that server.
        certificate: Its file and that of its key, to speak TLS.
    """

    def reply(request: Request) -> Response:
        status, content, headers = answer(request, request.body) or _pass_on(request, behind)
        return Response(status, content, headers)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
    if context is not None and certificate is not None:
        context.load_cert_chain(*certificate)
    with JsonServer(reply, context) as server:
        yield server.url


def _pass_on(request: Request, behind: str) -> Reply:
    headers = {name: text for name, text in request.headers.items() if name.startswith("x-vault")}
    with requests.Session() as session:
        session.trust_env = False
        url, body = behind + request.path, request.body
        reply = session.request(request.method, url, data=body, headers=headers, timeout=60)
    return reply.status_code, reply.content, {}
