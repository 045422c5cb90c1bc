"""`keyrot demo`: an unmodified program without and with a pool of four fake keys."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from ..core.model_names import CURRENT_MODEL, FREE_LIMITS
from ..testing import FakeClock, FakeGemini, Reply
from .console import console, escape, table

PROGRAM = Path(__file__).with_name("demo_program.py")
TIMEOUT_S = 180.0
FREE_RPM = FREE_LIMITS[CURRENT_MODEL].rpm
KEYS = (
    {"key_id": "revoked_1", "tier": "free", "project": "first-project"},
    {"key_id": "exhausted_1", "tier": "free", "project": "second-project"},
    {"key_id": "free_1", "tier": "free", "project": "third-project"},
    {"key_id": "paid_1", "tier": "tier1", "project": "company", "priority": 1},
)
"""Without limits: the pool learns them from the answers."""
LABELS = [str(key["key_id"]) for key in KEYS]
_OWN = ("GEMINI_", "GOOGLE_", "KEYROT_", "OTEL_", "ENABLE_KEY_ROTATION", "SECRET_STORE", "REDIS_")
"""How the names of the user's settings begin."""
Ran = subprocess.CompletedProcess[str]


def demo(out: Console | None = None) -> int:
    """Run the demo; return the exit code of the program with the pool."""
    out = out or console()
    out.print("[bold]keyrot demo[/]: the same program twice, without and with a pool of keys.")
    out.print(
        "A fake Gemini API answers on this machine: no key and no network needed.\n"
        f"Two keys of the pool are bad, and the free one has {FREE_RPM} requests a minute.\n",
        style="dim",
    )
    command = [sys.executable, "-m", "keyrot_middleware", "run", str(PROGRAM)]
    with (
        Console(stderr=True).status("Running the program…"),
        ThreadPoolExecutor(1) as background,
        _server() as (gemini, folder),
    ):
        alone = background.submit(_run_alone)
        values = {f"GEMINI_KEY_{label}": gemini.key(label).value for label in LABELS}
        keys = {"KEYROT_KEYS_FILE": str(folder / "keys.json"), "KEYROT_STRATEGY": "fill"}
        pooled = _run(command, gemini, folder, **keys, **values)
        log = gemini.log
    calls: list[list[tuple[str, str]]] = [[]]
    for request in log:
        result = "ok" if request.reply == "OK" else request.reply.lower()
        calls[-1].append((str(request.key), result))
        if request.reply == "OK":
            calls.append([])
    _print_both(out, alone.result(), pooled, calls)
    rows = table("", "key", "requests", "last answer")
    for label in LABELS:
        mine = [result for call in calls for name, result in call if name == label]
        rows.add_row(label, str(len(mine)), mine[-1] if mine else "")
    out.print("", rows, "")
    if pooled.returncode:
        out.print(escape(pooled.stderr[-1000:]), style="red")
    # `make demo` runs it from an environment that is not active.
    own = str(Path(sys.executable).with_name("keyrot")).removeprefix(f"{Path.cwd()}/")
    name = "keyrot" if shutil.which("keyrot") else escape(own)
    for text in (
        f"[bold]Next[/]  {name} init                 writes keys.json and .env for your keys",
        f"      {name} run your_program.py  runs it with them; no line of it changes",
    ):
        out.print(text, soft_wrap=True)
    return pooled.returncode


def _print_both(
    out: Console, alone: Ran, pooled: Ran, calls: Sequence[Sequence[tuple[str, str]]]
) -> None:
    """Print what each run answered, side by side; the program's last line is of two calls."""
    rows = table("", "", "python program.py\none key: free_1", "keyrot run program.py\nfour keys")
    lines, answered = pooled.stdout.splitlines(), len(alone.stdout.splitlines())
    error = re.search(r": (\d{3} [A-Z_]+)", alone.stderr)
    for number, line in enumerate(lines):
        without = "[green]ok[/]" if number < answered else "[dim]not reached[/]"
        if number == answered:
            without = f"[red]{escape(error[1] if error else 'failed')}[/]"
        own = filter(None, calls[number : None if number == len(lines) - 1 else number + 1])
        rows.add_row(escape(line.partition(":")[0]), without, ", ".join(map(_attempts, own)))
    all_of = f"{len(lines)} of {len(lines)}"
    counts = f"[bold red]{answered} of {len(lines)}[/]", f"[bold green]{all_of}[/]"
    rows.add_row("[bold]answered[/]", *counts)
    out.print(rows)


def _attempts(call: Sequence[tuple[str, str]]) -> str:
    colors = {True: "green", False: "red"}
    return " → ".join(f"[{colors[result == 'ok']}]{key} {result}[/]" for key, result in call)


def _run_alone() -> Ran:
    """Run the program with the free key, at a server of its own, since it exhausts the quota."""
    with _server() as (gemini, folder):
        key = gemini.key("free_1").value
        return _run([sys.executable, str(PROGRAM)], gemini, folder, GEMINI_API_KEY=key)


def _run(command: list[str], gemini: FakeGemini, folder: Path, **env: str) -> Ran:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
    local = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    hosts = {"GOOGLE_GEMINI_BASE_URL": gemini.url, "KEYROT_ALLOWED_HOSTS": gemini.host}
    return subprocess.run(  # noqa: S603 - this interpreter, this package's own file
        command,
        env={**kept, **local, **hosts, **env},
        cwd=folder,
        timeout=TIMEOUT_S,
        text=True,
        capture_output=True,
        check=False,
    )


@contextmanager
def _server() -> Iterator[tuple[FakeGemini, Path]]:
    """Serve with a revoked key, one with an exhausted day, a free one of 5 RPM, and a paid one.

    Its clock stands still at the beginning of this minute, so that all calls are in one minute.
    """
    clock = FakeClock(time.time() // 60 * 60 + 1)
    with FakeGemini(clock) as gemini, TemporaryDirectory(prefix="keyrot-demo-") as folder:
        for key in KEYS:
            label, project = str(key["key_id"]), str(key["project"])
            gemini.add_key(label, project=project, tier="free" if key["tier"] == "free" else "paid")
        gemini.always("revoked_1", Reply.KEY_INVALID)
        gemini.always("exhausted_1", Reply.QUOTA_DAY)
        gemini.limit("third-project", rpm=FREE_RPM)
        (Path(folder) / "keys.json").write_text(json.dumps(KEYS), "utf-8")
        yield gemini, Path(folder)
