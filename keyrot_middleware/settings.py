"""The one table of settings; `tools/settings_docs.py` makes the quick reference and .env.example.

An argument of install() overrides the environment, which overrides `.env` in the working directory,
which overrides the default. An empty value means the default, and hides the layers below it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from itertools import count, pairwise
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from . import providers
from .core.model import LAST_RESORT, POOL_KEY, Candidate, RetryPolicy, Strategy, Terms
from .core.wording import did_you_mean
from .errors import EVENTS, ConfigError, EventName
from .hosts import GOOGLE_HOST, VERTEX_HOST, AllowedOrigins, allowed_origins, good_host
from .keys_file import (
    ALLOWED_CHARACTERS,
    BUILT_STORES,
    SINGLE_KEYS,
    KeySpec,
    Tier,
    Usd,
    UsdWindow,
    Use,
    allowed_tiers,
    budget,
    candidates_of,
    entry_point_stores,
    file_version,
    is_known_scheme,
    one_of,
    read_keys,
    sentence,
)
from .libraries import CLIENTS, Client
from .providers.gemini import Gemini
from .providers.keys import StaysHere, display, hide_secrets, mask_keys

MAX_MODELS = 8
"""Models that one request may be sent to."""
LONGEST_S = 366 * 86400
"""The longest time that a setting may be. A longer one is a mistake, and ends after year 9999."""
REDIS_SCHEMES = (
    *("redis", "rediss", "unix"),
    *("redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"),
)
STATE_SCHEMES = ("memory", "sqlite", *REDIS_SCHEMES)
"""Of the states of this package; `entry_point_states` has those of others."""
STATES_GROUP = "keyrot_middleware.states"
"""The entry points of states of other distributions: the scheme of the URL, and a callable that
takes what `RecordState` takes, after the URL, and returns a `State`."""
IN_FILE = "sqlite"
"""As the state's URL: the file of the pool in the user's state folder."""
SAMPLE_FILE = "sqlite:///var/lib/app/keyrot.sqlite3"
FROM_REDIS_URL = "redis"
"""As the state's URL: that of REDIS_URL. A program may have that variable for another purpose, so
it is not read unless this says so."""
TRACE_ID = "{trace_id}"
"""What stands for the id of a trace in `KEYROT_TRACE_URL`."""


def entry_point_states() -> dict[str, EntryPoint]:
    """Return the states of other distributions by scheme; ours cannot be replaced.

    It reads files, so it is called only where a scheme is not one of ours.
    """
    found = {point.name: point for point in entry_points(group=STATES_GROUP)}
    return {name: point for name, point in found.items() if name not in STATE_SCHEMES}


def _as_urls(schemes: Iterable[str]) -> str:
    return ", ".join(f"{scheme}://" for scheme in schemes)


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _split(pattern: str) -> BeforeValidator:
    def split(value: object) -> object:
        value = _plain(value)
        if not isinstance(value, str):
            return value
        return tuple(filter(None, (part.strip(" \t\r\n,") for part in re.split(pattern, value))))

    return BeforeValidator(split)


def _from_json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def next_models(chains: Iterable[str]) -> dict[str, str]:
    """Return the model that follows each model.

    Args:
        chains: Such as `a>b>c`.

    Raises:
        ValueError: They are too long together, or go two ways.
    """
    following: dict[str, str] = {}
    for chain in chains:
        models = [name.strip().removeprefix("models/") for name in chain.split(">")]
        for model, after in pairwise(models):
            if following.setdefault(model, after) != after:
                raise ValueError(f"found {display(model)} with two models after it")
    for model in following:
        found = [model]
        while (after := following.get(found[-1], "")) and len(found) <= MAX_MODELS:
            found.append(after)
        if len(found) > MAX_MODELS:
            raise ValueError(f"found a circle, or over {MAX_MODELS} models, from {display(model)}")
    return following


def _good_chains(chains: tuple[str, ...]) -> tuple[str, ...]:
    next_models(chains)
    return chains


def _good_store(store: str) -> str:
    known = (*BUILT_STORES, *entry_point_stores())
    return store if is_known_scheme(store) else one_of(store, known)


def _good_state(url: str) -> str:
    scheme, there, rest = url.partition("://")
    login = rest.partition("?")[0].rpartition("@")[0]
    if url in (FROM_REDIS_URL, IN_FILE):
        return url
    if there and scheme not in STATE_SCHEMES and scheme in entry_point_states():
        return url
    if not there or scheme not in STATE_SCHEMES or (scheme == "memory") == bool(rest):
        known = _as_urls([*STATE_SCHEMES, *entry_point_states()])
        allowed = f"{known}, {IN_FILE} (a file of this user), {FROM_REDIS_URL} (REDIS_URL)"
    elif scheme == "sqlite" and (not re.match(r"/+[^/]", rest) or rest.endswith("/")):
        allowed = f"a file, such as {SAMPLE_FILE}"
    elif not scheme.startswith(("unix", "sqlite")) and re.search("[/#]", login):
        allowed = "a password with / as %2F, # as %23 and ? as %3F"
    else:
        return url
    raise ValueError(f"found {display(url)}; allowed: {allowed}")


def _some(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("found none")
    return values


_Lower = BeforeValidator(_lower)
_Some = AfterValidator(_some)
_CSV = (AfterValidator(lambda found: tuple(dict.fromkeys(found))), _split(","))
_Whole = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, le=LONGEST_S)]
_SomeSeconds = Annotated[float, Field(gt=0, le=LONGEST_S)]


_FROZEN = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Workload(BaseModel):
    """What the calls of a workload may use."""

    model_config = _FROZEN

    first: bool = False
    share: Use = 1.0
    usd: dict[UsdWindow, Usd] | None = None
    first_token_s: _Seconds | None = None


_POOL_NAME, _WORKLOAD_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", r"^[^\x00-\x1f]{1,100}$"
_MODEL = r"\s*(?:models/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?\s*"
_CHAIN = rf"^{_MODEL}(?:>{_MODEL}){{1,{MAX_MODELS - 1}}}$"
_TRACE_URL = r"^https?://[^\s/?#@\\]+[/?#][!-~]*\{trace_id\}[!-~]*$"
ALLOWED_CHARACTERS |= {
    _CHAIN: f"chains of up to {MAX_MODELS} models such as a>b,c>d",
    _TRACE_URL: f"an address with {TRACE_ID}",
    _POOL_NAME: "up to 64 letters, digits and _ . -, a letter or digit first",
    _WORKLOAD_NAME: "names of 1 to 100 characters, none of them a control character",
}
_WorkloadName = Annotated[str, Field(pattern=_WORKLOAD_NAME)]


def terms_of(workloads: Mapping[str, Workload] | None) -> dict[str | None, Terms]:
    """Return what each workload may use; by None what all others may, if that is less than all."""
    terms: dict[str | None, Terms] = {}
    behind = ", ".join(name for name, one in (workloads or {}).items() if one.first)
    if behind:
        terms[None] = Terms(behind=behind)
    for name, one in (workloads or {}).items():
        usd = budget(one.usd or {})
        terms[name] = Terms(name, one.first, one.share, usd, "" if one.first else behind)
    return terms


def deadlines_of(settings: Settings) -> dict[str | None, float]:
    """Return how long first tokens may take by workload, by None of all others; empty: for ever."""
    deadlines: dict[str | None, float] = {None: settings.first_token_s}
    for name, one in (settings.workloads or {}).items():
        deadlines[name] = deadlines[None] if one.first_token_s is None else one.first_token_s
    return deadlines if any(deadlines.values()) else {}


class Settings(StaysHere, BaseModel):
    """The settings of one pool. Read them with `load()`, whose errors are for people."""

    model_config = _FROZEN

    enabled: bool = True
    """`false`: `install()` does nothing"""
    keys: Annotated[tuple[SecretStr, ...], _split(",")] = ()
    """keys, comma-separated; their ids are `key_1`, `key_2`, … As an argument they are the whole
    pool: no keys.json and no single key is added"""
    keys_file: Annotated[Path, AfterValidator(Path.expanduser)] | None = None
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
    [file](sqlite.md) that the processes of this host share; in a [Redis](redis.md) for several
    hosts; or in [a state of your own](sqlite.md#a-state-of-your-own)"""
    redis_url: SecretStr | None = None
    """that Redis, if `KEYROT_STATE_URL` is `redis`; ignored otherwise"""
    use: Use = 1.0
    """part of each limit that is the pool's, such as `0.9`, of learned ones too; the rest is for
    [other programs](limits.md#leave-some-to-other-programs). A key of keys.json may have its own"""
    alerts: Annotated[
        tuple[SecretStr, ...],
        _split(r"[\s,]+(?=(?i:[a-z][a-z0-9+.-]*)://)"),
    ] = ()
    """where [alerts](alerts.md) are sent: URLs of [Apprise](https://github.com/caronc/apprise),
    comma- or space-separated; not read from `.env` (extra `alerts`)"""
    alert_events: Annotated[tuple[EventName, ...], *_CSV] = EVENTS
    """which [events](alerts.md#events) are sent there"""
    pool: Annotated[str, Field(pattern=_POOL_NAME)] = "default"
    """name of the pool in logs, spans and the shared state; use one name per service"""
    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(good_host)], ...], _Some, *_CSV
    ] = (GOOGLE_HOST, VERTEX_HOST)
    """hosts that may receive keys of the pool over TLS (loopback also over plain HTTP), as `host`
    or `host:port`; `http://host:port` allows plain HTTP, `openai=host/path` a path for keys of one
    [provider](providers.md#hosts). The second of Google's hosts is for keys
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
    first_token_s: _Seconds = 0.0
    """how long an attempt may show nothing until [another key or
    model](waiting.md#the-first-token) takes over; 0: no deadline"""
    cooldown_base_s: _SomeSeconds = 30.0
    """first cooldown if the server names no time; it doubles with each failure in a row"""
    cooldown_max_s: _SomeSeconds = 900.0
    """longest such cooldown"""
    fallback_models: Annotated[
        tuple[Annotated[str, Field(pattern=_CHAIN)], ...],
        AfterValidator(_good_chains),
        _CSV[0],
        _split("[,;]"),
    ] = ()
    """chains such as `gemini-3.8-flash>gemini-3.6-flash`, separated by commas or semicolons: where
    a request goes [when no key can serve its model](model-fallback.md)"""
    workloads: Annotated[dict[_WorkloadName, Workload] | None, BeforeValidator(_from_json)] = None
    """what the calls inside `workload(name)` may use, as JSON such as `{"chat": {"first": true},
    "nightly": {"share": 0.8, "usd": {"day": 5}}}`: see [workloads](workloads.md)"""
    limits_from: Annotated[Literal["google"], _Lower] | None = None
    """`google`: [read the limits](limits.md#where-limits-come-from) of Google Cloud projects each
    hour, with the program's Google login (extra `gcp`)"""
    call_spans: bool = True
    """`false`: emit spans for attempts only"""
    genai_conventions: Annotated[Literal["auto", "old", "new", "both"], _Lower] = "auto"
    """which [names of the GenAI conventions](telemetry.md#two-sets-of-names) to emit: `old`, `new`
    (of July 2026) or `both`; `auto`: those of the installed opentelemetry-util-genai, else both"""
    trace_url: Annotated[str, Field(pattern=_TRACE_URL)] | None = None
    """where your tracing shows a trace, such as `https://jaeger.example/trace/{trace_id}`: [the
    page](page.md) links each call to it"""


class WorkloadArguments(TypedDict, total=False):
    """What the calls of a workload may use."""

    first: bool
    """Others leave free what its calls are expected to use, and wait behind them."""
    share: float
    """At most this part of each limit."""
    usd: Mapping[UsdWindow, float]
    """At most so many dollars in each window."""
    first_token_s: float
    """In place of the pool's."""


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
    use: float | None
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
    first_token_s: float | None
    cooldown_base_s: float | None
    cooldown_max_s: float | None
    fallback_models: str | Sequence[str] | None
    workloads: str | Mapping[str, WorkloadArguments] | None
    limits_from: Literal["google"] | None
    call_spans: bool | None
    genai_conventions: Literal["auto", "old", "new", "both"] | None
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
KEY_PREFIX = "KEYROT_KEY_"
"""Before the id of a key: the variable of its value."""
ARGUMENTS = tuple(SettingArguments.__annotations__)
"""The settings that may also be arguments of install()."""
SECRET_SETTINGS = frozenset({"keys", "google_api_key", "gemini_api_key", "redis_url", "alerts"})
"""Settings that no message shows."""
NOT_IN_FILE = frozenset({"KEYROT_ALERTS"})
"""Variables that are not read from `.env`, which may come with a directory from somebody else: URLs
of Apprise start programs, read files and send to any host."""
_MISTAKEN = ("GEMINI_KEYS", "GOOGLE_API_KEYS", "GOOGLE_KEYS")
"""Variables that people set in place of GEMINI_API_KEYS."""


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
        errors = error.errors(include_url=False)
    # Outside the handler, so that pydantic's error is not the context of ours.
    problems += dict.fromkeys(
        f"{sources[str(problem['loc'][0])]}: {_inside(problem)}"
        f"{sentence(problem, SECRET_SETTINGS, Workload.model_fields)}"
        for problem in errors
    )
    wrong = {problem["loc"][0] for problem in errors}
    return Settings(**{name: value for name, value in values.items() if name not in wrong})


def _inside(problem: Any) -> str:
    name, *place = problem["loc"]
    return f"{display('.'.join(map(str, place)))}: " if place and name == "workloads" else ""


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


def doubtful_variables(env_file: Mapping[str, str | None]) -> Iterable[str]:
    """Yield warnings about variables with our prefix, of the environment and of `.env`."""
    known = (*ENV_NAMES.values(), *STORE_VARIABLES)
    names = [name for name in (*os.environ, *env_file) if not name.startswith(KEY_PREFIX)]
    odd = [n for n in dict.fromkeys(names) if n.upper().startswith("KEYROT_") and n not in known]
    hints = {mask_keys(name): did_you_mean(name, known) for name in odd}
    hints |= {name: ' Did you mean "GEMINI_API_KEYS"?' for name in _MISTAKEN if name in names}
    if hints:
        listed = " ".join(f"{name}.{hint}" for name, hint in hints.items())
        yield f"ignored, since there is no such variable: {listed}"
    for name in sorted(NOT_IN_FILE & env_file.keys() - os.environ.keys()):
        yield f".env: {name}: not read from a file, since it decides where data go; set it outside"


def join_problems(problems: Sequence[str]) -> str:
    """Return one message for all *problems*."""
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} things are wrong:", *(f"  - {text}" for text in problems)])


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that install() needs to know, checked."""

    settings: Settings
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each setting that is set stands: `KEYROT_POOL`, `KEYROT_POOL in .env`, …"""
    keys: tuple[KeySpec, ...] = ()
    """The pool in order: keys.json, then GEMINI_API_KEYS, then the single key, then those of other
    providers; only what was given where keys were given to install()."""
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    warnings: tuple[str, ...] = ()
    """Warnings to issue once, about settings and keys.json; they hold no secret."""
    state_url: str = field(default="memory://", repr=False)
    """Where the pool's state lives; may hold a password."""
    inline: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)
    """Values that stood in a setting instead of a secret store, per key id."""
    last_resorts: tuple[str, ...] = ()
    """The ids of the single keys of each provider: home keys, and last in the pool. Values are only
    known after resolving, so the secret cache skips one whose value another key of the pool has."""
    env_file: Path = Path(".env")
    """The `.env` that was read if it is there; absolute when it comes from `load()`."""
    keys_file: Path | None = None
    """The keys.json that was read, absolute; None: there was none."""
    keys_seen: tuple[int, int, int] | None = None
    """Which version of it was read."""
    keys_problems: tuple[str, ...] = ()
    """What is wrong in it; such a pool is not used."""

    @property
    def tiers(self) -> frozenset[str] | None:
        """The tiers of the keys that calls may use; None: all."""
        return allowed_tiers(self.settings.tiers) if self.settings.tiers else None

    @property
    def allowed(self) -> AllowedOrigins:
        """Where keys may be sent."""
        return allowed_origins(self.settings.allowed_hosts, providers.platforms())

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The keys as selection and quota see them."""
        return candidates_of(self.keys, self.tiers, self.settings.use)

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
    config = load_whatever_keys(**overrides)
    if config.keys_problems:
        raise ConfigError(join_problems(config.keys_problems))
    return config


def load_whatever_keys(**overrides: Any) -> Config:
    """Read what `load()` reads, for one who looks at a pool whose keys.json may be wrong.

    Args:
        overrides: As of `load()`.

    Raises:
        ConfigError: Something else is wrong.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    problems = [
        f"install() has no argument {display(name)}.{did_you_mean(name, ARGUMENTS)} "
        f"Allowed: {', '.join(ARGUMENTS)}."
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
        raise ConfigError(join_problems([*problems, *config.keys_problems]))
    return config


def _env_file(problems: list[str]) -> dict[str, str | None]:
    try:
        return read_env_file()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f".env cannot be read: {error}")
    return {}


