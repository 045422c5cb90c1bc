"""uninstall() leaves the process as it was before install()."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support.modes import AIOHTTP
from support.receivers import Webhook
from support.servers import server

from keyrot_middleware.testing import FakeGemini, Reply

TESTS = Path(__file__).parents[3]

REJECTED = "ignore:pool cycle:UserWarning"
"""Hides the warning of a rejected key, of which each cycle has one."""

PROGRAM = """
from support.process_state import differences, settled_snapshot, snapshot, watch_registrations

watch_registrations()

import asyncio
import decimal
import importlib
import os
import sys

from google import genai
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import keyrot_middleware

STATE, URL, HOST, OWN_KEY, POOL_KEYS, ALERTS = sys.argv[1:]
events = []
spans = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
CALL = {"model": "gemini-3.1-flash-lite", "contents": "hello"}


def use(client):
    \"\"\"Make calls of all four kinds, read streams to the end, close one early and drop one.\"\"\"
    client.models.generate_content(**CALL)
    list(client.models.generate_content_stream(**CALL))
    early = client.models.generate_content_stream(**CALL)
    next(early)
    early.close()
    next(client.models.generate_content_stream(**CALL))

    async def use_async():
        await client.aio.models.generate_content(**CALL)
        async for _ in await client.aio.models.generate_content_stream(**CALL):
            pass
        early = await client.aio.models.generate_content_stream(**CALL)
        await anext(early)
        await early.aclose()
        await client.aio.aclose()

    asyncio.run(use_async())
    client.close()


def cycle():
    \"\"\"Install a pool, use it and uninstall it.\"\"\"
    keyrot_middleware.install(
        keys=POOL_KEYS.split(","), allowed_hosts=(HOST,), state_url=STATE, pool="cycle",
        on_event=events.append, alerts=ALERTS,
    )
    assert all(keyrot_middleware.status()["patched"].values())
    use(genai.Client(http_options={"base_url": URL}))
    assert "available" in {key["state"] for key in keyrot_middleware.status()["keys"].values()}
    assert reader.get_metrics_data() is not None
    keyrot_middleware.uninstall()


# What the SDK and OpenTelemetry load and set by themselves is in place before.
use(genai.Client(api_key=OWN_KEY, http_options={"base_url": URL}))
trace.get_tracer("program").start_span("first").end()
spans.clear()
decimal.getcontext()
importlib.import_module("apprise")  # it sets a handler of its own logger
before = snapshot()
cycle()
assert spans.get_finished_spans()
after = settled_snapshot(before)
ours = [f for f in after["atexit"] if f.__module__.startswith("keyrot_middleware")]
assert not ours, ours
# A library registers what it needs once, when it is imported; wrapt keeps one import finder.
for name in ("atexit", "at_fork", "sys.meta_path"):
    before[name] = after[name]
print(*differences(before, after), sep="\\n")
for _ in range(2):
    cycle()
print(*differences(after, settled_snapshot(after)), sep="\\n")
"""


@pytest.mark.promise(number=3)
def test_the_process_is_as_before(tmp_path) -> None:
    """After calls, streams and telemetry nothing that install() added to the process is left.

    Alerts are on, and one is sent: a key is rejected. Compared are patched methods, threads,
    sockets, hooks of the interpreter, import finders (of which wrapt keeps one), loggers, warning
    filters, signal handlers, variables, contexts, and registrations with atexit and for forks,
    whose number must not grow from one install() to the next.
    """
    with FakeGemini() as gemini, closing(Webhook()) as hook:
        own, *keys = [gemini.add_key(label, tier="paid").value for label in ("own", "a", "b", "c")]
        gemini.always("c", Reply.KEY_INVALID)
        path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
        args = (server("valkey").url, gemini.url, gemini.host, own, ",".join(keys), hook.url)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *args],
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": REJECTED},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    again = "has been created already."  # OpenTelemetry before 1.30 logs it for equal instruments
    logged = [line for line in done.stderr.splitlines() if not line.endswith(again)]
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    assert not logged or not AIOHTTP, "of httpx's streams asyncio logs, with any pool or none"
    assert hook.events["key_rejected"] >= 1
