"""An OTLP/HTTP server that keeps what it receives."""

from support.json_server import JsonServer, Response


class Collector(JsonServer):
    def __init__(self) -> None:
        super().__init__(lambda _: Response(200, b""))

    @property
    def held(self) -> bytes:
        return b"".join(request.body for request in self.requests)
