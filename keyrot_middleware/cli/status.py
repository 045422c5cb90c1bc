"""`keyrot status`, `explain`, `reset`, `disable`, `enable`: a shared pool, while services run."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..core.model import GEMINI_API
from ..core.text import did_you_mean, hide_secrets, one_line, remaining, short_time
from ..errors import KeyrotError
from ..monitoring.view import LIMIT_MAX, URGENCY, WINDOWS, PoolReport, lines_of
from .console import STATE_STYLES, available_at, console, escape, table
from .shared_pool import NOT_SHARED, open_report

EVERY_S = 2.0
"""Between two looks of `--watch`."""
PIPE_WIDTH = 400
"""Columns without a terminal, so that each key is one line."""
LOOK_MAX_S = 60.0
"""How long all answers may take together."""
FRAME = 5
"""Lines that hold no key: a gap, two titles, the count of the rest, a spare."""

Look = Callable[[], dict[str, Any]]


def status(*, as_json: bool, watch: bool) -> int:
    """Print how the keys are; return 0, or 1 where there is nothing to read.

    Args:
        as_json: Print JSON; with *watch* a line for each look.
        watch: Look again every two seconds, until Ctrl-C.
    """

    def show(report: PoolReport) -> int:
        (_show_json if as_json else _show_table)(lambda: _look(report), watch)
        return 0

    return _with_report(show, as_json)


def explain(model: str, tokens: int, workload: str, *, as_json: bool) -> int:
    """Print which key a call would get; nothing is sent, and nothing reserved.

    Args:
        model: As in a call, with or without `models/`.
        tokens: Input tokens of the call.
        workload: Whose keys are preferred; "" for none.
        as_json: Print JSON.

    Returns:
        0; or 1 where no key is available, or that cannot be found out.
    """

    def show(report: PoolReport) -> int:
        found = report.explain(model, tokens, workload)
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            _show_explanation(found)
        return 0 if found["key_id"] is not None else 1

    return _with_report(show, as_json)


def change(key_id: str, action: str) -> int:
    """Change a key for all processes that share the state.

    Args:
        key_id: The key.
        action: `reset` (clear the cooldowns of a key, its project and billing account, and its
            learned limits), `enable` or `disable`.

    Returns:
        0; 1 with a message on stderr if that fails.
    """

    def act(report: PoolReport) -> int:
        try:
            done = (
                report.reset(key_id)
                if action == "reset"
                else report.set_active(key_id, action == "enable")
            )
        except KeyError:
            known = [key["key_id"] for key in report.status(limit=LIMIT_MAX)["keys"]]
            named = repr(hide_secrets(key_id))  # some give the value of a key
            raise KeyrotError(
                f"no key {named} in pool {report.name!r}; keys: {', '.join(known)}."
                f"{did_you_mean(key_id, known)}"
            ) from None
        print(one_line(done))
        return 0

    return _with_report(act)


def _with_report(work: Callable[[PoolReport], int], as_json: bool = False) -> int:
    """Do *work* with the shared pool, and print why that is not possible."""
    try:
        with open_report() as report:
            if report is not None:
                return work(report)
            problem = NOT_SHARED
    except KeyrotError as error:
        problem = f"keyrot: {error}"
        if as_json:
            print(json.dumps({"error": str(error)}, indent=2))
            return 1
    if as_json:
        print(json.dumps({"shared": False}, indent=2))
    else:
        print(problem, file=sys.stderr)
    return 1


def _look(report: PoolReport) -> dict[str, Any]:
    """Return the status with all keys."""
    until, found = time.monotonic() + LOOK_MAX_S, report.status(limit=LIMIT_MAX)
    while len(found["keys"]) < found["total"]:
        more = report.status(offset=len(found["keys"]), limit=LIMIT_MAX)
        if not more["keys"]:
            break
        if time.monotonic() > until:
            raise KeyrotError(f"the keys could not be read within {LOOK_MAX_S:g} s")
        found["keys"] += more["keys"]
        found["summary"]["projects"] |= more["summary"]["projects"]
    return found | {"limit": len(found["keys"])}


def _show_json(look: Look, watch: bool) -> None:
    if not watch:
        print(json.dumps(look(), indent=2))
        return

    def show() -> None:
        try:
            found = look()
        except KeyrotError as error:
            found = {"error": str(error)}
        print(json.dumps(found), flush=True)

    _repeat(show)


def _show_table(look: Look, watch: bool) -> None:
    out = console()
    if not out.is_terminal:
        out.width = PIPE_WIDTH
    if not watch:
        out.print(_draw(look()))
        return

    def draw() -> RenderableType:
        try:
            return _draw(look(), out.height if out.is_terminal else None)
        except KeyrotError as error:
            return f"[red]{escape(str(error))}[/]"

    if not out.is_terminal:
        _repeat(lambda: out.print(draw()))
        return
    with Live(console=out, auto_refresh=False) as live:
        _repeat(lambda: live.update(draw(), refresh=True))


def _repeat(look: Callable[[], None]) -> None:
    try:
        while True:
            look()
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return


def _draw(found: dict[str, Any], height: int | None = None) -> RenderableType:
    """Draw a line for each key, problems first, then what each project has used of its limits.

    Args:
        found: The status.
        height: How many lines there are; None for as many as are needed.
    """
    head = list(_first_lines(found))
    keys = sorted(found["keys"], key=lambda key: URGENCY.index(key["state"]))
    left: list[dict[str, Any]] = []
    if height is not None:
        keys, left = _fit(keys, max(height - len(head) - FRAME, 2))
    now = datetime.fromisoformat(found["at"])
    where = f"Pool {escape(found['pool'])} in {escape(found['state_url'])}"
    title = f"{where}, {now:%H:%M:%S} UTC"
    drawn = table(title, "key", "state", "available at", "project", "reason")
    for column in drawn.columns[:-1]:  # a narrow terminal breaks the last column only
        column.no_wrap = True
    for key in keys:
        reason = Text(one_line(_reason(key)), no_wrap=height is not None, overflow="ellipsis")
        drawn.add_row(
            escape(key["key_id"]),
            f"[{STATE_STYLES[key['state']]}]{key['state']}[/]",
            available_at(key, now),
            escape(key["project"] or "-"),
            reason,
        )
    parts: list[RenderableType] = [*head, "", drawn]
    if left:
        counts = Counter(key["state"] for key in left)
        texts = ", ".join(f"{count} {state}" for state, count in counts.items())
        parts.append(f"… and {len(left)} more keys: {texts}")
    used = _used(found["keys"])
    room = None if height is None else height - len(head) - len(keys) - FRAME - 3
    if used and (room is None or len(used) <= room):
        usage = table("Used, of each limit", "project", "model", *WINDOWS)
        for name, row in used.items():
            usage.add_row(*map(escape, name), *row)
        parts += ["", usage]
    return Group(*parts)


def _fit(keys: list[dict[str, Any]], room: int) -> tuple[list[Any], list[Any]]:
    """Return the keys of *room* lines, and the others; those that serve get half of the lines."""
    if len(keys) <= room:
        return keys, []
    serving = [key for key in keys if key["available"]]
    others = [key for key in keys if not key["available"]]
    most = max(room - len(others), room // 2)
    shown = [*others[: room - min(most, len(serving))], *serving[:most]]
    ids = {key["key_id"] for key in shown}
    return shown, [key for key in keys if key["key_id"] not in ids]


def _first_lines(found: dict[str, Any]) -> Iterator[str]:
    """Say first what the page says first; then how many keys each model has, where they differ."""
    summary, now = found["summary"], datetime.fromisoformat(found["at"])

    def when(at: str) -> str:
        return remaining((datetime.fromisoformat(at) - now).total_seconds())

    if found["degraded"]:
        yield "[yellow]Degraded: the shared state cannot be reached[/]"
    yield from map(escape, lines_of(summary["headline"], when))
    counts = {
        model: f"{some['available']} of {some['keys']}" for model, some in summary["models"].items()
    }
    if len(set(counts.values())) > 1:
        yield from (f"  {escape(model)}: {count}" for model, count in counts.items())
    if summary["today"]["cost_usd"]:
        yield f"Today: {_usd(summary['today']['cost_usd'])}, since midnight Pacific time"
    projects = summary["projects"]
    for name, cost in projects.items():
        if cost["usd_per_day"] is not None:
            of = f" of {_usd(cost['usd_per_day'])} a day"
            yield f"  {escape(name)}: {_usd(cost['usd_today'] or 0.0)}{of}"
        elif cost["usd_today"] and len(projects) > 1:
            yield f"  {escape(name)}: {_usd(cost['usd_today'])}"
    if found["shared"] and not found["has_records"]:
        yield (
            f"There are no records of a pool {found['pool']!r} in this state: no call has been "
            "made through it yet, or KEYROT_POOL names another pool than that of your services."
        )


def _usd(amount: float) -> str:
    return f"{amount:,.2f} USD" if amount >= 1 else f"{amount:.4f} USD"


def _reason(key: dict[str, Any]) -> str:
    """Say why a key is not available, or for which models it is not."""
    parts = [key["reason"]] if key["reason"] else []
    if key["state"] == "rejected" and key["available_at"] is not None:
        parts.append(f"tried again at {short_time(key['available_at'])}")
    if key["available"]:
        parts += [
            f"{model}: {used['reason']}{_until(used)}"
            for model, used in key["used"].items()
            if not used["available"]
        ]
    if key["platform"] != GEMINI_API:
        parts.append(key["platform"])
    return "; ".join(parts) or "-"


def _until(used: dict[str, Any]) -> str:
    return "" if used["available_at"] is None else f" until {short_time(used['available_at'])}"


def _used(keys: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Return by project, or key without one, and model what is used of each window."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        for model, used in key["used"].items():
            windows = [used[name] for name in WINDOWS]
            if any(window["used"] or window["limit"] is not None for window in windows):
                name = key["project"] or key["key_id"], model
                found.setdefault(name, [_window(window) for window in windows])
    return found


def _window(window: dict[str, Any]) -> str:
    limit = "" if window["limit"] is None else f"/{window['limit']:,}"
    return f"{window['used']:,}{limit}"


def _show_explanation(found: dict[str, Any]) -> None:
    out = console()
    out.print(escape(found["sentence"]))
    drawn = table("", "order", "key", "project", "why", "available at")
    now = datetime.fromisoformat(found["at"])
    for key in found["keys"]:
        chosen = key["key_id"] == found["key_id"]
        drawn.add_row(
            str(key["position"] or "-"),
            f"[green]{escape(key['key_id'])}[/]" if chosen else escape(key["key_id"]),
            escape(key["project"] or "-"),
            escape(key["sentence"]),
            available_at(key, now),
        )
    out.print(drawn)
    out.print("Keys of the same order are tried together; a lower order goes first.")
