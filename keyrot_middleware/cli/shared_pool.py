"""The shared state of a pool from outside: with the settings of its services, without install()."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from ..config import Config, load
from ..core.model import Candidate
from ..core.selection import Selector
from ..core.text import mask_url
from ..errors import KeyrotError
from ..genai.key_check import check_key, describe_check, require_allowed_host
from ..monitoring.health import KeyView, views, without_value
from ..monitoring.report import PoolReport
from ..runtime.activity import Activity
from ..secrets import open_secret_cache
from ..settings import allowed_origins
from ..state import open_shared
from ..state.base import SharedState, State

__all__ = [
    "NOT_SHARED",
    "MissingValues",
    "SharedPool",
    "open_configured",
    "open_source",
    "pool_of",
    "report_of_shared",
    "shared_pool",
]

NOT_SHARED = """\
With KEYROT_STATE_URL=memory:// the state of a pool lives inside each process that uses it, so this
command cannot see it. Choose one of these:

    KEYROT_STATE_URL=sqlite                   one state for all processes of this host, in a file
    keyrot_middleware.ui.app()                a page to mount in the program (extra ui)
    keyrot_middleware.status()                in the program: everything, as a dict
    keyrot_middleware.reset("key_1")          in the program: make a key available again
    KEYROT_STATE_URL=redis://…                one state for all processes of several hosts"""


@dataclass(frozen=True, slots=True)
class SharedPool:
    """A pool and where it is shared."""

    name: str
    keys: dict[str, Candidate]
    state: SharedState
    url: str
    """The URL, without user and password."""
    config: Config = field(repr=False)


@contextmanager
def shared_pool() -> Iterator[SharedPool | None]:
    """Open the state that the settings name; None where it is not shared.

    Raises:
        ConfigError: A setting or keys.json is wrong, or rotation is switched off, or has no key.
        MissingExtraError: The library of the state is not installed.
    """
    config = load()
    problem = _nothing_to_show(config)
    if problem:
        raise KeyrotError(problem)
    name, state = config.settings.pool, open_configured(config)
    if state is None:
        yield None
        return
    try:
        keys = {key.key_id: key for key in state.with_values(pool_of(config).values())}
        yield SharedPool(name, keys, state, mask_url(config.state_url), config)
    finally:
        state.close()


def open_configured(config: Config) -> SharedState | None:
    """Open the shared state that the settings name; None where it is not shared.

    Raises:
        ConfigError: It cannot be opened.
        MissingExtraError: Its library is not installed.
    """
    name, variable = config.settings.pool, config.state_variable
    return open_shared(config.state_url, config.policy, time.time, pool=name, variable=variable)


def _nothing_to_show(config: Config) -> str | None:
    if not config.settings.enabled:
        return "rotation is switched off by ENABLE_KEY_ROTATION: there is no pool"
    if not config.keys:
        return "no key: set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json"
    return None


def pool_of(config: Config) -> dict[str, Candidate]:
    """List the keys of the pool by id."""
    return {key.key_id: key for key in config.candidates}


NO_SERVICE_HAS_IT = "no service that uses this pool has reported one"
NOT_HERE = "not found on this machine, and no service has reported one"


class MissingValues:
    """Which keys of a shared pool have no value, by what its services have reported.

    Whoever looks at a pool need not have its values. Only where no service has ever used the pool,
    they are looked up here, once.
    """

    def __init__(self, config: Config) -> None:
        """Look up nothing yet."""
        self._config = config
        self._missing_here: frozenset[str] | None = None
        self.reasons: dict[str, str] = {}
        """Why each key of the last look has none, by its id."""

    def find(self, state: State, keys: Sequence[Candidate]) -> frozenset[str]:
        """Return the ids of the keys without a value.

        Args:
            state: The shared state.
            keys: All keys of the pool, as `State.with_values` returns them.

        Raises:
            KeyrotError: The state cannot be read.
        """
        unknown = [key for key in keys if not (key.fingerprint or key.disabled)]
        found: Iterable[str] = ()
        if unknown:
            last_used = state.snapshot(unknown)
            found = [k.key_id for k in unknown if last_used[k.key_id].last_used is None]
        is_reported = any(key.fingerprint for key in keys)
        if found and not is_reported:
            found = self._look_up().intersection(found)
        self.reasons.clear()
        self.reasons.update(dict.fromkeys(found, NO_SERVICE_HAS_IT if is_reported else NOT_HERE))
        return frozenset(found)

    def _look_up(self) -> frozenset[str]:
        if self._missing_here is None:
            secrets = open_secret_cache(self._config)
            try:
                self._missing_here = frozenset(secrets.unresolved)
            finally:
                secrets.close()
        return self._missing_here


def report_of_shared(pool: SharedPool) -> PoolReport:
    """Return the report of a shared pool.

    Raises:
        KeyrotError: The state cannot be read.
    """
    missing = MissingValues(pool.config)
    missing.find(pool.state, list(pool.keys.values()))  # a store that cannot be opened is named now

    def keys() -> list[Candidate]:
        # Read again each time: a key has other records as soon as a service uses a new value.
        return pool.state.with_values(pool.keys.values())

    def found() -> list[tuple[Candidate, KeyView]]:
        all_keys = keys()
        seen = views(pool.state, all_keys)
        for key_id in missing.find(pool.state, all_keys):
            seen[key_id] = without_value(seen[key_id])
        return [(key, seen[key.key_id]) for key in all_keys]

    def selector() -> Selector:
        able = [key for key in keys() if key.key_id not in missing.reasons]
        return Selector(able, pool.config.policy.strategy)

    return PoolReport(
        name=pool.name,
        state=pool.state,
        state_url=pool.url,
        views=found,
        activity=Activity(pool.state, time.time),
        selector=selector,
        now=time.time,
        missing=missing.reasons,
        trace_url=pool.config.settings.trace_url,
        check=partial(_check, pool.config),
    )


@contextmanager
def open_source() -> Iterator[PoolReport | None]:
    """Open the report of the shared pool that the settings name; None where it is not shared.

    Raises:
        KeyrotError: A setting is wrong, there is no key, or the state cannot be read.
    """
    with shared_pool() as pool:
        yield report_of_shared(pool) if pool is not None else None


def _check(config: Config, key_id: str) -> str:
    """Send one request with a key whose value is known here; return a sentence.

    Raises:
        KeyrotError: It has no value here, or may not be sent.
    """
    keys = tuple(key for key in config.keys if key.key_id == key_id)
    platform = keys[0].platform
    require_allowed_host(allowed_origins(config.settings.allowed_hosts), platform)
    secrets = open_secret_cache(replace(config, keys=keys))
    try:
        if key_id not in secrets.resolved:
            raise KeyrotError(f"key {key_id} has no value on this machine")
        return describe_check(key_id, check_key(secrets, key_id, keys[0].model, platform))
    finally:
        secrets.close()
