"""Servers on loopback that redirect the requests of a client, or answer all of them alike."""

from collections.abc import Callable, Sequence
from typing import Any

from keyrot_middleware.testing import FakeGemini
from support.json_server import JsonServer, Request, Response

INVALID = (
    b'{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", '
    b'"status": "INVALID_ARGUMENT", "details": [{"@type": '
    b'"type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]}}'
)


class Server(JsonServer):
    """A server on loopback that redirects everything, or answers every request alike."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.headers, self.bodies, self.status, self.body = (
            headers,
            dict[str, bytes](),
            status,
            body,
        )
        super().__init__(self._reply)

    def _reply(self, request: Request) -> Response:
        found = self.bodies.get(request.path)
        status = self.status if found is None else 200
        return Response(status, self.body if found is None else found, self.headers)

    @property
    def seen(self) -> list[tuple[str, str, str]]:
        return [(one.method, one.path, str(one.headers)) for one in self.requests]


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
