"""A service under load with four keys, and its metrics on a port for Prometheus.

A fake Gemini API answers, so no key and no network are needed. One key is revoked, two free keys
are exhausted before each minute is over, and the paid key allows one concurrent request. Calls
change keys, wait, and sometimes find no key. See README.md in this directory.

    python examples/prometheus/program.py              until Ctrl-C
    python examples/prometheus/program.py --seconds 60 --rate 5

In your own program, the three lines of `expose` are enough.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

from google import genai
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply

KEYS = Path(__file__).with_name("pool.json")
MODEL = "gemini-3.8-flash"
BETTER_MODEL = "gemini-4-argon"
"""No project of this example may use it, so its requests fall back to MODEL."""
WORKERS = 6


def expose(address: str, port: int) -> None:
    """Serve this program's metrics to Prometheus."""
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    start_http_server(port, address)
    print(f"metrics: http://{address}:{port}/metrics", flush=True)


def open_pool(gemini: FakeGemini) -> None:
    """Create the keys of pool.json in the fake API, and install the pool."""
    projects = {"free_1": "first-project", "free_2": "second-project", "revoked_1": "third-project"}
    for label in (*projects, "paid_1"):
        project = projects.get(label, "company")
        key = gemini.add_key(label, project=project, tier="free" if label in projects else "paid")
        gemini.limit(project, model=BETTER_MODEL, rpm=0, rpd=0)
        os.environ[f"GEMINI_KEY_{label}"] = key.value
    gemini.always("revoked_1", Reply.KEY_INVALID)
    gemini.limit("second-project", rpm=15)  # less than in pool.json: the pool learns it
    gemini.delay(0.05)
    keyrot_middleware.install(
        keys_file=KEYS,
        allowed_hosts=[gemini.host],
        max_wait_s=2,
        fallback_models=[f"{BETTER_MODEL}>{MODEL}"],
        genai_conventions="both",
    )


def ask(client: genai.Client, number: int) -> None:
    """Make one call: usually a question, sometimes a stream, rarely with another model."""
    model = {12: BETTER_MODEL, 24: "no-such-model"}.get(number % 25, MODEL)
    if number % 5 == 4:
        with keyrot_middleware.workload("chat"):
            for _ in client.models.generate_content_stream(model=model, contents="Count to five."):
                pass
    else:
        client.models.generate_content(model=model, contents="What is the RSI, in one line?")


def work(client: genai.Client, numbers: Any, pause_s: float, ended: Counter[str], end: Any) -> None:
    """Make calls at an even pace until *end* is set."""
    while not end.wait(pause_s):
        try:
            ask(client, next(numbers))
        except keyrot_middleware.KeyPoolExhausted:
            ended["without a key"] += 1
        except genai.errors.APIError:
            ended["failed"] += 1
        else:
            ended["answered"] += 1


def load(gemini: FakeGemini, rate: float, seconds: float) -> None:
    """Run the workers, with a 503 every five seconds, and print how their calls end."""
    client = genai.Client(http_options=gemini.http_options)
    ended: Counter[str] = Counter()
    end, numbers = threading.Event(), count()
    worker_args = (client, numbers, WORKERS / rate, ended, end)
    workers = [threading.Thread(target=work, args=worker_args) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            gemini.script_any(Reply.OVERLOADED)
            time.sleep(min(5.0, max(until - time.monotonic(), 0.0)))
            print(", ".join(f"{number} {result}" for result, number in ended.items()), flush=True)
    except KeyboardInterrupt:
        print()
    end.set()
    for worker in workers:
        worker.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="localhost", help="0.0.0.0 for Prometheus in Docker")
    parser.add_argument("--port", type=int, default=9464)
    parser.add_argument("--rate", type=float, default=2.5, help="calls a second")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    expose(args.address, args.port)
    with FakeGemini() as gemini:
        open_pool(gemini)
        load(gemini, args.rate, args.seconds)


if __name__ == "__main__":
    main()
