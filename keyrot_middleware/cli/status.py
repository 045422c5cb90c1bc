"""A shared pool while services run: `keyrot status`, `explain`, `reset` and others."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from rich import markup
from rich.console import Console, Group, RenderableType
from rich.table import Table

from .. import providers
from ..core.activity import DAY, ActivityLog, Held, share_entry
from ..core.hiding import mask_url
from ..core.model import DEFAULT_PLATFORM, Candidate, Usage
from ..core.selection import Selector
from ..core.wording import did_you_mean, one_line, plural, remaining, short_time
from ..errors import ConfigError, KeyrotError
from ..keys_file import file_version, within_tiers
from ..monitoring.report import DISABLED_S, LIMIT_MAX, PoolReport
from ..monitoring.view import WINDOWS, Row, lines_of, look
from ..prices import PriceList
from ..providers.gemini.models import FREE_LIMITS
from ..providers.keys import hide_secrets
from ..runtime.activity_recorder import ActivityRecorder
from ..runtime.call_settings import CallSettings
from ..runtime.processes import read_running_keys
from ..secrets.stores import open_secret_cache
from ..settings import (
    Config,
    join_problems,
    load_whatever_keys,
    next_models,
    reread,
    terms_of,
    zone_of,
)
from ..state import State, open_shared

USD_PERIODS = {"10m": "in ten minutes", "day": "a day", "month": "a month"}
PIPE_WIDTH = 400
"""Columns without a terminal, so that each key is one line."""


def status(*, as_json: bool, check: bool) -> int:
    """Print how the keys are, and first whether calls are served.

    Args:
        as_json: Print JSON.
        check: Return 1 where calls of a model and a workload are not served, or fail.

    Returns:
        0, or 1 where there is nothing to read.
    """

    def show(report: PoolReport) -> int:
        answer = _look(report)
        if as_json:
            print(json.dumps(answer, indent=2))
        else:
            console(PIPE_WIDTH).print(_draw(answer))
        calls = answer["summary"]["calls"]
        return int(check and any(one["answer"] in ("no", "failing") for one in calls))

    return _with_report(show, as_json)


def explain(model: str, tokens: int, workload: str, *, as_json: bool) -> int:
    """Print which key a call would get; nothing is sent, and nothing reserved.

    Args:
        model: As in a call, with or without `models/`.
        tokens: Input tokens of the call.
        workload: Whose keys are preferred; "" for none.
        as_json: Print JSON.

    Returns:
        0, also for a model that nothing knows: it may be a new one. Or 1 where a call would fail:
        it would get no key, or the last ones failed; or that cannot be found out.
    """

    def show(report: PoolReport) -> int:
        explained = report.explain(model, tokens, workload)
        explained["doubt"] = _doubt(report, explained["model"])
        if as_json:
            print(json.dumps(explained, indent=2))
        else:
            _show_explanation(explained)
        return 1 if explained["answer"] in ("no", "failing") else 0

    return _with_report(show, as_json)


def _doubt(report: PoolReport, model: str) -> str | None:
    """Say that nothing knows a model, which may be misspelt; None if something does."""
    now, rows = report.now(), report.look().rows
    chains = report.settings(now).next_models
    known = {*chains, *chains.values(), *FREE_LIMITS}
    known.update(row.key.model for row in rows if row.key.model)
    known.update(_answered(report.activity.read(), now))
    if model in known:
        return None
    prices, one = PriceList(), Usage(input_tokens=1)
    sellers = {providers.of(row.key.platform) for row in rows}
    lists = [seller.prices or seller.name for seller in sellers]
    if any(prices.cost(one, model, now, provider=name) is not None for name in lists):
        return None
    also = "no key is for it"
    if prices.is_installed:
        also = "the price list of the pool's providers does not know it"
    asked = f"No call to {model} was answered in the last 24 hours, and {also}."
    return f"{asked}{did_you_mean(model, known)}"


def _answered(log: ActivityLog, now: float) -> Iterator[str]:
    """Yield the models to which calls were answered in the last day: they exist."""
    for model in {pair.model for pair in log.pairs(now)}:
        counts = log.history(share_entry("model", model), DAY, now)
        if sum(counts.calls) > sum(counts.failed_calls):
            yield model


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
    """Return the status, with all keys."""
    answer = report.status(limit=LIMIT_MAX)
    for offset in range(LIMIT_MAX, answer["total"], LIMIT_MAX):
        more = report.status(offset=offset, limit=LIMIT_MAX)
        answer["keys"] += more["keys"]
        answer["summary"]["projects"] |= more["summary"]["projects"]
    return answer | {"limit": len(answer["keys"])}


def _draw(answer: dict[str, Any]) -> RenderableType:
    """Draw what is said first, a line for each key, problems first, and what is used of limits."""
    now = datetime.fromisoformat(answer["at"])
    where = f"Pool {escape(answer['pool'])} in {escape(answer['state_url'])}"
    columns = ("key", "state", "back", "used", "project", "reason")
    drawn = table(f"{where}, {now:%H:%M:%S} UTC", *columns)
    for column in drawn.columns[:-1]:  # a narrow terminal breaks the last column only
        column.no_wrap = True
    for key in answer["keys"]:
        drawn.add_row(
            escape(key["key_id"]),
            f"[{STATE_STYLES[key['state']]}]{key['state']}[/]",
            back_at(key, now),
            _last_used(key, now),
            escape(key["project"] or "-"),
            escape(_reason(key)),
        )
    return Group(*_first_lines(answer), "", drawn, "", _limits(answer))


def _last_used(key: Mapping[str, Any], now: datetime) -> str:
    """Say how long ago a key was used; `-` where that is not known."""
    if key["last_used"] is None:
        return "-"
    seconds = (now - datetime.fromisoformat(key["last_used"])).total_seconds()
    return f"{remaining(seconds).removeprefix('in ')} ago"


def _first_lines(answer: dict[str, Any]) -> Iterator[str]:
    """Say first what the page says first, then what was spent."""
    summary = answer["summary"]
    if answer["degraded"]:
        yield "[yellow]Degraded: the shared state cannot be reached[/]"
    yield from map(escape, lines_of(summary["headline"]))
    now = datetime.fromisoformat(answer["at"])
    ends = {one["model"]: one["runs_out_at"] for one in summary["calls"] if one["runs_out_at"]}
    for name, at in ends.items():
        yield f"RPD of all keys for {escape(name)}: {_used_up(at, now)}"
    today = summary["today"]
    if answer["cost_known"] and (today["cost_usd"] or today["unpriced_calls"]):
        partly = ", partly estimated" if today["estimated_tokens"] else ""
        cost = _cost(today["cost_usd"], today["unpriced_calls"])
        yield f"Today: {cost}, since {summary['midnight']}{partly}"
        if today["unpriced_models"]:
            yield f"No price is known for {escape(', '.join(today['unpriced_models']))}"
    yield from _budgets(summary)
    if answer["shared"] and not answer["has_records"]:
        yield (
            f"There are no records of a pool {answer['pool']!r} in this state: no call has been "
            "made through it yet, or KEYROT_POOL names another pool than that of your services."
        )


def _budgets(summary: dict[str, Any]) -> Iterator[str]:
    """Say what was spent of each budget, and by projects without one."""
    projects = summary["projects"]
    workloads = {f"workload {name}": cost for name, cost in summary["workloads"].items()}
    for name, cost in (projects | workloads).items():
        n = cost["unpriced_calls_today"]
        for window, one in cost["usd"].items():
            of = f"{_usd(one['spent'])} of {_usd(one['limit'])}"
            whose = ", of its billing account" if window == "10m" and name in projects else ""
            more = f"; {_unpriced(n)} of today not counted" if n else ""
            yield f"  {escape(name)}: {of} {USD_PERIODS[window]}{whose}{more}"
        if "day" not in cost["usd"] and (cost.get("usd_today") or n) and len(projects) > 1:
            yield f"  {escape(name)}: {_cost(cost['usd_today'], n)}"


def _used_up(at: str, now: datetime) -> str:
    soon = datetime.fromisoformat(at) <= now
    return "used up" if soon else f"used up {_left(at, now)}, {short_time(at)}"


def _left(at: str, now: datetime) -> str:
    return remaining((datetime.fromisoformat(at) - now).total_seconds())


def _cost(amount: float | None, unpriced: int) -> str:
    """Write what was spent, and that it is not all."""
    if not unpriced:
        return _usd(amount or 0.0)
    calls = _unpriced(unpriced)
    return f"{_usd(amount)} + {calls}" if amount else f"no price ({calls})"


def _unpriced(n: int) -> str:
    return f"{plural(n, 'call')} without a price"


def _usd(amount: float) -> str:
    return f"{amount:,.2f} USD" if amount >= 1 else f"{amount:.4f} USD"


def _reason(key: dict[str, Any]) -> str:
    """Say why a key is not available, or for which models it is not."""
    parts = [] if key["available"] else [key["sentence"]]
    for model, used in key["used"].items() if key["available"] else ():
        if not used["available"]:
            at = used["available_at"]
            parts.append(f"{model}: {used['reason']}{f' until {short_time(at)}' if at else ''}")
    if key["platform"] != DEFAULT_PLATFORM:
        parts.append(key["platform"])
    return "; ".join(parts) or "-"


def _limits(answer: dict[str, Any]) -> RenderableType:
    """Draw what each project has used of each limit, where that is from, and how long it lasts."""
    now = datetime.fromisoformat(answer["at"])
    rows = {
        (key["project"] or key["key_id"], model): (key, used)
        for key in reversed(answer["keys"])
        for model, used in key["used"].items()
    }
    held = Counter[tuple[str, str, str]]()
    for key in answer["keys"]:
        for model, used in key["used"].items():
            for kind in Held._fields:
                held[key["project"] or key["key_id"], model, kind] += used[kind]
    if not rows:
        return "No model was used today: limits are shown from the first call on."
    drawn = table("Used, of each limit", "project", "model", *WINDOWS, "today", "")
    for (name, model), (key, used) in sorted(rows.items()):
        notes = [f"use {key['use']:g}"] if key["use"] != 1 else []
        if used["counts_with"]:
            notes.append(f"counts with {used['counts_with']}")
        if used["runs_out_at"]:
            notes.append(f"RPD {_used_up(used['runs_out_at'], now)}")
        elif used["reason"] == "quota_day":
            notes.append(f"refused until {short_time(used['available_at'])}")
        windows = [_window(used[name]) for name in WINDOWS]
        today = _today(used["fullest_minute"], *(held[name, model, kind] for kind in Held._fields))
        drawn.add_row(*map(escape, (name, model, *windows, today, "; ".join(notes))))
    return drawn


def _today(fullest: Mapping[str, Any] | None, held_back: int, refused: int) -> str:
    """Say by which figures a person raises or lowers a limit."""
    parts = [f"{held_back:,} held back"] if held_back else []
    if refused:
        parts.append(f"{refused:,} refused")
    if fullest:
        of = "" if fullest["of"] is None else f"/{fullest['of']:,}"
        parts.append(f"fullest minute {fullest['used']:,}{of} {fullest['limit'].upper()}")
    return ", ".join(parts)


def _window(window: dict[str, Any]) -> str:
    if window["limit"] is None:
        return f"{window['used']:,}"
    return f"{window['used']:,}/{window['limit']:,} {window['source']}"


def _show_explanation(explained: dict[str, Any]) -> None:
    out = console()
    if explained["doubt"]:
        out.print(escape(explained["doubt"]), soft_wrap=True)
    out.print(escape(explained["sentence"]))
    drawn = table("", "order", "key", "project", "why", "back")
    now = datetime.fromisoformat(explained["at"])
    for key in explained["keys"]:
        name = escape(key["key_id"])
        drawn.add_row(
            str(key["position"] or "-"),
            f"[green]{name}[/]" if key["may_get_it"] else name,
            escape(key["project"] or "-"),
            escape(key["sentence"]),
            back_at(key, now),
        )
    out.print(drawn)
    out.print("Keys of the same order are tried together; a lower order goes first.")


NOT_SHARED = """\
With KEYROT_STATE_URL=memory:// the state of a pool lives inside each process that uses it, so this
command cannot see it. Choose one of these:

    KEYROT_STATE_URL=sqlite                   one state for all processes of this host, in a file
    KEYROT_STATE_URL=redis://…                one state for all processes of several hosts
    keyrot_middleware.ui.app(token=…)         a page to mount in the program (extra ui)
    keyrot_middleware.status()                in the program: everything, as a dict
    keyrot_middleware.reset("key_1")          in the program: make a key available again"""
RUNNING = "Shown are the keys with which the processes of the pool run; their next start fails."
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

    Where keys.json cannot be read, services go on with the keys they had. So does this, with those
    that they have written into the state, and says on stderr why.

    Raises:
        KeyrotError: A setting is wrong, there is no key, or the state cannot be read; or keys.json,
            and no process of the pool runs.
    """
    config = load_whatever_keys()
    if not config.settings.enabled:
        raise KeyrotError("rotation is switched off by ENABLE_KEY_ROTATION: there is no pool")
    problem = join_problems(config.keys_problems) if config.keys_problems else ""
    if not (config.keys or problem):
        raise KeyrotError("no key: set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json")
    running = None
    if problem:
        running = _read_running_keys(config, problem)
        zone = zone_of(key.platform for key in running)  # where their days end
        config = replace(config, policy=replace(config.policy, zone=zone))
        print(f"keyrot: {problem}\n{RUNNING}", file=sys.stderr)
    state = open_configured(config)
    if state is None:
        yield None
        return
    try:
        yield _report(config, state, running)
    finally:
        state.close()


