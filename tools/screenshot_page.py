"""Draw docs/images/page.png: the page of a real pool, after a day of calls to a fake Gemini API.

Only the clock is set: every request is sent, counted and refused as it would be, so that the
numbers of the picture fit together.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from google import genai
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from served import Server, chromium

import keyrot_middleware
from keyrot_middleware import ui
from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "page.png"
SIZE = {"width": 1440, "height": 1000}
TOKEN = "the-token-of-the-picture"
MODELS = ("gemini-3.8-flash", "gemini-4-argon")
KEYS = [
    {"key_id": "free_1", "project": "my-app-dev", "tier": "free", "rpm": 5, "rpd": 250},
    {"key_id": "free_2", "project": "hobby", "tier": "free"},
    {"key_id": "paid_1", "project": "my-app", "tier": "tier1", "priority": 1, "usd": {"day": 5}},
    {"key_id": "paid_2", "project": "my-app", "tier": "tier1", "priority": 1, "usd": {"day": 5}},
    {"key_id": "batch_1", "project": "batches", "workload": "nightly-batch", "tier": "tier1"},
    {"key_id": "tenant_7", "project": "customer-7", "tier": "tier1", "priority": 1},
    {"key_id": "old_1", "project": "my-app", "tier": "tier1", "active": False},
]
REFUSALS = [
    (40_000, "free_1", Reply.BAD_REQUEST),
    (2_400, "paid_1", Reply.BAD_REQUEST),
    (600, "batch_1", Reply.KEY_INVALID),
    (25, "paid_1", Reply.CAPACITY),
]
"""What Google refuses: so many seconds before the end, the next request of a key."""
NOW = datetime(2026, 11, 3, 17, 40, 24, tzinfo=UTC)


@contextmanager
def used_pool() -> Iterator[None]:
    """Install a pool, and let programs use it for a day."""
    clock, chance = FakeClock(NOW - timedelta(hours=23)), random.Random(7)
    with TemporaryDirectory() as folder, FakeGemini(clock) as gemini:
        for key in KEYS[:5] + KEYS[6:]:
            label, free = str(key["key_id"]), key["tier"] == "free"
            limits = {"rpm": 5, "rpd": 250} if free else {"rpm": 1000, "rpd": 10_000}
            made = gemini.add_key(
                label, project=str(key["project"]), tier="free" if free else "paid", **limits
            )
            os.environ[f"GEMINI_KEY_{label}"] = made.value
        file = Path(folder) / "keys.json"
        file.write_text(json.dumps(KEYS))
        keyrot_middleware.install(
            keys_file=file,
            allowed_hosts=(gemini.host,),
            strategy="fill",
            trace_url="https://jaeger.example/trace/{trace_id}",
            clock=clock,
        )
        client = genai.Client(http_options=gemini.http_options)
        try:
            use(client, gemini, clock, chance)
            yield
        finally:
            client.close()
            keyrot_middleware.uninstall()


def use(client: genai.Client, gemini: FakeGemini, clock: FakeClock, chance: random.Random) -> None:
    """Send the calls of a day, more of them in the last hour."""
    end, refusals = NOW.timestamp(), list(REFUSALS)
    while (left := end - clock.time()) > 0:
        busy = left < 3_600
        clock.advance(min(left, chance.expovariate(1 / (6 if busy else 150))))
        workload = chance.choices(["chat", "search", "nightly-batch"], [6, 3, 1 if busy else 4])[0]
        model = MODELS[chance.random() < 0.2]
        if chance.random() < 0.01:
            gemini.script("paid_1", Reply.OVERLOADED)
        if refusals and left < refusals[0][0]:
            gemini.script(*refusals.pop(0)[1:])
        text = "Summarize this report. " * chance.randint(5, 400)
        with keyrot_middleware.workload(workload), suppress(genai.errors.APIError):
            client.models.generate_content(model=model, contents=text)


def main() -> None:
    """Serve the page, and write the picture."""
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    with used_pool():
        server = Server(ui.app(actions=True, token=TOKEN))
        IMAGE.parent.mkdir(exist_ok=True)
        with chromium() as browser:
            page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
            page.goto(f"{server.url}/?token={TOKEN}")
            page.wait_for_selector("tr.key")
            page.wait_for_selector("#chart svg")
            page.screenshot(path=IMAGE)
        server.stop()
    print(f"{IMAGE.name}: {IMAGE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
