"""The shared state of a pool from outside: with the settings of its services, without install()."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
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
from ..secrets import open_secret_cache
from ..settings import allowed_origins
from ..state import open_shared
from ..state.base import SharedState, State

__all__ = [
    "NOT_SHARED",
    "SharedPool",
    "open_configured",
    "pool_of",
    "report_of_shared",
    "shared_pool",
    "shared_views",
    "unresolved_of",
]

NOT_SHARED = """\
With KEYROT_STATE_URL=memory:// the state of a pool lives inside each process that uses it, so this
command cannot see it. Choose one of these:

    KEYROT_STATUS_SOCKET=/tmp/keyrot.sock     set for the program and for this command (extra ui)
    keyrot_middleware.ui.app()                a page to mount in the program (extra ui)
    keyrot_middleware.status()                in the program: everything, as a dict
    keyrot_middleware.reset("key_1")          in the program: make a key available again
    KEYROT_STATE_URL=sqlite                   one state for all processes of this host, in a file
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


def unresolved_of(config: Config, state: State, keys: Iterable[Candidate]) -> frozenset[str]:
    """Look up the values of the keys that no process has used yet, and list those without one.

    What was used has a value somewhere, even if the store is not open to whoever asks here.

    Raises:
        KeyrotError: The state cannot be read.
    """
    known = state.snapshot(keys)
    used = {key.key_id for key in keys if not key.disabled}
    fresh = [k for k in config.keys if k.key_id in used and known[k.key_id].last_used is None]
    if not fresh:
        return frozenset()
    secrets = open_secret_cache(replace(config, keys=tuple(fresh)))
    try:
        return frozenset(secrets.unresolved)
    finally:
        secrets.close()


def shared_views(
    state: State, keys: Iterable[Candidate], unresolved: frozenset[str]
) -> list[tuple[Candidate, KeyView]]:
    """Return how *keys* are in *state*.

    Args:
        state: The shared state.
        keys: All keys of the pool.
        unresolved: Ids of keys that no process has used and that have no value here.

    Raises:
        KeyrotError: The state cannot be read.
    """
    keys = list(keys)
    found = views(state, keys)
    for key_id in unresolved & found.keys():
        if found[key_id].known.last_used is None:
            found[key_id] = without_value(found[key_id])
    return [(key, found[key.key_id]) for key in keys]


def report_of_shared(pool: SharedPool) -> PoolReport:
    """Return the report of a shared pool.

    Raises:
        KeyrotError: The state cannot be read.
    """
    unresolved = unresolved_of(pool.config, pool.state, pool.keys.values())

    def keys() -> list[Candidate]:
        # Read again each time: a key has other records as soon as a service uses a new value.
        return list(pool.state.with_values(pool.keys.values()))

    return PoolReport(
        name=pool.name,
        state=pool.state,
        state_url=pool.url,
        views=lambda: shared_views(pool.state, keys(), unresolved),
        activity=pool.state.activity,
        selector=lambda: Selector(
            (key for key in keys() if key.key_id not in unresolved), pool.config.policy.strategy
        ),
        now=time.time,
        check=partial(_check, pool.config),
    )


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
