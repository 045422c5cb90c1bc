"""A pool and the patches that connect it to the SDK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..adapters.imports import Patched
from ..adapters.pooled_calls import PooledCalls
from ..adapters.redaction import filter_logs
from ..runtime.pool import Pool
from ..settings import AllowedOrigins
from .downloads import DownloadWrappers
from .executor import DefaultExecutor
from .gaos import GaosRequests
from .live import LiveWrappers
from .patching import SdkPatcher
from .stainless import StainlessRequests
from .uploads import Uploads
from .wire import Wire, restore_placeholder, withdraw_placeholder
from .wrappers import ClientWrappers, RequestWrappers, keyless

__all__ = ["Binding"]


class OtherAdapter(Protocol):
    """An adapter of other libraries, for the same pool."""

    def install(self, patched: Patched | None = None) -> None:
        """Patch the libraries, or repair the patches."""

    def close(self) -> None:
        """Restore the libraries."""

    def patched(self) -> dict[str, bool]:
        """Return for each patched method whether our layer is in place."""

    def serves(self, request: Any) -> bool:
        """Return whether the key of a request of httpx or httpx2 is written there."""


class Binding:
    """Connects one pool to the SDK, from `install` to `close`."""

    def __init__(
        self, pool: Pool, allowed_origins: AllowedOrigins, on_close: Callable[[], None]
    ) -> None:
        """Patch nothing yet; *on_close* is called by `close`."""
        self.pool = pool
        self.patches_sdk = True
        self.others: list[OtherAdapter] = []
        """Installed and closed with this; what one of them serves is left to it."""
        self._on_close = on_close
        self.patcher = SdkPatcher(self.close)
        calls = self.calls = PooledCalls(pool, allowed_origins)
        uploads = self.uploads = Uploads(pool.state)
        clients = ClientWrappers(allowed_origins, self.patcher.repair)
        requests = RequestWrappers(calls, uploads, self.patcher)
        downloads = DownloadWrappers(calls, self.patcher)
        self.patcher.add_client_methods(
            {
                "__init__": clients.wrap_init,
                "request": requests.request,
                "request_streamed": requests.request_streamed,
                "async_request": requests.async_request,
                "async_request_streamed": requests.async_request_streamed,
                "upload_file": uploads.upload_file,
                "async_upload_file": uploads.async_upload_file,
                "download_file": downloads.download_file,
                "async_download_file": downloads.async_download_file,
            }
        )
        self.patcher.add_client_methods(
            {
                "_build_request": clients.wrap_build_request,
                "_request": clients.wrap_request,
                "_async_request": clients.wrap_async_request,
            },
            sends=True,
        )
        self.patcher.add_functions(GaosRequests(calls, self.patcher).table)
        self.patcher.add_functions(StainlessRequests(calls, self.patcher).table)
        self.patcher.add_functions(LiveWrappers(calls, self.patcher).table)
        wire = Wire(pool, allowed_origins, self.patcher.enabled, self._is_of_others)
        self.patcher.add_functions(wire.table, sends=True)
        self.patcher.add_functions(DefaultExecutor(pool.threads).table, sends=True)

    def install(self, patched: Patched | None = None) -> None:
        """Patch the SDK, or repair its patches; see `Patcher.install`."""
        filter_logs(self.pool.secrets.redact)
        if self.patches_sdk:
            self.patcher.install(patched)
        for adapter in self.others:
            adapter.install(patched)
        for client in tuple(keyless):
            restore_placeholder(client)

    def close(self) -> None:
        """Restore the SDK exactly; clients without a key of their own are left without one.

        Running calls finish.
        """
        self._on_close()
        for adapter in self.others:
            adapter.close()
        self.patcher.uninstall()
        filter_logs(None)
        for client in tuple(keyless):
            withdraw_placeholder(client)
        self.pool.close()

    def patched(self) -> dict[str, bool]:
        """Return for each patched method whether our layer is in place."""
        found = self.patcher.status() if self.patches_sdk else {}
        for adapter in self.others:
            found |= adapter.patched()
        return found

    def _is_of_others(self, request: Any) -> bool:
        return any(adapter.serves(request) for adapter in self.others)
