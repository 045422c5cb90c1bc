"""What `keyrot check` finds out: settings in force, keys, and what is wrong; no drawing here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import SecretStr

from .._install import doubts
from ..config import Config
from ..core.availability import AVAILABLE, REJECTED, Availability
from ..core.text import mask_keys, mask_url
from ..errors import KeyrotError, MissingExtraError
from ..genai.call_info import origin_from_url
from ..genai.live_check import LiveCheck
from ..keys_file import KeySpec
from ..runtime.health import views
from ..runtime.pool import resolved_candidates
from ..secrets import Secret, SecretCache, open_secret_cache
from ..settings import ENV_NAMES, GOOGLE_HOST, SECRET_SETTINGS, origins, spellings
from ..telemetry.otlp import DeferredOtlpExport
from .shared import open_configured

__all__ = [
    "CheckReport",
    "KeyReport",
    "SettingReport",
    "StateReport",
    "base_url",
    "build_report",
]

NOT_SHOWN = "set (not shown)"
NOTHING = "none"


@dataclass(frozen=True, slots=True)
class SettingReport:
    """One setting in force."""

    variable: str
    value: str
    """As people read it."""
    plain: bool | float | str | list[str] | None
    """As a value of JSON."""
    source: str
    """`environment`, `.env` or `default`."""


@dataclass(frozen=True, slots=True)
class KeyReport:
    """One key of the pool and whether its value could be had."""

    spec: KeySpec
    store: str
    """The scheme of its store; `setting` where its value stands in one."""
    place: str
    problem: str | None = None
    same_as: str | None = None
    """The key that serves in its stead, having the same value."""
    fingerprint: str | None = None
    answer: LiveCheck | None = None
    """What one request with it came to, where one was sent."""
    shared: Availability = AVAILABLE
    """As a shared state has it; that of each process by itself begins with available."""

    @property
    def resolved(self) -> bool:
        """Tell whether it has a value of its own."""
        return self.fingerprint is not None

    @property
    def good(self) -> bool:
        """Tell whether nothing is wrong with it."""
        return self.problem is None and (self.answer is None or self.answer.ok)

    @property
    def availability(self) -> Availability:
        """Whether a call sent now would get it."""
        if not self.spec.active:
            return Availability("disabled")
        if not self.resolved:
            return Availability("unresolved")
        failure = self.answer.failure if self.answer is not None else None
        return Availability("rejected", None, failure) if failure in REJECTED else self.shared


@dataclass(frozen=True, slots=True)
class StateReport:
    """Where the pool's state lives, and whether it answers."""

    url: str
    """Without user and password."""
    shared: bool
    problem: str | None = None
    keys: Mapping[str, Availability] = field(default_factory=dict)
    """How the keys that have a value stand in it, by id."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Everything that `keyrot check` tells."""

    enabled: bool
    settings: tuple[SettingReport, ...] = ()
    keys: tuple[KeyReport, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """What is wrong beyond single keys."""
    state: StateReport | None = None
    secrets: SecretCache | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Tell whether at least one key resolves and nothing is wrong, or all is switched off."""
        if not self.enabled:
            return True
        serving = any(key.resolved and key.spec.active for key in self.keys)
        return serving and not self.problems and all(key.good for key in self.keys)


def build_report(config: Config) -> CheckReport:
    """Look every key up, as install() would, and put together what there is to tell."""
    if not config.settings.enabled:
        return CheckReport(enabled=False)
    secrets = open_secret_cache(config)
    state = _state(config, secrets)
    return CheckReport(
        enabled=True,
        state=state,
        problems=tuple(filter(None, (state.problem, _tracing(config)))),
        settings=tuple(_settings(config)),
        keys=tuple(
            replace(_key(key, config, secrets), shared=state.keys.get(key.key_id, AVAILABLE))
            for key in config.keys
        ),
        warnings=(*config.warnings, *doubts(secrets), *_elsewhere(config)),
        secrets=secrets,
    )


def _state(config: Config, secrets: SecretCache) -> StateReport:
    """Find out whether a shared state can be used, as services do when they start, and its keys."""
    url = mask_url(config.state_url)
    try:
        shared = open_configured(config)
        if shared is None:
            return StateReport(url, shared=False)
        try:
            shared.check()
            found = views(
                shared, resolved_candidates((key.candidate for key in config.keys), secrets)
            )
        finally:
            shared.close()
    except KeyrotError as error:
        # Their texts name places without credentials; to mask them would spoil what they allow.
        said = str(error).replace(config.state_url, url)
        problem = f"the shared state {url} cannot be used: {said}"
        return StateReport(url, shared=True, problem=problem)
    keys = {key_id: seen.overall for key_id, seen in found.items()}
    return StateReport(url, shared=True, keys=keys)


def _tracing(config: Config) -> str | None:
    """Say what stands in the way of exporting spans."""
    try:
        if config.settings.tracing == "otlp":
            DeferredOtlpExport()
    except MissingExtraError as error:
        return str(error)
    return None


def base_url() -> str:
    """Tell where the SDK sends calls unless a client says otherwise."""
    return os.environ.get("GOOGLE_GEMINI_BASE_URL") or f"https://{GOOGLE_HOST}"


def _settings(config: Config) -> Iterator[SettingReport]:
    in_file = dotenv_values(config.env_file)
    for name, variable in ENV_NAMES.items():
        source, names = "default", spellings(variable)
        if any(os.environ.get(one, "").strip() for one in names):
            source = "environment"
        elif not set(names) & set(os.environ) and any(
            (in_file.get(one) or "").strip() for one in names
        ):
            source = ".env"
        value = getattr(config.settings, name)
        if name == "keys_file" and value is None and Path("keys.json").exists():
            value = "keys.json"  # the one that happens to be there
        yield SettingReport(variable, _shown(name, value), _plain(name, value), source)


def _shown(name: str, value: Any) -> str:
    if name in SECRET_SETTINGS:
        if isinstance(value, tuple):
            return f"{len(value)} (not shown)" if value else NOTHING
        return NOT_SHOWN if isinstance(value, SecretStr) and value.get_secret_value() else NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return NOTHING if value is None else mask_url(mask_keys(str(value)))


def _plain(name: str, value: Any) -> bool | float | str | list[str] | None:
    if name in SECRET_SETTINGS and isinstance(value, tuple):
        return len(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple):
        return list(map(str, value))
    text = _shown(name, value)
    return None if text == NOTHING else text


def _key(key: KeySpec, config: Config, secrets: SecretCache) -> KeyReport:
    store, place = _where(key, config, secrets)
    has_value = key.key_id in secrets.resolved
    return KeyReport(
        spec=key,
        store=store,
        place=place,
        problem=secrets.unresolved.get(key.key_id),
        same_as=secrets.duplicates.get(key.key_id),
        fingerprint=Secret(secrets.value(key.key_id)).fingerprint if has_value else None,
    )


def _where(key: KeySpec, config: Config, secrets: SecretCache) -> tuple[str, str]:
    """Tell a key's store, and where in it the key is kept."""
    if key.key_id in config.inline:
        return "setting", f"GEMINI_API_KEYS ({key.key_id})"
    store = secrets.locations[key.key_id].store
    tell = getattr(store, "place", None)
    default = tell(key.key_id) if tell is not None and not key.secret else None
    return store.scheme, key.secret or default or f"{store.scheme}:// (its default place)"


def _elsewhere(config: Config) -> Iterator[str]:
    """Say what makes the SDK go past the pool, however good its keys are."""
    origin = origin_from_url(base_url())
    if origin not in origins(config.settings.allowed_hosts):
        yield (
            f"GOOGLE_GEMINI_BASE_URL leads to {origin or 'no host'}, which is not among "
            "KEYROT_ALLOWED_HOSTS: calls to it are left as they are, without the pool"
        )
    for name in ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI"):
        if os.environ.get(name, "").lower() in ("true", "1"):
            yield f"{name} is set: clients go to Vertex AI, which the pool leaves alone"
    idle = [key.key_id for key in config.keys if not key.active]
    if idle:
        yield f"switched off by active=false: {', '.join(idle)}"