def _gather(
    settings: Settings,
    sources: Mapping[str, str],
    problems: list[str],
    env_file: Mapping[str, str | None],
) -> Config:
    """Bring the keys of all three places together; report in *problems* what is wrong."""
    warnings = [*providers.plugged_in()[1].values()]
    state_url = _state_url(settings, problems)
    if state_url != "memory://" and "pool" not in sources:
        warnings.append(
            "the state is shared, and KEYROT_POOL is not set: all services of this server or file "
            f"that do not set it use the pool {settings.pool!r} together. Name the pool of this "
            "service"
        )
    values = dict.fromkeys(filter(None, map(_own, settings.keys)))
    given = {name for name, source in sources.items() if source.startswith("install(")}
    alone = "keys" in given and bool(values)  # these keys are the pool, and none that happen to be
    single = _single_key(settings, given, alone=alone)
    path = settings.keys_file
    if path is None and Path("keys.json").exists() and not alone:
        path = Path("keys.json")
    if alone and "keys_file" not in given:
        path = None
    in_file, wrong = tuple[KeySpec, ...](), list[str]()
    seen = file_version(path) if path else None
    if path is not None:
        in_file, wrong = read_keys(path)
        named = f"{sources['keys_file']}, " if "keys_file" in sources else ""
        wrong = [f"{named}{text}" for text in wrong]
    warnings += doubtful_variables(env_file)
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
    for key, value in () if alone else _of_other_providers(env_file, in_file):
        keys.append(key)
        if value:
            inline[key.key_id] = SecretStr(value)
    singles = [key.key_id for key in keys if key.priority == LAST_RESORT and key not in in_file]
    (wrong if wrong else problems).extend(_tiers_problem(settings, keys, sources))
    policy = {
        name: getattr(settings, name) for name in RetryPolicy.__dataclass_fields__ if name != "zone"
    }
    here = Path.cwd()
    return Config(
        settings=settings,
        keys=tuple(keys),
        policy=RetryPolicy(**policy, zone=zone_of(key.service for key in keys)),
        warnings=tuple(warnings),
        state_url=state_url,
        inline=MappingProxyType(inline),
        last_resorts=tuple(singles),
        env_file=here / ".env",
        keys_file=here / path if path else None,
        keys_seen=seen,
        keys_problems=tuple(wrong),
    )


