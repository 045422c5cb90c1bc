"""Follow the calls of a pool and write down which way each of them took."""

from __future__ import annotations

from typing import Any

from ...core.commands import Command, Settle, Sleep
from ...core.failures import describe
from ...core.model import CallInfo, Kind
from ...telemetry.base import Watch

__all__ = ["WayObserver"]


class WayObserver:
    """Keep, for each call in the order of their beginning, what it was and its steps."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def start(self, info: CallInfo) -> Watch:
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
        if isinstance(command, Sleep) and command.begins:
            self._steps.append({"key": "", "came": f"waits {command.seconds:.1f} s"})

    def after(self, command: Command, reply: object) -> None:
        """Note what became of a send."""
        if not isinstance(command, Settle):
            return
        kind, verdict, _ = command.outcome
        came = "ok" if kind is Kind.SUCCESS else describe(verdict) if verdict else kind.value
        self._steps.append({"key": command.lease.key_id, "came": came})

    def attach(self) -> None:
        """Do nothing."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """Note a call that no key could serve."""
        if error is not None and not self._steps:
            self._steps.append({"key": "", "came": "no key free"})
