"""`keyrot check`: print effective settings, each key, warnings and problems."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..config import load
from ..core.availability import Availability
from ..core.model import GEMINI_API, LAST_RESORT, Platform
from ..core.text import plural
from ..errors import ConfigError, KeyrotError
from ..genai.key_check import check_keys, require_allowed_host
from ..monitoring.headline import available_of
from ..monitoring.health import iso
from ..settings import allowed_origins
from ..telemetry.log_text import format_time
from .check_report import CheckReport, KeyReport, StateReport, build_report
from .console import console, escape, table

__all__ = ["check"]

_MAX_TEXT = 200
"""Longest part of a server's message in the table; the JSON has all of it."""


def check(*, live: bool, model: str | None, as_json: bool) -> int:
    """Print the report; return 0 if a key is available and nothing is wrong, else 1.

    Args:
        live: Send one request with each key.
        model: For these requests; None: the key's own, or the default.
        as_json: Print JSON instead of tables.
    """
    try:
        config = load()
        report = build_report(config)
    except ConfigError as error:
        if as_json:
            print(json.dumps({"ok": False, "error": str(error)}, indent=2))
        else:
            print(f"keyrot: {error}", file=sys.stderr)
        return 1
    if live and report.enabled:
        report = _with_probes(report, config.settings.allowed_hosts, model)
    if as_json:
        print(json.dumps(_report_to_json(report), indent=2))
    else:
        _print_report(report)
    return 0 if report.ok else 1


def _with_probes(
    report: CheckReport, allowed_hosts: tuple[str, ...], model: str | None
) -> CheckReport:
    """Add the result of one request with each key; keys are sent to allowed hosts only."""
    if report.secrets is None:
        return report
    found = [key.spec for key in report.keys if key.resolved]
    problems = list(report.problems)
    keys_to_check: dict[str, tuple[str | None, Platform]] = {}
    for platform in dict.fromkeys(spec.platform for spec in found):
        try:
            require_allowed_host(allowed_origins(allowed_hosts), platform)
        except KeyrotError as error:
            problems.append(f"--live {error}")
            continue
        keys_to_check |= {
            spec.key_id: (model or spec.model, platform)
            for spec in found
            if spec.platform == platform
        }
    probes = check_keys(report.secrets, keys_to_check)
    keys = tuple(replace(key, probe=probes.get(key.spec.key_id)) for key in report.keys)
    return replace(report, keys=keys, problems=tuple(problems))


def _report_to_json(report: CheckReport) -> dict[str, Any]:
    """Return the report as JSON values, without the values of keys."""
    return {
        "ok": report.ok,
        "enabled": report.enabled,
        "settings": {
            setting.variable: {"value": setting.json_value, "source": setting.source}
            for setting in report.settings
        },
        "state": _state_to_json(report.state),
        "keys": [_key_to_json(key) for key in report.keys],
        "warnings": list(report.warnings),
        "problems": list(report.problems),
    }


def _state_to_json(state: StateReport | None) -> dict[str, Any] | None:
    if state is None:
        return None
    reachable = state.problem is None if state.shared else None
    return {"url": state.url, "shared": state.shared, "reachable": reachable}


def _key_to_json(key: KeyReport) -> dict[str, Any]:
    probe = key.probe
    value = key.spec.model_dump(exclude={"secret"}) | {
        "store": key.store,
        "secret": key.location,
        "resolved": key.resolved,
        "problem": key.problem,
        "same_as": key.same_as,
        "fingerprint": key.fingerprint,
        "state": key.availability.state,
        "available": key.availability.state == "available",
        "available_at": iso(key.availability.at),
    }
    if probe is not None:
        names = ("ok", "model", "failure", "code", "text")
        value["live"] = {name: getattr(probe, name) for name in names}
        value["live"]["seconds"] = round(probe.seconds, 3)
    return value


