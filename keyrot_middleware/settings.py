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
from dotenv.parser import parse_stream
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
from .errors import ConfigError
from .events import EVENTS, EventName
from .keys_file import BUILT_STORES, Tier, entry_point_stores, is_known_scheme

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
        return tuple(filter(None, map(str.strip, re.split(pattern, value))))

    return BeforeValidator(split)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _good_url(url: SecretStr) -> SecretStr:
    if not _URL.fullmatch(url.get_secret_value()):
        raise ValueError("one of them is no URL (not shown)")
    return url


def _good_chains(chains: tuple[str, ...]) -> tuple[str, ...]:
    next_models(chains)
    return chains


def _good_host(host: str) -> str:
    match = _HOST.fullmatch(host)
    if match is None or not 0 < int(match[3] or 443) < 65536:
        masked = _USER_INFO.sub(r"\1[redacted]@", host)
        raise ValueError(f"found {display(masked)}")
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
    there = ", ".join(entry_point_stores())
    raise ValueError(f"found {display(store)}{f' (plugged in: {there})' if there else ''}")


def _good_state(url: str) -> str:
    if url in (FROM_REDIS_URL, IN_FILE):
        return url
    scheme, there, rest = url.partition("://")
    if not there or scheme not in STATE_SCHEMES or (scheme == "memory") == bool(rest):
        raise ValueError(f"found {display(url)}")
    if scheme == "sqlite" and (not re.match(r"/+[^/]", rest) or rest.endswith("/")):
        raise ValueError(f"found {display(url)}; a file is named as in {SAMPLE_FILE}")
    login = rest.partition("?")[0].rpartition("@")[0]
    if not scheme.startswith(("unix", "sqlite")) and re.search("[/#]", login):
        raise ValueError(f"found {display(url)}; in a password write / as %2F, # as %23, ? as %3F")
    return url


def _good_trace_url(url: str) -> str:
    if TRACE_ID not in url or not _HTTP_URL.fullmatch(url.replace(TRACE_ID, "0")):
        raise ValueError(f"found {display(mask_url(url))}")
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
_S = f"up to {LONGEST_S} (366 days)"
_BOOL = "true or false"


def _setting(default: Any, allowed: str, meaning: str, **limits: Any) -> Any:
    """Make a row of the table: the default, what errors say is allowed, and what docs say."""
    return Field(default, description=allowed, json_schema_extra={"meaning": meaning}, **limits)


