"""The shared state of a pool from outside: with the settings of its services, without install()."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..config import Config, load
from ..core.model import Candidate
from ..core.text import mask_url
from ..errors import KeyrotError
from ..state import State, open_shared
from .standing import pool_of

__all__ = ["NOT_SHARED", "SharedPool", "open_configured", "shared_pool"]

NOT_SHARED = """\
With KEYROT_STATE_URL=memory:// the state of a pool lives inside each process that uses it, so there
is nothing to be seen or changed from outside. In the program itself:

    keyrot_middleware.status()                                 all of it, as a dict
    keyrot_middleware.get_key_manager().get_health_status()    how each key is
    keyrot_middleware.reset("key_1")                           make a key available again

`keyrot run -v` says on stderr when a key is cooling down or rejected; a restart forgets it. With a
Redis or Valkey in KEYROT_STATE_URL all processes share one state, to be seen."""


@dataclass(frozen=True, slots=True)
class SharedPool:
    """A pool and where it is shared."""

    name: str
    keys: dict[str, Candidate]
    state: State
    place: str
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


def open_configured(config: Config) -> State | None:
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
