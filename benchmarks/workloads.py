"""A batch that never stops beside a chat, in four processes, by a real clock.

`python -m benchmarks.workloads sqlite|redis://… [minutes] [chat calls a minute]` prints what was
counted of 60 requests in each minute, and how long chat calls took: nearly none of them waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from keyrot_middleware.testing import FakeGemini

WORKER = """
import json, random, sys, threading, time
from google import genai
import keyrot_middleware
url, host, seed, until, rate = *sys.argv[1:4], float(sys.argv[4]), float(sys.argv[5])
keyrot_middleware.install(keys_file="keys.json", allowed_hosts=[host], state_url=url,
                          pool="benchmark", workloads={"chat": {"first": True}})
options = {"base_url": f"http://{host}", "client_args": {"verify": False}}
client, draw, took = genai.Client(http_options=options), random.Random(seed), []
def call():
    client.models.generate_content(model="gemini-2.5-flash", contents="hi")
def batch():
    while time.time() < until:
        try: call()
        except keyrot_middleware.KeyPoolExhausted: pass
def chat():
    began = time.time()
    with keyrot_middleware.workload("chat"): call()
    took.append(time.time() - began)
for _ in range(3): threading.Thread(target=batch, daemon=True).start()
chats = []
while time.time() < until:
    time.sleep(draw.expovariate(rate / 4 / 60))
    chats.append(threading.Thread(target=chat, daemon=True))
    chats[-1].start()
for one in chats: one.join(70)
print(json.dumps(took))
"""


def main(url: str, minutes: float = 2.0, rate: float = 20.0) -> None:
    """Run it, and print what came of it."""
    with TemporaryDirectory() as folder, FakeGemini() as gemini:
        url = f"sqlite://{folder}/state" if url == "sqlite" else url
        Path(folder, "keys.json").write_text('[{"key_id": "a", "rpm": 60}]')
        environ = {**os.environ, "GEMINI_KEY_a": gemini.add_key("a", tier="paid").value}
        until = time.time() + 60 * minutes
        workers = [
            subprocess.Popen(  # noqa: S603 - this interpreter
                [sys.executable, "-c", WORKER, url, gemini.host, str(seed), str(until), str(rate)],
                cwd=folder,
                env=environ,
                stdout=subprocess.PIPE,
            )
            for seed in range(4)
        ]
        took = sorted(s for one in workers for s in json.loads(one.communicate()[0]))
        counted = Counter(
            minute
            for request in gemini.log
            for minute in {int((request.at - 1) // 60), int((request.at + 1) // 60)}
        )
    print("counted in each minute:", *(n for _, n in sorted(counted.items())))
    print(f"{len(took)} chat calls: p50 {took[len(took) // 2]:.3f} s, longest {took[-1]:.3f} s")


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:4]))
