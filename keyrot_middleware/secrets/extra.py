"""What to say where the library of a store is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import MissingExtraError

__all__ = ["extra"]


@contextmanager
def extra(name: str, package: str) -> Iterator[None]:
    """Import the library of a store inside this.

    Args:
        name: Of the extra, and of the store: `aws`.
        package: As people install it: `boto3`.

    Raises:
        MissingExtraError: A ConfigError with the pip line, in place of the ImportError.
    """
    try:
        yield
    except ImportError:
        missing = MissingExtraError(
            wanted_by=f"the secret store {name}://", package=package, extra=name
        )
        raise missing from None
