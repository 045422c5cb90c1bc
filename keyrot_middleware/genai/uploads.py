"""Remember the key of each upload, whose project owns the file.

The start of an upload is a request like any other and has a key. Its chunks have none: they go to
the URL that the start answered with, and the last one's answer names the file. So the key of each
start is remembered by that URL, until the SDK's method that sends the chunks returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..core.affinity import find_resource_names
from ..core.model import Lease
from ..guard import handle_internal_error
from ..state.base import State
from ..state.memory import BoundedDict

__all__ = ["Uploads"]

_URL_HEADER = "x-goog-upload-url"
_KEPT = 1_000
"""Starts to remember; the oldest is forgotten first."""


class Uploads:
    """The running uploads of this process, each with the lease of its start."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.starts: BoundedDict[Lease] = BoundedDict(_KEPT)
        """Each by the URL that its start answered with."""

    def remember_start(self, response: Any, lease: Lease) -> None:
        """Remember *lease* if *response* starts an upload."""
        try:
            for name, value in (response.headers or {}).items():
                if name.lower() == _URL_HEADER:
                    self.starts[value] = lease
        except Exception:
            handle_internal_error("genai")

    def upload_file(self, wrapped: Callable[..., Any], _client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap the method of that name; see `async_upload_file`."""
        response = wrapped(*args, **kwargs)
        try:
            if finished := self._finished(response, args, kwargs):
                self._state.set_owner(*finished)
        except Exception:
            handle_internal_error("state")
        return response

    async def async_upload_file(
        self, wrapped: Callable[..., Awaitable[Any]], _client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap the method of that name: it sends the chunks, and returns the last response."""
        response = await wrapped(*args, **kwargs)
        try:
            if finished := self._finished(response, args, kwargs):
                await self._state.aset_owner(*finished)
        except Exception:
            handle_internal_error("state")
        return response

    def _finished(
        self, response: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Lease, tuple[str, ...]] | None:
        """Return the lease of the start and the names of the file."""
        url = kwargs["upload_url"] if "upload_url" in kwargs else args[1]
        lease = self.starts.pop(url, None)
        names = find_resource_names(response.json) if lease is not None else ()
        return (lease, names) if lease is not None and names else None
