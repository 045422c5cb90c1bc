"""Everything that install() needs to know, read and checked once.

An argument of install() beats the environment, which beats `.env` in the working directory,
which beats the default. An empty value means the default, and hides the layers below it. The
table of variables is `Settings`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr

from .core.model import LAST_RESORT, POOL_KEY, Candidate, Limits, RetryPolicy
from .core.text import hide_secrets
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
    ENV_NAMES,
    FROM_REDIS_URL,
    GOOGLE_HOST,
    STATE_SCHEMES,
    STATES,
    Settings,
    ignored_in_file,
    join_problems,
    malformed_lines,
    read_env_file,
    read_settings,
    refuse_unknown,
    setting_source,
    unknown_variables,
)

__all__ = [
    "ENV_NAMES",
    "GOOGLE_HOST",
    "LAST_RESORT_PRIORITY",
    "POOL_KEY",
    "Config",
    "KeySpec",
    "Limits",
    "RetryPolicy",
    "Settings",
    "load",
    "reread",
]

LAST_RESORT_PRIORITY = LAST_RESORT
"""The priority of the single key: it serves while nothing else can."""

_NO_POOL_NAME = (
    "the state is shared, and KEYROT_POOL is not set: all services of this server or file that do "
    "not set it use the pool {!r} together. Name the pool of this service"
)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that install() needs to know, checked."""

    settings: Settings
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
    refuse_unknown(given)
    problems: list[str] = []
    settings = read_settings(given, problems)
    if settings is None:
        raise ConfigError(join_problems(problems))
    if not settings.enabled:
        return Config(settings)
    config = _gather(settings, given, problems)
    if problems:
        raise ConfigError(join_problems(problems))
    return config


def _gather(settings: Settings, given: Mapping[str, Any], problems: list[str]) -> Config:
    """Bring the keys of all three places together; report in *problems* what is wrong."""
    dotenv = read_env_file()
    warnings = [*malformed_lines(Path(".env")), *_old_sdk()]
    if unknown := unknown_variables((*os.environ, *dotenv)):
        warnings.append(unknown)
    state_url = _state_url(settings, problems)
    if state_url != "memory://" and "pool" not in settings.model_fields_set:
        warnings.append(_NO_POOL_NAME.format(settings.pool))
    here, path = _working_directory(problems), _keys_file(settings)
    values = _distinct(settings.keys, warnings)
    alone = "keys" in given and bool(values)
    if alone and "keys_file" not in given:
        path = None  # these keys are the pool, and none that happen to be here
    seen = file_version(path) if path else None
    in_file = _keys_of_file(path, settings, given, problems, warnings) if path else ()
    stores = {
        settings.secret_store,
        *(key.secret.partition("://")[0] for key in in_file if key.secret),
    }
    if ignored := ignored_in_file(stores, dotenv):
        warnings.append(ignored)
    inline = _numbered(values, {key.key_id for key in in_file})
    keys = [*in_file, *(KeySpec(key_id=key_id) for key_id in inline)]
    single = _single_key(settings, given)
    if alone and single not in given:
        single = None
    if single:
        keys.append(_last_resort(ENV_NAMES[single]))
    if single and single in given:
        inline[ENV_NAMES[single]] = getattr(settings, single)
    problems += _tiers_problem(settings, keys, given)
    return Config(
        settings=settings,
        keys=tuple(keys),
        policy=_policy(settings, given, problems),
        warnings=tuple(warnings),
        state_url=state_url,
        inline=MappingProxyType(inline),
        last_resort=ENV_NAMES[single] if single else None,
        env_file=here / ".env",
        keys_file=here / path if path else None,
        keys_seen=seen,
    )


def reread(config: Config) -> Config:
    """Read keys.json again, with its warnings; all settings stay as they were read at start.

    A key of GEMINI_API_KEYS keeps its id, so keys.json may not take that one later. A list without
    any key, where the pool has no other, is taken for a file that is being written.

    Raises:
        ConfigError: With every mistake in the file.
    """
    if config.keys_file is None:
        return config
    seen = file_version(config.keys_file)
    in_file, problems, warnings = read_keys(config.keys_file)
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
    return replace(config, keys=keys, keys_seen=seen, warnings=tuple(warnings))


