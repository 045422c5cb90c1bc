"""A shared pool while services run: `keyrot status`, `limits`, `explain`, `reset` and others."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from rich import markup
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..adapters.key_check import check_key
from ..core.failures import KEY_REJECTIONS
from ..core.model import DEFAULT_PLATFORM, Candidate
from ..core.selection import Selector
from ..core.text import did_you_mean, mask_url, one_line, remaining, short_time
from ..errors import KeyrotError
from ..monitoring.view import (
    DISABLED_S,
    LIMIT_MAX,
    NAMED,
    URGENCY,
    WINDOWS,
    PoolReport,
    Row,
    lines_of,
    look,
)
from ..providers.keys import hide_secrets
from ..runtime.activity import Activity
from ..secrets.stores import open_secret_cache
from ..settings import Config, load, terms_of
from ..state import State, open_shared

USD_PERIODS = {"10m": "in ten minutes", "day": "a day", "month": "a month"}
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


def limits(*, as_json: bool) -> int:
    """Print what is used of each limit of a project and model; return 0, or 1 if that is not known.

    Args:
        as_json: Print JSON.
    """

    def show(report: PoolReport) -> int:
        found = _look(report)
        rows = {
            (key["project"] or key["key_id"], model): {"use": key["use"], **used}
            for key in reversed(found["keys"])
            for model, used in key["used"].items()
        }
        if as_json:
            models = found["summary"]["models"]
            listed = {n: found[n] for n in ("pool", "at")}
            listed["models"] = {name: some["runs_out_at"] for name, some in models.items()}
            listed["limits"] = [{"project": p, "model": m, **rows[p, m]} for p, m in sorted(rows)]
            print(json.dumps(listed, indent=2))
        else:
            print("\n".join(map(one_line, _limit_lines(found, rows))))
        return 0

    return _with_report(show, as_json)


def _limit_lines(found: dict[str, Any], rows: dict[tuple[str, str], Any]) -> Iterator[str]:
    now = datetime.fromisoformat(found["at"])
    yield f"Pool {found['pool']}, {now:%H:%M:%S} UTC; forecasts are at the rate of the last hour."
    yield from _running_out(found["summary"]["models"], now)
    if not rows:
        yield "No model was used today: limits are shown from the first call on."
    wide = max(
        (len(f"{row[one]['used']:,}") for row in rows.values() for one in WINDOWS), default=0
    )
    for (project, model), row in sorted(rows.items()):
        yield f"{project}  {model}" + (f"  (use {row['use']:g})" if row["use"] != 1 else "")
        for name in WINDOWS:
            limit, of = row[name]["limit"], row[name]["source"] or "no limit known"
            most = "" if limit is None else f"of {limit:,}"
            line = f"  {name.upper()}  {row[name]['used']:{wide},} {most:<13}  {of:<10}"
            yield f"{line}  {_forecast(row, now) if name == 'rpd' else ''}".rstrip()


def _forecast(row: dict[str, Any], now: datetime) -> str:
    """Say how long the requests of the day last."""
    at, limit = row["runs_out_at"], row["rpd"]["limit"]
    if limit is None or row["rpd"]["used"] >= limit:
        return "" if limit is None else "used up"
    if not row["available"] and row["reason"] == "quota_day":
        return f"refused{_until(row)}"
    return _used_up(at, now) if at else "lasts"


def change(key_id: str, action: str, for_s: float | None = None) -> int:
    """Change a key for all processes that share the state.

    Args:
        key_id: The key.
        action: `reset` (clear the cooldowns of a key, its project and billing account, and its
            learned limits), `enable` or `disable`.
        for_s: How long it is disabled, seconds; None: 30 days.

    Returns:
        0; 1 with a message on stderr if that fails.
    """

    def act(report: PoolReport) -> int:
        try:
            done = (
                report.reset(key_id)
                if action == "reset"
                else report.set_active(key_id, action == "enable", for_s or DISABLED_S)
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
    workloads = {
        one["name"]: {"input": one["input_tokens"], "cached": one["cached_tokens"]}
        for one in report.history(by="workload")["shares"]
    }
    return found | {"limit": len(found["keys"]), "workloads": workloads}


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
    used = _used(found["keys"], now)
    room = None if height is None else height - len(head) - len(keys) - FRAME - 3
    if used and (room is None or len(used) <= room):
        usage = table("Used, of each limit", "project", "model", *WINDOWS, "")
        for name, row in used.items():
            usage.add_row(*map(escape, (*name, *row)))
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

    if found["degraded"]:
        yield "[yellow]Degraded: the shared state cannot be reached[/]"
    yield from map(escape, lines_of(summary["headline"], partial(_left, now=now)))
    counts = {
        model: f"{some['available']} of {some['keys']}" for model, some in summary["models"].items()
    }
    if len(set(counts.values())) > 1:
        yield from (f"  {escape(model)}: {count}" for model, count in counts.items())
    yield from map(escape, _running_out(summary["models"], now))
    if summary["today"]["cost_usd"]:
        partly = ", partly estimated" if summary["today"]["estimated_tokens"] else ""
        since = f"since midnight {summary['midnight']}{partly}"
        yield f"Today: {_usd(summary['today']['cost_usd'])}, {since}"
    projects = summary["projects"]
    workloads = {f"workload {name}": cost for name, cost in summary["workloads"].items()}
    for name, cost in (projects | workloads).items():
        for window, one in cost["usd"].items():
            of = f"{_usd(one['spent'])} of {_usd(one['limit'])}"
            whose = ", of its billing account" if window == "10m" and name in projects else ""
            yield f"  {escape(name)}: {of} {USD_PERIODS[window]}{whose}"
        if "day" not in cost["usd"] and cost.get("usd_today") and len(projects) > 1:
            yield f"  {escape(name)}: {_usd(cost['usd_today'])}"
    yield from _cached("today", {k["key_id"]: k["tokens_today"] for k in found["keys"]})
    yield from _cached("in the last hour", found["workloads"])
    if found["shared"] and not found["has_records"]:
        yield (
            f"There are no records of a pool {found['pool']!r} in this state: no call has been "
            "made through it yet, or KEYROT_POOL names another pool than that of your services."
        )


def _running_out(models: dict[str, Any], now: datetime) -> Iterator[str]:
    for model, some in models.items():
        if at := some["runs_out_at"]:
            yield f"RPD of all keys for {model}: {_used_up(at, now)}"


def _used_up(at: str, now: datetime) -> str:
    soon = datetime.fromisoformat(at) <= now
    return "used up" if soon else f"used up {_left(at, now)}, {short_time(at)}"


def _left(at: str, now: datetime) -> str:
    return remaining((datetime.fromisoformat(at) - now).total_seconds())


def _cached(when: str, tokens: dict[str, dict[str, int]]) -> Iterator[str]:
    """Say which part of the input tokens came from a prompt cache, of those that have most."""
    most = sorted((n["cached"], name, n["input"]) for name, n in tokens.items() if n["cached"])
    if most:
        shares = (f"{escape(name)} {part / n:.0%}" for part, name, n in most[: -NAMED - 1 : -1])
        yield f"Input tokens from a prompt cache {when}: {', '.join(shares)}"


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
    if key["platform"] != DEFAULT_PLATFORM:
        parts.append(key["platform"])
    return "; ".join(parts) or "-"


def _until(used: dict[str, Any]) -> str:
    return "" if used["available_at"] is None else f" until {short_time(used['available_at'])}"


def _used(keys: list[dict[str, Any]], now: datetime) -> dict[tuple[str, str], list[str]]:
    """Return by project, or key without one, and model what is used of each window."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        for model, used in key["used"].items():
            windows = [used[name] for name in WINDOWS]
            if any(window["used"] or window["limit"] is not None for window in windows):
                name = key["project"] or key["key_id"], model
                notes = [f"use {key['use']:g}"] if key["use"] != 1 else []
                notes += [used["held_back"]] if used["held_back"] else []
                if used["runs_out_at"]:
                    notes.append(f"RPD {_used_up(used['runs_out_at'], now)}")
                found.setdefault(name, [*map(_window, windows), "; ".join(notes)])
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


