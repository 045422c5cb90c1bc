"""The data of `keyrot check`: effective settings, keys, the state, warnings and problems."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from .._install import doubts
from ..adapters.urls import origin_from_url
from ..config import Config
from ..core.availability import AVAILABLE, REJECTED, Availability
from ..core.model import GEMINI_API, VERTEX_EXPRESS
from ..core.text import mask_keys, mask_url
from ..errors import ConfigError, KeyrotError, MissingExtraError
from ..genai.key_check import KeyCheck, base_url
from ..keys_file import OUTSIDE_TIERS, KeySpec
from ..monitoring.alert_receivers import open_receivers
from ..monitoring.health import views
from ..runtime.pool import resolved_candidates
from ..secrets import SecretCache, open_secret_cache
from ..settings import (
    BASE_URL_VARIABLES,
    ENV_NAMES,
    SECRET_SETTINGS,
    allowed_origins,
)
from ..telemetry.otlp import DeferredOtlpExport
from .shared_pool import open_configured

__all__ = [
    "CheckReport",
    "KeyReport",
    "SettingReport",
    "StateReport",
    "build_report",
]

HIDDEN = "set (not shown)"
NONE = "none"


@dataclass(frozen=True, slots=True)
class SettingReport:
    """One effective setting."""

    variable: str
    value: str
    """As displayed."""
    json_value: bool | float | str | list[str] | None
    """As a JSON value."""
    source: str
    """`environment`, `.env` or `default`."""


@dataclass(frozen=True, slots=True)
class KeyReport:
    """One key of the pool and whether its value was found."""

    spec: KeySpec
    store: str
    """The scheme of its store; `setting` if a setting holds its value."""
    location: str
    problem: str | None = None
    same_as: str | None = None
    """The key with the same value, which is used instead."""
    fingerprint: str | None = None
    probe: KeyCheck | None = None
    """The result of `--live`."""
    shared: Availability = AVAILABLE
    """In the shared state; `available` if each process has its own."""
    disabled: str | None = None
    """Why no call uses it."""

    @property
    def resolved(self) -> bool:
        """Whether it has a value of its own."""
        return self.fingerprint is not None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.problem is None and (self.probe is None or self.probe.ok)

    @property
    def availability(self) -> Availability:
        """Whether a call sent now would get it."""
        if self.disabled:
            return Availability("disabled", None, self.disabled)
        if not self.resolved:
            return Availability("unresolved")
        failure = self.probe.failure if self.probe is not None else None
        return Availability("rejected", None, failure) if failure in REJECTED else self.shared


@dataclass(frozen=True, slots=True)
class StateReport:
    """The configured state, and whether it is reachable."""

    url: str
    """Without user and password."""
    shared: bool
    problem: str | None = None
    keys: Mapping[str, Availability] = field(default_factory=dict)
    """The availability of the keys with a value, by id."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of `keyrot check`."""

    enabled: bool
    settings: tuple[SettingReport, ...] = ()
    keys: tuple[KeyReport, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """Problems other than those of single keys."""
    state: StateReport | None = None
    secrets: SecretCache | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong and at least one key resolves, or rotation is switched off."""
        if not self.enabled:
            return True
        has_key = any(key.resolved and not key.disabled for key in self.keys)
        return has_key and not self.problems and all(key.ok for key in self.keys)


def build_report(config: Config) -> CheckReport:
    """Look up every key as install() does, and check settings and state."""
    if not config.settings.enabled:
        return CheckReport(enabled=False)
    secrets = open_secret_cache(config)
    state = _state_report(config, secrets)
    disabled = {key.key_id: key.disabled for key in config.candidates}
    return CheckReport(
        enabled=True,
        state=state,
        problems=tuple(
            filter(None, (state.problem, _tracing_problem(config), _alerts_problem(config)))
        ),
        settings=tuple(_setting_reports(config)),
        keys=tuple(
            replace(
                _key_report(key, config, secrets),
                shared=state.keys.get(key.key_id, AVAILABLE),
                disabled=disabled[key.key_id],
            )
            for key in config.keys
        ),
        warnings=(*config.warnings, *doubts(secrets), *_bypass_warnings(config)),
        secrets=secrets,
    )


def _state_report(config: Config, secrets: SecretCache) -> StateReport:
    """Open the shared state, if one is configured, and read the availability of the keys."""
    url = mask_url(config.state_url)
    try:
        shared = open_configured(config)
        if shared is None:
            return StateReport(url, shared=False)
        try:
            shared.check()
            found = views(shared, resolved_candidates(config.candidates, secrets))
        finally:
            shared.close()
    except KeyrotError as error:
        # The messages contain no credentials, except in the URL.
        text = str(error).replace(config.state_url, url)
        problem = f"the shared state {url} cannot be used: {text}"
        return StateReport(url, shared=True, problem=problem)
    keys = {key_id: seen.overall for key_id, seen in found.items()}
    return StateReport(url, shared=True, keys=keys)


def _tracing_problem(config: Config) -> str | None:
    """Return why spans cannot be exported; None if they can."""
    try:
        if config.settings.tracing == "otlp":
            DeferredOtlpExport()
    except MissingExtraError as error:
        return str(error)
    return None


def _alerts_problem(config: Config) -> str | None:
    """Return why alerts cannot be sent; None if they can, as far as their URLs show."""
    try:
        open_receivers(None, config.settings.alerts, ())
    except ConfigError as error:
        return str(error)
    return None


def _setting_reports(config: Config) -> Iterator[SettingReport]:
    for name, variable in ENV_NAMES.items():
        where = config.sources.get(name)
        source = ".env" if where and where.endswith(" in .env") else "environment"
        source = source if where else "default"
        value = getattr(config.settings, name)
        if name == "keys_file" and value is None and Path("keys.json").exists():
            value = "keys.json"  # found in the working directory
        yield SettingReport(variable, _display_value(name, value), _json_value(name, value), source)


def _display_value(name: str, value: Any) -> str:
    if name in SECRET_SETTINGS:
        if isinstance(value, tuple):
            return f"{len(value)} (not shown)" if value else NONE
        return HIDDEN if isinstance(value, SecretStr) and value.get_secret_value() else NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return NONE if value is None else mask_url(mask_keys(str(value)))


def _json_value(name: str, value: Any) -> bool | float | str | list[str] | None:
    if name in SECRET_SETTINGS and isinstance(value, tuple):
        return len(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple):
        return list(map(str, value))
    text = _display_value(name, value)
    return None if text == NONE else text


def _key_report(key: KeySpec, config: Config, secrets: SecretCache) -> KeyReport:
    store, location = _locate(key, config, secrets)
    has_value = key.key_id in secrets.resolved
    return KeyReport(
        spec=key,
        store=store,
        location=location,
        problem=secrets.unresolved.get(key.key_id),
        same_as=secrets.duplicates.get(key.key_id),
        fingerprint=secrets.value(key.key_id).fingerprint if has_value else None,
    )


def _locate(key: KeySpec, config: Config, secrets: SecretCache) -> tuple[str, str]:
    """Return a key's store and its location in that store."""
    if key.key_id in config.inline:
        return "setting", f"GEMINI_API_KEYS ({key.key_id})"
    store = secrets.locations[key.key_id].store
    get_place = getattr(store, "place", None)
    default = get_place(key.key_id) if get_place is not None and not key.secret else None
    return store.scheme, key.secret or default or f"{store.scheme}:// (default location)"


def _bypass_warnings(config: Config) -> Iterator[str]:
    """Yield what makes calls bypass the pool."""
    allowed, platforms = allowed_origins(config.settings.allowed_hosts), {GEMINI_API}
    platforms.update(key.platform for key in config.keys)
    for platform, name in BASE_URL_VARIABLES.items():
        origin = origin_from_url(base_url(platform))
        if platform in platforms and origin not in allowed[platform]:
            yield (
                f"{name} points to {origin or 'no URL'}, which is not in "
                "KEYROT_ALLOWED_HOSTS: calls to it bypass the pool"
            )
    for name in ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI"):
        if os.environ.get(name, "").lower() in ("true", "1") and VERTEX_EXPRESS not in platforms:
            yield f"{name} is set: clients go to Vertex AI, and bypass the pool"
    idle = [key.key_id for key in config.keys if not key.active]
    if idle:
        yield f"disabled by active=false: {', '.join(idle)}"
    other = [key.key_id for key in config.candidates if key.disabled == OUTSIDE_TIERS]
    if other:
        yield f"not used, since KEYROT_TIERS allows other tiers only: {', '.join(other)}"
