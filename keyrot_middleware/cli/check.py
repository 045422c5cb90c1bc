"""`keyrot check`: effective settings, each key, warnings and problems; the verdict comes last.

How keys are meanwhile, in a shared state, is `keyrot status`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import providers
from .._install import bypasses, doubts
from ..clients.key_check import KeyCheck, check_key
from ..core.failures import BUSY
from ..core.hiding import mask_url
from ..core.wording import plural
from ..errors import ConfigError, KeyrotError
from ..keys_file import OUTSIDE_TIERS, KeySpec
from ..monitoring.alerts import open_receivers
from ..providers.gemini import Gemini
from ..providers.keys import mask_keys
from ..secrets.cache import SecretCache
from ..secrets.stores import open_secret_cache
from ..settings import ENV_NAMES, SECRET_SETTINGS, Config, load
from .status import console, escape, open_configured, table

MAX_TEXT = 200
"""Longest part of a server's message in the table; the JSON has all of it."""
_AT_ONCE = 8
"""Requests of `--live`."""


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
        report = _make_report(config, live=live, model=model)
    except ConfigError as error:
        if as_json:
            print(json.dumps({"ok": False, "error": str(error)}, indent=2))
        else:
            print(f"keyrot: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0 if report["ok"] else 1


def _make_report(config: Config, *, live: bool, model: str | None) -> dict[str, Any]:
    """Look up every key as install() does, and check settings and state.

    Returns:
        The report as `--json` prints it, without the values of keys.
    """
    secrets = open_secret_cache(config, start_timeout_s=60)
    problems: list[str] = []
    warnings = [*config.warnings, *_bypass_warnings(config)]
    state = _look_at_state(config, problems)
    try:
        open_receivers(None, config.settings.alerts, ())
        warnings += doubts(config, secrets)
    except ConfigError as error:
        problems.append(str(error))
    checks = _probe(config, secrets, model, problems) if live else {}
    disabled = {key.key_id: key.disabled for key in config.candidates}
    keys = []
    for spec in config.keys:
        key_id = spec.key_id
        value = secrets.value(key_id) if key_id in secrets.resolved else None
        probe = checks.get(key_id)
        location, store = _locate(spec, config, secrets)
        keys.append(
            spec.model_dump(exclude={"secret"})
            | {
                "store": store,
                "secret": location,
                "resolved": value is not None,
                "problem": secrets.unresolved.get(key_id),
                "same_as": secrets.duplicates.get(key_id),
                "fingerprint": value and value.fingerprint,
                "disabled": disabled[key_id],
            }
            | ({"live": asdict(probe)} if probe is not None else {})
        )
    usable = any(key["resolved"] and not key["disabled"] for key in keys)
    again = [key["key_id"] for key in keys if key["same_as"] and key["key_id"] in config.inline]
    if again:
        warnings.append(
            f"GEMINI_API_KEYS has the values of other keys again ({', '.join(again)}): unset it"
        )
    return {
        "ok": usable and not problems and not any(map(_trouble, keys)),
        "enabled": True,
        "settings": dict(_settings(config)),
        "state": state,
        "keys": keys,
        "warnings": warnings,
        "problems": problems,
    }


def _look_at_state(config: Config, problems: list[str]) -> dict[str, Any]:
    """Return where the state is, and whether it answers."""
    url = mask_url(config.state_url)
    try:
        state = open_configured(config)
        if state is None:
            return {"url": url, "shared": False, "reachable": None}
        try:
            state.check()
        finally:
            state.close()
    except KeyrotError as error:
        # The messages contain no credentials, except in the URL.
        text = str(error).replace(config.state_url, url)
        problems.append(f"the shared state {url} cannot be used: {text}")
        return {"url": url, "shared": True, "reachable": False}
    return {"url": url, "shared": True, "reachable": True}


def _probe(
    config: Config, secrets: SecretCache, model: str | None, problems: list[str]
) -> dict[str, KeyCheck]:
    """Send one request with each key, eight at a time; keys are sent to allowed hosts only."""

    def send(key: KeySpec) -> KeyCheck | str:
        asked = model or key.model
        try:
            return check_key(secrets, key.key_id, asked, key.service, config.allowed)
        except KeyrotError as error:
            return f"--live {error}"

    keys = [key for key in config.keys if key.key_id in secrets.resolved]
    with ThreadPoolExecutor(_AT_ONCE) as workers:
        results = dict(zip(keys, workers.map(send, keys), strict=True))
    problems += dict.fromkeys(text for text in results.values() if isinstance(text, str))
    return {key.key_id: one for key, one in results.items() if isinstance(one, KeyCheck)}


def _settings(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, variable in ENV_NAMES.items():
        where = config.sources.get(name)
        source = ".env" if where and where.endswith(" in .env") else "environment"
        value = getattr(config.settings, name)
        if name == "keys_file" and value is None and Path("keys.json").exists():
            value = "keys.json"  # found in the working directory
        yield variable, {"value": _shown(name, value), "source": source if where else "default"}


def _shown(name: str, value: Any) -> Any:
    """Return a value as JSON; of keys and passwords, how many there are."""
    if name in SECRET_SETTINGS:
        if isinstance(value, tuple):
            return f"{len(value)} (not shown)"
        return "set (not shown)" if value and value.get_secret_value() else None
    if isinstance(value, tuple):
        return list(map(str, value))
    is_plain = value is None or isinstance(value, bool | int | float)
    return value if is_plain else mask_url(mask_keys(str(value)))


def _locate(key: KeySpec, config: Config, secrets: SecretCache) -> tuple[str, str]:
    """Return a key's location, and the scheme of its store; `setting` if a setting holds it."""
    if key.key_id in config.inline:
        names = (f"{name}S" for name in providers.of(key.service).variables)
        listed = "GEMINI_API_KEYS" if key.provider == Gemini.name else " or ".join(names)
        return f"{listed} ({key.key_id})", "setting"
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


def _print(report: dict[str, Any]) -> None:
    """Print what is set, keys and state, then what is wrong, then the verdict."""
    out = console()
    settings = table("Settings (others have their defaults)", "variable", "value", "from")
    for variable, setting in report["settings"].items():
        if (source := setting["source"]) != "default":
            value = setting["value"]
            text = ", ".join(value) if isinstance(value, list) else str(value)
            settings.add_row(variable, escape(text), source)
    if settings.rows:
        out.print(settings, "")
    if report["keys"]:
        _print_keys(report["keys"])
    state, shared = report["state"], "not shared: each process counts by itself"
    if state["shared"]:
        shared = f"shared, {'[green]reachable' if state['reachable'] else '[red]unreachable'}[/]"
    out.print(f"[bold]State[/]: {escape(state['url'])}, {shared}\n", soft_wrap=True)
    for text in report["warnings"]:
        _print_message("yellow", "warning", text)
    for text in report["problems"]:
        _print_message("red", "problem", text)
    troubles = [text for text in map(_trouble, report["keys"]) if text]
    for text in troubles:
        _print_message("red", *text.split(": ", 1))
    out.print(_verdict(report, len(report["problems"]) + len(troubles)))


def _print_keys(keys: list[dict[str, Any]]) -> None:
    rows = table(f"Keys ({len(keys)})", "key", "for", "project", "value from")
    for key in keys:
        is_gemini = key["provider"] == Gemini.name
        row = key["key_id"], key["platform" if is_gemini else "provider"], key["project"] or "-"
        rows.add_row(*map(escape, row), f"{escape(key['secret'])}\n{_format_value(key)}")
    console().print(rows, "")


def _print_message(style: str, label: str, text: str) -> None:
    """Print a message without line breaks, so that it can be searched for."""
    console().print(f"[{style}]{label}:[/] {escape(text)}", soft_wrap=True)


def _trouble(key: dict[str, Any]) -> str | None:
    """Return what is wrong with a key."""
    live = key.get("live")
    if key["problem"]:
        return f"skipped: {key['problem']}"
    if live and not live["ok"] and live["failure"] not in BUSY:
        text = " ".join(str(live["text"]).split())[:MAX_TEXT]
        advice = f"; {live['advice']}" if live["advice"] else ""
        return f"failed: {key['key_id']}: {live['failure']}: {text}{advice}"
    return None


def _format_value(key: dict[str, Any]) -> str:
    """Format whether the value was found, with a fingerprint to compare between hosts."""
    if key["problem"]:
        return "[red]not found[/]"
    if key["same_as"]:
        return f"same value as {key['same_as']}"
    text, live = f"[green]found[/] #{key['fingerprint']}", key.get("live")
    if live is None:
        return text
    if live["ok"]:
        return f"{text}, [green]works[/] ({live['seconds']:.1f} s)"
    code = f" ({live['code']})" if live["code"] else ""
    if live["failure"] in BUSY:
        return f"{text}, works; now [yellow]{live['failure']}{code}[/]"
    return f"{text}, [red]{live['failure']}{code}[/]"


def _verdict(report: dict[str, Any], problems: int) -> str:
    keys = report["keys"]
    if not keys:
        return "[red]No key:[/] set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json."
    values = sum(key["resolved"] for key in keys)
    count = f"{values:,} of {plural(len(keys), 'key')} found"
    if report["ok"]:
        return f"[bold green]OK:[/] {count}."
    listed = f"{plural(problems, 'problem')}; " if problems else ""
    return f"[bold red]Not OK:[/] {listed}{count}."
