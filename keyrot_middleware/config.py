"""Everything that install() needs to know, read and checked once: settings and keys together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr

from .core.model import LAST_RESORT, POOL_KEY, Candidate, RetryPolicy
from .core.text import did_you_mean, display, hide_secrets
from .errors import ConfigError
from .keys_file import (
    SINGLE_KEYS,
    KeySpec,
    allowed_tiers,
    candidates_of,
    file_version,
    read_keys,
)
from .settings import (
    ARGUMENTS,
    ENV_NAMES,
    FROM_REDIS_URL,
    STATE_SCHEMES,
    STATES,
    Settings,
    doubtful_variables,
    join_problems,
    layered,
    read_env_file,
    validate,
)

_OLDEST_SDK = (1, 65)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that install() needs to know, checked."""

    settings: Settings
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each setting that is set stands: `KEYROT_POOL`, `KEYROT_POOL in .env`, …"""
    keys: tuple[KeySpec, ...] = ()
    """The pool in order: keys.json, then GEMINI_API_KEYS, then the single key; only what was given
    where keys were given to install()."""
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    warnings: tuple[str, ...] = ()
    """Warnings to issue once, about settings and keys.json; they hold no secret."""
    state_url: str = field(default="memory://", repr=False)
    """Where the pool's state lives; may hold a password."""
    inline: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)
    """Values that stood in a setting instead of a secret store, per key id."""
    last_resort: str | None = None
    """The id of the single key: the home key, and last in the pool. Values are only known after
    resolving, so the secret cache skips it if its value is that of another key of the pool."""
    env_file: Path = Path(".env")
    """The `.env` that was read if it is there; absolute when it comes from `load()`."""
    keys_file: Path | None = None
    """The keys.json that was read, absolute; None: there was none."""
    keys_seen: tuple[int, int, int] | None = None
    """Which version of it was read."""

    @property
    def tiers(self) -> frozenset[str] | None:
        """The tiers of the keys that calls may use; None: all."""
        return allowed_tiers(self.settings.tiers) if self.settings.tiers else None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The keys as selection and quota see them."""
        return candidates_of(self.keys, self.tiers)

    @property
    def state_variable(self) -> str:
        """The name of the setting that says where the state is."""
        by_name = self.settings.state_url == FROM_REDIS_URL
        return ENV_NAMES["redis_url" if by_name else "state_url"]


def load(**overrides: Any) -> Config:
    """Read all settings and keys.json once and check them.

    Args:
        overrides: Arguments of install(), named as the fields of `Settings`; None: not given.

    Raises:
        ConfigError: With every wrong value in one message. Where rotation is switched off,
            nothing else is looked at.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    problems = [
        f"install() has no argument {display(name)}; allowed: {', '.join(ARGUMENTS)}."
        f"{did_you_mean(name, ARGUMENTS)}"
        for name in given
        if name not in ARGUMENTS
    ]
    env_file = _env_file(problems)
    values, sources = layered(given, env_file)
    switch = {name: value for name, value in values.items() if name == "enabled"}
    if not validate(switch, sources, []).enabled:
        return Config(Settings(enabled=False))
    config = replace(
        _gather(validate(values, sources, problems), sources, problems, env_file), sources=sources
    )
    if problems:
        raise ConfigError(join_problems(problems))
    return config


def _env_file(problems: list[str]) -> dict[str, str | None]:
    try:
        return read_env_file()
    except UnicodeDecodeError as error:
        problems.append(f".env is not UTF-8 text, at byte {error.start}; save it as UTF-8")
    except OSError as error:
        problems.append(f".env cannot be read: {error.strerror}")
    return {}


def _gather(
    settings: Settings,
    sources: Mapping[str, str],
    problems: list[str],
    env_file: Mapping[str, str | None],
) -> Config:
    """Bring the keys of all three places together; report in *problems* what is wrong."""
    warnings = list(_old_sdk())
    state_url = _state_url(settings, problems)
    if state_url != "memory://" and "pool" not in sources:
        warnings.append(
            "the state is shared, and KEYROT_POOL is not set: all services of this server or file "
            f"that do not set it use the pool {settings.pool!r} together. Name the pool of this "
            "service"
        )
    values = dict.fromkeys(filter(None, map(_own, settings.keys)))
    if len(values) < sum(1 for secret in settings.keys if _own(secret)):
        warnings.append("GEMINI_API_KEYS: a key stands twice in it, and was skipped")
    given = {name for name, source in sources.items() if source.startswith("install(")}
    alone = "keys" in given and bool(values)  # these keys are the pool, and none that happen to be
    single = _single_key(settings, sources, given if alone else None)
    path = settings.keys_file
    if path is None and Path("keys.json").exists() and not alone:
        path = Path("keys.json")
    if alone and "keys_file" not in given:
        path = None
    in_file: tuple[KeySpec, ...] = ()
    seen = file_version(path) if path else None
    if path is not None:
        in_file, wrong = read_keys(path)
        named = f"{sources['keys_file']}, " if "keys_file" in sources else ""
        problems += [f"{named}{text}" for text in wrong]
    stores = {
        settings.secret_store,
        *(key.secret.partition("://")[0] for key in in_file if key.secret),
    }
    warnings += doubtful_variables(env_file, stores)
    taken = {key.key_id for key in in_file}
    free = (key_id for key_id in map("key_{}".format, count(1)) if key_id not in taken)
    inline = {key_id: SecretStr(value) for key_id, value in zip(free, values, strict=False)}
    keys = [*in_file, *(KeySpec(key_id=key_id) for key_id in inline)]
    if single:
        # model_construct: the id is the name of the variable, which validation reserves.
        secret = f"env://{single}"
        keys.append(KeySpec.model_construct(key_id=single, priority=LAST_RESORT, secret=secret))
        if single.lower() in given:
            inline[single] = getattr(settings, single.lower())
    problems += _tiers_problem(settings, keys, sources)
    here = Path.cwd()
    return Config(
        settings=settings,
        keys=tuple(keys),
        policy=_policy(settings, sources, problems),
        warnings=tuple(warnings),
        state_url=state_url,
        inline=MappingProxyType(inline),
        last_resort=single,
        env_file=here / ".env",
        keys_file=here / path if path else None,
        keys_seen=seen,
    )


