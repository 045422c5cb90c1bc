"""The one table of settings; `tools/settings_docs.py` makes the quick reference and .env.example.

An argument of install() overrides the environment, which overrides `.env` in the working directory,
which overrides the default. An empty value means the default, and hides the layers below it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn, TypedDict, get_args
from urllib.request import getproxies, proxy_bypass

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from .core.model import GEMINI_API, VERTEX_EXPRESS, Platform, Strategy
from .core.model_fallback import MAX_MODELS, next_models
from .core.text import did_you_mean, display, mask_keys, mask_url
from .events import EVENTS, EventName
from .keys_file import BUILT_STORES, Tier, entry_point_stores, is_known_scheme, sentence

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
STATE_SCHEMES = (
    *("memory", "sqlite", "redis", "rediss", "unix"),
    *("redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"),
)
STATES = ", ".join(f"{scheme}://" for scheme in STATE_SCHEMES)
IN_FILE = "sqlite"
"""As the state's URL: the file of the pool in the user's state folder."""
SAMPLE_FILE = "sqlite:///var/lib/app/keyrot.sqlite3"
FROM_REDIS_URL = "redis"
"""As the state's URL: that of REDIS_URL. A program may have that variable for another purpose, so
it is not read unless this says so."""
TRACE_ID = "{trace_id}"
"""What stands for the id of a trace in `KEYROT_TRACE_URL`."""
Client = Literal["google-genai", "httpx", "httpx2", "requests", "aiohttp"]
CLIENTS: tuple[Client, ...] = get_args(Client)
"""The libraries whose requests can go through the pool."""

_USER_INFO = re.compile(r"(https?:/+)?.*@", re.DOTALL)
"""What may stand in front of a host in a URL, a password for one; no host has it."""
_HOST = re.compile(r"(http://)?([a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(\d{1,5}))?")
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|\[::1\]")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_HTTP_URL = re.compile(r"https?://[^\s/?#@\\]+(?:[/?#][!-~]*)?")


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _split(pattern: str) -> BeforeValidator:
    def split(value: object) -> object:
        value = _plain(value)
        if not isinstance(value, str):
            return value
        return tuple(filter(None, (part.strip(" \t\r\n,") for part in re.split(pattern, value))))

    return BeforeValidator(split)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _good_url(url: SecretStr) -> SecretStr:
    if not _URL.fullmatch(url.get_secret_value()):
        raise ValueError("one of them is no URL (not shown); allowed: such as json://, mailto://")
    return url


def _good_chains(chains: tuple[str, ...]) -> tuple[str, ...]:
    try:
        next_models(chains)
    except ValueError as error:
        found = str(error)
    else:
        return chains
    raise ValueError(f"{found}; allowed: chains of up to {MAX_MODELS} models such as a>b,c>d")


def _good_host(host: str) -> str:
    match = _HOST.fullmatch(host)
    if match is None or not 0 < int(match[3] or 443) < 65536:
        masked = _USER_INFO.sub(r"\1[redacted]@", host)
        raise ValueError(f"found {display(masked)}; allowed: host or host:port in full")
    return host


def _good_path(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            f"found {display(str(path))}, whose ~ is no user of this machine"
        ) from None


def _good_store(store: str) -> str:
    if is_known_scheme(store):
        return store
    known = (*BUILT_STORES, *entry_point_stores())
    hint = did_you_mean(store, known)
    raise ValueError(f"found {display(store)}; allowed: {', '.join(known)}.{hint}")


def _good_state(url: str) -> str:
    scheme, there, rest = url.partition("://")
    login = rest.partition("?")[0].rpartition("@")[0]
    if url in (FROM_REDIS_URL, IN_FILE):
        return url
    if not there or scheme not in STATE_SCHEMES or (scheme == "memory") == bool(rest):
        allowed = f"{STATES}, {IN_FILE} (a file of this user), {FROM_REDIS_URL} (REDIS_URL)"
    elif scheme == "sqlite" and (not re.match(r"/+[^/]", rest) or rest.endswith("/")):
        allowed = f"a file, such as {SAMPLE_FILE}"
    elif not scheme.startswith(("unix", "sqlite")) and re.search("[/#]", login):
        allowed = "a password with / as %2F, # as %23 and ? as %3F"
    else:
        return url
    raise ValueError(f"found {display(url)}; allowed: {allowed}")


def _good_trace_url(url: str) -> str:
    if TRACE_ID not in url or not _HTTP_URL.fullmatch(url.replace(TRACE_ID, "0")):
        raise ValueError(f"found {display(mask_url(url))}; allowed: an address with {TRACE_ID}")
    return url


def _some(found: tuple[str, ...]) -> tuple[str, ...]:
    if not found:
        raise ValueError("found none")
    return found


_Lower = BeforeValidator(_lower)
_Some = AfterValidator(_some)
_CSV = (AfterValidator(lambda found: tuple(dict.fromkeys(found))), _split(","))
_Whole = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, le=LONGEST_S)]
_SomeSeconds = Annotated[float, Field(gt=0, le=LONGEST_S)]


class Settings(BaseModel):
    """The settings of one pool. Read them with `config.load()`, whose errors are for people."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    enabled: bool = True
    """`false`: `install()` does nothing"""
    keys: Annotated[tuple[SecretStr, ...], _split(",")] = ()
    """keys, comma-separated; their ids are `key_1`, `key_2`, … As an argument they are the whole
    pool: no keys.json and no single key is added"""
    keys_file: Annotated[Path, AfterValidator(_good_path)] | None = None
    """path of a keys.json; else `keys.json` in the working directory, if there is one"""
    secret_store: Annotated[str, AfterValidator(_good_store), _Lower] = "env"
    """where key values are stored: `env`, `file`, `vault`, `aws`, `azure`, `gcp`, or [your own
    store](secrets.md#a-store-of-your-own)"""
    secrets_ttl_s: _Seconds = 300.0
    """how often values are read again in the background; 0: never"""
    google_api_key: SecretStr | None = None
    """the single key: the home key of clients without one, and the last resort of the pool"""
    gemini_api_key: SecretStr | None = None
    """the same, if `GOOGLE_API_KEY` is not set"""
    state_url: Annotated[str, AfterValidator(_good_state), BeforeValidator(_plain)] = Field(
        default="memory://", repr=False
    )
    """where limits are counted: in this process; `sqlite` or `sqlite:///path`: in a
    [file](sqlite.md) that the processes of this host share; or in a [Redis](redis.md) for several
    hosts"""
    redis_url: SecretStr | None = None
    """that Redis, if `KEYROT_STATE_URL` is `redis`; ignored otherwise"""
    degraded_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """part of each limit that this process may use [while the shared state is
    down](redis-failures.md)"""
    alerts: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_good_url)], ...],
        _split(r"[\s,]+(?=(?i:[a-z][a-z0-9+.-]*)://)"),
    ] = ()
    """where [alerts](alerts.md) are sent: URLs of [Apprise](https://github.com/caronc/apprise),
    comma- or space-separated; not read from `.env` (extra `alerts`)"""
    alert_events: Annotated[tuple[EventName, ...], *_CSV] = EVENTS
    """which [events](alerts.md#events) are sent there"""
    pool: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "default"
    """name of the pool in logs, spans and the shared state; use one name per service"""
    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_good_host), _Lower], ...], _Some, *_CSV
    ] = (GOOGLE_HOST, VERTEX_HOST)
    """hosts that may receive keys of the pool over TLS (loopback also over plain HTTP), as `host`
    or `host:port`; `http://host:port` allows plain HTTP. The second of Google's hosts is for keys
    of [express mode](express-mode.md) alone, the first for all others"""
    clients: Annotated[tuple[Client, ...], *_CSV] = CLIENTS
    """libraries whose requests use the pool: see [openai, litellm, plain HTTP](http-clients.md)"""
    tiers: Annotated[tuple[Tier, ...], _Some, *_CSV] | None = None
    """calls use only keys of these [tiers](tiers.md): `free`, `tier1`, `tier2`, `tier3`, `paid`
    (every paid one), comma-separated"""
    strategy: Annotated[Strategy, _Lower] = "spread"
    """`spread`: least used key first; `fill`: one key until it is exhausted; `sticky`: one key per
    conversation"""
    max_attempts: _Whole = 0
    """attempts of one call with failing keys; 0: each key once"""
    max_retries: _Whole = 2
    """retries of one call after 5xx and connection errors"""
    max_wait_s: _Seconds = 65.0
    """longest wait of one call for a key; 0: never wait"""
    cooldown_base_s: _SomeSeconds = 30.0
    """first cooldown if the server names no time; it doubles with each failure in a row"""
    cooldown_max_s: _SomeSeconds = 900.0
    """longest such cooldown"""
    fallback_models: Annotated[
        tuple[str, ...], AfterValidator(_good_chains), _CSV[0], _split("[,;]")
    ] = ()
    """chains such as `gemini-3.8-flash>gemini-3.6-flash`, separated by commas or semicolons: where
    a request goes [when no key can serve its model](model-fallback.md)"""
    tracing: Annotated[Literal["off", "otlp"], _Lower] = "off"
    """`otlp`: set up a tracer provider and exporter if the program has none (extra `otlp`)"""
    call_spans: bool = True
    """`false`: emit spans for attempts only"""
    trace_url: Annotated[str, AfterValidator(_good_trace_url)] | None = None
    """where your tracing shows a trace, such as `https://jaeger.example/trace/{trace_id}`: [the
    page](page.md) links each call to it"""
    progress: bool = True
    """`false`: no countdown on a terminal while a call waits under `keyrot run`"""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("settings cannot be pickled: the keys in them stay in this process")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_types(cls, value: object, info: ValidationInfo) -> object:
        """Refuse True as a number and bytes as a text, which pydantic takes."""
        switch = cls.model_fields[info.field_name or ""].annotation is bool
        if isinstance(value, bytes) or (isinstance(value, bool) and not switch):
            raise ValueError(f"found {display(value)}")
        return value


