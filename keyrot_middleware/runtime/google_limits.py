"""Limits of Google Cloud projects, read from Cloud Quotas: at the start and each hour.

A read limit is one that was learned before its 429 (core/windows.py). Where nothing can be read,
limits are learned as without it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from math import inf
from typing import TYPE_CHECKING, Any

from ..core.model import DEFAULT_PLATFORM
from ..core.windows import HOUR_S
from ..core.wording import plural
from ..errors import warn_safely
from ..providers.gemini.errors import listed_limits
from ..secrets.remote import (
    Unreadable,
    google_call,
    google_endpoint,
    google_login,
    google_session,
)

if TYPE_CHECKING:
    from .pool import Pool

_log = logging.getLogger("keyrot_middleware")

_PROJECT = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]|[0-9]{6,19}")
"""The id or the number of a Google Cloud project."""
_KEYS_NEED = "A key needs a `project`, the id of a Google Cloud project, and a `tier` in keys.json"
_PROJECTS_NEED = (
    "Cloud Quotas needs the extra gcp, a Google login (gcloud auth application-default login, or "
    "a service account) with the role roles/cloudquotas.viewer in each project, and its API enabled"
)


MAX_PAGES = 100
_LIST = "locations/global/services/generativelanguage.googleapis.com/quotaInfos"

START_S = 3.0
"""How long install() waits for the first read, since a login imports modules of its own."""


class GoogleLimits:
    """Reads them in a thread of its own: a login may take seconds."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read nothing yet.

        Raises:
            ConfigError: The endpoint that *environ* names is not allowed.
        """
        self._endpoint = google_endpoint(environ, "cloudquotas")
        with suppress(ImportError):  # a warning says so
            import_module("google.auth.transport.requests")
        self._warned = set[str]()
        self._read_at = -inf
        self.is_stopped = False

    def tick(self, pool: Pool, wait_s: float = 0.0) -> None:
        """Begin to read, if it is time; wait so long for the end."""
        now = pool.clock.time()
        if abs(now - self._read_at) >= HOUR_S:
            self._read_at, name = now, f"keyrot-limits-{pool.name}"
            thread = threading.Thread(target=self.read, args=(pool,), name=name, daemon=True)
            thread.start()
            thread.join(wait_s)

    def read(self, pool: Pool) -> None:
        """Read the limits of all projects of *pool*; where that fails, warn once."""
        keys = [key for key in pool.selector.keys.values() if key.platform == DEFAULT_PLATFORM]
        tiers = {k.project: k.tier for k in keys if k.tier and _PROJECT.fullmatch(k.project)}
        if unknown := [key.key_id for key in keys if key.project not in tiers]:
            text = f"{plural(len(unknown), 'key')} cannot be read ({', '.join(unknown[:3])})"
            self._warn(pool, text, _KEYS_NEED)
        failed = dict.fromkeys(tiers, "no limits")
        try:
            session = google_session(google_login(self._endpoint)[0])
            for project, tier in tiers.items():
                if self.is_stopped:
                    return
                try:
                    limits = listed_limits(self._quotas(session, project), tier)
                except Unreadable as error:
                    failed[project], limits = str(error), {}
                if limits:
                    pool.state.take_limits(project, limits)
                    del failed[project]
        except Exception as error:  # the login, or no answer: the next project would get none
            failed = dict.fromkeys(failed, type(error).__name__)
        if failed:
            count, (project, why) = plural(len(failed), "project"), next(iter(failed.items()))
            self._warn(pool, f"{count} cannot be read ({project}: {why})", _PROJECTS_NEED)

    def _quotas(self, session: Any, project: str) -> list[Any]:
        quotas, query = list[Any](), {"pageToken": ""}
        for _ in range(MAX_PAGES):
            url = f"{self._endpoint}/v1/projects/{project}/{_LIST}"
            page = google_call(session, "GET", url, params=query)
            quotas += page.get("quotaInfos") or ()
            query = {"pageToken": page.get("nextPageToken") or ""}
            if not query["pageToken"]:
                return quotas
        raise Unreadable("too many pages")

    def _warn(self, pool: Pool, text: str, needed: str) -> None:
        if needed not in self._warned:
            self._warned.add(needed)
            text = f"pool {pool.name}: the limits of {text}, and are learned from 429s. {needed}"
            _log.warning("%s", text)
            warn_safely(text)
