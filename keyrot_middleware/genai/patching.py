"""Patch methods of the SDK.

The four request methods of the api client stand in google-genai 1.65, 2.x and 3.x alike, and
every model call of the SDK comes through them, one HTTP request each; `_build_request`, below
them, is where the key is put in, and `_request` where the SDK would repeat.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..adapters.patching import Patcher, Wrapper, warn_and_log

__all__ = ["MODULE", "SdkPatcher"]

_log = logging.getLogger("keyrot_middleware")

MODULE = "google.genai._api_client"
OWNER = "BaseApiClient"
SUPPORTED = "1.65 to 3.x"
NEXT_MAJOR = 4
"""The first version of the SDK that is not tested; pyproject.toml declares the same."""


class SdkPatcher(Patcher):
    """The table of patched methods of the SDK, and of what it uses."""

    def __init__(self, replace: Callable[[], None] | None = None) -> None:
        """Start with an empty table; see `Patcher`."""
        super().__init__(replace)
        self._client_methods: dict[str, Wrapper] = {}
        self.modules.add(MODULE)
        self._newer_warned = False

    def add_client_methods(self, wrappers: Mapping[str, Wrapper], *, sends: bool = False) -> None:
        """Add methods of the api client, all of which must exist.

        Args:
            wrappers: The wrapper of each method.
            sends: As for `add_functions`.
        """
        self._client_methods |= wrappers
        self.add(dict(wrappers), sends=sends)

    def is_complete(self) -> bool:
        """Return whether all methods exist: with half of the patches a key could leak."""
        owner = _owner()
        there = vars(owner) if owner else self._client_methods
        missing = [name for name in self._client_methods if name not in there]
        if missing:
            _log.error(
                "this google-genai has no %s.%s, so calls are not rotated; supported: %s",
                OWNER,
                ", ".join(missing),
                SUPPORTED,
            )
            return False
        self._warn_of_newer_sdk()
        return True

    def _warn_of_newer_sdk(self) -> None:
        """Warn once of an SDK that was never tested; pip does not always hold its version back."""
        version = getattr(sys.modules.get("google.genai.version"), "__version__", "")
        major = version.partition(".")[0]
        if self._newer_warned or not major.isdecimal() or int(major) < NEXT_MAJOR:
            return
        self._newer_warned = True
        warn_and_log(
            f"google-genai {version} is newer than the versions that keyrot_middleware is tested "
            f"with, {SUPPORTED}; calls are rotated all the same. If one fails, install "
            f'"google-genai<{NEXT_MAJOR}", or a newer keyrot-middleware'
        )

    def targets(self) -> Iterator[tuple[Any, str]]:
        """Yield what to patch, if the SDK is imported."""
        owner = _owner()
        if owner is None:
            return
        for name in self._client_methods:
            yield owner, name
        yield from super().targets()


def _owner() -> type | None:
    module = sys.modules.get(MODULE)
    return getattr(module, OWNER, None)