NOT_SHARED = """\
With KEYROT_STATE_URL=memory:// the state of a pool lives inside each process that uses it, so this
command cannot see it. Choose one of these:

    KEYROT_STATE_URL=sqlite                   one state for all processes of this host, in a file
    KEYROT_STATE_URL=redis://…                one state for all processes of several hosts
    keyrot_middleware.ui.app()                a page to mount in the program (extra ui)
    keyrot_middleware.status()                in the program: everything, as a dict
    keyrot_middleware.reset("key_1")          in the program: make a key available again"""
NO_SERVICE_HAS_IT = "no service that uses this pool has reported one"
NOT_HERE = "not found on this machine, and no service has reported one"


def open_configured(config: Config) -> State | None:
    """Open the shared state that the settings name; None where it is not shared.

    Raises:
        ConfigError: It cannot be opened.
        MissingExtraError: Its library is not installed.
    """
    name, variable = config.settings.pool, config.state_variable
    return open_shared(config.state_url, config.policy, time.time, pool=name, variable=variable)


@contextmanager
def open_report() -> Iterator[PoolReport | None]:
    """Open the report of the shared pool that the settings name; None where it is not shared.

    Raises:
        KeyrotError: A setting is wrong, there is no key, or the state cannot be read.
    """
    config = load()
    if not config.settings.enabled:
        raise KeyrotError("rotation is switched off by ENABLE_KEY_ROTATION: there is no pool")
    if not config.keys:
        raise KeyrotError("no key: set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json")
    state = open_configured(config)
    if state is None:
        yield None
        return
    try:
        yield _report(config, state)
    finally:
        state.close()


