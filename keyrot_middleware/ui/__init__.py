"""The operators' page: the state of each key in a browser, as an ASGI app to mount anywhere.

    app.mount("/keyrot", keyrot_middleware.ui.app(token=…))

Importing this package imports no web framework; `app()` needs the extra `ui`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ..monitoring.report import PoolReport

__all__ = ["app"]

MIN_LENGTH = 16
HOW_TO_MAKE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(24))'"


def app(
    *,
    token: str = "",
    actions: bool = False,
    source: PoolReport | None = None,
) -> Starlette:
    """Return the page and its API as an ASGI app; it needs no lifespan and works at any path.

    Args:
        token: What a browser or a script must present, at least 16 characters.
        actions: Offer to reset, disable and enable keys.
        source: Where the data comes from. None: the pool that `install()` put in place.

    Raises:
        ConfigError: The token is too short, or missing.
        MissingExtraError: Starlette is not installed.
    """
    check_token(token, "ui.app(token=…)")
    try:
        import starlette  # noqa: F401, PLC0415 - an optional library
    except ImportError:
        wanted_by = "keyrot_middleware.ui.app()"
        raise MissingExtraError(wanted_by=wanted_by, package="starlette", extra="ui") from None
    from .server import make_app  # noqa: PLC0415 - needs Starlette

    return make_app(token=token, actions=actions, source=source)


def check_token(token: str, name: str) -> str:
    """Return *token* if it is long enough.

    Raises:
        ConfigError: It is too short; the message begins with *name*, and the token is not in it.
    """
    if len(token) < MIN_LENGTH:
        raise ConfigError(
            f"{name}: a token has at least {MIN_LENGTH} characters, found {len(token)}; "
            f"{HOW_TO_MAKE}"
        )
    return token
