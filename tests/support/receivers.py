"""Receivers of alerts on this machine: a function, and a webhook."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

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
