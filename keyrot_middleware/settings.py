"""The one table of settings: name, variable, default, and what is allowed.

The description of each field says what is allowed; the errors of config.py quote it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn, TypedDict, get_args
from urllib.request import getproxies, proxy_bypass

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticUseDefault
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from .core.model import GEMINI_API, VERTEX_EXPRESS, Platform, Strategy
from .core.model_fallback import MAX_MODELS, next_models
from .core.text import did_you_mean, display, mask_keys, mask_url
from .errors import ConfigError
from .events import EVENTS, EventName
from .keys_file import (
    BUILT_STORES,
    Tier,
    allowed_tiers,
    entry_point_stores,
    is_known_scheme,
)

__all__ = [
    "ALIASES",
    "ARGUMENTS",
    "BASE_URL_VARIABLES",
    "CLIENTS",
    "ENV_NAMES",
    "GOOGLE_HOST",
    "LONGEST_S",
    "NOT_IN_FILE",
    "SECRET_SETTINGS",
    "STATE_SCHEMES",
    "STORE_VARIABLES",
    "VERTEX_HOST",
    "AllowedOrigins",
    "EnabledSetting",
    "SettingArguments",
    "Settings",
    "allowed_origins",
    "hide_keys",
    "ignored_in_file",
    "join_problems",
    "malformed_lines",
    "origins",
    "read_env_file",
    "read_settings",
    "refuse_unknown",
    "setting_source",
    "spellings",
    "unknown_variables",
]

GOOGLE_HOST = "generativelanguage.googleapis.com"
"""Of the Gemini Developer API."""
VERTEX_HOST = "aiplatform.googleapis.com"
"""Of Vertex AI in express mode."""
BASE_URL_VARIABLES: Mapping[Platform, str] = MappingProxyType(
    {GEMINI_API: "GOOGLE_GEMINI_BASE_URL", VERTEX_EXPRESS: "GOOGLE_VERTEX_BASE_URL"}
)
"""The variables of the SDK that name another host."""

LONGEST_S = 366 * 86400
"""The longest time that a setting may be. A longer one is a mistake, and ends after year 9999."""
_UP_TO = f"up to {LONGEST_S} (366 days)"

STATE_SCHEMES = (
    "memory",
    "sqlite",
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
)
STATES = ", ".join(f"{scheme}://" for scheme in STATE_SCHEMES)
IN_FILE = "sqlite"
"""As the state's URL: the file of the pool in the user's state folder."""
SAMPLE_FILE = "sqlite:///var/lib/app/keyrot.sqlite3"
FROM_REDIS_URL = "redis"
"""As the state's URL: that of REDIS_URL. A program may have that variable for another purpose, so
it is not read unless this says so."""

_USER_INFO = re.compile(r"(https?:/+)?.*@", re.DOTALL)
"""What may stand in front of a host in a URL, a password for one; no host has it."""
_TO_ENCODE = re.compile(r"[/#]")
"""Characters that end user and password unless they are percent-encoded."""
_AS = "write / as %2F, # as %23 and ? as %3F"
_HOST = re.compile(r"(http://)?([a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(\d{1,5}))?")
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|\[::1\]")


_NEXT_URL = re.compile(r"[\s,]+(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)


def _split(value: object) -> object:
    return tuple(value.split(",")) if isinstance(value, str) else value


def _split_urls(value: object) -> object:
    """Split at blanks and commas in front of a scheme: an Apprise URL may have commas in it."""
    value = _plain(value)
    if not isinstance(value, str):
        return value
    return tuple(filter(None, _NEXT_URL.split(value.strip(" \t\r\n,"))))


def _good_urls(urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    for number, url in enumerate(urls, 1):
        if not _URL.fullmatch(url.get_secret_value()):
            raise ValueError(f"entry {number} is no URL (not shown)")
    return urls


def _good_events(names: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    for name in names:
        if name not in EVENTS:
            raise ValueError(f"found {display(name)}")
    return names


CLIENTS = ("google-genai", "httpx", "httpx2", "requests", "aiohttp")
"""The libraries whose requests can go through the pool."""


def _good_clients(names: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    for name in names:
        if name not in CLIENTS:
            raise ValueError(f"found {display(name)}")
    return names


def _good_tiers(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    allowed_tiers(names)
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _split_chains(value: object) -> object:
    return tuple(re.split(r"[,;]", value)) if isinstance(value, str) else value


def _good_chains(chains: tuple[str, ...]) -> tuple[str, ...]:
    chains = tuple(dict.fromkeys(chain.strip() for chain in chains if chain.strip()))
    next_models(chains)
    return chains


def _good_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    hosts = tuple(dict.fromkeys(host.strip().lower() for host in hosts if host.strip()))
    for host in hosts:
        match = _HOST.fullmatch(host)
        if match is None or not 0 < int(match[3] or 443) < 65536:
            masked = _USER_INFO.sub(r"\1[redacted]@", host)
            raise ValueError(f"found {display(masked)}")
    if not hosts:
        raise ValueError("found no host")
    return hosts


def origins(hosts: Iterable[str]) -> frozenset[str]:
    """Return the origins of these hosts, in the form of `adapters.urls.origin_from_url`.

    That is TLS, and plain HTTP only where it stays in this machine, not at a proxy, or is written
    in front of the host. Without a port it is the scheme's own.
    """
    allowed: list[str] = []
    for entry in hosts:
        match = _HOST.fullmatch(entry)
        if match is None:
            continue  # constructed without validation; it allows nothing
        plain, host, port = match.groups()
        if not plain:
            allowed.append(f"https://{host}:{port or 443}")
        if plain or (_LOOPBACK.fullmatch(host) and not is_proxied(entry)):
            allowed.append(f"http://{host}:{port or 80}")
    return frozenset(allowed)


def is_proxied(entry: str) -> bool:
    """Return whether a proxy of the environment gets what is sent to a host of this machine."""
    match = _HOST.fullmatch(entry)
    if match is None or match[1] or not _LOOPBACK.fullmatch(match[2]):
        return False
    proxies = getproxies()
    return bool(proxies.get("http") or proxies.get("all")) and not proxy_bypass(entry)


AllowedOrigins = Mapping[Platform, frozenset[str]]
"""Where keys may be sent, by their platform."""


def allowed_origins(hosts: Iterable[str]) -> AllowedOrigins:
    """Return the origins of these hosts for each platform: Google's own are for one alone."""
    hosts = tuple(hosts)
    return {
        GEMINI_API: origins(h for h in hosts if not h.partition(":")[0].endswith(VERTEX_HOST)),
        VERTEX_EXPRESS: origins(h for h in hosts if h.partition(":")[0] != GOOGLE_HOST),
    }


