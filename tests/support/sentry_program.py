"""A program with Sentry as it is out of the box, whose calls fail; prints what Sentry would send.

python -m support.sentry_program before|after
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Any

import sentry_sdk
from google import genai
from google.genai import _api_client
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

import keyrot_middleware
from keyrot_middleware.testing.keys import make_value
from support.raw_server import RawServer, answer
from support.scenes import error_of, surfaces

SENT: list[str] = []
VALUES = [make_value() for _ in range(3)]
"""No variable of a function holds them: Sentry records those."""


class Kept(Transport):
    """Keeps what would be sent."""

    def capture_envelope(self, envelope: Envelope) -> None:
        """Keep an envelope."""
        SENT.append(envelope.serialize().decode())


def start_sentry() -> None:
    """Start it with its defaults, and with traces."""
    sentry_sdk.init("http://FAKE@127.0.0.1:9/1", transport=Kept, traces_sample_rate=1.0)


def refuse(connection: Any, value: str) -> None:
    """Repeat the key wherever Sentry looks: it records the reason of each response."""
    refusal = answer(error_of(value), f"X-Echo: {value}", status=f"403 Refused {value}")
    connection.sendall(refusal)


def drop(_connection: Any, _value: str) -> None:
    """Close the connection."""


def main(order: str) -> None:
    """Let calls fail and print how many events there are and which of them have a key."""
    warnings.simplefilter("ignore")
    if order == "before":
        start_sentry()
    servers = [RawServer(talk) for talk in (drop, refuse)]
    keyrot_middleware.install(
        keys=VALUES, allowed_hosts=[server.host for server in servers], max_retries=0, max_wait_s=0
    )
    if order == "after":
        start_sentry()
    for server in servers:
        for has_aiohttp in (True, False):
            _api_client.has_aiohttp = has_aiohttp
            client = genai.Client(http_options={"base_url": server.url, "timeout": 5_000})
            for call in surfaces(client).values():
                with sentry_sdk.start_transaction(name="call"):
                    try:
                        call()
                    except Exception:
                        logging.getLogger("program").exception("it failed")
            client.close()
        server.close()
    sentry_sdk.flush()
    texts = "".join(SENT)
    shown = sum(value[8:-1] in texts for value in VALUES)
    sys.stdout.write(json.dumps({"events": len(SENT), "keys": shown}))


if __name__ == "__main__":
    main(sys.argv[1])
