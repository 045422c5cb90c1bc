"""`keyrot demo`: an unmodified program over four fake keys, two of which fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.padding import Padding
from rich.text import Text

from ...config import load
from ...errors import ConfigError
from ...testing import FakeGemini, Reply
from ..console import console, escape, table

__all__ = [
    "FREE_RPM",
    "KEYS",
    "DemoServer",
    "View",
    "demo",
    "open_demo_server",
    "wait_for_minute",
]

# A fake Gemini API with four keys, and the environments of the program -------------------------


FREE_RPM = 5
MIN_REMAINING_S = 6.0
"""Longer than the program runs, so that all its calls are in one minute."""

KEYS = (
    {"key_id": "revoked_1", "tier": "free", "project": "first-project"},
    {"key_id": "exhausted_1", "tier": "free", "project": "second-project"},
    {"key_id": "free_1", "tier": "free", "project": "third-project"},
    {"key_id": "paid_1", "tier": "tier1", "project": "company", "priority": 1},
)
"""Without limits: the pool learns them from the answers."""

_SETTING_PREFIXES = (
    "GEMINI_",
    "GOOGLE_",
    "KEYROT_",
    "OTEL_",
    "ENABLE_KEY_ROTATION",
    "SECRET_STORE",
    "REDIS_",
)


@dataclass(frozen=True, slots=True)
class DemoServer:
    """A server, and the environments of programs that use it."""

    gemini: FakeGemini
    directory: Path
    keys_file: Path

    def single_key_env(self) -> dict[str, str]:
        """Return the environment of a program with one key and no pool."""
        return self._environment(GEMINI_API_KEY=self.gemini.key("free_1").value)

    def pool_env(self) -> dict[str, str]:
        """Return the environment of a program with the pool."""
        values = {
            f"GEMINI_KEY_{key['key_id']}": self.gemini.key(str(key["key_id"])).value for key in KEYS
        }
        return self._environment(
            KEYROT_KEYS_FILE=str(self.keys_file),
            KEYROT_STRATEGY="fill",
            KEYROT_ALLOWED_HOSTS=self.gemini.host,
            **values,
        )

    def _environment(self, **more: str) -> dict[str, str]:
        """Return the environment without the user's settings, and without a proxy to loopback."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_SETTING_PREFIXES)
        }
        here = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return {**kept, **here, "GOOGLE_GEMINI_BASE_URL": self.gemini.url, **more}


@contextmanager
def open_demo_server() -> Iterator[DemoServer]:
    """Serve with a revoked key, one with an exhausted day, a free one of 5 RPM, and a paid one."""
    with FakeGemini() as gemini, TemporaryDirectory(prefix="keyrot-demo-") as directory:
        for key in KEYS:
            label, project = str(key["key_id"]), str(key["project"])
            gemini.add_key(label, project=project, tier="free" if key["tier"] == "free" else "paid")
        gemini.always("revoked_1", Reply.KEY_INVALID)
        gemini.always("exhausted_1", Reply.QUOTA_DAY)
        gemini.limit("third-project", rpm=FREE_RPM)
        keys_file = Path(directory) / "keys.json"
        keys_file.write_text(json.dumps(KEYS, indent=2), "utf-8")
        yield DemoServer(gemini, Path(directory), keys_file)


def wait_for_minute() -> float:
    """Wait for the next minute if this one is about to end; return the seconds waited."""
    left = 60.0 - time.time() % 60.0
    if left >= MIN_REMAINING_S:
        return 0.0
    time.sleep(left)
    return left


# The output of the demo ------------------------------------------------------------------------


Calls = Sequence[Mapping[str, Any]]