def _good_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("found a path with a NUL character in it")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            f"found {display(str(path))}, and the ~ is no user of this machine"
        ) from None


def _good_store(store: str) -> str:
    if is_known_scheme(store):
        return store
    there = ", ".join(entry_point_stores())
    raise ValueError(f"found {display(store)}{f' (plugged in: {there})' if there else ''}")


def _good_state(url: str) -> str:
    if url == FROM_REDIS_URL:
        return url
    if url == IN_FILE:
        return url
    scheme, there, rest = url.partition("://")
    if scheme == "sqlite" and there:
        return _good_file_url(url, rest)
    if not there or scheme not in STATE_SCHEMES or (scheme == "memory") == bool(rest):
        raise ValueError(f"found {display(url)}")
    before = rest.partition("?")[0].rpartition("@")[0]
    if not scheme.startswith("unix") and _TO_ENCODE.search(before):
        raise ValueError(f"found {display(url)}, with a / or # before the @: {_AS}")
    return url


def _good_file_url(url: str, rest: str) -> str:
    if not re.match(r"/+[^/]", rest) or rest.endswith("/"):
        raise ValueError(f"found {display(url)}; a file is named as in {SAMPLE_FILE}")
    return url


TRACE_ID = "{trace_id}"
"""What stands for the id of a trace in `KEYROT_TRACE_URL`."""
SAMPLE_TRACE_URL = f"https://jaeger.example/trace/{TRACE_ID}"
_HTTP_URL = re.compile(r"https?://[^\s/?#@\\]+(?:[/?#][!-~]*)?")