def _read_running_keys(config: Config, problem: str) -> list[Candidate]:
    """Return the keys of the processes that run.

    Raises:
        ConfigError: With the *problem* of keys.json, where that is not known.
    """
    state = open_configured(config)
    if state is not None:
        with closing(state):
            if running := read_running_keys(state, time.time()):
                return running
    raise ConfigError(problem)


def _report(config: Config, state: State, running: Sequence[Candidate] | None = None) -> PoolReport:
    """Return the report of a pool: of the keys of *config*, or of those of *running* processes.

    A keys.json that has changed is read again; one with mistakes is not used, as by services.
    """
    missing, here = dict[str, str](), list[frozenset[str]]()
    settings, configured = config.settings, config.candidates
    if running is not None:
        configured = tuple(within_tiers(key, config.tiers) for key in running)

    def keys() -> list[Candidate]:
        nonlocal config, configured
        version = file_version(config.keys_file) if config.keys_file else None
        if version != config.keys_seen:
            config = replace(config, keys_seen=version)
            with suppress(ConfigError):  # the services say what is wrong
                config = reread(config)
                configured = config.candidates
                here.clear()
        # Read again each time: a key has other records as soon as a service uses a new value.
        known = state.with_values(configured)
        missing.clear()
        missing.update(_missing(config, state, known, here))
        return known

    def rows() -> list[Row]:
        return look(state, keys(), missing)

    def selector() -> Selector:
        return Selector([k for k in keys() if k.key_id not in missing], config.policy.strategy)

    settings_of_calls = CallSettings(
        terms_of(settings.workloads),
        config.tiers,
        next_models(settings.fallback_models),
        config.policy.max_wait_s,
    )
    keys()  # a store that cannot be opened is named now
    return PoolReport(
        name=settings.pool,
        state=state,
        state_url=mask_url(config.state_url),
        rows=rows,
        activity=ActivityRecorder(state, time.time, zone=config.policy.zone),
        selector=selector,
        now=time.time,
        trace_url=settings.trace_url,
        own=settings_of_calls,
    )


