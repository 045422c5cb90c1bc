"""Run a program with the pool and write its output, calls, keys and spans to a file.

The demo starts it as a process: `python -m … REPORT PROGRAM [--spans]`.
"""

from __future__ import annotations

import json
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from ..._install import install
from ...core.commands import Command, Settle, Sleep
from ...core.model import CallInfo, LeaseOutcome
from ...errors import KeyrotError
from ...monitoring.view import source_of
from ...runtime.current import current_pool
from ...telemetry.observer import CallObserver

__all__ = [
    "CallRecorder",
    "main",
]


class CallRecorder:
    """Records the attempts of each call, in the order in which calls start.

    Args:
        output: What the program has printed so far.
    """

    def __init__(self, output: StringIO) -> None:
        self.calls: list[dict[str, Any]] = []
        self._output = output

    def observe(self, info: CallInfo) -> CallObserver:
        """Record a call, and the number of lines before it."""
        attempts: list[dict[str, str]] = []
        line = self._output.getvalue().count("\n")
        self.calls.append({"line": line, "attempts": attempts})
        return _CallRecord(attempts)


class _CallRecord(CallObserver):
    """The attempts of one call."""

    def __init__(self, attempts: list[dict[str, str]]) -> None:
        self._attempts = attempts

    def before(self, command: Command) -> None:
        """Record a wait."""
        if isinstance(command, Sleep) and command.starts_wait:
            self._attempts.append({"key": "", "result": f"waits {command.seconds:.1f} s"})

    def after(self, command: Command, reply: object) -> None:
        """Record the result of a send."""
        if not isinstance(command, Settle):
            return
        kind, verdict, _ = command.outcome
        failure = verdict.failure if verdict else kind.value
        result = "ok" if kind is LeaseOutcome.SUCCESS else failure
        self._attempts.append({"key": command.lease.key_id, "result": result})

    def finish(self, error: BaseException | None) -> None:
        """Record a call without an available key."""
        if error is not None and not self._attempts:
            self._attempts.append({"key": "", "result": "no key available"})


def main(report: str, program: str, *options: str) -> int:
    """Install the pool and run a script; write the report even if the script fails."""
    try:
        install()
    except KeyrotError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 2
    pool, output = current_pool(), StringIO()
    spans, recorder = _record_spans() if "--spans" in options else None, CallRecorder(output)
    if pool is not None:
        pool.observers = (*pool.observers, recorder)
    try:
        with redirect_stdout(output):
            runpy.run_path(program, run_name="__main__")
    finally:
        content = {
            "output": output.getvalue(),
            "calls": recorder.calls,
            "keys": source_of(pool).status()["keys"] if pool is not None else [],
            "spans": _format_largest_trace(spans),
        }
        Path(report).write_text(json.dumps(content), "utf-8")
    return 0


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
    sys.exit(main(*sys.argv[1:]))
