"""Receivers of alerts on this machine: a webhook, a mail server, one that never answers."""

import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.header import decode_header, make_header
from typing import Any

from aiosmtpd.controller import Controller

from keyrot_middleware.errors import PoolEvent
from support.json_server import JsonServer, Request, Response


class Events:
    """Keeps the events it gets; is a receiver and a function for `on_event`."""

    def __init__(self) -> None:
        self.all: list[PoolEvent] = []

    def put(self, event: PoolEvent) -> None:
        self.all.append(event)

    __call__ = put

    @property
    def names(self) -> list[tuple[str, str | None]]:
        return [(event.event, event.key_id) for event in self.all]

    def take(self) -> list[tuple[str, str | None]]:
        found = self.names
        self.all.clear()
        return found


def _event_of(title: str) -> str:
    """Read the event from `keyrot: key_rejected in pool default`."""
    return title.removeprefix("keyrot: ").partition(" ")[0]


class Webhook:
    def __init__(self, status: Callable[[], int] = lambda: 200) -> None:
        """Serve on a free port; *status* decides how each request is answered."""
        self._server = JsonServer(lambda _: Response(status(), {}))

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self._server.port}/FAKE-hook-secret"

    @property
    def requests(self) -> list[Request]:
        return self._server.requests

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(one.body) for one in tuple(self.requests)]

    @property
    def events(self) -> Counter[str]:
        return Counter(_event_of(message["title"]) for message in self.messages)

    def close(self) -> None:
        self._server.close()


class Mailbox:
    def __init__(self) -> None:
        self.received: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._controller = Controller(self, hostname="127.0.0.1", port=port)
        self._controller.start()
        self.url = f"mailto://127.0.0.1:{port}?from=keyrot@example.com&to=ops@example.com"

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802
        self.received.append(envelope.content)
        return "250 OK"

    @property
    def events(self) -> Counter[str]:
        titles = (message_from_bytes(one)["Subject"] for one in tuple(self.received))
        return Counter(_event_of(str(make_header(decode_header(title)))) for title in titles)

    def close(self) -> None:
        self._controller.stop()


@contextmanager
def dead_receiver() -> Iterator[str]:
    """Give the URL of a receiver that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield f"json://127.0.0.1:{listener.getsockname()[1]}/dead?rto=120&cto=120"
