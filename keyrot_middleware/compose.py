"""The composition root: the only file that knows every room.

settings -> keys -> ring (values) -> roster (order) -> state (what was used) -> pool
-> genai.Binding (the patched SDK)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .config import Config, load
from .core.roster import Roster
from .drive.health import health
from .drive.pool import Clock, Pool, SystemClock
from .errors import ConfigError
from .genai.facts import workload as _workload
from .genai.wrap import Binding, bypassed
from .secrets import open_ring
from .state import State, open_state
from .telemetry.export import export_spans
from .telemetry.logs import LogObserver
from .telemetry.otel import OtelObserver

__all__ = ["bypass", "current_pool", "install", "open_pool", "status", "uninstall", "workload"]

_log = logging.getLogger("keyrot_middleware")
_lock = threading.Lock()
_binding: Binding | None = None


def install(*, clock: Clock | None = None, **settings: Any) -> None:
    """Send every google-genai call of this process with a key from the pool, from now on.

    May be called before or after google.genai is imported, and before or after clients are made.
    Called again it changes nothing, until `uninstall()`.

    Args:
        clock: Where time comes from; `keyrot_middleware.testing.FakeClock` in tests.
        settings: Any field of `keyrot_middleware.config.Settings`: `strategy="fill"`,
            `allowed_hosts=("127.0.0.1:8080",)`, … An argument beats the environment, which beats
            `.env`, which beats the default.

    Raises:
        ConfigError: A setting or keys.json is wrong; the message says which, and what is allowed.
    """
    global _binding  # noqa: PLW0603 - one SDK in a process, one binding
    with _lock:
        if _binding is not None:
            return
        config = load(**settings)
        if not config.settings.enabled:
            _log.info("switched off by ENABLE_KEY_ROTATION; the SDK is left alone")
            return
        pool = open_pool(config, clock or SystemClock())
        if pool is None:
            return
        if config.settings.tracing == "otlp":
            export_spans()
        _binding = Binding(pool, frozenset(config.settings.allowed_hosts))
        _binding.put_on()
        _log.info("pool %s is in place with %d keys", pool.name, len(pool.roster.keys))


def uninstall() -> None:
    """Restore exactly what install() changed; calls under way are carried to their end."""
    global _binding
    with _lock:
        binding, _binding = _binding, None
        if binding is not None:
            binding.take_off()
            binding.pool.state.close()


def status() -> dict[str, Any]:
    """Tell whether the pool is in place, and how its keys are.

    Returns:
        `installed`; and where it is: `pool`, `degraded` (a shared state is out of reach, and this
        process counts for itself), `seams` (method -> still in place), `keys` (health per key id,
        as `KeyManager.get_health_status()`), `unresolved` (id -> why it is left out).
    """
    binding = _binding
    if binding is None:
        return {"installed": False}
    return {
        "installed": True,
        "pool": binding.pool.name,
        "degraded": binding.pool.state.degraded,
        "seams": binding.seams.in_place(),
        "keys": health(binding.pool),
        "unresolved": dict(binding.pool.ring.unresolved),
    }


@contextmanager
def bypass() -> Iterator[None]:
    """Send the calls made inside as the SDK would: with the client's own key, once."""
    token = bypassed.set(True)
    try:
        yield
    finally:
        bypassed.reset(token)


@contextmanager
def workload(name: str) -> Iterator[None]:
    """Prefer the keys of workload *name* for the calls made inside."""
    token = _workload.set(name)
    try:
        yield
    finally:
        _workload.reset(token)


def current_pool() -> Pool | None:
    """Give the pool that install() put in place."""
    return _binding.pool if _binding is not None else None


def open_pool(config: Config, clock: Clock) -> Pool | None:
    """Put a pool together; None, with a warning, where no key is to be had."""
    for text in config.warnings:
        _log.warning("%s", text)
    ring = open_ring(config)
    keys = [key.candidate for key in config.keys if key.key_id in ring.resolved]
    roster = Roster(keys, config.policy.strategy, threading.Lock())
    if not roster.keys:
        _log.warning(
            "no Gemini API key found: set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json; "
            "until then calls go out as the SDK sends them"
        )
        return None
    name = config.settings.pool
    log = LogObserver(name)
    return Pool(
        name=name,
        roster=roster,
        state=_open_state(config, clock),
        ring=ring,
        policy=config.policy,
        observers=(OtelObserver(name), log),
        chronicles=(log,),
        clock=clock,
        last_resort=config.last_resort,
    )


def _open_state(config: Config, clock: Clock) -> State:
    """Open the state; a REDIS_URL that is there for another purpose breaks nothing."""
    settings = config.settings
    more: dict[str, Any] = {"pool": settings.pool, "share": settings.degraded_share}
    try:
        return open_state(config.state_url, config.policy, clock.time, **more)
    except ConfigError as error:
        if config.state_url == settings.state_url:
            raise
        _log.warning("REDIS_URL cannot be used, so each process counts for itself: %s", error)
        return open_state(settings.state_url, config.policy, clock.time, **more)