class SettingArguments(TypedDict, total=False):
    """The settings that `install()` and `KeyManager` accept as arguments; None means not given."""

    enabled: bool | None
    keys: str | Sequence[str] | None
    keys_file: str | PathLike[str] | None
    secret_store: str | None
    secrets_ttl_s: float | None
    google_api_key: str | None
    gemini_api_key: str | None
    state_url: str | None
    degraded_share: float | None
    alerts: str | Sequence[str] | None
    alert_events: str | Sequence[EventName] | None
    pool: str | None
    allowed_hosts: str | Sequence[str] | None
    clients: str | Sequence[str] | None
    tiers: str | Sequence[Tier] | None
    strategy: Strategy | None
    max_attempts: int | None
    max_retries: int | None
    max_wait_s: float | None
    cooldown_base_s: float | None
    cooldown_max_s: float | None
    fallback_models: str | Sequence[str] | None
    tracing: Literal["off", "otlp"] | None
    call_spans: bool | None
    trace_url: str | None


_UNPREFIXED = {
    "enabled": "ENABLE_KEY_ROTATION",
    "keys": "GEMINI_API_KEYS",
    "secret_store": "SECRET_STORE_TYPE",
    **{name: name.upper() for name in ("google_api_key", "gemini_api_key", "redis_url")},
}
ENV_NAMES: Mapping[str, str] = MappingProxyType(
    {name: _UNPREFIXED.get(name, f"KEYROT_{name.upper()}") for name in Settings.model_fields}
)
"""The variable of each setting."""
STORE_VARIABLES = (
    *("KEYROT_VAULT_PLACE", "KEYROT_VAULT_ALLOW_HTTP"),
    *("KEYROT_AWS_SECRET", "KEYROT_GCP_SECRET"),
)
"""Variables with our prefix that are no settings: the stores in secrets/ read them."""
ARGUMENTS = tuple(SettingArguments.__annotations__)
"""The settings that may also be arguments of install()."""
SECRET_SETTINGS = frozenset({"keys", "google_api_key", "gemini_api_key", "redis_url", "alerts"})
"""Settings that no message shows."""
NOT_IN_FILE = frozenset({"KEYROT_ALERTS"})
"""Variables that are not read from `.env`, which may come with a directory from somebody else: URLs
of Apprise start programs, read files and send to any host."""
_STORE_PREFIXES = {"gcp": "GOOGLE_CLOUD_", "file": "CREDENTIALS_"}
"""How the variables of a store begin, if not with its name."""


