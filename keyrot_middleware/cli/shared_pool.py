"""The shared state of a pool from outside: with the settings of its services, without install()."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ..core.model import Candidate
from ..core.selection import Selector
from ..core.text import mask_url
from ..errors import KeyrotError
from ..genai.key_check import check_key, describe_check, require_allowed_host
from ..monitoring.view import PoolReport, Row, look
from ..runtime.activity import Activity
from ..secrets import open_secret_cache
from ..settings import Config, allowed_origins, load
from ..state import State, open_shared

NOT_SHARED = """\
With KEYROT_STATE_URL=memory:// the state of a pool lives inside each process that uses it, so this
command cannot see it. Choose one of these:

    KEYROT_STATE_URL=sqlite                   one state for all processes of this host, in a file
    KEYROT_STATE_URL=redis://…                one state for all processes of several hosts
    keyrot_middleware.ui.app()                a page to mount in the program (extra ui)
    keyrot_middleware.status()                in the program: everything, as a dict
    keyrot_middleware.reset("key_1")          in the program: make a key available again"""
NO_SERVICE_HAS_IT = "no service that uses this pool has reported one"
NOT_HERE = "not found on this machine, and no service has reported one"


def open_configured(config: Config) -> State | None:
    """Open the shared state that the settings name; None where it is not shared.

    Raises:
        ConfigError: It cannot be opened.
        MissingExtraError: Its library is not installed.
    """
    name, variable = config.settings.pool, config.state_variable
    return open_shared(config.state_url, config.policy, time.time, pool=name, variable=variable)


@contextmanager
def open_report() -> Iterator[PoolReport | None]:
    """Open the report of the shared pool that the settings name; None where it is not shared.

    Raises:
        KeyrotError: A setting is wrong, there is no key, or the state cannot be read.
    """
    config = load()
    if not config.settings.enabled:
        raise KeyrotError("rotation is switched off by ENABLE_KEY_ROTATION: there is no pool")
    if not config.keys:
        raise KeyrotError("no key: set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json")
    state = open_configured(config)
    if state is None:
        yield None
        return
    try:
        yield _report(config, state)
    finally:
        state.close()


class _MissingValues:
    """Which keys of a shared pool have no value, by what its services have reported.

    Whoever looks at a pool need not have its values. Only where no service has ever used the pool,
    they are looked up here, once.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._here: frozenset[str] | None = None
        self.reasons: dict[str, str] = {}

    def find(self, state: State, keys: Sequence[Candidate]) -> None:
        """Set `reasons` for *keys*, as `State.with_values` returns them."""
        unknown = [key for key in keys if not (key.fingerprint or key.disabled)]
        known = state.snapshot(unknown) if unknown else {}
        found = {key.key_id for key in unknown if known[key.key_id].last_used is None}
        why = NO_SERVICE_HAS_IT
        if found and not any(key.fingerprint for key in keys):
            why, found = NOT_HERE, found & self._look_up()
        self.reasons.clear()
        self.reasons.update(dict.fromkeys(found, why))

    def _look_up(self) -> frozenset[str]:
        if self._here is None:
            secrets = open_secret_cache(self._config)
            try:
                self._here = frozenset(secrets.unresolved)
            finally:
                secrets.close()
        return self._here


def _report(config: Config, state: State) -> PoolReport:
    missing = _MissingValues(config)

    def keys() -> list[Candidate]:
        # Read again each time: a key has other records as soon as a service uses a new value.
        return state.with_values(config.candidates)

    def rows() -> list[Row]:
        all_keys = keys()
        missing.find(state, all_keys)
        return look(state, all_keys, missing.reasons)

    def selector() -> Selector:
        able = [key for key in keys() if key.key_id not in missing.reasons]
        return Selector(able, config.policy.strategy)

    missing.find(state, keys())  # a store that cannot be opened is named now
    return PoolReport(
        name=config.settings.pool,
        state=state,
        state_url=mask_url(config.state_url),
        rows=rows,
        activity=Activity(state, time.time),
        selector=selector,
        now=time.time,
        missing=missing.reasons,
        trace_url=config.settings.trace_url,
        check_key=partial(_check, config),
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
