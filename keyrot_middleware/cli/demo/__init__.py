"""`keyrot demo`: an unmodified program over four keys, two of them bad."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...config import load
from ...errors import ConfigError
from .scene import open_scene, wait_for_room
from .view import View

__all__ = ["demo"]

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
    """Run the program by itself with the free key, at a server of its own: quota is spent."""
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
        module = f"{__package__}.witness"
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