_OLDEST_SDK = (1, 65)


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
    if settings.redis_url is None:
        problems.append(
            f"KEYROT_STATE_URL: found {FROM_REDIS_URL}, which means the place that REDIS_URL "
            "names, and REDIS_URL is not set."
        )
        return "memory://"
    url = settings.redis_url.get_secret_value()
    if url.partition("://")[0] not in STATE_SCHEMES[2:]:
        problems.append(f"REDIS_URL: it is no URL that can be used (not shown); allowed: {STATES}.")
    return url


def _keys_file(settings: Settings) -> Path | None:
    """Return the path of keys.json: the configured one, else the one in the working directory."""
    if settings.keys_file is not None:
        return settings.keys_file
    return Path("keys.json") if Path("keys.json").exists() else None


def _working_directory(problems: list[str]) -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        reason = f"the working directory cannot be found: {error.strerror}; it may be deleted"
    problems.append(reason)
    return Path()


def _keys_of_file(
    path: Path,
    settings: Settings,
    given: Mapping[str, Any],
    problems: list[str],
    warnings: list[str],
) -> tuple[KeySpec, ...]:
    found = read_keys(path)
    named = f"{setting_source('keys_file', given)}, " if settings.keys_file else ""
    problems += [f"{named}{text}" for text in found.problems]
    warnings += found.warnings
    return found.keys


def _distinct(values: Iterable[SecretStr], warnings: list[str]) -> list[SecretStr]:
    """Drop what is blank, the placeholder, or there already."""
    first: dict[str, int] = {}
    kept: list[SecretStr] = []
    for number, secret in enumerate(values, 1):
        value = _own(secret)
        if value in first:
            warnings.append(
                f"GEMINI_API_KEYS: entry {number} repeats entry {first[value]} and was skipped"
            )
        elif value:
            first[value] = number
            kept.append(SecretStr(value))
    return kept


def _numbered(values: Iterable[SecretStr], taken: Container[str]) -> dict[str, SecretStr]:
    """Name the keys key_1, key_2, … as far as keys.json leaves these ids free."""
    ids = (key_id for key_id in map("key_{}".format, count(1)) if key_id not in taken)
    return {key_id: value for value, key_id in zip(values, ids, strict=False)}


def _own(secret: SecretStr | None) -> str:
    """Return the value of a key; empty for none and for the placeholder."""
    value = secret.get_secret_value().strip() if secret else ""
    return "" if value == POOL_KEY else value


def _single_key(settings: Settings, given: Mapping[str, Any]) -> str | None:
    """Name the setting of the single key: the SDK's order within each layer of settings."""

    def layer(name: str) -> int:
        return 0 if name in given else 1 if ENV_NAMES[name] in os.environ else 2

    names = [name.lower() for name in SINGLE_KEYS]
    return next((n for n in sorted(names, key=layer) if _own(getattr(settings, n))), None)


def _last_resort(variable: str) -> KeySpec:
    # model_construct: the id is the name of the variable, which validation reserves.
    return KeySpec.model_construct(
        key_id=variable, priority=LAST_RESORT_PRIORITY, secret=f"env://{variable}"
    )


def _tiers_problem(
    settings: Settings, keys: Iterable[KeySpec], given: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a problem if calls may use none of the keys."""
    if settings.tiers and all(
        key.disabled for key in candidates_of(keys, allowed_tiers(settings.tiers))
    ):
        yield (
            f"{setting_source('tiers', given)}: found {', '.join(settings.tiers)}, and no key of "
            "the pool has such a tier; name the tier of each key in keys.json."
        )


def _policy(settings: Settings, given: Mapping[str, Any], problems: list[str]) -> RetryPolicy:
    names = RetryPolicy.__dataclass_fields__
    policy = RetryPolicy(**{name: getattr(settings, name) for name in names})
    if policy.cooldown_max_s < policy.cooldown_base_s:
        problems.append(_ladder_problem(policy, settings, given))
    return policy


def _ladder_problem(policy: RetryPolicy, settings: Settings, given: Mapping[str, Any]) -> str:
    """Return a problem with the one of the two that was set, not with a default."""
    base, most = f"{policy.cooldown_base_s:g}", f"{policy.cooldown_max_s:g}"
    if "cooldown_max_s" in settings.model_fields_set:
        name, found, allowed = "max", most, f"no less than KEYROT_COOLDOWN_BASE_S, which is {base}"
    else:
        name, found, allowed = "base", base, f"no more than KEYROT_COOLDOWN_MAX_S, which is {most}"
    place = setting_source(f"cooldown_{name}_s", given)
    return f"{place}: found {found}; allowed: seconds, {allowed}."