def reread(config: Config) -> Config:
    """Read keys.json again; all settings stay as they were read at start.

    A key of GEMINI_API_KEYS keeps its id, so keys.json may not take that one later. A list without
    any key, where the pool has no other, is taken for a file that is being written.

    Raises:
        ConfigError: With every mistake in the file.
    """
    if config.keys_file is None:
        return config
    seen = file_version(config.keys_file)
    in_file, problems = read_keys(config.keys_file)
    name = hide_secrets(str(config.keys_file))
    taken = [key.key_id for key in in_file if key.key_id in config.inline]
    problems += [f"{name}, key {key_id}: a key of GEMINI_API_KEYS has this id" for key_id in taken]
    others = (k for k in config.keys if k.key_id in config.inline or k.key_id == config.last_resort)
    keys = (*in_file, *others)
    if not keys and not problems:
        problems = [
            f"{name}: found no key, and the pool has no other; allowed: at least one. To take the "
            'last one out, keep it with "active": false.'
        ]
    if problems:
        raise ConfigError(join_problems(problems))
    return replace(config, keys=keys, keys_seen=seen, warnings=())


def _old_sdk() -> Iterator[str]:
    """Yield a warning of a google-genai that the pool cannot serve."""
    try:
        found = version("google-genai")
    except PackageNotFoundError:
        return
    numbers = re.findall(r"\d+", found)[:2]
    if tuple(map(int, numbers)) < _OLDEST_SDK:
        oldest = ".".join(map(str, _OLDEST_SDK))
        yield (
            f"google-genai {found} is installed, and the pool serves {oldest} and newer: calls go "
            f'out as the program sends them. Run: pip install "google-genai>={oldest}"'
        )


def _state_url(settings: Settings, problems: list[str]) -> str:
    """Return the URL of the state. REDIS_URL is used only with KEYROT_STATE_URL=redis."""
    if settings.state_url != FROM_REDIS_URL:
        return settings.state_url
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    if url.partition("://")[0] not in STATE_SCHEMES[2:]:
        found = "it is no URL that can be used (not shown)" if url else "it is not set"
        problems.append(
            f"REDIS_URL, which KEYROT_STATE_URL=redis names: {found}; allowed: {STATES}."
        )
    return url


def _own(secret: SecretStr | None) -> str:
    """Return the value of a key; empty for none and for the placeholder."""
    value = secret.get_secret_value().strip() if secret else ""
    return "" if value == POOL_KEY else value


def _single_key(
    settings: Settings, sources: Mapping[str, str], among: set[str] | None
) -> str | None:
    """Return the variable of the single key: the SDK's order within each layer of settings."""

    def layer(name: str) -> int:
        source = sources.get(name.lower(), "")
        return 0 if source.startswith("install(") else 2 if source.endswith(".env") else 1

    for name in sorted(SINGLE_KEYS, key=layer):
        if _own(getattr(settings, name.lower())) and (among is None or name.lower() in among):
            return name
    return None


def _tiers_problem(
    settings: Settings, keys: Iterable[KeySpec], sources: Mapping[str, str]
) -> Iterator[str]:
    """Yield a problem if calls may use none of the keys."""
    if settings.tiers and all(
        key.disabled for key in candidates_of(keys, allowed_tiers(settings.tiers))
    ):
        yield (
            f"{sources['tiers']}: found {', '.join(settings.tiers)}, and no key of the pool has "
            "such a tier; name the tier of each key in keys.json."
        )


def _policy(settings: Settings, sources: Mapping[str, str], problems: list[str]) -> RetryPolicy:
    names = RetryPolicy.__dataclass_fields__
    policy = RetryPolicy(**{name: getattr(settings, name) for name in names})
    if policy.cooldown_max_s < policy.cooldown_base_s:
        problems.append(
            f"{sources.get('cooldown_max_s', ENV_NAMES['cooldown_max_s'])}: found "
            f"{policy.cooldown_max_s:g}; allowed: seconds, no less than KEYROT_COOLDOWN_BASE_S, "
            f"which is {policy.cooldown_base_s:g}."
        )
    return policy
