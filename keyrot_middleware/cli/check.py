"""`keyrot check`: effective settings, each key, warnings and problems; the verdict comes last."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from .._install import bypasses, doubts
from ..core.availability import AVAILABLE, Availability
from ..core.failures import KEY_REJECTIONS
from ..core.model import DEFAULT_PLATFORM, LAST_RESORT
from ..core.text import mask_url, plural
from ..errors import ConfigError, KeyrotError, MissingExtraError
from ..genai.key_check import KeyCheck, check_keys, require_allowed_host
from ..keys_file import OUTSIDE_TIERS, KeySpec
from ..monitoring import open_receivers
from ..monitoring.view import available_of, iso, look
from ..providers.keys import mask_keys
from ..runtime.pool import resolved_candidates
from ..secrets.cache import SecretCache
from ..secrets.stores import open_secret_cache
from ..settings import (
    ENV_NAMES,
    SECRET_SETTINGS,
    Config,
    load,
)
from ..telemetry.logs import format_time
from ..telemetry.otel import DeferredOtlpExport
from .status import console, escape, open_configured, table

MAX_TEXT = 200
"""Longest part of a server's message in the table; the JSON has all of it."""
NONE = "none"
BUSY = frozenset({"quota_minute", "quota_day", "rate_limit", "capacity", "overloaded"})
"""Replies to `--live` that say nothing against a key: its value works, at another time."""


@dataclass(slots=True)
class _Key:
    """One key of the pool."""

    spec: KeySpec
    location: str
    store: str
    disabled: str | None
    problem: str | None
    """Why it has no value."""
    same_as: str | None
    """The key with the same value, which is used instead."""
    fingerprint: str | None
    shared: Availability | None
    """In the shared state; None: that cannot be read."""
    probe: KeyCheck | None = None
    """The result of `--live`."""

    @property
    def availability(self) -> Availability | None:
        """Whether a call sent now would get it; None: not known."""
        if self.disabled:
            return Availability("disabled", None, self.disabled)
        if self.fingerprint is None:
            return Availability("unresolved")
        if self.probe is not None and self.probe.failure in KEY_REJECTIONS:
            return Availability("rejected", None, self.probe.failure)
        return AVAILABLE if self.probe is not None and self.probe.ok else self.shared

    @property
    def trouble(self) -> str | None:
        """What is wrong with it."""
        if self.problem:
            return f"skipped: {self.problem}"
        if self.probe is not None and not self.probe.ok and self.probe.failure not in BUSY:
            text = " ".join(str(self.probe.text).split())[:MAX_TEXT]
            return f"failed: {self.spec.key_id}: {self.probe.failure}: {text}"
        here = self.availability
        if here is not None and here.state == "rejected":
            return f"rejected: {self.spec.key_id}: {here.reason}; replace its value"
        return None


@dataclass(slots=True)
class _Report:
    settings: dict[str, tuple[str, Any, str]]
    """By variable the value as displayed, as JSON, and `environment`, `.env` or `default`."""
    state_url: str
    shared: bool
    reachable: bool
    keys: list[_Key]
    warnings: list[str]
    problems: list[str] = field(default_factory=list)
    """Those that are not of single keys."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and at least one key has a value."""
        has_key = any(key.fingerprint and not key.disabled for key in self.keys)
        return has_key and not self.problems and not any(key.trouble for key in self.keys)


def check(*, live: bool, model: str | None, as_json: bool) -> int:
    """Print the report; return 0 if there is a key and nothing is wrong, else 1.

    Args:
        live: Send one request with each key.
        model: For these requests; None: the key's own, or the default.
        as_json: Print JSON instead of tables.
    """
    try:
        config = load()
        if not config.settings.enabled:
            if as_json:
                print(json.dumps({"ok": True, "enabled": False}, indent=2))
            else:
                print("Rotation is switched off by ENABLE_KEY_ROTATION; install() does nothing.")
            return 0
        secrets = open_secret_cache(config, start_timeout_s=60)
        report = _make_report(config, secrets)
    except ConfigError as error:
        if as_json:
            print(json.dumps({"ok": False, "error": str(error)}, indent=2))
        else:
            print(f"keyrot: {error}", file=sys.stderr)
        return 1
    if live:
        _probe(report, secrets, config, model)
    if as_json:
        print(json.dumps(_to_json(report), indent=2))
    else:
        _print(report)
    return 0 if report.ok else 1


