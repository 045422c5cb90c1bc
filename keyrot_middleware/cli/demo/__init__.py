"""`keyrot demo`: an unmodified program over four keys, two of them bad."""

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
    "open_scene",
    "wait_for_room",
]

# The scene of the demo: four keys at a fake Gemini API, and the environment of a program -------


FREE_RPM = 5
ROOM_S = 6.0
"""Longer than the program runs, so that its calls fall into one minute."""

KEYS = (
    {"key_id": "revoked_1", "tier": "free", "project": "first-project"},
    {"key_id": "spent_1", "tier": "free", "project": "second-project"},
    {"key_id": "free_1", "tier": "free", "project": "third-project"},
    {"key_id": "paid_1", "tier": "tier1", "project": "company", "priority": 1},
)
"""No limits: the pool learns them from what Google answers."""

_OURS = ("GEMINI_", "GOOGLE_", "KEYROT_", "OTEL_", "ENABLE_KEY_ROTATION", "SECRET_STORE", "REDIS_")


@dataclass(frozen=True, slots=True)
class DemoServer:
    """A server and where a program finds it."""

    gemini: FakeGemini
    directory: Path
    keys_file: Path

    def alone(self) -> dict[str, str]:
        """Give the environment of a program with one key and no pool."""
        return self._environment(GEMINI_API_KEY=self.gemini.key("free_1").value)

    def pooled(self) -> dict[str, str]:
        """Give the environment of a program with the pool."""
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
        """Keep nothing of the user's own settings, and no proxy between this machine and itself."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        here = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return {**kept, **here, "GOOGLE_GEMINI_BASE_URL": self.gemini.url, **more}


@contextmanager
def open_scene() -> Iterator[DemoServer]:
    """Serve with a revoked key, one at the end of its day, a free one of 5 RPM, and a paid one."""
    with FakeGemini() as gemini, TemporaryDirectory(prefix="keyrot-demo-") as directory:
        for key in KEYS:
            label, project = str(key["key_id"]), str(key["project"])
            gemini.add_key(label, project=project, tier="free" if key["tier"] == "free" else "paid")
        gemini.always("revoked_1", Reply.KEY_INVALID)
        gemini.always("spent_1", Reply.QUOTA_DAY)
        gemini.limit("third-project", rpm=FREE_RPM)
        keys_file = Path(directory) / "keys.json"
        keys_file.write_text(json.dumps(KEYS, indent=2), "utf-8")
        yield DemoServer(gemini, Path(directory), keys_file)


def wait_for_room() -> float:
    """Wait for the next minute if this one is about to end; return the seconds waited."""
    left = 60.0 - time.time() % 60.0
    if left >= ROOM_S:
        return 0.0
    time.sleep(left)
    return left


# How the demo looks ----------------------------------------------------------------------------


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


PROGRAM = Path(__file__).with_name("program.py")
_FAKE_S = 60.0
_LIVE_S = 600.0


@dataclass(frozen=True, slots=True)
class _Ran:
    """What a program did."""

    exit_code: int
    out: str
    err: str
    report: Mapping[str, Any]


def demo(*, live: bool) -> int:
    """Show the main job; return 0 if the program came to a good end.

    Args:
        live: With the keys and the settings of the user, at Google.
    """
    return _live(View()) if live else _fake(View())


def _fake(view: View) -> int:
    with open_scene() as scene:
        view.scene(scene.gemini.url)
        waited = wait_for_room()
        if waited:
            view.say(f"(waited {waited:.0f} s for the minute to turn: the story fits into one)")
        view.alone(*_alone())
        ran = _pooled(scene.pooled(), scene.directory, _FAKE_S)
        _tell(view, ran)
        view.counted({key: scene.gemini.sent(key) for key in ran.report.get("health", {})})
    return ran.exit_code


def _alone() -> tuple[str, str]:
    """Run the program by itself with the free key, at a server of its own: quota is exhausted."""
    with open_scene() as scene:
        command = [sys.executable, str(PROGRAM)]
        ran = _run(command, scene.alone(), scene.directory, _FAKE_S)
    return ran.stdout, ran.stderr


def _live(view: View) -> int:
    try:
        config = load()
    except ConfigError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 2
    if not config.keys:
        text = "set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json"
        print(f"keyrot demo --live: there is no key; {text}", file=sys.stderr)
        return 2
    view.live(len(config.keys))
    ran = _pooled(None, None, _LIVE_S)
    _tell(view, ran)
    return ran.exit_code


def _pooled(environment: Mapping[str, str] | None, cwd: Path | None, seconds: float) -> _Ran:
    """Run the program through the pool, in a process of its own."""
    with TemporaryDirectory(prefix="keyrot-demo-") as directory:
        report = Path(directory) / "report.json"
        module = f"{__package__}.recorder"
        command = [sys.executable, "-m", module, str(report), str(PROGRAM)]
        ran = _run(command, environment, cwd, seconds)
        found = json.loads(report.read_text("utf-8")) if report.exists() else {}
    return _Ran(ran.returncode, ran.stdout, ran.stderr, found)


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


def _tell(view: View, ran: _Ran) -> None:
    view.output(ran.out, ran.err if ran.exit_code else "")
    view.ways(ran.report.get("calls", []))
    view.health(ran.report.get("health", {}), ran.report.get("calls", []))
    view.tree(ran.report.get("tree"))
