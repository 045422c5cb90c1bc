"""The composition root: install(), uninstall(), status().

settings -> keys -> secrets (values) -> selector (order) -> state (limits) -> pool
-> clients.Binding (the patched libraries)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple, NotRequired, TypedDict, Unpack

from . import providers
from .clients import Binding
from .core.hiding import mask_url
from .core.model import DEFAULT_PLATFORM
from .core.selection import Selector
from .core.wording import plural
from .errors import ConfigError, KeyrotError, PoolEvent, warn
from .hosts import is_proxied, is_within, origin_from_url
from .keys_file import Tier, allowed_tiers
from .locks import Lock
from .monitoring.alerts import Alerts, open_receivers
from .monitoring.levels import Levels
from .monitoring.report import pool_health
from .monitoring.view import HealthStatus, how_it_ends
from .prices import require_prices
from .providers.keys import check_key_format
from .runtime import bypassed, current_pool, required_project, required_tiers, set_current_pool
from .runtime import session as _session
from .runtime import workload as _workload
from .runtime.first_token import FirstTokens
from .runtime.first_token import first_token_s as _first_token_s
from .runtime.google_limits import START_S, GoogleLimits
from .runtime.pool import Pool, PoolClock, Refresher, SystemClock, resolved_candidates
from .secrets.cache import SecretCache
from .secrets.stores import Stores, open_secret_cache
from .settings import (
    LONGEST_S,
    Config,
    SettingArguments,
    deadlines_of,
    hide_keys,
    load,
    next_models,
    terms_of,
)
from .state import State, open_state
from .telemetry import Observer
from .telemetry.logs import AnswerLog, LogObserver, OutageLog
from .telemetry.metrics import MetricsObserver
from .telemetry.semconv import conventions_of
from .telemetry.tracing import TracingObserver

_SHOWN = 3
"""Reasons in one warning."""
NO_KEY_FOUND = (
    "no Gemini API key found: set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json; until "
    "then calls go out as the program sends them"
)

_log = logging.getLogger("keyrot_middleware")
_lock = Lock()
_installed: _Installed | None = None


class _Installed(NamedTuple):
    """What install() put in place; without a pool it keeps the placeholder off the wire."""

    binding: Binding
    given: Mapping[str, Any]
    """The settings, those that install() was called with as they were given, and `on_event`."""
    metrics: MetricsObserver


def install(
    *,
    clock: PoolClock | None = None,
    on_event: Callable[[PoolEvent], object] | None = None,
    **settings: Unpack[SettingArguments],
) -> None:
    """Send every google-genai call of this process with a key from the pool, from now on.

    May be called before or after google.genai is imported, and before or after clients are made.
    A second call changes nothing until `uninstall()`, and warns if it has other settings. A
    `KeyrotWarning` says what you must know at once, such as a missing key; if warnings are errors,
    nothing is installed.

    Args:
        clock: Where time comes from; `keyrot_middleware.testing.FakeClock` in tests.
        on_event: Called with each `PoolEvent` of the pool, such as a rejected key, in a thread of
            its own and one event at a time. What it raises is logged.
        settings: Any of `settings.SettingArguments`, such as `strategy="fill"` or `max_wait_s=10`;
            each has its meaning, unit and default there. An argument overrides the environment,
            which overrides `.env`, which overrides the default: see `docs/quick-reference.md`.
            With `keys=[…]` the pool has these keys only, and none of keys.json or the environment.

    Raises:
        ConfigError: A setting or keys.json is wrong; the message says which, and what is allowed.
    """
    global _installed  # noqa: PLW0603 - one SDK in a process
    hide_keys(settings)
    asked: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    asked["on_event"] = on_event
    with _lock:
        if _installed is not None and _installed.binding.pool is not None:
            _installed.binding.install()
            _warn_of_other_settings(_installed, asked)
            return
        config = load(**settings)
        if not config.settings.enabled:
            _log.info("key rotation is switched off by ENABLE_KEY_ROTATION; the SDK is not patched")
            return
        conventions = conventions_of(config.settings.genai_conventions)
        metrics = MetricsObserver(config.settings.pool, conventions=conventions)
        pool = open_pool(config, clock or SystemClock(), metrics, on_event=on_event)
        _close()
        try:
            _warn(*bypasses(config))
        except BaseException:
            if pool is not None:
                pool.close()
            raise
        allowed = config.allowed
        binding = Binding(pool, allowed, config.settings.clients)
        _installed = _Installed(binding, vars(config.settings) | asked, metrics)
        binding.install()
        if pool is None:
            return
        set_current_pool(pool)
        metrics.register_gauges(Levels(pool).read)
        count = plural(len(pool.selector.keys), "key")
        _log.info("pool %s is installed with %s", pool.name, count)


def _warn_of_other_settings(installed: _Installed, asked: Mapping[str, Any]) -> None:
    """Warn of arguments that a second install() has and that are not in force."""
    other = [
        name
        for name, value in asked.items()
        if value is not None and value != installed.given.get(name)
    ]
    if other:  # a Python warning only: it points at the line to change
        warn(
            f"install() was called before, so {', '.join(other)} of this call "
            f"{'is' if len(other) == 1 else 'are'} ignored; call uninstall() first to change it"
        )


def bypasses(config: Config) -> Iterator[str]:
    """Yield why calls bypass the pool."""
    allowed = config.allowed
    for platform in {DEFAULT_PLATFORM, *(key.service for key in config.keys)}:
        name = providers.of(platform).base_url_variable
        url = os.environ.get(name)
        if url and not is_within(url, allowed[platform]):
            origin = origin_from_url(url)
            yield (
                f"{name} points to {origin or 'no host'}, which is not in KEYROT_ALLOWED_HOSTS: "
                "calls to it bypass the pool"
            )
    if proxied := ", ".join(filter(is_proxied, config.settings.allowed_hosts)):
        yield (
            f"HTTP_PROXY or ALL_PROXY would get keys for {proxied} in clear, so calls over "
            f"plain HTTP there bypass the pool: set NO_PROXY=localhost,127.0.0.1,[::1]"
        )


def _warn(*texts: str) -> None:
    """Issue log records and Python warnings."""
    for text in texts:
        _log.warning("%s", text)
        warn(text)


def uninstall() -> None:
    """Restore exactly what install() changed; running calls finish."""
    with _lock:
        _close()


def _close() -> None:
    global _installed
    if _installed is None:
        return
    installed, _installed = _installed, None
    installed.metrics.unregister_gauges()
    if installed.binding.pool is not None:
        set_current_pool(None)
    installed.binding.close()


class PoolStatus(TypedDict):
    """Whether a pool is installed, and the health of its keys."""

    installed: bool
    keys: dict[str, HealthStatus]
    """By key id, as `KeyManager.get_health_status()`; empty without a pool. What
    follows is there only where one is."""
    headline: NotRequired[list[str]]
    """Sentences: how many keys are available, which models have none and until when, and how many
    calls and requests of the last hour failed, with a shared state of all processes."""
    pool: NotRequired[str]
    degraded: NotRequired[bool]
    """The shared state is unreachable, and this process uses in-process limits."""
    patched: NotRequired[dict[str, bool]]
    """Patched methods of the SDK, and whether each is still in place."""
    unresolved: NotRequired[dict[str, str]]
    """Why a key has no value, by key id."""
    stale: NotRequired[dict[str, str]]
    """Why the last look-up of a key failed, while its last value is used, by key id."""


def status() -> PoolStatus:
    """Return whether a pool is installed, and the health of its keys."""
    installed, pool = _installed, current_pool()
    if installed is None or pool is None:
        return {"installed": False, "keys": {}}
    keys, headline = pool_health(pool)
    return {
        "installed": True,
        "pool": pool.name,
        "degraded": pool.state.degraded,
        "patched": installed.binding.patched(),
        "keys": keys,
        "headline": headline,
        "unresolved": dict(pool.secrets.unresolved),
        "stale": dict(pool.secrets.stale),
    }


def reset(key_id: str) -> None:
    """Make a key available again that is rejected or cooling down, and forget its learned limits.

    Cooldowns of its project and billing account end too, so other keys may become available. Used
    requests and tokens stay counted. With a shared state it applies to all processes.

    Args:
        key_id: As in keys.json; `key_1`, `key_2`, … for those of GEMINI_API_KEYS.

    Raises:
        KeyError: There is no such key.
        KeyrotError: No pool is installed.
    """
    pool = current_pool()
    if pool is None:
        raise KeyrotError("reset: no pool is installed; call install() first, or KeyManager.reset")
    pool.reset(key_id)


@contextmanager
def bypass() -> Iterator[None]:
    """Send calls inside the block without the pool: with the client's own key, as the SDK does."""
    token = bypassed.set(True)
    try:
        yield
    finally:
        bypassed.reset(token)