class _MissingValues:
    """Which keys of a shared pool have no value, by what its services have reported.

    Whoever looks at a pool need not have its values. Only where no service has ever used the pool,
    they are looked up here, once.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._here: frozenset[str] | None = None
        self.reasons: dict[str, str] = {}

    def find(self, state: State, keys: Sequence[Candidate]) -> None:
        """Set `reasons` for *keys*, as `State.with_values` returns them."""
        unknown = [key for key in keys if not (key.fingerprint or key.disabled)]
        known = state.snapshot(unknown) if unknown else {}
        found = {key.key_id for key in unknown if known[key.key_id].last_used is None}
        why = NO_SERVICE_HAS_IT
        if found and not any(key.fingerprint for key in keys):
            why, found = NOT_HERE, found & self._look_up()
        self.reasons.clear()
        self.reasons.update(dict.fromkeys(found, why))

    def _look_up(self) -> frozenset[str]:
        if self._here is None:
            secrets = open_secret_cache(self._config)
            try:
                self._here = frozenset(secrets.unresolved)
            finally:
                secrets.close()
        return self._here


def _report(config: Config, state: State) -> PoolReport:
    missing, terms = _MissingValues(config), terms_of(config.settings.workloads)

    def keys() -> list[Candidate]:
        # Read again each time: a key has other records as soon as a service uses a new value.
        return state.with_values(config.candidates)

    def rows() -> list[Row]:
        all_keys = keys()
        missing.find(state, all_keys)
        return look(state, all_keys, missing.reasons, terms.get(None), time.time())

    def selector() -> Selector:
        able = [key for key in keys() if key.key_id not in missing.reasons]
        return Selector(able, config.policy.strategy)

    missing.find(state, keys())  # a store that cannot be opened is named now
    return PoolReport(
        name=config.settings.pool,
        state=state,
        state_url=mask_url(config.state_url),
        rows=rows,
        activity=Activity(state, time.time, zone=config.policy.zone),
        selector=selector,
        now=time.time,
        missing=missing.reasons,
        trace_url=config.settings.trace_url,
        terms=terms,
        check_key=partial(_check, config),
    )


def _check(config: Config, key_id: str) -> str:
    """Send one request with a key whose value is known here; return a sentence.

    Raises:
        KeyrotError: It has no value here, or may not be sent.
    """
    keys = tuple(key for key in config.keys if key.key_id == key_id)
    platform = keys[0].service
    secrets = open_secret_cache(replace(config, keys=keys))
    try:
        if key_id not in secrets.resolved:
            raise KeyrotError(f"key {key_id} has no value on this machine")
        check = check_key(secrets, key_id, keys[0].model, platform, config.allowed)
        return check.describe(key_id)
    finally:
        secrets.close()


WIDTH = 100

STATE_STYLES = {
    "available": "green",
    "limited": "yellow",
    "cooling_down": "yellow",
    "rejected": "red",
    "unresolved": "red",
    "disabled": "dim",
}
"""The color of each state of a key."""


def console() -> Console:
    """Return a console on stdout; without a terminal (a pipe, CI) 100 columns wide."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=WIDTH)


def escape(text: str) -> str:
    """Escape markup in *text*, which may come from users or a server."""
    return markup.escape(one_line(text))


def table(title: str, *columns: str) -> Table:
    """Return an empty table in the style of this command."""
    look: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0)}
    made = Table(title=title or None, title_justify="left", title_style="bold", **look)
    for name in columns:
        made.add_column(name, header_style="dim", overflow="fold")
    return made


def available_at(key: Mapping[str, Any], now: datetime) -> str:
    """Say when a key is available, and how long that is from *now*; not of a rejected one."""
    if key["available"]:
        return "now"
    at = key["available_at"]
    if at is None or key["reason"] in KEY_REJECTIONS:
        return "-"
    return f"{short_time(at)}, {_left(at, now)}"
