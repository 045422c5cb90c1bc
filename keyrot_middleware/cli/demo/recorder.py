"""Run a program with the pool and write its calls, key health and spans to a file.

The demo starts it as a process: `python -m … REPORT PROGRAM`.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from ..._install import current_pool, install, status
from ...core.commands import Command, Settle, Sleep
from ...core.failures import describe
from ...core.model import CallInfo, LeaseOutcome
from ...errors import KeyrotError
from ...telemetry.observer import CallObserver

__all__ = [
    "CallRecorder",
    "main",
]


class CallRecorder:
    """Records the steps of each call, in the order in which calls start."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def observe(self, info: CallInfo) -> CallObserver:
        """Record a call."""
        steps: list[dict[str, str]] = []
        self.calls.append({"model": info.model, "stream": info.stream, "steps": steps})
        return _CallRecord(steps)


class _CallRecord:
    """The steps of one call."""

    def __init__(self, steps: list[dict[str, str]]) -> None:
        self._steps = steps

    def before(self, command: Command) -> None:
        """Record a wait."""
        if isinstance(command, Sleep) and command.starts_wait:
            self._steps.append({"key": "", "result": f"waits {command.seconds:.1f} s"})

    def after(self, command: Command, reply: object) -> None:
        """Record the result of a send."""
        if not isinstance(command, Settle):
            return
        kind, verdict, _ = command.outcome
        result = (
            "ok" if kind is LeaseOutcome.SUCCESS else describe(verdict) if verdict else kind.value
        )
        self._steps.append({"key": command.lease.key_id, "result": result})

    def attach(self) -> None:
        """Do nothing."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """Record a call without an available key."""
        if error is not None and not self._steps:
            self._steps.append({"key": "", "result": "no key available"})


def main(report: str, program: str) -> int:
    """Install the pool and run a script; write the report even if the script fails."""
    try:
        install()
    except KeyrotError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 2
    spans, recorder = _record_spans(), CallRecorder()
    _add_observer(recorder)
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        content = {
            "calls": recorder.calls,
            "health": status()["keys"],
            "tree": _format_largest_trace(spans),
        }
        Path(report).write_text(json.dumps(content), "utf-8")
    return 0


def _add_observer(recorder: CallRecorder) -> None:
    pool = current_pool()
    if pool is not None:
        pool.observers = (*pool.observers, recorder)


def _record_spans() -> Any:
    """Set up a tracer provider that keeps spans; None if the SDK is not installed."""
    try:
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: PLC0415
            InMemorySpanExporter,
        )
    except ImportError:
        return None
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def _format_largest_trace(exporter: Any) -> str | None:
    """Format the spans of the call with the most attempts."""
    if exporter is None:
        return None
    from ...telemetry.span_tree import format_tree  # noqa: PLC0415

    traces: dict[int, list[Any]] = {}
    for span in exporter.get_finished_spans():
        traces.setdefault(span.context.trace_id, []).append(span)
    longest = max(traces.values(), key=len, default=[])
    return format_tree(longest, _format_attribute, durations=True)


_ATTRIBUTES = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "keyrot.attempt.count",
    "keyrot.attempt.outcome",
    "keyrot.cooldown.scope",
    "keyrot.cooldown.duration",
    "keyrot.key.project",
)


def _format_attribute(name: str, value: Any) -> str | None:
    """Format the attributes that the demo shows."""
    from ...telemetry.span_tree import format_attribute  # noqa: PLC0415

    return format_attribute(name, value) if name in _ATTRIBUTES else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