def zone_of(platforms: Iterable[str]) -> str:
    """Return where the days of a pool end: those of Gemini, unless it has no key of Gemini's."""
    zones = [providers.of(platform).zone for platform in platforms]
    return Gemini.zone if Gemini.zone in zones or not zones else zones[0]


def _of_other_providers(
    env_file: Mapping[str, str | None], in_file: Collection[KeySpec]
) -> Iterator[tuple[KeySpec, str | None]]:
    """Yield the keys that stand in the variables of providers other than Gemini.

    A single key counts where its provider has other keys: alone there is nothing to choose.

    Yields:
        The key, and its value; None for a single key, which its store has.
    """

    def read(variable: str) -> str:
        return (os.environ.get(variable, env_file.get(variable)) or "").strip()

    taken = {key.key_id for key in in_file}
    for provider in map(providers.of, providers.platforms()):
        if provider.name == Gemini.name:
            continue
        listed = ",".join(read(f"{variable}S") for variable in provider.variables).split(",")
        values = dict.fromkeys(value.strip() for value in listed if value.strip())
        values.pop(POOL_KEY, None)
        prefix = provider.name.replace("-", "_")
        free = (name for name in map(f"{prefix}_{{}}".format, count(1)) if name not in taken)
        for key_id, value in zip(free, values, strict=False):
            yield KeySpec(key_id=key_id, provider=provider.name), value
        single = next((v for v in provider.variables if read(v) not in ("", POOL_KEY)), "")
        if single and (values or any(key.provider == provider.name for key in in_file)):
            # model_construct: as for the single key of Gemini.
            secret, name = f"env://{single}", provider.name
            yield (
                KeySpec.model_construct(
                    key_id=single, provider=name, priority=LAST_RESORT, secret=secret
                ),
                None,
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
    others = (k for k in config.keys if k.key_id in {*config.inline, *config.last_resorts})
    keys = (*in_file, *others)
    if not keys and not problems:
        problems = [f'{name}: found no key; to take the last one out, keep it with "active": false']
    if problems:
        raise ConfigError(join_problems(problems))
    return replace(config, keys=keys, keys_seen=seen, keys_problems=(), warnings=())


def _state_url(settings: Settings, problems: list[str]) -> str:
    """Return the URL of the state. REDIS_URL is used only with KEYROT_STATE_URL=redis."""
    if settings.state_url != FROM_REDIS_URL:
        return settings.state_url
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    if url.partition("://")[0] not in REDIS_SCHEMES:
        shown = "it is no URL that can be used (not shown)" if url else "it is not set"
        problems.append(
            f"REDIS_URL, which KEYROT_STATE_URL=redis names: {shown}; "
            f"allowed: {_as_urls(REDIS_SCHEMES)}."
        )
    return url


def _own(secret: SecretStr | None) -> str:
    """Return the value of a key; empty for none and for the placeholder."""
    value = secret.get_secret_value().strip() if secret else ""
    return "" if value == POOL_KEY else value


def _single_key(settings: Settings, given: set[str], *, alone: bool) -> str | None:
    """Return the variable of the single key: an argument first, else in the SDK's order."""
    for name in sorted(SINGLE_KEYS, key=lambda one: one.lower() not in given):
        is_given = name.lower() in given
        if _own(getattr(settings, name.lower())) and (is_given or not alone):
            return name
    return None


def _tiers_problem(
    settings: Settings, keys: Sequence[KeySpec], sources: Mapping[str, str]
) -> Iterator[str]:
    """Yield a problem if calls may use none of the keys."""
    if settings.tiers and all(
        key.disabled for key in candidates_of(keys, allowed_tiers(settings.tiers))
    ):
        yield (
            f"{sources['tiers']}: found {', '.join(settings.tiers)}, and no key of the pool has "
            "such a tier; name the tier of each key in keys.json."
        )
