"""Draw docs/images/trace.png: a call that takes two keys, in Jaeger's own page.

The program is the one of the quick start, under `opentelemetry-instrument`, as docs/telemetry.md
says; a fake Gemini API refuses the first key. Needs a Jaeger with its page, as
examples/jaeger/docker-compose.yml starts it:

    PYTHONPATH=tests/ui .venv/bin/python tools/screenshot_trace.py [http://localhost:16686]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from served import chromium

from keyrot_middleware.testing import FakeGemini, Reply

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "trace.png"
SIZE = {"width": 1360, "height": 717}
SERVICE = "my-app"
PROGRAM = """
from google import genai

client = genai.Client()
print(client.models.generate_content(model="gemini-3.8-flash", contents="Say hello.").text)
"""
KEYS = [
    {"key_id": "free_1", "project": "my-app-dev", "tier": "free"},
    {"key_id": "paid_1", "project": "my-app", "tier": "tier1", "priority": 1},
]
WAIT_S = 60.0


def run_program() -> None:
    """Run the program; as long as a real answer would take."""
    with TemporaryDirectory() as folder, FakeGemini() as gemini:
        values = {
            f"GEMINI_KEY_{label}": gemini.add_key(label, project=project, tier=tier).value
            for label, project, tier in (
                ("free_1", "my-app-dev", "free"),
                ("paid_1", "my-app", "paid"),
            )
        }
        gemini.script("free_1", Reply.QUOTA_MINUTE.delayed(0.15))
        gemini.script("paid_1", Reply.OK.delayed(0.9))
        Path(folder, "keys.json").write_text(json.dumps(KEYS))
        Path(folder, "app.py").write_text(PROGRAM)
        others = [one.name for one in entry_points(group="opentelemetry_instrumentor")]
        others.remove("keyrot")  # the environment of the tests has many
        command = Path(sys.executable).with_name("opentelemetry-instrument")
        subprocess.run(
            [command, sys.executable, "app.py"],
            cwd=folder,
            env=os.environ
            | values
            | {
                "GOOGLE_GEMINI_BASE_URL": gemini.url,
                "KEYROT_ALLOWED_HOSTS": gemini.host,
                "NO_PROXY": "127.0.0.1,localhost",
                "OTEL_SERVICE_NAME": SERVICE,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
                "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(others),
            },
            check=True,
            timeout=WAIT_S,
        )


def newest_trace(jaeger: str) -> str:
    """Return the id of the newest trace, as soon as it is there."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        with urlopen(f"{jaeger}/api/traces?service={SERVICE}&limit=1") as answer:  # noqa: S310
            if found := json.load(answer)["data"]:
                return str(found[0]["traceID"])
        time.sleep(0.5)
    raise SystemExit(f"no trace of {SERVICE} in {jaeger}")


def main(jaeger: str = "http://localhost:16686") -> None:
    """Run the program, and write the picture of its trace."""
    run_program()
    with chromium() as browser:
        page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        page.goto(f"{jaeger}/trace/{newest_trace(jaeger)}")
        page.get_by_text("attempt free_1").first.click()
        page.get_by_text("keyrot.cooldown.duration").first.click()
        page.get_by_text("quota_minute").first.wait_for()
        page.screenshot(path=IMAGE)
    print(f"{IMAGE.name}: {IMAGE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