class Settings(BaseModel):
    """The settings of one pool. Read them with `config.load()`, whose errors are for people."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    enabled: bool = _setting(True, _BOOL, "`false`: `install()` does nothing")
    keys: Annotated[tuple[SecretStr, ...], _split(",")] = _setting(
        (),
        "keys, comma-separated (as an argument also a list)",
        "keys, comma-separated; their ids are `key_1`, `key_2`, … As an argument they are the whole"
        " pool: no keys.json and no single key is added",
        repr=False,
    )
    keys_file: Annotated[Path, AfterValidator(_good_path)] | None = _setting(
        None,
        "the path of a keys.json",
        "path of a keys.json; else `keys.json` in the working directory, if there is one",
    )
    secret_store: Annotated[str, AfterValidator(_good_store), _Lower] = _setting(
        "env",
        f"{', '.join(BUILT_STORES)}, or one that is plugged in",
        "where key values are stored: `env`, `file`, `vault`, `aws`, `azure`, `gcp`, or [your own "
        "store](secrets.md#a-store-of-your-own)",
    )
    secrets_ttl_s: _Seconds = _setting(
        300.0,
        f"seconds, from 0 (0: never) {_S}",
        "how often values are read again in the background; 0: never",
    )
    google_api_key: SecretStr | None = _setting(
        None,
        "a key",
        "the single key: the home key of clients without one, and the last resort of the pool",
        repr=False,
    )
    gemini_api_key: SecretStr | None = _setting(
        None, "a key", "the same, if `GOOGLE_API_KEY` is not set", repr=False
    )
    state_url: Annotated[str, AfterValidator(_good_state), BeforeValidator(_plain)] = _setting(
        "memory://",
        f"{STATES}, {IN_FILE} (a file of this user), {FROM_REDIS_URL} (what REDIS_URL says)",
        "where limits are counted: in this process; `sqlite` or `sqlite:///path`: in a "
        "[file](sqlite.md) that the processes of this host share; or in a [Redis](redis.md) for "
        "several hosts",
        repr=False,
    )
    redis_url: SecretStr | None = _setting(
        None, STATES, "that Redis, if `KEYROT_STATE_URL` is `redis`; ignored otherwise", repr=False
    )
    degraded_share: Annotated[float, Field(gt=0, le=1)] = _setting(
        1.0,
        "a part of each limit, more than 0, up to 1",
        "part of each limit that this process may use [while the shared state is "
        "down](redis-failures.md)",
    )
    alerts: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_good_url)], ...],
        _split(r"[\s,]+(?=(?i:[a-z][a-z0-9+.-]*)://)"),
    ] = _setting(
        (),
        "URLs of Apprise, such as mailto://, slack://, discord:// and json://, comma- or "
        "space-separated (as an argument also a list)",
        "where [alerts](alerts.md) are sent: URLs of [Apprise](https://github.com/caronc/apprise), "
        "comma- or space-separated; not read from `.env` (extra `alerts`)",
        repr=False,
    )
    alert_events: Annotated[tuple[EventName, ...], *_CSV] = _setting(
        EVENTS, ", ".join(EVENTS), "which [events](alerts.md#events) are sent there"
    )
    pool: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = _setting(
        "default",
        "up to 64 letters, digits, _ . - and a letter or digit first",
        "name of the pool in logs, spans and the shared state; use one name per service",
    )
    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_good_host), _Lower], ...], _Some, *_CSV
    ] = _setting(
        (GOOGLE_HOST, VERTEX_HOST),
        "host or host:port in full, comma-separated; http:// in front allows plain HTTP",
        "hosts that may receive keys of the pool over TLS (loopback also over plain HTTP), as "
        "`host` or `host:port`; `http://host:port` allows plain HTTP. The second of Google's hosts "
        "is for keys of [express mode](express-mode.md) alone, the first for all others",
    )
    clients: Annotated[tuple[Client, ...], *_CSV] = _setting(
        CLIENTS,
        ", ".join(CLIENTS),
        "libraries whose requests use the pool: see [openai, litellm and plain "
        "HTTP](http-clients.md)",
    )
    tiers: Annotated[tuple[Tier, ...], _Some, *_CSV] | None = _setting(
        None,
        ", ".join(get_args(Tier)),
        "calls use only keys of these [tiers](tiers.md): `free`, `tier1`, `tier2`, `tier3`, `paid` "
        "(every paid one), comma-separated",
    )
    strategy: Annotated[Strategy, _Lower] = _setting(
        "spread",
        "spread, fill, sticky",
        "`spread`: least used key first; `fill`: one key until it is exhausted; `sticky`: one key "
        "per conversation",
    )
    max_attempts: _Whole = _setting(
        0,
        "a whole number from 0 (0: each key once)",
        "attempts of one call with failing keys; 0: each key once",
    )
    max_retries: _Whole = _setting(
        2, "a whole number from 0", "retries of one call after 5xx and connection errors"
    )
    max_wait_s: _Seconds = _setting(
        65.0,
        f"seconds, from 0 (0: never wait) {_S}",
        "longest wait of one call for a key; 0: never wait",
    )
    cooldown_base_s: _SomeSeconds = _setting(
        30.0,
        f"seconds, more than 0, {_S}",
        "first cooldown if the server names no time; it doubles with each failure in a row",
    )
    cooldown_max_s: _SomeSeconds = _setting(
        900.0,
        f"seconds, no less than KEYROT_COOLDOWN_BASE_S, {_S}",
        "longest such cooldown",
    )
    fallback_models: Annotated[
        tuple[str, ...], AfterValidator(_good_chains), _CSV[0], _split("[,;]")
    ] = _setting(
        (),
        "chains of models such as gemini-3.8-flash>gemini-3.6-flash, separated by commas or "
        f"semicolons; up to {MAX_MODELS} different models each, and one model after another",
        "chains such as `gemini-3.8-flash>gemini-3.6-flash`, separated by commas or semicolons: "
        "where a request goes [when no key can serve its model](model-fallback.md)",
    )
    tracing: Annotated[Literal["off", "otlp"], _Lower] = _setting(
        "off",
        "off, otlp",
        "`otlp`: set up a tracer provider and exporter if the program has none (extra `otlp`)",
    )
    call_spans: bool = _setting(True, _BOOL, "`false`: emit spans for attempts only")
    trace_url: Annotated[str, AfterValidator(_good_trace_url)] | None = _setting(
        None,
        f"an address of a trace with {TRACE_ID} in it, such as https://jaeger.example/trace/"
        f"{TRACE_ID}",
        f"where your tracing shows a trace, such as `https://jaeger.example/trace/{TRACE_ID}`: "
        "[the page](page.md) links each call to it",
    )
    progress: bool = _setting(
        True, _BOOL, "`false`: no countdown on a terminal while a call waits under `keyrot run`"
    )

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
    problems += dict.fromkeys(_sentence(problem, sources) for problem in found)
    wrong = {problem["loc"][0] for problem in found}
    return Settings(**{name: value for name, value in values.items() if name not in wrong})


def _sentence(problem: Any, sources: Mapping[str, str]) -> str:
    """Return where a wrong setting stands, what was found, and what is allowed."""
    name, value = str(problem["loc"][0]), problem["input"]
    allowed = str(Settings.model_fields[name].description)
    found, hint = f"found {display(value)}", ""
    if problem["type"] == "value_error":
        found = str(problem["ctx"]["error"])
    elif name in SECRET_SETTINGS:
        found = "found something else (not shown here)"
    if isinstance(value, str) and (problem["type"] == "literal_error" or name == "secret_store"):
        hint = did_you_mean(value, allowed.split(", "))
    return f"{sources[name]}: {found}; allowed: {allowed}.{hint}"


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
    prefixes = tuple(prefix for store in stores for prefix in _STORE_PREFIXES.get(store, ()))
    in_file = [name for name in env_file if name not in os.environ]
    ignored = [name for name in in_file if name in NOT_IN_FILE or name.startswith(prefixes)]
    if ignored:
        yield (
            f".env: {', '.join(ignored)}: not read from a file, since it decides where logins and "
            "data go; set it in the environment"
        )


def malformed_lines(env_file: Path = Path(".env")) -> Iterable[str]:
    """Yield a warning about lines of `.env` that are not NAME=value; never their content."""
    if not env_file.is_file():
        return
    with env_file.open(encoding="utf-8") as stream:
        found = [
            str(one.original.line + _blank_lines_before(one.original.string))
            for one in parse_stream(stream)
            if one.error or (one.key is not None and one.value is None)
        ]
    if found:
        lines = f"line{'s' if len(found) > 1 else ''} {', '.join(found)}"
        yield f".env, {lines}: ignored, since it is not NAME=value"


def _blank_lines_before(statement: str) -> int:
    return statement[: len(statement) - len(statement.lstrip())].count("\n")


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
