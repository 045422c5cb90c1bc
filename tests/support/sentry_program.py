"""A program with Sentry out of the box, whose calls fail; prints what Sentry would send."""

import asyncio
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import sentry_sdk
from google import genai
from google.genai import _api_client
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

import keyrot_middleware
from keyrot_middleware.testing import plain_websockets
from keyrot_middleware.testing.keys import make_value
from support.modes import MODEL
from support.raw_server import RawServer, answer
from support.scenes import surfaces
from support.servers import closed_port

SENT: list[str] = []
VALUES = [make_value() for _ in range(3)]
"""No variable of a function holds them: Sentry records those."""


class Kept(Transport):
    def capture_envelope(self, envelope: Envelope) -> None:
        SENT.append(envelope.serialize().decode())


def refuse(connection: Any, value: str) -> None:
    """Repeat the key wherever Sentry looks: it records the reason of each response."""
    body = json.dumps({"error": {"code": 400, "message": f"no {value}", "status": "X"}}).encode()
    connection.sendall(answer(body, f"X-Echo: {value}", status=f"400 Refused {value}"))


def drop(_connection: Any, _value: str) -> None:
    """Close the connection."""


def break_off(connection: Any, value: str) -> None:
    """Repeat the key in a body that ends early, and blames no key."""
    body = json.dumps({"error": {"code": 400, "message": f"no {value}", "status": "X"}}).encode()
    connection.sendall(answer(body, status="200 OK", length=10_000))


async def live(client: Any) -> None:
    async with client.aio.live.connect(model=MODEL):
        pass


def sdk_calls(host: str) -> Iterator[Callable[[], Any]]:
    """Yield a call of each surface of google-genai, with aiohttp and without."""
    for has_aiohttp in (True, False):
        _api_client.has_aiohttp = has_aiohttp
        client = genai.Client(http_options={"base_url": f"http://{host}", "timeout": 5_000})
        yield from surfaces(client).values()
        yield lambda: asyncio.run(live(client))  # noqa: B023 - called before the next one is made
        client.close()


def main() -> None:
    """Let calls fail and print how many events there are and which of them have a key."""
    warnings.simplefilter("ignore")
    sentry_sdk.init("http://FAKE@127.0.0.1:9/1", transport=Kept, traces_sample_rate=1.0)
    servers = [RawServer(talk) for talk in (drop, break_off, refuse)]
    hosts = [server.host for server in servers] + [f"127.0.0.1:{closed_port()}"]
    keyrot_middleware.install(
        keys=VALUES,
        allowed_hosts=[f"http://{host}" for host in hosts],
        max_retries=0,
        max_wait_s=0,
    )
    for one in chain.from_iterable(map(sdk_calls, hosts)):
        with sentry_sdk.start_transaction(name="call"), plain_websockets():
            try:
                one()
            except Exception:
                logging.getLogger("program").exception("it failed")
    for server in servers:
        server.close()
    sentry_sdk.flush()
    texts = "".join(SENT)
    shown = sum(value[8:-1] in texts for value in VALUES)
    sent = [len(server.keys) for server in servers]
    sys.stdout.write(json.dumps({"events": len(SENT), "sent": sent, "keys": shown}))


if __name__ == "__main__":
    main()