def _good_trace_url(url: str) -> str:
    if TRACE_ID not in url or not _HTTP_URL.fullmatch(url.replace(TRACE_ID, "0")):
        raise ValueError(f"found {display(mask_url(url))}")
    return url


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


_Lower = BeforeValidator(_lower)
_Whole = Annotated[int, Field(ge=0)]


ALIASES: Mapping[str, str] = MappingProxyType(
    {f"KEYROT_{name}": name for name in ("ENABLE_KEY_ROTATION", "SECRET_STORE_TYPE")}
)
"""The second name of a variable whose first has no prefix, and that first name."""


NOT_IN_FILE = frozenset({"KEYROT_ALERTS"})
"""Variables that are not read from `.env`, which may come with a directory from somebody else: URLs
of Apprise start programs, read files and send to any host."""


_STORE_PREFIXES = {
    "vault": ("VAULT_",),
    "aws": ("AWS_",),
    "azure": ("AZURE_",),
    "gcp": ("GOOGLE_CLOUD_", "GOOGLE_APPLICATION_", "CLOUDSDK_"),
    "file": ("CREDENTIALS_DIRECTORY",),
}


def read_env_file(path: Path = Path(".env")) -> dict[str, str | None]:
    """Read `.env` as it stands: `${NAME}` in it is no variable of this machine.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8 text.
    """
    if not path.is_file():
        return {}
    return dotenv_values(path, encoding="utf-8", interpolate=False)


def spellings(variable: str) -> tuple[str, ...]:
    """Return the names of a variable, its first name first."""
    return (variable, *(alias for alias, name in ALIASES.items() if name == variable))


@dataclass(frozen=True, slots=True)
class _Conflict:
    """The two values of a variable that is set by both of its names."""

    first: str
    second: str
    alias: str


def _merge_aliases(variables: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the variables of one layer under their first names. An empty one counts as not set."""
    merged: dict[str, Any] = dict(variables)
    for alias, name in ALIASES.items():
        if alias not in variables:
            continue
        first, second = ((variables.get(one) or "").strip() for one in (name, alias))
        if first and second and first.lower() != second.lower():
            merged[name] = _Conflict(first, second, alias)
        else:
            merged[name] = first or second
    return merged


class EnabledSetting(BaseSettings):
    """The switch, read first: when it is off, no other setting is checked."""

    model_config = SettingsConfigDict(
        frozen=True,
        case_sensitive=True,
        extra="ignore",
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    enabled: bool = Field(True, validation_alias="ENABLE_KEY_ROTATION", description="true or false")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read both names of a variable in each layer, so that a layer still beats the next."""
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = _merge_aliases(env_settings.env_vars)
        if isinstance(dotenv_settings, EnvSettingsSource):
            found = read_env_file()
            kept = {name: value for name, value in found.items() if name not in NOT_IN_FILE}
            dotenv_settings.env_vars = _merge_aliases(kept)
        return init_settings, env_settings, dotenv_settings

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, _Conflict):
            raise ValueError(  # noqa: TRY004 - pydantic's kind of error for a value
                f"found {display(value.first)}, and {display(value.second)} in {value.alias}, "
                "which is the same setting; set one of the two"
            )
        # pydantic takes True for 1 and bytes for text; as an argument each is a mistake.
        switch = cls.model_fields[info.field_name or ""].annotation is bool
        if isinstance(value, bytes) or (isinstance(value, bool) and not switch):
            raise ValueError(f"found {display(value)}")
        value = value.strip() if isinstance(value, str) else value
        if value == "":
            raise PydanticUseDefault
        return value


