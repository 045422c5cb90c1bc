"""What a token of the page must be."""

from __future__ import annotations

from ..errors import ConfigError

__all__ = ["HOW_TO_MAKE", "check_token"]

MIN_LENGTH = 16
HOW_TO_MAKE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(24))'"


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