def read_env_file(path: Path = Path(".env")) -> dict[str, str | None]:
    """Read `.env` as it stands: `${NAME}` in it is no variable of this machine.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8 text.
    """
    if not path.is_file():
        return {}
    return dotenv_values(path, encoding="utf-8", interpolate=False)


def layered(
    given: Mapping[str, Any], env_file: Mapping[str, str | None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values that are set, and where each stands, by the names of the settings."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, variable in ENV_NAMES.items():
        if name in given:
            value, source = given[name], f"install({name}=…)"
        elif variable in os.environ:
            value, source = os.environ[variable], variable
        elif env_file.get(variable) is not None and variable not in NOT_IN_FILE:
            value, source = env_file[variable], f"{variable} in .env"
        else:
            continue
        value = value.strip() if isinstance(value, str) else value
        if value != "":
            values[name], sources[name] = value, source
    return values, sources


def validate(values: dict[str, Any], sources: Mapping[str, str], problems: list[str]) -> Settings:
    """Return the settings, with the default in place of what is wrong, which joins *problems*."""
    try:
        return Settings(**values)
    except ValidationError as error:
        found = error.errors(include_url=False)
    # Outside the handler, so that pydantic's error is not the context of ours.
    problems += dict.fromkeys(
        f"{sources[str(problem['loc'][0])]}: {sentence(problem, SECRET_SETTINGS)}"
        for problem in found
    )
    wrong = {problem["loc"][0] for problem in found}
    return Settings(**{name: value for name, value in values.items() if name not in wrong})


def hide_keys(given: Any) -> None:
    """Wrap the keys and URLs among the arguments of install() so that none is shown, in place.

    This comes first: error reporters show the arguments of functions.
    """
    for name in ("keys", "google_api_key", "gemini_api_key", "alerts", "state_url"):
        value = given.get(name)
        if isinstance(value, str):
            given[name] = SecretStr(value)
        elif isinstance(value, list | tuple | set | frozenset):
            given[name] = [SecretStr(one) if isinstance(one, str) else one for one in value]


def doubtful_variables(env_file: Mapping[str, str | None], stores: Iterable[str]) -> Iterable[str]:
    """Yield warnings about variables with our prefix, and about those that `.env` may not set.

    Args:
        env_file: What is in it.
        stores: The schemes of the stores in use.
    """
    known = (*ENV_NAMES.values(), *STORE_VARIABLES)
    names = dict.fromkeys((*os.environ, *env_file))
    odd = [name for name in names if name.upper().startswith("KEYROT_") and name not in known]
    if odd:
        listed = " ".join(f"{mask_keys(name)}.{did_you_mean(name, known)}" for name in odd)
        yield f"ignored, since there is no such variable: {listed}"
    prefixes = tuple(_STORE_PREFIXES.get(store, f"{store.upper()}_") for store in stores)
    in_file = [name for name in env_file if name not in os.environ]
    ignored = [name for name in in_file if name in NOT_IN_FILE or name.startswith(prefixes)]
    if ignored:
        yield (
            f".env: {', '.join(ignored)}: not read from a file, since it decides where logins and "
            "data go; set it in the environment"
        )


def join_problems(problems: Sequence[str]) -> str:
    """Return one message for all *problems*."""
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} things are wrong:", *(f"  - {text}" for text in problems)])


AllowedOrigins = Mapping[Platform, frozenset[str]]
"""Where keys may be sent, by their platform."""


def origins(hosts: Iterable[str]) -> frozenset[str]:
    """Return the origins of these hosts, in the form of `adapters.urls.origin_from_url`.

    That is TLS, and plain HTTP only where it stays in this machine, not at a proxy, or is written
    in front of the host. Without a port it is the scheme's own.
    """
    allowed: set[str] = set()
    for entry, match in ((entry, _HOST.fullmatch(entry)) for entry in hosts):
        if match is None:
            continue
        plain, host, port = match.groups()
        if not plain:
            allowed.add(f"https://{host}:{port or 443}")
        if plain or (_LOOPBACK.fullmatch(host) and not is_proxied(entry)):
            allowed.add(f"http://{host}:{port or 80}")
    return frozenset(allowed)


def is_proxied(entry: str) -> bool:
    """Return whether a proxy of the environment gets what is sent to a host of this machine."""
    match = _HOST.fullmatch(entry)
    if match is None or match[1] or not _LOOPBACK.fullmatch(match[2]):
        return False
    proxies = getproxies()
    return bool(proxies.get("http") or proxies.get("all")) and not proxy_bypass(entry)


def allowed_origins(hosts: Iterable[str]) -> AllowedOrigins:
    """Return the origins of these hosts for each platform: Google's own are for one alone."""
    hosts = tuple(hosts)
    return {
        GEMINI_API: origins(h for h in hosts if not h.partition(":")[0].endswith(VERTEX_HOST)),
        VERTEX_EXPRESS: origins(h for h in hosts if h.partition(":")[0] != GOOGLE_HOST),
    }