class Settings(EnabledSetting):
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
    state_url: Annotated[str, AfterValidator(_good_state), BeforeValidator(_plain)] = Field(
        default="memory://",
        validation_alias="KEYROT_STATE_URL",
        repr=False,
        description=(
            f"{STATES}, {IN_FILE} (a file of this user), {FROM_REDIS_URL} (what REDIS_URL says)"
        ),
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
    alerts: Annotated[
        tuple[SecretStr, ...], AfterValidator(_good_urls), NoDecode, BeforeValidator(_split_urls)
    ] = Field(
        default=(),
        validation_alias="KEYROT_ALERTS",
        repr=False,
        description="URLs of Apprise, such as mailto://, slack://, discord:// and json://, comma- "
        "or space-separated (as an argument also a list)",
    )
    alert_events: Annotated[
        tuple[str, ...], AfterValidator(_good_events), NoDecode, BeforeValidator(_split)
    ] = Field(default=EVENTS, validation_alias="KEYROT_ALERT_EVENTS", description=", ".join(EVENTS))
    pool: str = Field(
        default="default",
        validation_alias="KEYROT_POOL",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="up to 64 letters, digits, _ . - and a letter or digit first",
    )
    allowed_hosts: Annotated[
        tuple[str, ...], AfterValidator(_good_hosts), NoDecode, BeforeValidator(_split)
    ] = Field(
        default=(GOOGLE_HOST, VERTEX_HOST),
        validation_alias="KEYROT_ALLOWED_HOSTS",
        description="host or host:port, comma-separated, in full and without path; "
        "http://host:port where it has no TLS",
    )
    clients: Annotated[
        tuple[str, ...], AfterValidator(_good_clients), NoDecode, BeforeValidator(_split)
    ] = Field(
        default=CLIENTS,
        validation_alias="KEYROT_CLIENTS",
        description=f"{', '.join(CLIENTS)}, comma-separated",
    )
    tiers: Annotated[
        tuple[str, ...] | None, AfterValidator(_good_tiers), NoDecode, BeforeValidator(_split)
    ] = Field(
        default=None,
        validation_alias="KEYROT_TIERS",
        description=f"{', '.join(get_args(Tier))} (paid: every paid one), comma-separated",
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
    fallback_models: Annotated[
        tuple[str, ...], AfterValidator(_good_chains), NoDecode, BeforeValidator(_split_chains)
    ] = Field(
        default=(),
        validation_alias="KEYROT_FALLBACK_MODELS",
        description="chains of models such as gemini-3.8-flash>gemini-3.6-flash, separated by "
        f"commas or semicolons; up to {MAX_MODELS} different models each, and one model after "
        "another",
    )
    tracing: Annotated[Literal["off", "otlp"], _Lower] = Field(
        default="off", validation_alias="KEYROT_TRACING", description="off, otlp"
    )
    call_spans: bool = Field(
        default=True, validation_alias="KEYROT_CALL_SPANS", description="true or false"
    )
    trace_url: Annotated[str, AfterValidator(_good_trace_url)] | None = Field(
        default=None,
        validation_alias="KEYROT_TRACE_URL",
        description=f"an address of a trace with {TRACE_ID} in it, such as {SAMPLE_TRACE_URL}",
    )
    progress: bool = Field(
        default=True, validation_alias="KEYROT_PROGRESS", description="true or false"
    )


class SettingArguments(TypedDict, total=False):
    """The settings that `install()` and `KeyManager` accept as arguments; None means not given.

    Each is also a variable of the environment and of `.env`. An argument overrides the environment,
    which overrides `.env`, which overrides the default. Times are at most 31622400 s (366 days).
    """

    enabled: bool | None
    """False: `install()` does nothing. Default: `true`. Variable: `ENABLE_KEY_ROTATION`."""
    keys: str | Sequence[str] | None
    """The keys of the pool, as a list or comma-separated. Their ids are `key_1`, `key_2`, … As an
    argument they are the whole pool: no keys.json and no single key is added. Default: none.
    Variable: `GEMINI_API_KEYS`."""
    keys_file: str | PathLike[str] | None
    """Path of a keys.json. Without it, `keys.json` in the working directory is read, if there is
    one. Default: none. Variable: `KEYROT_KEYS_FILE`."""
    secret_store: str | None
    """Where the values of keys are stored: `env`, `file`, `vault`, `aws`, `azure`, `gcp`, or the
    name of a store of your own. Default: `env`. Variable: `SECRET_STORE_TYPE`."""
    secrets_ttl_s: float | None
    """How often values are read again in the background, in seconds; 0: never. Default: `300`.
    Variable: `KEYROT_SECRETS_TTL_S`."""
    google_api_key: str | None
    """The single key: the home key of clients without one, and the last key that the pool tries.
    Default: none. Variable: `GOOGLE_API_KEY`."""
    gemini_api_key: str | None
    """The same, if `google_api_key` is not set. Default: none. Variable: `GEMINI_API_KEY`."""
    state_url: str | None
    """Where requests and limits are counted: `memory://` (in this process), `sqlite` or
    `sqlite:///path` (a file that the processes of this host share), `redis` (the Redis of the
    variable `REDIS_URL`), or the URL of a Redis. Default: `memory://`. Variable:
    `KEYROT_STATE_URL`."""
    degraded_share: float | None
    """The part of each limit that this process may use while the shared state cannot be reached,
    more than 0, at most 1. Default: `1`. Variable: `KEYROT_DEGRADED_SHARE`."""
    alerts: str | Sequence[str] | None
    """URLs of Apprise to which alerts are sent (extra `alerts`), as a list or separated by commas
    or spaces. Not read from `.env`. Default: none. Variable: `KEYROT_ALERTS`."""
    alert_events: str | Sequence[EventName] | None
    """The events that are sent there. Default: all of them. Variable: `KEYROT_ALERT_EVENTS`."""
    pool: str | None
    """The name of the pool in logs, spans and the shared state: up to 64 letters, digits, `_`, `.`
    and `-`. Use one name per service. Default: `default`. Variable: `KEYROT_POOL`."""
    allowed_hosts: str | Sequence[str] | None
    """Hosts that may receive keys of the pool, as `host` or `host:port`, over TLS (loopback also
    over plain HTTP); `http://host:port` allows plain HTTP. Default:
    `generativelanguage.googleapis.com,aiplatform.googleapis.com`. Variable:
    `KEYROT_ALLOWED_HOSTS`."""
    clients: str | Sequence[str] | None
    """The libraries whose requests use the pool. Default:
    `google-genai,httpx,httpx2,requests,aiohttp`. Variable: `KEYROT_CLIENTS`."""
    tiers: str | Sequence[Tier] | None
    """Calls use only keys of these tiers: `free`, `tier1`, `tier2`, `tier3`, `paid` (every paid
    one). Default: none. Variable: `KEYROT_TIERS`."""
    strategy: Strategy | None
    """How a call chooses among equal keys: `spread` (the least used), `fill` (the first one until
    it is exhausted), `sticky` (one per conversation). Default: `spread`. Variable:
    `KEYROT_STRATEGY`."""
    max_attempts: int | None
    """How many attempts of one call may fail because of the key; 0: each key is tried once.
    Default: `0`. Variable: `KEYROT_MAX_ATTEMPTS`."""
    max_retries: int | None
    """How often one call is sent again after a 5xx or a lost connection. Default: `2`. Variable:
    `KEYROT_MAX_RETRIES`."""
    max_wait_s: float | None
    """How long one call waits for keys in total, in seconds; 0: never. Default: `65`. Variable:
    `KEYROT_MAX_WAIT_S`."""
    cooldown_base_s: float | None
    """The first cooldown of a key if the server names no time, in seconds. It doubles with each
    failure in a row. Default: `30`. Variable: `KEYROT_COOLDOWN_BASE_S`."""
    cooldown_max_s: float | None
    """The longest such cooldown, in seconds. Default: `900`. Variable: `KEYROT_COOLDOWN_MAX_S`."""
    fallback_models: str | Sequence[str] | None
    """Chains of models such as `gemini-3.8-flash>gemini-3.6-flash`: the model to which a request
    goes when no key can serve its own. Default: none. Variable: `KEYROT_FALLBACK_MODELS`."""
    tracing: Literal["off", "otlp"] | None
    """`otlp`: set up a tracer provider and an exporter if the program has none (extra `otlp`).
    Default: `off`. Variable: `KEYROT_TRACING`."""
    call_spans: bool | None
    """False: emit spans for attempts, and none for calls. Default: `true`. Variable:
    `KEYROT_CALL_SPANS`."""
    trace_url: str | None
    """Where a tracing backend shows a trace, such as `https://jaeger.example/trace/{trace_id}`: the
    page links each call to it. Default: none. Variable: `KEYROT_TRACE_URL`."""


ENV_NAMES: Mapping[str, str] = MappingProxyType(
    {name: str(info.validation_alias) for name, info in Settings.model_fields.items()}
)
"""The variable of each setting."""
STORE_VARIABLES = (
    *("KEYROT_VAULT_PLACE", "KEYROT_VAULT_ALLOW_HTTP"),
    *("KEYROT_AWS_SECRET", "KEYROT_GCP_SECRET"),
)
"""Variables with our prefix that are no settings: the stores in secrets/ read them."""
ARGUMENTS = tuple(name for name in ENV_NAMES if name not in ("redis_url", "progress"))
"""The settings that may also be arguments of install()."""
SECRET_SETTINGS = frozenset({"keys", "google_api_key", "gemini_api_key", "redis_url", "alerts"})
"""Settings that no message shows."""


# Read the table of settings once, and say in words for people what is wrong in it --------------
#
# *given* are the arguments of install(), named as the fields of `Settings`; a sentence about a
# setting says where its value stands: in an argument, in the environment or in `.env`.


def hide_keys(given: Any) -> None:
    """Wrap the keys and URLs among the arguments of install() so that none is shown, in place.

    This comes first: error reporters show the arguments of functions.
    """
    for name in ("keys", "google_api_key", "gemini_api_key", "alerts", "state_url"):
        value = given.get(name)
        if isinstance(value, str):
            secrets = [SecretStr(part) for part in value.split(",")]
            given[name] = secrets if name == "keys" else SecretStr(value)
        elif isinstance(value, list | tuple | set | frozenset):
            given[name] = [SecretStr(one) if isinstance(one, str) else one for one in value]


def refuse_unknown(given: Mapping[str, Any]) -> None:
    """Refuse arguments that install() does not have.

    Raises:
        ConfigError: With every one of them, and what was probably meant.
    """
    problems = [
        f"install() has no argument {display(name)}; allowed: {', '.join(ARGUMENTS)}."
        f"{did_you_mean(name, ARGUMENTS)}"
        for name in given
        if name not in ARGUMENTS
    ]
    if problems:
        raise ConfigError(join_problems(problems))


def unknown_variables(names: Iterable[str]) -> str | None:
    """Return a warning about *names* with our prefix that are no settings; None without any.

    They are warned of and not refused: a program may have set one for purposes of its own.
    """
    known = (*ENV_NAMES.values(), *ALIASES, *STORE_VARIABLES)
    odd = [name for name in names if name.upper().startswith("KEYROT_") and name not in known]
    if not odd:
        return None
    listing = (f"{mask_keys(name)}.{did_you_mean(name, known)}" for name in dict.fromkeys(odd))
    return f"ignored, since there is no such variable: {' '.join(listing)}"


def ignored_in_file(stores: Iterable[str], names: Iterable[str]) -> str | None:
    """Return a warning about variables that are not read from `.env`; None without any."""
    prefixes = tuple(prefix for store in stores for prefix in _STORE_PREFIXES.get(store, ()))
    ignored = [
        name
        for name in names
        if name not in os.environ and (name in NOT_IN_FILE or name.startswith(prefixes))
    ]
    if not ignored:
        return None
    return (
        f".env: {', '.join(ignored)}: not read from a file, since it decides where logins and "
        "data go; set it in the environment"
    )


def malformed_lines(env_file: Path) -> list[str]:
    """Return a warning about lines of `.env` that are not NAME=value; never their content.

    Args:
        env_file: A file that was read as UTF-8 before, or is not there.
    """
    if not env_file.is_file():
        return []
    with env_file.open(encoding="utf-8") as stream:
        found = [
            one.original.line + _blank_lines_before(one.original.string)
            for one in parse_stream(stream)
            if one.error or (one.key is not None and one.value is None)
        ]
    if not found:
        return []
    lines = f"line{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
    return [f".env, {lines}: ignored, since it is not NAME=value"]


def _blank_lines_before(statement: str) -> int:
    return statement[: len(statement) - len(statement.lstrip())].count("\n")


def join_problems(problems: list[str]) -> str:
    """Return one message for all *problems*."""
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} things are wrong:", *(f"  - {text}" for text in problems)])


def read_settings(given: Mapping[str, Any], problems: list[str]) -> Settings | None:
    """Return the settings, as far as they are right; the rest is reported in *problems*."""
    values = {ENV_NAMES[name]: value for name, value in given.items()}
    try:
        # The switch alone first: what is switched off cannot be wrong in anything else.
        if not EnabledSetting(**values).enabled:
            return Settings.model_construct(enabled=False)
        return Settings(**values)
    except ValidationError as error:
        found = error.errors(include_url=False)
    except UnicodeDecodeError as error:
        problems.append(f".env is not UTF-8 text, at byte {error.start}; save it as UTF-8")
        return None
    except OSError as error:
        problems.append(f".env cannot be read: {error.strerror}")
        return None
    # Outside the handler, so that pydantic's error is not the context of ours.
    problems += dict.fromkeys(_sentence(problem, given) for problem in found)
    return _without(found, values)


def _without(found: list[Any], values: dict[str, Any]) -> Settings | None:
    """Read again with the default in place of what was wrong, to find what else is wrong."""
    wrong = {str(problem["loc"][0]): "" for problem in found}
    return None if "ENABLE_KEY_ROTATION" in wrong else Settings(**{**values, **wrong})


def _sentence(problem: Any, given: Mapping[str, Any]) -> str:
    """Return where a wrong setting is, what was found, and what is allowed."""
    env = str(problem["loc"][0])
    name = next(name for name, alias in ENV_NAMES.items() if alias == env)
    allowed = Settings.model_fields[name].description
    value = problem["input"]
    if problem["type"] == "value_error":
        found = str(problem["ctx"]["error"])
    elif name in SECRET_SETTINGS:
        found = "found something else (not shown here)"
    else:
        found = f"found {display(value)}"
    if name == "alert_events" and isinstance(value, list | tuple):
        value = next((one for one in map(str, value) if one.strip() not in EVENTS), "")
    one_of = problem["type"] == "literal_error" or name in ("secret_store", "alert_events")
    hint = (
        did_you_mean(value, str(allowed).split(", ")) if one_of and isinstance(value, str) else ""
    )
    return f"{setting_source(name, given)}: {found}; allowed: {allowed}.{hint}"


def setting_source(name: str, given: Mapping[str, Any]) -> str:
    """Return where a setting comes from: an argument, the environment or `.env`."""
    if name in given:
        return f"install({name}=…)"
    names = spellings(ENV_NAMES[name])
    if any(one in os.environ for one in names):
        return next((one for one in names if os.environ.get(one)), names[0])
    in_file = read_env_file() if len(names) > 1 else {}
    return f"{next((one for one in names if in_file.get(one)), names[0])} in .env"
