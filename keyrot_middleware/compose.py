"""The composition root: the only file that knows every room.

settings -> keys -> ring (values) -> roster (order) -> state (what was used) -> pool
-> genai.Binding (the patched SDK)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NotRequired, TypedDict

from .config import Config, load
from .drive.guard import fault
from .drive.health import HealthStatus, health
from .drive.levels import levels
from .drive.pool import Clock, Pool, SystemClock, make_roster, with_values
from .drive.upkeep import Upkeep
from .errors import ConfigError
from .genai.facts import workload as _workload
from .genai.seams import Seams
from .genai.wire import placeholder_guard
from .genai.wrap import Binding, bypassed
from .secrets import Ring, Stores, open_ring
from .settings import origins
from .state import State, open_state
from .telemetry.base import Observer
from .telemetry.export import export_spans
from .telemetry.logs import LogObserver
from .telemetry.metrics import MetricsObserver
from .telemetry.otel import OtelObserver

__all__ = [
    "PoolStatus",
    "bypass",
    "current_pool",
    "install",
    "open_pool",
    "status",
    "uninstall",
    "workload",
]

_log = logging.getLogger("keyrot_middleware")
_lock = threading.Lock()
_binding: Binding | None = None
_guard: Seams | None = None
"""Keeps the placeholder off the wire where no key was found."""
_metrics: MetricsObserver | None = None


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
    global _binding, _guard, _metrics  # noqa: PLW0603 - one SDK in a process, one binding
    with _lock:
        if _binding is not None:
            return
        config = load(**settings)
        if not config.settings.enabled:
            _log.info("switched off by ENABLE_KEY_ROTATION; the SDK is left alone")
            return
        metrics = MetricsObserver(config.settings.pool)
        pool = open_pool(config, clock or SystemClock(), metrics)
        if _guard is not None:
            _guard.take_off()
            _guard = None
        allowed = origins(config.settings.allowed_hosts)
        if pool is None:
            _guard = placeholder_guard(allowed)
            _guard.put_on()
            return
        if config.settings.tracing == "otlp":
            try:
                export_spans()
            except BaseException:
                pool.close()
                raise
        _binding = Binding(pool, allowed)
        _binding.put_on()
        _metrics = metrics
        state = pool.state
        metrics.show(lambda: levels(pool), lambda: state.degraded, fault, instant=state.instant)
        _log.info("pool %s is in place with %d keys", pool.name, len(pool.roster.keys))


def uninstall() -> None:
    """Restore exactly what install() changed; calls under way are carried to their end."""
    global _binding, _guard, _metrics  # noqa: PLW0603 - see install()
    with _lock:
        if _guard is not None:
            _guard.take_off()
            _guard = None
        binding, _binding = _binding, None
        metrics, _metrics = _metrics, None
        if metrics is not None:
            metrics.hide()
        if binding is not None:
            binding.take_off()
            binding.pool.close()


class PoolStatus(TypedDict):
    """Whether a pool is in place, and how its keys are."""

    installed: bool
    keys: dict[str, HealthStatus]
    """By key id, as `KeyManager.get_health_status()`; empty where no pool is in place. What
    follows is there only where one is."""
    pool: NotRequired[str]
    degraded: NotRequired[bool]
    """The shared state is out of reach, and this process counts for itself."""
    seams: NotRequired[dict[str, bool]]
    """Patched methods of the SDK, and whether each is still in place."""
    unresolved: NotRequired[dict[str, str]]
    """Why a key has no value, by key id."""
    stale: NotRequired[dict[str, str]]
    """Why the last look-up of a key failed, while its last value is used, by key id."""


def status() -> PoolStatus:
    """Report whether the pool is in place, and how its keys are."""
    binding = _binding
    if binding is None:
        return {"installed": False, "keys": {}}
    return {
        "installed": True,
        "pool": binding.pool.name,
        "degraded": binding.pool.state.degraded,
        "seams": binding.seams.in_place(),
        "keys": health(binding.pool),
        "unresolved": dict(binding.pool.ring.unresolved),
        "stale": dict(binding.pool.ring.stale),
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


def open_pool(config: Config, clock: Clock, *more: Observer) -> Pool | None:
    """Put a pool together; None, with a warning, where no key is to be had now or later.

    Args:
        config: What was read and validated.
        clock: Where time comes from.
        more: Watch its calls, beside those that write spans and log lines.
    """
    for text in config.warnings:
        _log.warning("%s", text)
    stores = Stores(config.env_file)
    ring = open_ring(config, stores)
    listed = tuple(key.candidate for key in config.keys)
    roster = make_roster(with_values(listed, ring), config.policy.strategy)
    kept = config.settings.secrets_ttl_s > 0 and (ring.changes or config.keys_file is not None)
    if not roster.keys and not (config.keys and kept):
        _log.warning(
            "no Gemini API key found: set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json; "
            "until then calls go out as the SDK sends them"
        )
        return None
    name = config.settings.pool
    log = LogObserver(name)
    pool = Pool(
        name=name,
        roster=roster,
        state=_open_state(config, clock),
        ring=ring,
        policy=config.policy,
        observers=(OtelObserver(name, call_spans=config.settings.call_spans), log, *more),
        chronicles=(log,),
        clock=clock,
        last_resort=config.last_resort,
        listed=listed,
    )
    _say_what_is_missing(config, ring)
    if kept or not pool.state.instant:
        pool.upkeep = Upkeep(pool, config, stores)
        pool.upkeep.start()
    return pool


def _say_what_is_missing(config: Config, ring: Ring) -> None:
    """Say with what the pool serves while none of its own keys has a value."""
    own = [key.key_id for key in config.keys if key.key_id != config.last_resort]
    if not own or not set(own).isdisjoint(ring.resolved):
        return
    left = f"with {config.last_resort} alone" if ring.resolved else "out as the SDK sends them"
    _log.error(
        "pool %s: none of its %d keys has a value yet; calls go %s until one has",
        config.settings.pool,
        len(own),
        left,
    )


def _open_state(config: Config, clock: Clock) -> State:
    """Open the state; a REDIS_URL that is there for another purpose breaks nothing."""
    settings = config.settings
    more: dict[str, Any] = {"pool": settings.pool, "share": settings.degraded_share}
    variable = config.state_variable
    try:
        return open_state(config.state_url, config.policy, clock.time, variable=variable, **more)
    except ConfigError as error:
        if variable != "REDIS_URL":
            raise
        _log.warning("REDIS_URL cannot be used, so each process counts for itself: %s", error)
        return open_state(settings.state_url, config.policy, clock.time, **more)
