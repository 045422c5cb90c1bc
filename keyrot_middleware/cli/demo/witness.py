"""An unchanged program under a pool, recorded: calls, health and spans go into a file at the end.

Started by the demo as a process of its own: `python -m … REPORT PROGRAM`.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from ...compose import current_pool, install, status
from ...errors import KeyrotError
from .ways import WayObserver

__all__ = ["main"]


def main(report: str, program: str) -> int:
    """Install the pool and run a script; write the report even if the script fails."""
    try:
        install()
    except KeyrotError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 2
    spans, ways = _record_spans(), WayObserver()
    _watch(ways)
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        found = {"calls": ways.calls, "health": status()["keys"], "tree": _tree(spans)}
        Path(report).write_text(json.dumps(found), "utf-8")
    return 0


def _watch(ways: WayObserver) -> None:
    pool = current_pool()
    if pool is not None:
        pool.observers = (*pool.observers, ways)


def _record_spans() -> Any:
    """Set up a tracer provider that keeps spans; None where the SDK is not installed."""
    try:
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: PLC0415
            InMemorySpanExporter,
        )
    except ImportError:
        return None
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    return kept


def _tree(kept: Any) -> str | None:
    """Draw the spans of the call that took the most attempts, the first of these."""
    if kept is None:
        return None
    from ...telemetry.tree import format_tree  # noqa: PLC0415

    traces: dict[int, list[Any]] = {}
    for span in kept.get_finished_spans():
        traces.setdefault(span.context.trace_id, []).append(span)
    longest = max(traces.values(), key=len, default=[])
    return format_tree(longest, _shown, durations=True)


_SHOWN = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "keyrot.attempt.count",
    "keyrot.attempt.outcome",
    "keyrot.cooldown.scope",
    "keyrot.cooldown.duration",
    "keyrot.key.project",
)


def _shown(name: str, value: Any) -> str | None:
    """Write an attribute as the tree does, but only what belongs to the story."""
    from ...telemetry.tree import show  # noqa: PLC0415

    return show(name, value) if name in _SHOWN else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