def _print_report(report: CheckReport) -> None:
    """Print the verdict, then what is wrong, then keys, state and settings."""
    out = console()
    if not report.enabled:
        out.print("Rotation is switched off by ENABLE_KEY_ROTATION; install() does nothing.")
        return
    out.print(_format_verdict(report))
    for text in report.problems:
        _print_message("red", "problem", text)
    for key in report.keys:
        if key.problem:
            _print_message("red", "skipped", key.problem)
        if key.probe and not key.probe.ok:
            text = " ".join(str(key.probe.text).split())[:_MAX_TEXT]
            _print_message("red", "failed", f"{key.spec.key_id}: {key.probe.failure}: {text}")
    for text in report.warnings:
        _print_message("yellow", "warning", text)
    if report.keys:
        _print_keys(report.keys)
    if report.state is not None:
        state = f"{escape(report.state.url)}, {_describe_state(report.state)}"
        out.print(f"\n[bold]State[/]: {state}", soft_wrap=True)
    settings = table("Settings", "variable", "value", "from")
    for setting in report.settings:
        style = "dim" if setting.source == "default" else ""
        settings.add_row(setting.variable, escape(setting.value), setting.source, style=style)
    out.print("", settings)


def _print_keys(keys: Sequence[KeyReport]) -> None:
    columns = ("key", "model\nworkload, tier", "project\npriority", "limits", "value from")
    rows = table(f"Keys ({len(keys)})", *columns)
    for key in keys:
        spec = key.spec
        platform = None if spec.platform == GEMINI_API else spec.platform
        details = ", ".join(filter(None, (spec.workload, spec.tier, platform))) or "-"
        rows.add_row(
            escape(spec.key_id),
            f"{escape(spec.model or '-')}\n[dim]{escape(details)}[/]",
            f"{escape(spec.project or '-')}\n[dim]{_format_priority(spec.priority)}[/]",
            _format_limits(key),
            f"{escape(key.location)}\n{_format_value(key)}",
        )
    console().print("", rows)


def _describe_state(state: StateReport) -> str:
    if not state.shared:
        return "not shared: each process counts by itself"
    return "shared, [green]reachable[/]" if state.problem is None else "shared, [red]unreachable[/]"


def _print_message(style: str, label: str, text: str) -> None:
    """Print a message without line breaks, so that it can be searched for."""
    console().print(f"[{style}]{label}:[/] {escape(text)}", soft_wrap=True)


def _format_priority(number: int) -> str:
    return "last resort" if number == LAST_RESORT else str(number)


def _format_limits(key: KeyReport) -> str:
    spec = key.spec
    known = {"rpm": spec.rpm, "tpm": spec.tpm, "rpd": spec.rpd, "at once": spec.max_concurrency}
    return "\n".join(f"{number:,} {name}" for name, number in known.items() if number) or "-"


def _format_value(key: KeyReport) -> str:
    """Format whether the value was found, with a fingerprint to compare between hosts."""
    if key.problem:
        return "[red]not found[/]"
    if key.same_as:
        return f"same value as {key.same_as}"
    text = f"[green]found[/] #{key.fingerprint}{_format_availability(key.shared)}"
    if key.probe is None:
        return text
    if key.probe.ok:
        return f"{text}, [green]works[/] ({key.probe.seconds:.1f} s)"
    code = f" ({key.probe.code})" if key.probe.code else ""
    return f"{text}, [red]{key.probe.failure}{code}[/]"


def _format_availability(shared: Availability) -> str:
    """Format the state of a key that is not available."""
    if shared.state == "available":
        return ""
    until = f" until {format_time(shared.at)}" if shared.at is not None else ""
    return f", [yellow]{shared.state}{until}[/]"


def _format_verdict(report: CheckReport) -> str:
    if not report.keys:
        return "[red]No key:[/] set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json."
    available = sum(key.availability.state == "available" for key in report.keys)
    count = available_of(available, len(report.keys))
    if report.ok:
        return f"[bold green]OK:[/] {count}."
    problems = len(report.problems) + sum(not key.ok for key in report.keys)
    listed = f"{plural(problems, 'problem')}; " if problems else ""
    return f"[bold red]Not OK:[/] {listed}{count}."
