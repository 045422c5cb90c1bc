"""The background thread of a pool: settle dropped calls, refresh values, and watch keys.json.

One daemon thread per pool, which sleeps on an event. It starts look-ups and waits for none of them
(secrets/cache.py). It ends with its pool. It starts again in a forked child, and with the next
call if something ended it: a store, or a handler of the log, may raise SystemExit.
"""

from __future__ import annotations

import logging
import threading
import weakref
from contextlib import suppress

from ..errors import KeyrotError, warn_safely
from ..forks import after_fork, before_child_ends, time_left
from ..guard import handle_internal_error
from ..keys_file import file_version
from ..prices import require_prices
from ..secrets import Stores
from ..secrets.cache import LOOKUP_TIMEOUT_S
from ..settings import Config, reread
from .pool import Pool

_log = logging.getLogger("keyrot_middleware")

LOOK_S = 3.0
"""Seconds between two checks of keys.json."""
TICK_S = 1.0
"""Seconds between two ticks: calls that were dropped are settled, and those that ended counted."""
SETTLE_S = 0.3
"""Seconds without a change after which keys.json is read: editors write in several steps."""


class Refresher:
    """Keeps a pool up to date with its stores and its keys.json."""

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
        """The version of keys.json that was read last, whether used or refused."""
        self._changing = config.keys_seen
        self._on = False
        self._lock = threading.Lock()
        self._is_last_turn = False
        self._ends_with_child = False
        self._exit: weakref.finalize[..., Refresher] | None = None
        after_fork(self, Refresher._renew)

    def start(self) -> None:
        """Start the thread."""
        self._on = True
        if self._exit is None:
            self._exit = weakref.finalize(self, _at_exit, weakref.ref(self))
        alive, stirred = weakref.ref(self), self._pool.secrets.wake
        weakref.finalize(self, stirred.set).atexit = False
        name = f"keyrot-refresher-{self._pool.name}"
        self._thread = threading.Thread(target=_run, args=(alive, stirred), name=name, daemon=True)
        self._thread.start()

    def keep_running(self) -> None:
        """Start the thread again if it has ended although nobody stopped it."""
        if not self._ends_with_child:
            self._ends_with_child = True
            before_child_ends(self, Refresher.finish)
        if not self._on or self._thread.is_alive():
            return
        with self._lock, suppress(RuntimeError):  # no thread can be started
            if not self._thread.is_alive():
                self.start()

    def stop(self) -> None:
        """Stop the thread without waiting for it."""
        self._on = False
        if self._exit is not None:
            self._exit.detach()
        self._pool.secrets.wake.set()

    def finish(self) -> None:
        """Stop the thread as the process ends; wait a little until it has sent the last calls."""
        self._pool.settle_abandoned()
        if not self._on or self._pool.state.is_local:
            return
        self._is_last_turn, self._on = True, False
        self._pool.secrets.wake.set()
        self._thread.join(time_left())

    def turn(self) -> float | None:
        """Do what is due; return the seconds until the next tick, None if stopped."""
        on = self._on
        if not on and not self._is_last_turn:
            return None
        try:
            self._pool.settle_abandoned()
            if not on:
                self._pool.activity.send_last()
                return None
            self._pool.activity.send()
            if self._config.settings.secrets_ttl_s <= 0:
                return TICK_S
            look_s = self._look() if self._config.keys_file is not None else TICK_S
            return min(self._pool.secrets.tick(), look_s, TICK_S)
        except Exception:
            handle_internal_error("secrets")
            return LOOK_S if on else None

    def _look(self) -> float:
        """Read keys.json again if it has changed; return the seconds until the next check."""
        assert self._config.keys_file is not None  # noqa: S101 - the caller has just looked
        found = file_version(self._config.keys_file)
        if found == self._seen:
            return LOOK_S
        if found != self._changing:
            self._changing = found
            return SETTLE_S
        self._seen = found
        try:
            self._take(reread(self._config))
        except KeyrotError as error:
            text = f"pool {self._pool.name}: keys.json is not used, the keys stay the same: {error}"
            warn_safely(text)
            _log.error("%s", text)
        return LOOK_S

    def _take(self, config: Config) -> None:
        """Use the keys of *config*."""
        locations, configured = self._stores.locate(config), config.candidates
        require_prices(configured)
        self._config = config
        self._pool.configured = configured
        self._pool.secrets.set_locations(locations, LOOKUP_TIMEOUT_S)

    def _renew(self) -> None:
        self._pool.settling = threading.Lock()
        self._lock = threading.Lock()
        self._ends_with_child = False
        if self._on:
            self.start()


def _at_exit(alive: weakref.ref[Refresher]) -> None:
    refresher = alive()
    if refresher is not None:
        refresher.finish()


def _run(alive: weakref.ref[Refresher], stirred: threading.Event) -> None:
    """Tick while the pool exists; hold no reference to it while asleep."""
    while (refresher := alive()) is not None and (pause := refresher.turn()) is not None:
        del refresher
        stirred.wait(min(pause, threading.TIMEOUT_MAX))
        stirred.clear()