class View:
    """Prints the demo, part by part."""

    def __init__(self) -> None:
        self._out = console()
        self._part = 0

    def say(self, text: str) -> None:
        """Print a sentence."""
        self._out.print(f"  [dim]{escape(text)}[/]")

    def _title(self, text: str) -> None:
        self._part += 1
        self._out.print(f"\n[bold cyan]{self._part}  {text}[/]")

    def introduction(self, url: str) -> None:
        """Print the setup."""
        self._out.print(
            "[bold]keyrot demo[/]: a fake Gemini API on this machine, no key and no network needed."
        )
        self.say(f"It listens on {url} and has four keys:")
        keys = table("", "key", "behavior")
        keys.add_row("revoked_1", "revoked: every request fails with 400")
        keys.add_row("exhausted_1", "daily quota exhausted: every request fails with 429")
        keys.add_row("free_1", f"free tier: {FREE_RPM} requests a minute, then 429")
        keys.add_row("paid_1", "paid: used only while no free key is available (priority 1)")
        self._indented(keys)

    def live(self, count: int) -> None:
        """Print that requests go to Google."""
        self._out.print(
            f"[bold]keyrot demo --live[/]: requests go to Google with your {count} keys."
        )

    def without_pool(self, out: str, err: str) -> None:
        """Print the output of the program with one key and without the pool."""
        self._title("Without the pool: python program.py, with the key free_1")
        self._lines(out)
        last = err.strip().splitlines()[-1] if err.strip() else "(finished)"
        self._lines(last, "red")

    def output(self, out: str, err: str) -> None:
        """Print the output of the program with the pool."""
        self._title("With the pool: keyrot run program.py, the same program with all four keys")
        self._lines(out)
        if err:
            self._lines(err, "red")

    def attempts(self, calls: Calls) -> None:
        """Print the attempts of each call."""
        self._title("The attempts of each call")
        rows = table("", "call", "type", "attempts")
        for number, call in enumerate(calls, 1):
            kind = "stream" if call["stream"] else "generate"
            rows.add_row(str(number), kind, " → ".join(map(_step, call["steps"])))
        self._indented(rows)
        self.say("The chat makes two calls; between them the SDK runs a function of the program.")

    def health(self, keys: Mapping[str, Mapping[str, Any]], calls: Calls) -> None:
        """Print the state of the keys."""
        self._title("The state of the keys, from keyrot_middleware.status()")
        why = {
            s["key"]: s["result"] for call in calls for s in call["steps"] if s["result"] != "ok"
        }
        rows = table("", "key", "state", "ok", "errors", "learned limits")
        for key_id, key in keys.items():
            learned = {k: v for used in key["used"].values() for k, v in used["learned"].items()}
            limits = ", ".join(f"{v:,} {name}" for name, v in learned.items()) or "-"
            counts = (str(key["success_count"]), str(key["error_count"]))
            rows.add_row(key_id, _state(key, why.get(key_id, "")), *counts, limits)
        self._indented(rows)

    def tree(self, tree: str | None) -> None:
        """Print the spans of one call."""
        self._title("The spans of the call with the most attempts")
        if tree:
            self._lines(tree)
        else:
            install = "pip install 'keyrot-middleware[otlp]'"
            self.say(f"None: the OpenTelemetry SDK is not installed ({install}).")

    def counted(self, sent: Mapping[str, int]) -> None:
        """Print the requests that the server received."""
        counts = ", ".join(f"{key} {count}" for key, count in sent.items())
        self._out.print(f"\n[bold green]Requests received by the server:[/] {counts}.")
        self.say("In your own program: import keyrot_middleware; keyrot_middleware.install()")

    def _lines(self, text: str, style: str = "") -> None:
        for line in text.rstrip().splitlines():
            self._out.print(Text(f"    {_cut(line, 94)}", style=style))

    def _indented(self, what: Any) -> None:
        self._out.print(Padding(what, (0, 0, 0, 4), expand=False))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _step(step: Mapping[str, str]) -> str:
    style = "green" if step["result"] == "ok" else "red" if step["key"] else "yellow"
    key = f"{escape(step['key'])} " if step["key"] else ""
    return f"{key}[{style}]{escape(step['result'])}[/]"


def _state(key: Mapping[str, Any], why: str) -> str:
    state = str(key["state"])
    if not key["active"]:
        return f"[red]{state}[/]: {key['disabled_reason']}"
    if key["available"]:
        return f"[green]{state}[/]"
    if key["available_at"] is None:
        return f"[yellow]{state}[/]: {why}"
    until = datetime.fromisoformat(key["available_at"])
    seconds = max((until - datetime.now(UTC)).total_seconds(), 0)
    duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 3600:.1f} h"
    return f"[yellow]{state} for {duration}[/]: {why or 'limit reached'}"


PROGRAM = Path(__file__).with_name("program.py")
_FAKE_S = 60.0
_LIVE_S = 600.0


@dataclass(frozen=True, slots=True)
class _ProgramRun:
    """A finished program."""

    exit_code: int
    out: str
    err: str
    report: Mapping[str, Any]


def demo(*, live: bool) -> int:
    """Run the demo; return the exit code of the program.

    Args:
        live: Send to Google with the user's keys and settings.
    """
    return _live(View()) if live else _fake(View())


def _fake(view: View) -> int:
    with open_demo_server() as server:
        view.introduction(server.gemini.url)
        waited = wait_for_minute()
        if waited:
            view.say(f"(waited {waited:.0f} s for the next minute, so that all calls are in one)")
        view.without_pool(*_run_without_pool())
        ran = _run_with_pool(server.pool_env(), server.directory, _FAKE_S)
        _print_run(view, ran)
        view.counted({key: server.gemini.sent(key) for key in ran.report.get("health", {})})
    return ran.exit_code


def _run_without_pool() -> tuple[str, str]:
    """Run the program with the free key, at another server, since it exhausts the quota."""
    with open_demo_server() as server:
        command = [sys.executable, str(PROGRAM)]
        ran = _run(command, server.single_key_env(), server.directory, _FAKE_S)
    return ran.stdout, ran.stderr


def _live(view: View) -> int:
    try:
        config = load()
    except ConfigError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 2
    if not config.keys:
        text = "set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json"
        print(f"keyrot demo --live: no key; {text}", file=sys.stderr)
        return 2
    view.live(len(config.keys))
    ran = _run_with_pool(None, None, _LIVE_S)
    _print_run(view, ran)
    return ran.exit_code


def _run_with_pool(
    environment: Mapping[str, str] | None, cwd: Path | None, seconds: float
) -> _ProgramRun:
    """Run the program with the pool, in a process of its own."""
    with TemporaryDirectory(prefix="keyrot-demo-") as directory:
        report = Path(directory) / "report.json"
        module = f"{__package__}.recorder"
        command = [sys.executable, "-m", module, str(report), str(PROGRAM)]
        ran = _run(command, environment, cwd, seconds)
        found = json.loads(report.read_text("utf-8")) if report.exists() else {}
    return _ProgramRun(ran.returncode, ran.stdout, ran.stderr, found)


def _run(
    command: list[str], environment: Mapping[str, str] | None, cwd: Path | None, seconds: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - this interpreter, this package's own file
        command,
        env=environment,
        cwd=cwd,
        timeout=seconds,
        text=True,
        capture_output=True,
        check=False,
    )


def _print_run(view: View, ran: _ProgramRun) -> None:
    view.output(ran.out, ran.err if ran.exit_code else "")
    view.attempts(ran.report.get("calls", []))
    view.health(ran.report.get("health", {}), ran.report.get("calls", []))
    view.tree(ran.report.get("tree"))
