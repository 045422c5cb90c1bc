"""`keyrot demo`: an unmodified program without and with a pool of four fake keys."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.text import Text

from ...config import load
from ...core.model_names import CURRENT_MODEL, FREE_LIMITS
from ...errors import ConfigError
from ...testing import FakeClock, FakeGemini, Reply
from ..console import STATE_STYLES, console, escape, table

__all__ = ["demo"]

PROGRAM = Path(__file__).with_name("program.py")
_FAKE_S = 180.0
_LIVE_S = 600.0


@dataclass(frozen=True, slots=True)
class _ProgramRun:
    """A finished program; without the pool its report is empty."""

    exit_code: int
    out: str
    err: str
    report: Mapping[str, Any]


def demo(*, live: bool, verbose: bool, out: Console | None = None) -> int:
    """Run the demo; return the exit code of the program with the pool.

    Args:
        live: Send to Google with the user's keys and settings.
        verbose: Print the spans of one call too.
        out: Where to print. None: stdout.
    """
    return _live(out or console(), verbose) if live else _fake(out or console(), verbose)


def _fake(out: Console, verbose: bool) -> int:
    out.print("[bold]keyrot demo[/]: the same program twice, without and with a pool of keys.")
    out.print(
        "A fake Gemini API answers on this machine: no key and no network needed.\n"
        f"Two keys of the pool are bad, and the free one has {FREE_RPM} requests a minute.\n",
        style="dim",
    )
    with _progress(), ThreadPoolExecutor(max_workers=1) as background:
        alone = background.submit(_run_without_pool)
        with _demo_server() as server:
            pooled = _run_with_pool(server.pool_env(), server.directory, _FAKE_S, verbose)
            sent = {str(key["key_id"]): server.gemini.sent(str(key["key_id"])) for key in KEYS}
    _print_both(out, alone.result(), pooled)
    _print_keys(out, pooled.report.get("keys", []), sent)
    _print_rest(out, pooled, verbose)
    # `make demo` runs it from an environment that is not active.
    own = str(Path(sys.executable).with_name("keyrot")).removeprefix(f"{Path.cwd()}/")
    name = "keyrot" if shutil.which("keyrot") else escape(own)
    for text in (
        f"[bold]Next[/]  {name} init                 writes keys.json and .env for your keys",
        f"      {name} run your_program.py  runs it with them; no line of it changes",
    ):
        out.print(text, soft_wrap=True)
    return pooled.exit_code


def _live(out: Console, verbose: bool) -> int:
    try:
        config = load()
    except ConfigError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 2
    if not config.keys:
        text = "set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json"
        print(f"keyrot demo --live: no key; {text}", file=sys.stderr)
        return 2
    out.print(f"[bold]keyrot demo --live[/]: sends to Google with your {len(config.keys)} keys.\n")
    with _progress():
        ran = _run_with_pool(None, None, _LIVE_S, verbose)
    rows = table("", "", "attempts", "answer")
    for step in _steps(ran):
        rows.add_row(escape(step.title), _attempts(step.calls), escape(_cut(step.answer, 40)))
    out.print(rows)
    keys = ran.report.get("keys", [])
    _print_keys(out, keys, {k["key_id"]: k["success_count"] + k["error_count"] for k in keys})
    _print_rest(out, ran, verbose)
    return ran.exit_code


# What is printed ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """A line that the program printed, and the calls before it."""

    title: str
    answer: str
    calls: Sequence[Mapping[str, Any]]


def _steps(ran: _ProgramRun) -> list[_Step]:
    """Return a step for each line of the program, and one for calls after the last line."""
    lines = [line.partition(": ") for line in ran.out.splitlines()]
    calls = ran.report.get("calls", [])
    if any(call["line"] == len(lines) for call in calls):
        lines.append(("failed", "", ""))
    return [
        _Step(title, answer, [call for call in calls if call["line"] == number])
        for number, (title, _, answer) in enumerate(lines)
    ]


def _print_both(out: Console, alone: _ProgramRun, pooled: _ProgramRun) -> None:
    """Print what each run answered, side by side."""
    rows = table("", "", "python program.py\none key: free_1", "keyrot run program.py\nfour keys")
    steps, answered = _steps(pooled), len(alone.out.splitlines())
    for number, step in enumerate(steps):
        if number < answered:
            without = "[green]ok[/]"
        elif number == answered:
            without = f"[red]{escape(_error_name(alone.err))}[/]"
        else:
            without = "[dim]not reached[/]"
        rows.add_row(escape(step.title), without, _attempts(step.calls))
    total, with_pool = len(steps), len(pooled.out.splitlines())
    counts = (f"[bold red]{answered} of {total}[/]", f"[bold green]{with_pool} of {total}[/]")
    rows.add_row("[bold]answered[/]", *counts)
    out.print(rows)


def _attempts(calls: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(" → ".join(map(_attempt, call["attempts"])) for call in calls)


def _attempt(attempt: Mapping[str, str]) -> str:
    style = "green" if attempt["result"] == "ok" else "red" if attempt["key"] else "yellow"
    return f"[{style}]{escape(' '.join(filter(None, attempt.values())))}[/]"


def _print_keys(
    out: Console, keys: Sequence[Mapping[str, Any]], requests: Mapping[str, int]
) -> None:
    """Print the state of each key."""
    rows = table("", "key", "state", "reason", "tried again", "requests")
    for key in keys:
        rows.add_row(
            escape(key["key_id"]),
            f"[{STATE_STYLES[key['state']]}]{key['state']}[/]",
            escape(key["reason"] or ""),
            "now" if key["available"] else _until(key["available_at"]),
            str(requests[key["key_id"]]),
        )
    out.print("", rows, "")


def _until(at: str | None) -> str:
    if at is None:
        return ""
    seconds = max((datetime.fromisoformat(at) - datetime.now(UTC)).total_seconds(), 0)
    if seconds < 120:
        return f"in {seconds:.0f} s"
    return f"in {seconds / 60:.0f} min" if seconds < 7200 else f"in {seconds / 3600:.1f} h"


def _print_rest(out: Console, ran: _ProgramRun, verbose: bool) -> None:
    """Print the error of a program that failed, and the spans."""
    if ran.exit_code:
        out.print(Text(_cut("\n".join(_error_lines(ran.err)), 1000), style="red"))
    if not verbose:
        return
    out.print("[bold]The spans of the call with the most attempts[/]")
    install = "none: they need the OpenTelemetry SDK, pip install 'keyrot-middleware[otlp]'"
    out.print(Text(f"{ran.report.get('spans') or install}\n"))


def _error_lines(err: str) -> list[str]:
    """Return the exception and its notes, without the traceback."""
    lines = err.rstrip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith(" ")]
    return lines[frames[-1] + 1 :] if frames else lines


def _error_name(err: str) -> str:
    """Return an error's code and status, such as `429 RESOURCE_EXHAUSTED`."""
    first = next(iter(_error_lines(err)), "failed")
    match = re.search(r": (\d{3} [A-Z_]+)", first)
    return match[1] if match else _cut(first, 40)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


