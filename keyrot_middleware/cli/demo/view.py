"""How the demo looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.padding import Padding
from rich.text import Text

from ..console import console, escape, table
from .scene import FREE_RPM

__all__ = ["View"]

Calls = Sequence[Mapping[str, Any]]


class View:
    """Writes the demo to the terminal, part by part."""

    def __init__(self) -> None:
        self._out = console()
        self._part = 0

    def say(self, text: str) -> None:
        """Write a sentence."""
        self._out.print(f"  [dim]{escape(text)}[/]")

    def _title(self, text: str) -> None:
        self._part += 1
        self._out.print(f"\n[bold cyan]{self._part}  {text}[/]")

    def scene(self, url: str) -> None:
        """Say what is there."""
        self._out.print("[bold]keyrot demo[/]: no key of yours and no network is used.")
        self.say(f"A fake Gemini API answers at {url}. It knows four keys:")
        keys = table("", "key", "what is the matter with it")
        keys.add_row("revoked_1", "revoked: every request is a 400")
        keys.add_row("spent_1", "at the end of its day: every request is a 429")
        keys.add_row("free_1", f"free tier: {FREE_RPM} requests a minute, then a 429")
        keys.add_row("paid_1", "paid: to be used only while no free key can serve (priority 1)")
        self._indented(keys)

    def live(self, count: int) -> None:
        """Say that Google is asked."""
        self._out.print(f"[bold]keyrot demo --live[/]: Google is asked with your {count} keys.")

    def alone(self, out: str, err: str) -> None:
        """Show how the program fares with one key and without the pool."""
        self._title("python program.py, with GEMINI_API_KEY=free_1")
        self._lines(out)
        last = err.strip().splitlines()[-1] if err.strip() else "(came to its end)"
        self._lines(last, "red")

    def output(self, out: str, err: str) -> None:
        """Show what the program printed, run through the pool."""
        self._title("keyrot run program.py, with all four: the same program, not a line changed")
        self._lines(out)
        if err:
            self._lines(err, "red")

    def ways(self, calls: Calls) -> None:
        """Show which way each call took."""
        self._title("The way of each call")
        ways = table("", "call", "kind", "way")
        for number, call in enumerate(calls, 1):
            kind = "stream" if call["stream"] else "generate"
            ways.add_row(str(number), kind, " → ".join(map(_step, call["steps"])))
        self._indented(ways)
        self.say("The chat is two calls: between them the SDK runs the program's function.")

    def health(self, keys: Mapping[str, Mapping[str, Any]], calls: Calls) -> None:
        """Show how the keys are now."""
        self._title("Health of the keys, as keyrot_middleware.status() tells it")
        why = {s["key"]: s["came"] for call in calls for s in call["steps"] if s["came"] != "ok"}
        rows = table("", "key", "state", "ok", "errors", "learned from Google's answers")
        for key_id, key in keys.items():
            learned = {k: v for used in key["used"].values() for k, v in used["learned"].items()}
            limits = ", ".join(f"{v:,} {name}" for name, v in learned.items()) or "-"
            counts = (str(key["success_count"]), str(key["error_count"]))
            rows.add_row(key_id, _state(key, why.get(key_id, "")), *counts, limits)
        self._indented(rows)

    def tree(self, tree: str | None) -> None:
        """Show the spans of one call."""
        self._title("The spans of the call with the most attempts")
        if tree:
            self._lines(tree)
        else:
            install = "pip install 'keyrot-middleware[otlp]'"
            self.say(f"None: the OpenTelemetry SDK is not installed ({install}).")

    def counted(self, sent: Mapping[str, int]) -> None:
        """Say what the server saw."""
        counts = ", ".join(f"{key} {count}" for key, count in sent.items())
        self._out.print(f"\n[bold green]Requests that reached the server:[/] {counts}.")
        self.say("In a program of your own: import keyrot_middleware; keyrot_middleware.install()")

    def _lines(self, text: str, style: str = "") -> None:
        for line in text.rstrip().splitlines():
            self._out.print(Text(f"    {_cut(line, 94)}", style=style))

    def _indented(self, what: Any) -> None:
        self._out.print(Padding(what, (0, 0, 0, 4), expand=False))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _step(step: Mapping[str, str]) -> str:
    style = "green" if step["came"] == "ok" else "red" if step["key"] else "yellow"
    key = f"{escape(step['key'])} " if step["key"] else ""
    return f"{key}[{style}]{escape(step['came'])}[/]"


def _state(key: Mapping[str, Any], why: str) -> str:
    state = str(key["state"])
    if not key["active"]:
        return f"[red]{state}[/] ({key['disabled_reason']})"
    if key["available"]:
        return f"[green]{state}[/]"
    if key["available_at"] is None:
        return f"[yellow]{state}[/] ({why})"
    until = datetime.fromisoformat(key["available_at"])
    seconds = max((until - datetime.now(UTC)).total_seconds(), 0)
    rest = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 3600:.1f} h"
    return f"[yellow]{state} for {rest}[/] ({why or 'limit reached'})"
