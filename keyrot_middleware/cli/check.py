"""`keyrot check`: the settings in force, each key, what is wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from ..config import LAST_RESORT_PRIORITY, load
from ..core.availability import Availability
from ..errors import ConfigError
from ..genai.call_info import origin_from_url
from ..genai.live_check import check_keys
from ..runtime.health import iso
from ..settings import origins
from ..telemetry.log_text import format_time
from .check_report import CheckReport, KeyReport, StateReport, base_url, build_report
from .console import console, escape, table

__all__ = ["check"]

_SHOWN = 200
"""Characters of what a server said; all of it is in the JSON."""


def check(*, live: bool, model: str | None, as_json: bool) -> int:
    """Print what is there, and return 0 if the pool can serve and nothing is wrong, else 1.

    Args:
        live: Send one request with each key.
        model: For these requests; None: the key's own, else a default.
        as_json: Print JSON instead of tables.
    """
    try:
        config = load()
        found = build_report(config)
    except ConfigError as error:
        if as_json:
            print(json.dumps({"ok": False, "error": str(error)}, indent=2))
        else:
            print(f"keyrot: {error}", file=sys.stderr)
        return 1
    if live and found.enabled:
        found = _asked(found, config.settings.allowed_hosts, model)
    if as_json:
        print(json.dumps(_plain(found), indent=2))
    else:
        _draw(found)
    return 0 if found.ok else 1


def _asked(found: CheckReport, allowed_hosts: tuple[str, ...], model: str | None) -> CheckReport:
    """Add what one request with each key came to; keys go to allowed hosts only."""
    origin = origin_from_url(base_url())
    if found.secrets is None or origin not in origins(allowed_hosts):
        text = f"--live sent nothing: {origin or 'no host'} is not among KEYROT_ALLOWED_HOSTS"
        return replace(found, problems=(*found.problems, text))
    asked = {key.spec.key_id: model or key.spec.model for key in found.keys if key.resolved}
    answers = check_keys(found.secrets, asked)
    keys = tuple(replace(key, answer=answers.get(key.spec.key_id)) for key in found.keys)
    return replace(found, keys=keys)


def _plain(found: CheckReport) -> dict[str, Any]:
    """Give the report as values of JSON; no value of a key is in it."""
    return {
        "ok": found.ok,
        "enabled": found.enabled,
        "settings": {
            setting.variable: {"value": setting.plain, "source": setting.source}
            for setting in found.settings
        },
        "state": _plain_state(found.state),
        "keys": [_plain_key(key) for key in found.keys],
        "warnings": list(found.warnings),
        "problems": list(found.problems),
    }


def _plain_state(state: StateReport | None) -> dict[str, Any] | None:
    if state is None:
        return None
    reachable = state.problem is None if state.shared else None
    return {"url": state.url, "shared": state.shared, "reachable": reachable}


def _plain_key(key: KeyReport) -> dict[str, Any]:
    answer = key.answer
    plain = key.spec.model_dump(exclude={"secret"}) | {
        "store": key.store,
        "secret": key.place,
        "resolved": key.resolved,
        "problem": key.problem,
        "same_as": key.same_as,
        "fingerprint": key.fingerprint,
        "state": key.availability.state,
        "available": key.availability.state == "available",
        "available_at": iso(key.availability.at),
    }
    if answer is not None:
        names = ("ok", "model", "failure", "code", "text")
        plain["live"] = {name: getattr(answer, name) for name in names}
        plain["live"]["seconds"] = round(answer.seconds, 3)
    return plain


def _draw(found: CheckReport) -> None:
    out = console()
    if not found.enabled:
        out.print("Rotation is switched off by ENABLE_KEY_ROTATION: install() does nothing.")
        return
    settings = table("Settings", "variable", "value", "from")
    for setting in found.settings:
        style = "dim" if setting.source == "default" else ""
        settings.add_row(setting.variable, escape(setting.value), setting.source, style=style)
    out.print(settings, "")
    if found.state is not None:
        out.print(f"State: {escape(found.state.url)}, {_reach(found.state)}\n", soft_wrap=True)
    if found.keys:
        _draw_keys(found)
    for text in found.problems:
        _say("red", "wrong", text)
    for text in found.warnings:
        _say("yellow", "warning", text)
    out.print(_verdict(found))


def _draw_keys(found: CheckReport) -> None:
    columns = ("key", "model\nworkload, tier", "project\npriority", "limits", "where its value is")
    keys = table(f"Keys ({len(found.keys)})", *columns)
    for key in found.keys:
        spec = key.spec
        kind = ", ".join(filter(None, (spec.workload, spec.tier))) or "-"
        keys.add_row(
            escape(spec.key_id),
            f"{escape(spec.model or '-')}\n[dim]{escape(kind)}[/]",
            f"{escape(spec.project or '-')}\n[dim]{_priority(spec.priority)}[/]",
            _limits(key),
            f"{escape(key.place)}\n{_value(key)}",
        )
    console().print(keys, "")
    for key in found.keys:
        if key.problem:
            _say("red", "skipped", key.problem)
        if key.answer and not key.answer.ok:
            said = " ".join(str(key.answer.text).split())
            text = f"{key.spec.key_id}: {key.answer.failure}: {said[:_SHOWN]}"
            _say("red", "asked", text)


def _reach(state: StateReport) -> str:
    if not state.shared:
        return "of each process by itself"
    return "[green]answers[/]" if state.problem is None else "[red]cannot be used[/]"


def _say(style: str, label: str, text: str) -> None:
    """Print a message as one line, which the terminal may wrap: people search for it."""
    console().print(f"[{style}]{label}:[/] {escape(text)}", soft_wrap=True)


def _priority(number: int) -> str:
    return "last resort" if number == LAST_RESORT_PRIORITY else str(number)


def _limits(key: KeyReport) -> str:
    spec = key.spec
    known = {"rpm": spec.rpm, "tpm": spec.tpm, "rpd": spec.rpd, "at once": spec.max_concurrency}
    return "\n".join(f"{number:,} {name}" for name, number in known.items() if number) or "-"


def _value(key: KeyReport) -> str:
    """Say whether the value was found, by a fingerprint that can be compared between hosts."""
    if key.problem:
        return "[red]not found[/]"
    if key.same_as:
        return f"the same as {key.same_as}"
    found = f"[green]found[/] #{key.fingerprint}{_shared(key.shared)}"
    if key.answer is None:
        return found
    if key.answer.ok:
        return f"{found}, [green]answers[/] ({key.answer.seconds:.1f} s)"
    code = f" ({key.answer.code})" if key.answer.code else ""
    return f"{found}, [red]{key.answer.failure}{code}[/]"


def _shared(shared: Availability) -> str:
    """Say what keeps services from using a key just now."""
    if shared.state == "available":
        return ""
    until = f" until {format_time(shared.at)}" if shared.at is not None else ""
    return f", [yellow]{shared.state}{until}[/]"


def _verdict(found: CheckReport) -> str:
    if not found.keys:
        return "[red]No key:[/] set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json."
    available = sum(key.availability.state == "available" for key in found.keys)
    count = f"{available} of {len(found.keys)} keys are available"
    return f"[green]Good:[/] {count}." if found.ok else f"[red]Not good:[/] {count}."
