"""A pool, and the patches that connect it to google-genai and the HTTP libraries."""

from __future__ import annotations

from collections.abc import Collection

from ..adapters.patching import Patcher
from ..adapters.pooled_calls import PooledCalls
from ..adapters.redaction import filter_logs
from ..http_clients import HttpClients
from ..http_clients.calls import SDK
from ..runtime.pool import Pool
from ..settings import AllowedOrigins
from .client import Clients
from .live import LiveWrappers


class Binding:
    """Connects one pool to its libraries, from `install` to `close`."""

    def __init__(
        self, pool: Pool | None, allowed: AllowedOrigins, clients: Collection[str]
    ) -> None:
        """Patch nothing yet.

        Args:
            pool: None where no key was found: then only the placeholder is kept off the wire.
            allowed: Where its keys may go.
            clients: The libraries to serve.
        """
        self.pool = pool
        self._calls = calls = PooledCalls(pool, allowed) if pool is not None else None
        sdk = {**Clients(calls, allowed).table, **LiveWrappers(calls).table}
        self._http = HttpClients(calls, allowed, clients)
        self._patchers = (Patcher(sdk if SDK in clients else {}), self._http.patcher)

    def install(self) -> None:
        """Patch the libraries, or put back what others have removed."""
        if self.pool is not None:
            filter_logs(self.pool.secrets.redact)
        self._http.install()  # first: it takes the placeholder out of what the SDK sends
        self._patchers[0].install()

    def close(self) -> None:
        """Restore the libraries; running calls finish."""
        self._patchers[0].uninstall()
        if self._calls is not None:
            self._calls.close()
        self._http.close()
        filter_logs(None)
        if self.pool is not None:
            self.pool.close()

    def patched(self) -> dict[str, bool]:
        """Return for each patched method whether our layer is in place."""
        return {name: there for one in self._patchers for name, there in one.status().items()}
