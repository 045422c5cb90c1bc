"""The operators' page: the state of each key in a browser, as an ASGI app to mount anywhere.

    app.mount("/keyrot", keyrot_middleware.ui.app(token=…))

Importing this package imports no web framework; `app()` needs the extra `ui`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ..monitoring.view import PoolReport

__all__ = ["app"]


def app(
    *,
    token: str | None = None,
    local: bool = False,
    actions: bool = False,
    source: PoolReport | None = None,
) -> Starlette:
    """Return the page and its API as an ASGI app; it needs no lifespan and works at any path.

    Args:
        token: What a browser or a script must present, at least 16 characters.
        local: Without a token, let in every user of this machine. A proxy or a tunnel on it lets in
            whomever it serves, for it cannot always be recognized.
        actions: Offer to reset, disable, enable and check keys; needs *token*.
        source: Where the data comes from. None: the pool that `install()` put in place.

    Raises:
        ConfigError: The token is too short, or missing.
        MissingExtraError: Starlette is not installed.
    """
    try:
        import starlette  # noqa: F401, PLC0415 - an optional library
    except ImportError:
        wanted_by = "keyrot_middleware.ui.app()"
        raise MissingExtraError(wanted_by=wanted_by, package="starlette", extra="ui") from None
    from .server import make_app  # noqa: PLC0415 - needs Starlette

    return make_app(token=token, local=local, actions=actions, source=source)