@contextmanager
def project(name: str) -> Iterator[None]:
    """Use only keys of project *name* for the calls made inside: inference, lists, creates, all.

    Inside another `project()`, the inner one holds. A call that no key of the project can serve
    fails: it goes to no other project, and neither does one for something that another project
    owns. It holds for requests that are sent inside: iterate a list, and read a stream, there too.

    Args:
        name: As in keys.json, and as `status()` has it; the id of a key that has no project.

    Raises:
        KeyError: There is no such project, or a key without a project has this id too; the
            message names what is allowed, or what to change.
        KeyrotError: No pool is installed.
    """
    pool = current_pool()
    if pool is None:
        raise KeyrotError("project: no pool is installed; call install() first")
    labels = pool.projects.get(name, set())
    if not labels:
        known = ", ".join(list(pool.projects)[:20])
        raise KeyError(f"no project {name!r} in pool {pool.name!r}; the first of them: {known}")
    if len(labels) > 1:
        raise KeyError(
            f"{name!r} is the name of a project and the id of a key without a project, in pool "
            f"{pool.name!r}; give that key a project of its own in keys.json"
        )
    (label,) = labels
    token = required_project.set(label)
    try:
        yield
    finally:
        required_project.reset(token)


@contextmanager
def workload(
    name: str,
    *,
    session: str | None = None,
    tiers: Iterable[Tier] | None = None,
    first_token_s: float | None = None,
) -> Iterator[None]:
    """Prefer the keys of workload *name* for the calls made inside.

    Args:
        name: As in keys.json.
        session: A conversation, a user, a document: calls with the same text prefer one key, whose
            project has their beginning in its prompt cache. They use another while that one is not
            available. None: as around it.
        tiers: Use keys of these tiers only, whatever else would serve the call; beside those of
            `install()` and of a `workload()` around this one, not instead. `paid` is every paid
            tier. None: as around it. It holds for requests that are sent inside: read a stream
            there too.
        first_token_s: How long the first token may take, seconds, in place of what the
            settings say; 0: for ever. None: as around it.

    Raises:
        ValueError: One of *tiers* is no tier, or there is none; *first_token_s* is no time.
    """
    around = allowed = required_tiers.get()
    if tiers is not None:
        allowed = allowed_tiers((tiers,) if isinstance(tiers, str) else tiers)
        allowed = allowed if around is None else allowed & around
    of_session = _session.get()
    if session is not None:
        of_session = blake2b(session.encode(errors="replace"), digest_size=8).hexdigest()
    limit = _first_token_s.get() if first_token_s is None else first_token_s
    if limit is not None and not 0 <= limit <= LONGEST_S:
        raise ValueError(f"first_token_s: found {limit}; allowed: 0 or more seconds")
    tokens = _workload.set(name), required_tiers.set(allowed), _session.set(of_session)
    of_limit = _first_token_s.set(limit)
    try:
        yield
    finally:
        _workload.reset(tokens[0])
        required_tiers.reset(tokens[1])
        _session.reset(tokens[2])
        _first_token_s.reset(of_limit)