def _missing(
    config: Config, state: State, keys: Sequence[Candidate], here: list[frozenset[str]]
) -> dict[str, str]:
    """Return why keys of a shared pool have no value, by what its services have reported.

    Whoever looks at a pool need not have its values. Only where no service has ever used the pool,
    they are looked up *here*, once.
    """
    unknown = [key for key in keys if not (key.fingerprint or key.disabled)]
    known = state.snapshot(unknown) if unknown else {}
    unused = {key.key_id for key in unknown if known[key.key_id].last_used is None}
    is_known_here = not config.keys_problems  # else this machine cannot know where they are
    if unused and is_known_here and not any(key.fingerprint for key in keys):
        if not here:
            secrets = open_secret_cache(config)
            here.append(frozenset(secrets.unresolved))
            secrets.close()
        return dict.fromkeys(unused & here[0], NOT_HERE)
    return dict.fromkeys(unused, NO_SERVICE_HAS_IT)


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


def console(width: int = WIDTH) -> Console:
    """Return a console on stdout; without a terminal (a pipe, CI) *width* columns wide."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=width)


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


def back_at(key: Mapping[str, Any], now: datetime) -> str:
    """Say when a key is available again, or tried again, and how long that is from *now*."""
    at = key["available_at"]
    if key["available"] or at is None:
        return "now" if key["available"] else "-"
    what = "available" if key["ends_by"] == "time" else "tried"  # a guess is no promise
    return f"{what} again {short_time(at)}, {_left(at, now)}"
