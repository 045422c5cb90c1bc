"""Run everything and write RESULTS.md: `make bench`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from google import genai
from google.genai import types
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply

from .calls import ROUNDS, Samples, async_calls, p50, sync_calls
from .state import acquire_times, memory_per_key

HEAVY = ("google.genai", "redis", "boto3", "hvac", "opentelemetry.sdk")


def untraced() -> Any:
    """Switch every tracer off, whatever provider is set."""
    return _use(trace.NoOpTracerProvider())


def traced() -> Any:
    """Record spans with the SDK's batch processor."""
    return _use(_PROVIDER)


def _use(provider: Any) -> Any:
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    return lambda: setattr(trace, "_TRACER_PROVIDER", before)


_PROVIDER = TracerProvider()
_PROVIDER.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))


def import_time() -> tuple[float, list[str]]:
    """Import the package alone, seven times; the median in ms, and what heavy came along."""
    program = (
        "import sys, time; t = time.perf_counter(); import keyrot_middleware; "
        f"print((time.perf_counter() - t) * 1e3, *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    runs = [
        subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(7)
    ]
    return p50([float(run[0]) for run in runs]), runs[0][1:]


def three_keys() -> tuple[dict[str, int], int]:
    """Call 60 times over A = 429, B = invalid, C = good; requests upstream per key, failures."""
    failed = 0
    with FakeGemini() as gemini:
        keys = [gemini.add_key(label).value for label in "ABC"]
        gemini.always("A", Reply.QUOTA_MINUTE)
        gemini.always("B", Reply.KEY_INVALID)
        keyrot_middleware.install(keys=keys, allowed_hosts=(gemini.host,))
        client = genai.Client(http_options=types.HttpOptions(base_url=gemini.url))
        for _ in range(60):
            try:
                client.models.generate_content(model="gemini-2.5-flash", contents="hi")
            except genai.errors.APIError:
                failed += 1
        keyrot_middleware.uninstall()
        return {label: gemini.sent(label) for label in "ABC"}, failed


def added(samples: Samples, name: str) -> tuple[float, float]:
    """Give the added microseconds at p50, and the ratio to the plain SDK."""
    plain, ours = p50(samples["plain"]), p50(samples[name])
    return ours - plain, ours / plain


def table() -> list[tuple[str, str, str]]:
    """Measure every row: what, the bar, what was measured."""
    variants = {"pool": untraced, "traced": traced}
    rows = []
    for kind, samples in (("sync", sync_calls(variants)), ("async", async_calls(variants))):
        for name, what, bar in (
            ("pool", "no tracing", "60"),
            ("traced", "spans, batch processor", "150"),
        ):
            micros, ratio = added(samples, name)
            row = f"{micros:.0f} µs ({ratio:.3f} × plain, {p50(samples['plain']):.0f} µs)"
            rows.append((f"added per call, memory state, {what}, {kind}, p50", f"≤ {bar} µs", row))
    times = acquire_times()
    ratio = times[10_000] / times[10]
    took = f"{ratio:.2f} × ({times[10_000]:.1f} µs against {times[10]:.1f} µs)"
    rows.append(("acquire and settle with 10,000 keys against 10", "≤ 1.5 ×", took))
    rows.append(("memory per key, 10,000 used keys", "≤ 1 KB", f"{memory_per_key():.0f} bytes"))
    millis, heavy = import_time()
    with_it = ", ".join(heavy) or "none of " + ", ".join(HEAVY)
    rows.append(("`import keyrot_middleware`", "≤ 50 ms", f"{millis:.0f} ms; imports {with_it}"))
    sent, failed = three_keys()
    counts = f"A {sent['A']}, B {sent['B']}, C {sent['C']}; {failed} failed"
    rows.append(("A = 429, B = invalid, C = good, 60 calls", "A 1, B 1, C 60; 0 failed", counts))
    return rows


def main() -> None:
    """Write the table with the machine and the command."""
    rows = table()
    lines = [
        "# Results",
        "",
        f"Written by `make bench` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {platform.machine()}, "
        f"{os.cpu_count()} shared cores, load {os.getloadavg()[0]:.1f}, CPython "
        f"{platform.python_version()}, google-genai {version('google-genai')}. The plain SDK and "
        f"the pool take turns of 20 calls, {ROUNDS} times, against a loopback server in a process "
        "of its own.",
        "",
        "| what | bar | measured |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    text = "\n".join(lines)
    (Path(__file__).parent / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
