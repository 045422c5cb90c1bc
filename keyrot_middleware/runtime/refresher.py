"""What happens in the background of a pool: stores are asked again, keys.json is looked at.

One daemon thread for each pool, which sleeps on an event; it starts look-ups and waits for none
of them (secrets/refresh.py). It ends with its pool, and begins again in a forked child.
"""

from __future__ import annotations

import logging
import threading
import weakref
from math import inf

from ..config import Config, reread
from ..errors import KeyrotError
from ..forks import after_fork
from ..guard import handle_internal_error
from ..keys_file import signature
from ..secrets import Stores
from ..secrets.cache import LOOKUP_TIMEOUT_S
from .pool import Pool

__all__ = ["Refresher"]

_log = logging.getLogger("keyrot_middleware")

LOOK_S = 3.0
"""Between two looks at keys.json."""
TICK_S = 1.0
"""Between two turns with a shared state: other processes wait for what was abandoned here, and
pages for what calls did."""
SETTLE_S = 0.3
"""An editor writes in several steps: the file is read when it has not changed for so long."""


class Refresher:
    """Keep a pool up to date with its stores and its keys.json."""

    def __init__(self, pool: Pool, config: Config, stores: Stores) -> None:
        """Start nothing yet.

        Args:
            pool: The pool, made from *config*.
            config: The settings at start.
            stores: Those that are open.
        """
        self._pool = pool
        self._config = config
        self._stores = stores
        self._seen = config.keys_seen
        """The version of keys.json that is in force, or was refused."""
        self._changing = config.keys_seen
        self._on = False
        after_fork(self, Refresher._renew)

    def start(self) -> None:
        """Begin."""
        self._on = True
        alive, stirred = weakref.ref(self), self._pool.secrets.wake
        weakref.finalize(self, stirred.set).atexit = False
        name = f"keyrot-upkeep-{self._pool.name}"
        threading.Thread(target=_run, args=(alive, stirred), name=name, daemon=True).start()

    def stop(self) -> None:
        """End it, without waiting."""
        self._on = False
        self._pool.secrets.wake.set()

    def turn(self) -> float | None:
        """Do what is due; give the seconds until the next turn, None where there is none."""
        if not self._on:
            return None
        try:
            self._pool.settle_abandoned()
            self._pool.activity.send()
            tick_s = inf if self._pool.state.is_local else TICK_S
            if self._config.settings.secrets_ttl_s <= 0:
                return tick_s
            look_s = self._look() if self._config.keys_file is not None else inf
            return min(self._pool.secrets.tick(), look_s, tick_s)
        except Exception:
            handle_internal_error("secrets")
            return LOOK_S

    def _look(self) -> float:
        """Read keys.json again if it has changed; give the seconds until the next look."""
        assert self._config.keys_file is not None  # noqa: S101 - the caller has just looked
        found = signature(self._config.keys_file)
        if found == self._seen:
            return LOOK_S
        if found != self._changing:
            self._changing = found
            return SETTLE_S
        self._seen = found
        try:
            self._take(reread(self._config))
        except KeyrotError as error:
            _log.error("pool %s: the keys stay as they were: %s", self._pool.name, error)
        return LOOK_S

    def _take(self, config: Config) -> None:
        """Put other keys in place."""
        locations = self._stores.locate(config)
        self._config = config
        self._pool.configured = tuple(key.candidate for key in config.keys)
        self._pool.secrets.set_locations(locations, LOOKUP_TIMEOUT_S)

    def _renew(self) -> None:
        if self._on:
            self.start()


def _run(alive: weakref.ref[Refresher], stirred: threading.Event) -> None:
    """Take turns as long as the pool is there; hold on to nothing of it meanwhile."""
    while (refresher := alive()) is not None and (pause := refresher.turn()) is not None:
        del refresher
        stirred.wait(min(pause, threading.TIMEOUT_MAX))
        stirred.clear()
