"""The one table of settings: name, variable, default, and what is allowed.

The description of each field says what is allowed; the errors of config.py quote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, NoReturn, TypedDict

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticUseDefault
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .core.policy import Strategy
from .core.text import shown
from .schemes import BUILT_STORES, known, plugged_in

__all__ = [
    "ARGUMENTS",
    "ENV_NAMES",
    "GOOGLE_HOST",
    "LONGEST_S",
    "SECRET_SETTINGS",
    "STATE_SCHEMES",
    "STORE_VARIABLES",
    "SettingArguments",
    "Settings",
    "Switch",
    "origins",
]

GOOGLE_HOST = "generativelanguage.googleapis.com"

LONGEST_S = 366 * 86400
"""No time of ours is longer: what is, is a mistake, and ends after the calendar does."""
_UP_TO = f"up to {LONGEST_S} (366 days)"

STATE_SCHEMES = (
    "memory",
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
)
STATES = ", ".join(f"{scheme}://" for scheme in STATE_SCHEMES)
FROM_REDIS_URL = "redis"
"""As the state's URL: that of REDIS_URL. A program may have that variable for another purpose, so
it is not read unless this says so."""

_USER_INFO = re.compile(r"(https?:/+)?.*@", re.DOTALL)
"""What may stand in front of a host in a URL, a password for one; no host has it."""
_TO_ENCODE = re.compile(r"[/#]")
"""What ends user and password where nobody encoded it."""
_AS = "write / as %2F, # as %23 and ? as %3F"
_HOST = re.compile(r"(http://)?([a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(\d{1,5}))?")
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|\[::1\]")


def _split(value: object) -> object:
    return tuple(value.split(",")) if isinstance(value, str) else value


def _good_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    hosts = tuple(dict.fromkeys(host.strip().lower() for host in hosts if host.strip()))
    for host in hosts:
        match = _HOST.fullmatch(host)
        if match is None or not 0 < int(match[3] or 443) < 65536:
            masked = _USER_INFO.sub(r"\1[redacted]@", host)
            raise ValueError(f"found {shown(masked)}")
    if not hosts:
        raise ValueError("found no host")
    return hosts


def origins(hosts: Iterable[str]) -> frozenset[str]:
    """Give the origins that these hosts stand for, as `genai.facts.origin_of` writes them.

    That is TLS, and plain HTTP only where it stays in this machine or is written in front of the
    host. Without a port it is the scheme's own.
    """
    allowed: list[str] = []
    for entry in hosts:
        match = _HOST.fullmatch(entry)
        if match is None:
            continue  # a default that somebody has constructed by hand; it allows nothing
        plain, host, port = match.groups()
        if not plain:
            allowed.append(f"https://{host}:{port or 443}")
        if plain or _LOOPBACK.fullmatch(host):
            allowed.append(f"http://{host}:{port or 80}")
    return frozenset(allowed)


def _good_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("found a path with a NUL character in it")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            f"found {shown(str(path))}, and the ~ is no user of this machine"
        ) from None


def _good_store(store: str) -> str:
    if known(store):
        return store
    there = ", ".join(plugged_in())
    raise ValueError(f"found {shown(store)}{f' (plugged in: {there})' if there else ''}")


def _good_state(url: str) -> str:
    if url == FROM_REDIS_URL:
        return url
    scheme, there, rest = url.partition("://")
    if not there or scheme not in STATE_SCHEMES or (scheme == "memory") == bool(rest):
        raise ValueError(f"found {shown(url)}")
    before = rest.partition("?")[0].rpartition("@")[0]
    if not scheme.startswith("unix") and _TO_ENCODE.search(before):
        raise ValueError(f"found {shown(url)}, with a / or # before the @: {_AS}")
    return url


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


_Lower = BeforeValidator(_lower)
_Whole = Annotated[int, Field(ge=0)]


class Switch(BaseSettings):
    """Whether to rotate at all: read first, since what is off cannot be wrong otherwise."""

    model_config = SettingsConfigDict(
        frozen=True,
        case_sensitive=True,
        extra="ignore",
        env_file=".env",
        env_file_encoding="utf-8",
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    enabled: bool = Field(True, validation_alias="ENABLE_KEY_ROTATION", description="true or false")

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object, info: ValidationInfo) -> object:
        # pydantic takes True for 1 and bytes for text; as an argument each is a mistake.
        switch = cls.model_fields[info.field_name or ""].annotation is bool
        if isinstance(value, bytes) or (isinstance(value, bool) and not switch):
            raise ValueError(f"found {shown(value)}")
        value = value.strip() if isinstance(value, str) else value
        if value == "":
            raise PydanticUseDefault
        return value


class Settings(Switch):
    """The settings of one pool, from arguments, the environment and `.env`, in this order.

    Read it with `config.load()`, whose errors are for people; this class raises pydantic's.
    """

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("settings cannot be pickled: the keys in them stay in this process")

    keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        validation_alias="GEMINI_API_KEYS",
        repr=False,
        description="keys, comma-separated (as an argument also a list)",
    )
    keys_file: Annotated[Path, AfterValidator(_good_path)] | None = Field(
        default=None, validation_alias="KEYROT_KEYS_FILE", description="the path of a keys.json"
    )
    secret_store: Annotated[str, AfterValidator(_good_store), _Lower] = Field(
        default="env",
        validation_alias="SECRET_STORE_TYPE",
        description=f"{', '.join(BUILT_STORES)}, or one that is plugged in",
    )
    secrets_ttl_s: float = Field(
        default=300.0,
        validation_alias="KEYROT_SECRETS_TTL_S",
        ge=0,
        le=LONGEST_S,
        description=f"seconds, from 0 (0: never) {_UP_TO}",
    )
    google_api_key: SecretStr | None = Field(
        default=None, validation_alias="GOOGLE_API_KEY", repr=False, description="a key"
    )
    gemini_api_key: SecretStr | None = Field(
        default=None, validation_alias="GEMINI_API_KEY", repr=False, description="a key"
    )
    state_url: Annotated[str, AfterValidator(_good_state)] = Field(
        default="memory://",
        validation_alias="KEYROT_STATE_URL",
        repr=False,
        description=f"{STATES}, {FROM_REDIS_URL} (what REDIS_URL says)",
    )
    degraded_share: float = Field(
        default=1.0,
        validation_alias="KEYROT_DEGRADED_SHARE",
        gt=0,
        le=1,
        description="a part of each limit, more than 0, up to 1",
    )
    redis_url: SecretStr | None = Field(
        default=None, validation_alias="REDIS_URL", repr=False, description=STATES
    )
    pool: str = Field(
        default="default",
        validation_alias="KEYROT_POOL",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="up to 64 letters, digits, _ . - and a letter or digit first",
    )
    allowed_hosts: Annotated[
        tuple[str, ...], AfterValidator(_good_hosts), NoDecode, BeforeValidator(_split)
    ] = Field(
        default=(GOOGLE_HOST,),
        validation_alias="KEYROT_ALLOWED_HOSTS",
        description="host or host:port, comma-separated, in full and without path; "
        "http://host:port where it has no TLS",
    )
    strategy: Annotated[Strategy, _Lower] = Field(
        default="spread", validation_alias="KEYROT_STRATEGY", description="spread, fill, sticky"
    )
    max_attempts: _Whole = Field(
        default=0,
        validation_alias="KEYROT_MAX_ATTEMPTS",
        description="a whole number from 0 (0: each key once)",
    )
    max_retries: _Whole = Field(
        default=2, validation_alias="KEYROT_MAX_RETRIES", description="a whole number from 0"
    )
    max_wait_s: float = Field(
        default=65.0,
        validation_alias="KEYROT_MAX_WAIT_S",
        ge=0,
        le=LONGEST_S,
        description=f"seconds, from 0 (0: never wait) {_UP_TO}",
    )
    cooldown_base_s: float = Field(
        default=30.0,
        validation_alias="KEYROT_COOLDOWN_BASE_S",
        gt=0,
        le=LONGEST_S,
        description=f"seconds, more than 0, {_UP_TO}",
    )
    cooldown_max_s: float = Field(
        default=900.0,
        validation_alias="KEYROT_COOLDOWN_MAX_S",
        gt=0,
        le=LONGEST_S,
        description=f"seconds, no less than KEYROT_COOLDOWN_BASE_S, {_UP_TO}",
    )
    tracing: Annotated[Literal["off", "otlp"], _Lower] = Field(
        default="off", validation_alias="KEYROT_TRACING", description="off, otlp"
    )
    call_spans: bool = Field(
        default=True, validation_alias="KEYROT_CALL_SPANS", description="true or false"
    )


class SettingArguments(TypedDict, total=False):
    """The settings that are arguments of install() and KeyManager; None: not given."""

    enabled: bool | None
    keys: str | Sequence[str] | None
    keys_file: str | PathLike[str] | None
    secret_store: str | None
    secrets_ttl_s: float | None
    google_api_key: str | None
    gemini_api_key: str | None
    state_url: str | None
    degraded_share: float | None
    pool: str | None
    allowed_hosts: str | Sequence[str] | None
    strategy: Strategy | None
    max_attempts: int | None
    max_retries: int | None
    max_wait_s: float | None
    cooldown_base_s: float | None
    cooldown_max_s: float | None
    tracing: Literal["off", "otlp"] | None
    call_spans: bool | None


ENV_NAMES: Mapping[str, str] = MappingProxyType(
    {name: str(info.validation_alias) for name, info in Settings.model_fields.items()}
)
"""The variable of each setting."""
STORE_VARIABLES = (
    *("KEYROT_VAULT_PLACE", "KEYROT_VAULT_ALLOW_HTTP"),
    *("KEYROT_AWS_SECRET", "KEYROT_GCP_SECRET"),
)
"""Variables of ours that no setting has: stores read them by themselves (secrets/)."""
ARGUMENTS = tuple(name for name in ENV_NAMES if name != "redis_url")
"""The settings that may also be arguments of install()."""
SECRET_SETTINGS = frozenset({"keys", "google_api_key", "gemini_api_key", "redis_url"})
"""Settings that no message shows."""