@contextmanager
def _progress() -> Iterator[None]:
    """Show on stderr, if it is a terminal, that programs are running."""
    with Console(stderr=True).status("Running program.py…"):
        yield


# The two runs ------------------------------------------------------------------------------------


def _run_without_pool() -> _ProgramRun:
    """Run the program with the free key, at a server of its own, since it exhausts the quota."""
    with _demo_server() as server:
        command = [sys.executable, str(PROGRAM)]
        ran = _run(command, server.single_key_env(), server.directory, _FAKE_S)
    return _ProgramRun(ran.returncode, ran.stdout, ran.stderr, {})


def _run_with_pool(
    environment: Mapping[str, str] | None, cwd: Path | None, seconds: float, spans: bool
) -> _ProgramRun:
    """Run the program with the pool, in a process of its own."""
    with TemporaryDirectory(prefix="keyrot-demo-") as directory:
        report = Path(directory) / "report.json"
        module = f"{__package__}.recorder"
        command = [sys.executable, "-m", module, str(report), str(PROGRAM)]
        ran = _run([*command, *(["--spans"] if spans else [])], environment, cwd, seconds)
        found = json.loads(report.read_text("utf-8")) if report.exists() else {}
    return _ProgramRun(ran.returncode, found.get("output", ""), ran.stderr, found)


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


# A fake Gemini API with four keys, and the environments of the program ---------------------------


FREE_RPM = FREE_LIMITS[CURRENT_MODEL].rpm

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
class _DemoServer:
    """A server, and the environments of programs that use it."""

    gemini: FakeGemini
    directory: Path

    def single_key_env(self) -> dict[str, str]:
        """Return the environment of a program with one key and no pool."""
        return self._environment(GEMINI_API_KEY=self.gemini.key("free_1").value)

    def pool_env(self) -> dict[str, str]:
        """Return the environment of a program with the pool."""
        values = {
            f"GEMINI_KEY_{key['key_id']}": self.gemini.key(str(key["key_id"])).value for key in KEYS
        }
        return self._environment(
            KEYROT_KEYS_FILE=str(self.directory / "keys.json"),
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
def _demo_server() -> Iterator[_DemoServer]:
    """Serve with a revoked key, one with an exhausted day, a free one of 5 RPM, and a paid one.

    Its clock stands still at the beginning of this minute, so that all calls are in one minute.
    """
    clock = FakeClock(time.time() // 60 * 60 + 1)
    with FakeGemini(clock) as gemini, TemporaryDirectory(prefix="keyrot-demo-") as directory:
        for key in KEYS:
            label, project = str(key["key_id"]), str(key["project"])
            gemini.add_key(label, project=project, tier="free" if key["tier"] == "free" else "paid")
        gemini.always("revoked_1", Reply.KEY_INVALID)
        gemini.always("exhausted_1", Reply.QUOTA_DAY)
        gemini.limit("third-project", rpm=FREE_RPM)
        (Path(directory) / "keys.json").write_text(json.dumps(KEYS, indent=2), "utf-8")
        yield _DemoServer(gemini, Path(directory))