def _make_report(config: Config, secrets: SecretCache) -> _Report:
    """Look up every key as install() does, and check settings and state."""
    url, problems = mask_url(config.state_url), []
    rows: dict[str, Availability] = {}
    unknown: Availability | None = AVAILABLE
    is_shared, problem = True, ""
    try:
        shared = open_configured(config)
        is_shared = shared is not None
        if shared is not None:
            try:
                shared.check()
                candidates = resolved_candidates(config.candidates, secrets)
                rows = {row.key.key_id: row.overall for row in look(shared, candidates)}
            finally:
                shared.close()
    except KeyrotError as error:
        # The messages contain no credentials, except in the URL.
        text = str(error).replace(config.state_url, url)
        unknown = None
        problem = f"the shared state {url} cannot be used: {text}"
        problems.append(problem)
    try:
        if config.settings.tracing == "otlp":
            DeferredOtlpExport()
    except MissingExtraError as error:
        problems.append(str(error))
    try:
        open_receivers(None, config.settings.alerts, ())
    except ConfigError as error:
        problems.append(str(error))
    warnings = [*config.warnings, *_bypass_warnings(config)]
    try:
        warnings += doubts(config, secrets)
    except ConfigError as error:
        problems.append(str(error))
    disabled = {key.key_id: key.disabled for key in config.candidates}
    return _Report(
        settings=dict(_settings(config)),
        state_url=url,
        shared=is_shared,
        reachable=not problem,
        keys=[
            _Key(
                key,
                *_locate(key, config, secrets),
                disabled[key.key_id],
                problem=secrets.unresolved.get(key.key_id),
                same_as=secrets.duplicates.get(key.key_id),
                fingerprint=secrets.value(key.key_id).fingerprint
                if key.key_id in secrets.resolved
                else None,
                shared=rows.get(key.key_id, unknown),
            )
            for key in config.keys
        ],
        warnings=warnings,
        problems=problems,
    )


def _probe(report: _Report, secrets: SecretCache, config: Config, model: str | None) -> None:
    """Send one request with each key; keys are sent to allowed hosts only."""
    found = [key.spec for key in report.keys if key.fingerprint is not None]
    allowed = config.allowed
    wanted: dict[str, tuple[str | None, str]] = {}
    for platform in dict.fromkeys(spec.service for spec in found):
        try:
            require_allowed_host(allowed, platform)
        except KeyrotError as error:
            report.problems.append(f"--live {error}")
            continue
        wanted |= {
            spec.key_id: (model or spec.model, platform)
            for spec in found
            if spec.service == platform
        }
    probes = check_keys(secrets, wanted)
    for key in report.keys:
        key.probe = probes.get(key.spec.key_id)


def _settings(config: Config) -> Iterator[tuple[str, tuple[str, Any, str]]]:
    for name, variable in ENV_NAMES.items():
        where = config.sources.get(name)
        source = ".env" if where and where.endswith(" in .env") else "environment"
        source = source if where else "default"
        value = getattr(config.settings, name)
        if name == "keys_file" and value is None and Path("keys.json").exists():
            value = "keys.json"  # found in the working directory
        yield variable, (*_display(name, value), source)


def _display(name: str, value: Any) -> tuple[str, Any]:
    """Return a value as displayed, and as JSON."""
    if name in SECRET_SETTINGS:
        if isinstance(value, tuple):
            return (f"{len(value)} (not shown)" if value else NONE), len(value)
        if isinstance(value, SecretStr) and value.get_secret_value():
            return "set (not shown)", "set (not shown)"
        return NONE, None
    if value is None or isinstance(value, bool | int | float):
        text = NONE if value is None else str(value).lower()
        return (f"{value:g}" if isinstance(value, float) else text), value
    if isinstance(value, tuple):
        return ", ".join(map(str, value)), list(map(str, value))
    text = mask_url(mask_keys(str(value)))
    return text, text


def _locate(key: KeySpec, config: Config, secrets: SecretCache) -> tuple[str, str]:
    """Return a key's location, and the scheme of its store; `setting` if a setting holds it."""
    if key.key_id in config.inline:
        return f"GEMINI_API_KEYS ({key.key_id})", "setting"
    store = secrets.locations[key.key_id].store
    get_place = getattr(store, "place", None)
    default = get_place(key.key_id) if get_place is not None and not key.secret else None
    return key.secret or default or f"{store.scheme}:// (default location)", store.scheme


def _bypass_warnings(config: Config) -> Iterator[str]:
    """Yield what makes calls bypass the pool."""
    yield from bypasses(config)
    platforms = {key.service for key in config.keys}
    for name in ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI"):
        if os.environ.get(name, "").lower() in ("true", "1") and "vertex_express" not in platforms:
            yield f"{name} is set: clients go to Vertex AI, and bypass the pool"
    idle = [key.key_id for key in config.keys if not key.active]
    if idle:
        yield f"disabled by active=false: {', '.join(idle)}"
    other = [key.key_id for key in config.candidates if key.disabled == OUTSIDE_TIERS]
    if other:
        yield f"not used, since KEYROT_TIERS allows other tiers only: {', '.join(other)}"


# What is printed ---------------------------------------------------------------------------------


