"""What every adapter needs to send a call through a pool, and each of its surfaces.

An adapter decides what it sends and how it reads the answer. The rest is the same for all: whether
the pool has a part in a call, the key of a lease, the home key of a client, redaction, and why no
key could serve.
"""

from __future__ import annotations

import json
import logging
import os
import time
from functools import lru_cache, partial
from hashlib import blake2b
from math import ceil, inf, isfinite
from typing import Any, NamedTuple

from .. import providers
from ..core.failures import FOR_GOOD, MODEL_REFUSALS, REJECTIONS
from ..core.flow import CallState, Exhausted
from ..core.judgement import describe_block, judge
from ..core.model import DEFAULT_PLATFORM, HOME, POOL_KEY, CallInfo, Candidate, Lease
from ..errors import handle_internal_error, rejection_code, warn_safely
from ..providers.base import Provider
from ..runtime import SdkCall, bypassed, required_project, required_tiers, session
from ..runtime.pool import Pool
from ..secrets import Secret
from ..settings import AllowedOrigins
from ..state.memory import BoundedDict
from ..telemetry import CallObserver, observe
from . import host_from_url, is_within
from .redaction import Redact

_log = logging.getLogger("keyrot_middleware")

_SALT = os.urandom(16)
_EPHEMERAL = "auth_tokens/"
_TO_TRANSPORT_S = 2.0
"""How long an uninstall waits for calls of google-genai to reach their transport: microseconds."""
_MOST_WARNED = 20
"""Programs may use any number of hosts."""


