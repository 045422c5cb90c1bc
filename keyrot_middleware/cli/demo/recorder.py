"""An unchanged program under a pool, recorded: calls, health and spans go into a file at the end.

Started by the demo as a process of its own: `python -m … REPORT PROGRAM`.
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

# Follow the calls of a pool and write down which way each of them took -------------------------


class CallRecorder:
    """Keep, for each call in the order of their beginning, what it was and its steps."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def observe(self, info: CallInfo) -> CallObserver:
        """Begin to follow a call."""
        steps: list[dict[str, str]] = []
        self.calls.append({"model": info.model, "stream": info.stream, "steps": steps})
        return _Way(steps)


class _Way:
    """One call; what is not overridden here does not matter to it."""

    def __init__(self, steps: list[dict[str, str]]) -> None:
        self._steps = steps

    def before(self, command: Command) -> None:
        """Note a wait."""
        if isinstance(command, Sleep) and command.starts_wait:
            self._steps.append({"key": "", "came": f"waits {command.seconds:.1f} s"})

    def after(self, command: Command, reply: object) -> None:
        """Note what became of a send."""
        if not isinstance(command, Settle):
            return
        kind, verdict, _ = command.outcome
        came = (
            "ok" if kind is LeaseOutcome.SUCCESS else describe(verdict) if verdict else kind.value
        )
        self._steps.append({"key": command.lease.key_id, "came": came})

    def attach(self) -> None:
        """Do nothing."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """Note a call that no key could serve."""
        if error is not None and not self._steps:
            self._steps.append({"key": "", "came": "no key free"})


def main(report: str, program: str) -> int:
    """Install the pool and run a script; write the report even if the script fails."""
    try:
        install()
    except KeyrotError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 2
    spans, ways = _record_spans(), CallRecorder()
    _watch(ways)
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        found = {"calls": ways.calls, "health": status()["keys"], "tree": _tree(spans)}
        Path(report).write_text(json.dumps(found), "utf-8")
    return 0


def _watch(ways: CallRecorder) -> None:
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
    from ...telemetry.span_tree import format_tree  # noqa: PLC0415

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
    from ...telemetry.span_tree import format_attribute  # noqa: PLC0415

    return format_attribute(name, value) if name in _SHOWN else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
