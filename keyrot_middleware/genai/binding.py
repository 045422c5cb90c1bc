"""A pool and the patches that connect it to the SDK."""

from __future__ import annotations

from collections.abc import Callable

from ..adapters.imports import Patched
from ..adapters.pooled_calls import PooledCalls
from ..runtime.abandoned import unwatch_gc, watch_gc
from ..runtime.pool import Pool
from ..settings import AllowedOrigins
from .downloads import DownloadWrappers
from .executor import DefaultExecutor
from .interactions import Interactions
from .live import LiveWrappers
from .patching import SdkPatcher
from .uploads import Uploads
from .wire import Wire, restore_placeholder, withdraw_placeholder
from .wrappers import ClientWrappers, RequestWrappers, keyless

__all__ = ["Binding"]


class Binding:
    """Connects one pool to the SDK, from `install` to `close`."""

    def __init__(
        self, pool: Pool, allowed_origins: AllowedOrigins, on_close: Callable[[], None]
    ) -> None:
        """Patch nothing yet; *on_close* is called by `close`."""
        self.pool = pool
        self._on_close = on_close
        self.patcher = SdkPatcher(self.close)
        calls = PooledCalls(pool, allowed_origins)
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
        self.patcher.add_functions(Interactions(calls, self.patcher).table)
        self.patcher.add_functions(LiveWrappers(calls, self.patcher).table)
        self._wire = Wire(pool, allowed_origins, self.patcher.enabled)
        self.patcher.add_functions(self._wire.table, sends=True)
        self.patcher.add_functions(DefaultExecutor(pool.threads).table, sends=True)

    def install(self, patched: Patched | None = None) -> None:
        """Patch the SDK, or repair its patches; see `Patcher.install`."""
        watch_gc()
        self._wire.filter_logs(on=True)
        self.patcher.install(patched)
        for client in tuple(keyless):
            restore_placeholder(client)

    def close(self) -> None:
        """Restore the SDK exactly; clients without a key of their own are left without one.

        Running calls finish.
        """
        self._on_close()
        self.patcher.uninstall()
        self._wire.filter_logs(on=False)
        unwatch_gc()
        for client in tuple(keyless):
            withdraw_placeholder(client)
        self.pool.close()