class PooledCalls:
    """A pool, and where its keys may go."""

    def __init__(self, pool: Pool, allowed: AllowedOrigins) -> None:
        """Serve a pool whose keys may go to *allowed*."""
        self.pool = pool
        self.allowed = allowed
        self.stand_ins: BoundedDict[tuple[str, float]] = BoundedDict(10_000)
        """By conversation and model: which one has served in its place, and when."""
        self.uploads: BoundedDict[Secret] = BoundedDict(1_000)
        """The client's own key, or an empty one, of each upload that was begun here, by its name;
        its bytes may come without a key."""
        self.begun: set[SdkCall | None] = set()
        """Calls of google-genai with the placeholder, which have not reached their transport."""
        self._is_closed = False
        self._warned: set[str] = set()

    def begin(self, call: SdkCall) -> bool:
        """Return whether a call of google-genai may have the placeholder in place of its key."""
        self.begun.add(call)
        if self._is_closed:
            self.begun.discard(call)
            return False
        return True

    def close(self) -> None:
        """Begin no call, and let those that have the placeholder reach their transport."""
        self._is_closed = True
        end = time.monotonic() + _TO_TRANSPORT_S
        while self.begun and time.monotonic() < end:
            time.sleep(0.001)

    @property
    def tiers(self) -> frozenset[str] | None:
        """The tiers of the keys that may serve a call that is made now; None: all."""
        mine, asked = self.pool.tiers, required_tiers.get()
        return mine & asked if mine is not None and asked is not None else mine or asked

    def serves(
        self,
        key: str,
        base_url: str,
        platform: str = DEFAULT_PLATFORM,
    ) -> bool:
        """Return whether a request goes through the pool; else it is sent as it is.

        Args:
            key: The client's own key, the placeholder or "".
            base_url: Where it goes; another host is warned about, once.
            platform: That of the client. A pool without a key for another than the default has no
                part in it.
        """
        if key.startswith(_EPHEMERAL) or bypassed.get():
            return False
        has_keys = platform in self.pool.selector.platforms
        if platform != DEFAULT_PLATFORM and not has_keys:
            return False
        if not is_within(base_url, self.allowed[platform]):
            host = host_from_url(base_url)
            self.warn_once(
                host, f"calls to {host} bypass the pool: it is not in KEYROT_ALLOWED_HOSTS"
            )
            return False
        if has_keys or not is_key(key):
            return True
        return self.tiers is not None or required_project.get() is not None

    def call_state(self, info: CallInfo, key: str, wait_limit_s: float = inf) -> CallState:
        """Return the state of a new call.

        Args:
            info: The call.
            key: The client's own key, the placeholder or "".
            wait_limit_s: The timeout of the call, seconds, which limits its waits.
        """
        pool, tiers, project = self.pool, self.tiers, required_project.get()
        if tiers is not None or project is not None:
            info = info._replace(tiers=tiers, project=project)
        if pool.terms:
            info = info._replace(terms=pool.terms.get(info.workload, pool.terms.get(None)))
        if (same := session.get()) is not None:
            info = info._replace(conversation=same)
        own = self._own(key, info) if info.bound_to_owner else None
        return CallState(
            info,
            pool.selector,
            pool.policy,
            pool.token_scale,
            providers.of(info.platform).classify,
            own or (self._home(info) if info.bound_to_owner else None),
            pool.waiting_lines,
            wait_limit_s,
            home_is_own=own is not None,
        )

    def value(self, lease: Lease) -> Secret | None:
        """Return the key of a lease; None for a key outside the pool, the client's own."""
        key_id = lease.key_id
        return None if key_id.startswith(HOME) else self.pool.secrets.value(key_id)

    def redact(self, key: str) -> Redact:
        """Return what redacts the pool's keys and the client's own *key* in a text."""
        redact = self.pool.secrets.redact
        return partial(redact, also=Secret(key)) if is_key(key) else redact

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Return the observer of a call, for its driver; None if there is none."""
        return observe(self.pool.observers, info, handle_internal_error)

    def no_key(self, exhausted: Exhausted, provider: Provider) -> NoKey:
        """Return why no key could serve a call."""
        blocks, now, pool = exhausted.unavailable.blocks, exhausted.unavailable.at, self.pool
        first = judge(CallInfo("", ""), (), blocks, now=now, rejected={}).block
        until = inf if first is None else first.until
        retry_in = max(ceil(until - now), 1) if isfinite(until) else None
        reasons = {key_id: describe_block(block) for key_id, block in blocks.items()}
        ending = [b for b in blocks.values() if b.reason not in FOR_GOOD and isfinite(b.until)]
        if not blocks and provider.platform not in pool.selector.platforms:
            only = f" of KEYROT_TIERS ({', '.join(sorted(pool.tiers))})" if pool.tiers else ""
            lacks = f"pool {pool.name!r} has no {provider.title} API key{only}"
            body = provider.error_body(401, f"keyrot: {lacks}; {provider.no_key}")
            return NoKey(401, body, until, retry_in, reasons)
        if not ending:
            ids = [k for k, b in blocks.items() if b.reason in REJECTIONS]
            is_model = any(block.reason in MODEL_REFUSALS for block in blocks.values())
            last = pool.last_refusal(ids, exhausted.model if is_model else "")
            if last is not None:  # else another process may have seen it
                return NoKey(last[0], _whole_body(last[2]), until, retry_in, reasons)
        text = f"Pool {pool.name!r} has no {provider.title} API key that may serve this call."
        if reasons:
            which = "that was tried " if exhausted.has_untried_keys else ""
            shown = "; ".join(f"{key_id}: {why}" for key_id, why in list(reasons.items())[:_SHOWN])
            more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
            text = f"No {provider.title} API key of pool {pool.name!r} {which}is available. "
            text += f"{shown}{more}."
        code, reason = 429, ""
        if not ending:
            code, reason = rejection_code(block.reason for block in blocks.values())
        elif first is not None and not first.note:  # a share of a day is not the provider's
            reason = _DAYS.get(first.reason, "")
        wait_s = until - now if ending else None
        body = provider.error_body(code, text, reason=reason, retry_in_s=wait_s)
        return NoKey(code, body, until, retry_in, reasons)

    def _own(self, key: str, info: CallInfo) -> Candidate | None:
        """Return a client's own key as a candidate, in the pool or not; None if it has none.

        A key that keys.json marks for the other platform, or whose tier or project the call may
        not use, counts as none.
        """
        if not is_key(key):
            return None
        key_id = self.pool.secrets.key_id_for(Secret(key))
        own = self.pool.selector.keys.get(key_id) if key_id is not None else None
        found = own or _outside(key, info.platform)
        return found if info.may_use(found) else None

    def _home(self, info: CallInfo) -> Candidate:
        """Return the home key of clients without a key of their own, as a candidate."""
        key_id = self.pool.home_id_for(info.platform, info.tiers, info.project)
        found = self.pool.selector.keys.get(key_id) if key_id is not None else None
        return found or _outside("", info.platform)

    def warn_once(self, subject: str, text: str) -> None:
        """Warn of a host or a model, once; the warning cannot fail the call."""
        if subject in self._warned or len(self._warned) >= _MOST_WARNED:
            return
        self._warned.add(subject)
        _log.warning("%s", text)
        warn_safely(text)


def _outside(key: str, platform: str) -> Candidate:
    """Return a key outside the pool, the client's own, as a candidate."""
    label = f"{HOME}{fingerprint(key)}"
    return Candidate(label, label, label, platform=platform)


def is_key(key: Any) -> bool:
    """Return whether *key* is a key, neither empty nor a placeholder."""
    return isinstance(key, str) and not key.strip().startswith(POOL_KEY) and key.strip() != ""


@lru_cache(maxsize=256)
def fingerprint(key: str) -> str:
    """Return a label for a key outside the pool; it does not reveal the key."""
    return blake2b(key.encode(), digest_size=4, key=_SALT).hexdigest()


_DAYS = {"rpd": "rpd", "quota_day": "rpd", "usd": "usd", "usd_month": "usd"}
"""How the body names a block of a day or longer."""
_SHOWN = 10
"""Keys named in the message; all of them are in `reasons`."""


class NoKey(NamedTuple):
    """Why no key could serve a call."""

    code: int
    body: Any
    """An error as the provider writes it, or the one with which it rejected the last key."""
    until: float
    """When the first key is expected back, epoch seconds; `inf` for never."""
    retry_in: int | None
    """Seconds until then, rounded up, at least 1; None for never."""
    reasons: dict[str, str]
    """Why each key cannot serve, and until when, by key id."""


def _whole_body(details: Any) -> Any:
    """Return the body; for an async stream the SDK has it as the text of a `message`."""
    try:
        body = json.loads(details["message"])
    except (KeyError, TypeError, ValueError):
        return details
    return body if isinstance(body, dict) and "error" in body else details