def open_pool(
    config: Config,
    clock: PoolClock,
    *more: Observer,
    on_event: Callable[[PoolEvent], object] | None = None,
) -> Pool | None:
    """Return a new pool; None, with a warning, if no key can be found now or later.

    Args:
        config: What was read and validated.
        clock: Where time comes from.
        more: Watch its calls, beside those that write spans and log lines.
        on_event: As `install()` has it.

    Raises:
        ConfigError: A receiver of its events, or a service to read limits from, cannot be used.
    """
    receivers = open_receivers(on_event, config.settings.alerts, config.settings.alert_events)
    configured = config.candidates
    limits = GoogleLimits(os.environ) if config.settings.limits_from else None
    terms = terms_of(config.settings.workloads)
    require_prices([*(key.usd for key in configured), *(one.usd for one in terms.values())])
    stores = Stores(config.env_file)
    secrets = open_secret_cache(config, stores)
    selector = Selector(resolved_candidates(configured, secrets), config.policy.strategy)
    kept = config.settings.secrets_ttl_s > 0 and (
        secrets.can_change or config.keys_file is not None
    )
    missing = _missing(config, secrets)
    texts = [*config.warnings, *doubts(config, secrets), *([missing] if missing else ())]
    if not selector.keys and not (config.keys and kept) and config.tiers is None:
        for text in (*texts, NO_KEY_FOUND):
            _warn(text)
        return None
    name = config.settings.pool
    conventions = conventions_of(config.settings.genai_conventions)
    tracing = TracingObserver(name, call_spans=config.settings.call_spans, conventions=conventions)
    log = LogObserver(name)
    pool = Pool(
        name=name,
        selector=selector,
        state=_open_state(config, clock),
        state_url=mask_url(config.state_url),
        terms=terms,
        tiers=config.tiers,
        allowed_origins=config.allowed,
        secrets=secrets,
        policy=config.policy,
        next_models=next_models(config.settings.fallback_models),
        first_tokens=FirstTokens(deadlines_of(config.settings), clock.time),
        observers=(tracing, log, *more),
        event_listeners=(log,),
        clock=clock,
        last_resorts=config.last_resorts,
        trace_url=config.settings.trace_url,
        configured=configured,
    )
    pool.activity.watch = OutageLog(name).watch
    pool.activity.watch_answer = AnswerLog(name).watch
    log.redact = tracing.redact = secrets.redact
    pool.state.record_values(selector.keys.values())
    try:
        for text in texts:
            _warn(text)
    except BaseException:  # a warning that the program has made an error
        pool.close()
        raise
    if limits is not None:
        limits.tick(pool, START_S)
    refresher = Refresher(pool, config, stores, limits)
    pool.background.append(refresher)
    refresher.start()
    if receivers:
        alerts = Alerts(pool, receivers)
        pool.observers = (*pool.observers, alerts)
        pool.background.insert(0, alerts)  # its last events are read from a state that is kept up
    return pool


