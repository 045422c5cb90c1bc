"""A pool, and where its keys may go: what all its calls share, Live sessions too."""

from __future__ import annotations

import logging
import os
import time
from functools import lru_cache, partial
from hashlib import blake2b
from math import inf

from .. import providers
from ..core.flow import CallState
from ..core.model import DEFAULT_PLATFORM, HOME, POOL_KEY, CallInfo, Candidate, Lease
from ..errors import warn_safely
from ..hosts import AllowedOrigins, host_from_url, is_within
from ..providers.base import Provider
from ..runtime import SdkCall, bypassed, required_project, required_tiers, session
from ..runtime.pool import Pool
from ..secrets import Secret
from ..state.memory import BoundedDict
from .redaction import Redact
from .refusals import OwnResponse, without_pool
from .signatures import Signatures

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
        self.signatures = Signatures()
        """Those of models that have served in place of another."""
        self.uploads: BoundedDict[Secret] = BoundedDict(1_000)
        """The client's own key, or an empty one, of each upload that was begun here, by its name;
        its bytes may come without a key."""
        self.begun: set[SdkCall | None] = set()
        """Calls of google-genai with the placeholder, which have not reached their transport."""
        self._is_closed = False
        self._warned: set[str] = set()
        self._left_out: set[str] = set()

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
            pool.evidence,
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

    def _own(self, key: str, info: CallInfo) -> Candidate | None:
        """Return a client's own key as a candidate, in the pool or not; None if it has none.

        A key that keys.json marks for the other platform, or whose tier or project the call may
        not use, counts as none.
        """
        if not is_key(key):
            return None
        key_id = self.pool.secrets.key_id_for(Secret(key))
        own = self.pool.selector.keys.get(key_id) if key_id is not None else None
        candidate = own or _outside(key, info.platform)
        return candidate if info.may_use(candidate) else None

    def _home(self, info: CallInfo) -> Candidate:
        """Return the home key of clients without a key of their own, as a candidate."""
        key_id = self.pool.home_id_for(info.platform, info.tiers, info.project)
        candidate = self.pool.selector.keys.get(key_id) if key_id is not None else None
        return candidate or _outside("", info.platform)

    def home_key(self, provider: Provider, url: str) -> Secret | OwnResponse | None:
        """Return the key that takes the place of a placeholder without the pool.

        None: no key of the pool may go there, and the request is sent as it is.
        """
        if not is_within(url, self.allowed[provider.platform]):
            return None
        asked = required_tiers.get(), required_project.get()
        return self.pool.home_value(provider.platform, *asked) or without_pool(provider, url)

    def log_left_out(self, title: str, name: str) -> None:
        """Log, once for a header, that requests go out without it."""
        if name not in self._left_out:
            self._left_out.add(name)
            text = "the header %s of requests is left out: their account is that of the %s key"
            _log.info(text, name, title)

    def warn_of_proxy(self, url: str) -> None:
        """Warn of requests to this machine that a proxy would get in clear, once for a host."""
        host = host_from_url(url)
        self.warn_once(
            f"proxy {host}",
            f"calls to {host} bypass the pool: a proxy would get their keys in clear; let your "
            "client send to it without one (NO_PROXY=localhost,127.0.0.1,[::1])",
        )

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


def is_key(key: object) -> bool:
    """Return whether *key* is a key, neither empty nor a placeholder."""
    text = key.strip() if isinstance(key, str) else ""
    return text != "" and not text.startswith(POOL_KEY)


@lru_cache(maxsize=256)
def fingerprint(key: str) -> str:
    """Return a label for a key outside the pool; it does not reveal the key."""
    return blake2b(key.encode(), digest_size=4, key=_SALT).hexdigest()
