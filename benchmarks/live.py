"""Twenty Live sessions of a minute over three keys with `max_concurrency` 5 each.

`python -m benchmarks.live [SECONDS]` prints how many sessions of each key were open at most, as
the service counted them. Fifteen have room at once; the others are refused by the pool and try
again, so a run takes two sessions' time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from google import genai

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, plain_websockets

from .calls import MODEL

__all__ = ["main", "open_at_most"]

SESSIONS, KEYS, AT_ONCE = 20, 3, 5
TURN_S = 5.0
"""Between two turns of a session."""
AGAIN_S = 0.2
"""Before a session that found no key tries again."""


def open_at_most(session_s: float) -> dict[str, int]:
    """Run all sessions; return how many of each key were open at once at most."""
    with FakeGemini() as gemini, plain_websockets(), tempfile.TemporaryDirectory() as folder:
        labels = [f"live_{number}" for number in range(KEYS)]
        file = Path(folder) / "keys.json"
        keys = [{"key_id": label, "max_concurrency": AT_ONCE} for label in labels]
        file.write_text(json.dumps(keys))
        for label in labels:
            os.environ[f"GEMINI_KEY_{label}"] = gemini.add_key(label, tier="paid").value
        keyrot_middleware.install(keys_file=file, allowed_hosts=(gemini.host,), max_wait_s=0)
        try:
            client = genai.Client(http_options=gemini.http_options)
            asyncio.run(_all_sessions(client, session_s))
            assert gemini.wait_idle()
        finally:
            keyrot_middleware.uninstall()
        health = {label: gemini.count(label, status=101) for label in labels}
        assert sum(health.values()) == SESSIONS == gemini.count(), health
        return {label: gemini.peak(label) for label in labels}


async def _all_sessions(client: Any, session_s: float) -> None:
    await asyncio.gather(*(_session(client, session_s) for _ in range(SESSIONS)))


async def _session(client: Any, session_s: float) -> None:
    """Talk for so many seconds, once there is a key for it."""
    while True:
        try:
            async with client.aio.live.connect(model=MODEL) as session:
                end = time.monotonic() + session_s
                while time.monotonic() < end:
                    await session.send_client_content(turns={"parts": [{"text": "hello"}]})
                    async for _ in session.receive():
                        pass
                    await asyncio.sleep(min(TURN_S, max(end - time.monotonic(), 0)))
                return
        except keyrot_middleware.KeyPoolExhausted:
            await asyncio.sleep(AGAIN_S)


def main() -> None:
    """Print what a run shows."""
    session_s = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    began = time.monotonic()
    peaks = open_at_most(session_s)
    took = time.monotonic() - began
    print(f"{SESSIONS} sessions of {session_s:g} s, {KEYS} keys, max_concurrency {AT_ONCE} each")
    for label, peak in peaks.items():
        print(f"{label}: {peak} open at most")
    print(f"took {took:.0f} s")
    if max(peaks.values()) > AT_ONCE:
        sys.exit("a key had more sessions than its max_concurrency")


if __name__ == "__main__":
    main()