def _to_json(report: _Report) -> dict[str, Any]:
    """Return the report as JSON values, without the values of keys."""
    reachable = report.reachable if report.shared else None
    return {
        "ok": report.ok,
        "enabled": True,
        "settings": {
            variable: {"value": value, "source": source}
            for variable, (_, value, source) in report.settings.items()
        },
        "state": {"url": report.state_url, "shared": report.shared, "reachable": reachable},
        "keys": [_key_to_json(key) for key in report.keys],
        "warnings": report.warnings,
        "problems": report.problems,
    }


def _key_to_json(key: _Key) -> dict[str, Any]:
    here = key.availability
    value = key.spec.model_dump(exclude={"secret"}) | {
        "store": key.store,
        "secret": key.location,
        "resolved": key.fingerprint is not None,
        "problem": key.problem,
        "same_as": key.same_as,
        "fingerprint": key.fingerprint,
        "state": here and here.state,
        "available": here and here == AVAILABLE,
        "available_at": here and iso(here.at),
    }
    if key.probe is not None:
        names = ("ok", "model", "failure", "code", "text")
        value["live"] = {name: getattr(key.probe, name) for name in names}
        value["live"]["seconds"] = round(key.probe.seconds, 3)
    return value


def _print(report: _Report) -> None:
    """Print what is set, keys and state, then what is wrong, then the verdict."""
    out = console()
    settings = table("Settings (others have their defaults)", "variable", "value", "from")
    for variable, (value, _, source) in report.settings.items():
        if source != "default":
            settings.add_row(variable, escape(value), source)
    if settings.rows:
        out.print(settings, "")
    if report.keys:
        _print_keys(report.keys)
    shared = "not shared: each process counts by itself"
    if report.shared:
        shared = f"shared, {'[green]reachable' if report.reachable else '[red]unreachable'}[/]"
    out.print(f"[bold]State[/]: {escape(report.state_url)}, {shared}\n", soft_wrap=True)
    for text in report.warnings:
        _print_message("yellow", "warning", text)
    for text in report.problems:
        _print_message("red", "problem", text)
    for key in report.keys:
        if key.trouble:
            _print_message("red", *key.trouble.split(": ", 1))
    out.print(_verdict(report))


def _print_keys(keys: list[_Key]) -> None:
    columns = ("key", "model\nworkload, tier", "project\npriority", "limits", "value from")
    rows = table(f"Keys ({len(keys)})", *columns)
    for key in keys:
        spec = key.spec
        platform = None if spec.service == DEFAULT_PLATFORM else spec.service
        details = ", ".join(filter(None, (spec.workload, spec.tier, platform))) or "-"
        last = spec.priority == LAST_RESORT
        limits: Mapping[str, int | None] = {
            "rpm": spec.rpm,
            "tpm": spec.tpm,
            "rpd": spec.rpd,
            "at once": spec.max_concurrency,
        }
        rows.add_row(
            escape(spec.key_id),
            f"{escape(spec.model or '-')}\n[dim]{escape(details)}[/]",
            f"{escape(spec.project or '-')}\n[dim]{'last resort' if last else spec.priority}[/]",
            "\n".join(f"{number:,} {name}" for name, number in limits.items() if number) or "-",
            f"{escape(key.location)}\n{_format_value(key)}",
        )
    console().print(rows, "")


def _print_message(style: str, label: str, text: str) -> None:
    """Print a message without line breaks, so that it can be searched for."""
    console().print(f"[{style}]{label}:[/] {escape(text)}", soft_wrap=True)


def _format_value(key: _Key) -> str:
    """Format whether the value was found, with a fingerprint to compare between hosts."""
    if key.problem:
        return "[red]not found[/]"
    if key.same_as:
        return f"same value as {key.same_as}"
    text, here = f"[green]found[/] #{key.fingerprint}", key.shared
    if here is not None and here != AVAILABLE:
        until = ", tried again at" if here.state == "rejected" else " until"
        until = f"{until} {format_time(here.at)}" if here.at is not None else ""
        text += f", [yellow]{here.state}{until}[/]"
    if key.probe is None:
        return text
    if key.probe.ok:
        return f"{text}, [green]works[/] ({key.probe.seconds:.1f} s)"
    code = f" ({key.probe.code})" if key.probe.code else ""
    if key.probe.failure in BUSY:
        return f"{text}, works; now [yellow]{key.probe.failure}{code}[/]"
    return f"{text}, [red]{key.probe.failure}{code}[/]"


def _verdict(report: _Report) -> str:
    if not report.keys:
        return "[red]No key:[/] set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json."
    states = [key.availability for key in report.keys]
    count = available_of(states.count(AVAILABLE), len(states))
    if None in states:
        count = "which keys are available is not known"
    if report.ok:
        return f"[bold green]OK:[/] {count}."
    problems = len(report.problems) + sum(key.trouble is not None for key in report.keys)
    listed = f"{plural(problems, 'problem')}; " if problems else ""
    return f"[bold red]Not OK:[/] {listed}{count}."