def _missing(config: Config, secrets: SecretCache) -> str | None:
    """Return which keys have no value, and why; the log has each of them."""
    reasons = [secrets.unresolved[k.key_id] for k in config.keys if k.key_id in secrets.unresolved]
    if not reasons:
        return None
    count = len(config.keys) - len(secrets.duplicates.keys() - secrets.unresolved.keys())
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return (
        f"{len(reasons)} of {count} keys have no value and are skipped: "
        f"{'; '.join(reasons[:_SHOWN])}{more}"
    )


def doubts(config: Config, secrets: SecretCache) -> Iterator[str]:
    """Yield which values do not look like a key of their provider, and which have ended.

    They are used all the same.
    """
    platforms = {key.key_id: key.platform for key in config.candidates}
    for key_id in secrets.resolved:
        value, provider = secrets.value(key_id), providers.of(platforms[key_id])
        if doubt := check_key_format(value.reveal(), provider):
            yield f"key {key_id}: {doubt}"
    now = time.time()
    for key in config.candidates:
        if key.expires is not None and key.expires <= now and key.disabled is None:
            yield f"key {key.key_id} {how_it_ends(key, now)}; keyrot rotate {key.key_id}"


def _open_state(config: Config, clock: PoolClock) -> State:
    """Open the state.

    Raises:
        ConfigError: Without the frames below, whose local variables hold the URL's password.
    """
    settings = config.settings
    try:
        return open_state(
            config.state_url,
            config.policy,
            clock.time,
            variable=config.state_variable,
            pool=settings.pool,
        )
    except ConfigError as error:
        problem = error.with_traceback(None)
    raise problem
