"""Records that cannot be read: dropped, named in a warning, and written anew by who needed them.

Somebody else's tool, a broken restore or another version may leave anything under our names. What
is read by scripts makes them fail; only then is it found out, so that calls pay nothing for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from redis.exceptions import ResponseError

from ...core.model import Candidate, Lease
from ...core.text import one_line
from .trouble import RedisTrouble

__all__ = ["UNREADABLE", "may_be_unreadable", "names_of", "warn"]

_log = logging.getLogger("keyrot_middleware")

UNREADABLE = (RedisTrouble, ValueError, TypeError, LookupError, AttributeError)
"""What is raised where a record is read that is none."""


def may_be_unreadable(error: Exception) -> bool:
    """Tell whether a failure may come of a record, and not of the server."""
    if not isinstance(error, RedisTrouble):
        return True
    cause = error.__cause__
    return isinstance(cause, ResponseError) and str(cause).startswith(("ERR ", "WRONGTYPE "))


def names_of(base: str, keys: Iterable[Candidate | Lease], *buckets: str) -> list[str]:
    """Name every record that a script reads of *keys*, and of models counted in *buckets*."""

    def each() -> Iterator[str]:
        yield f"{base}:epoch"
        yield f"{base}:buckets"
        for bucket in buckets:
            yield f"{base}:b:{bucket}"
        for key in keys:
            yield f"{base}:c:b:{key.billing_account}"
            yield f"{base}:c:p:{key.project}"
            yield f"{base}:c:k:{key.record}"
            yield f"{base}:h:{key.key_id}"
            yield f"{base}:l:{key.record}"
            for bucket in buckets:
                yield f"{base}:q:{len(key.project.encode())}:{key.project}:{bucket}"

    return list(dict.fromkeys(each()))


def warn(dropped: Iterable[Any]) -> bool:
    """Name records that were dropped; True where there were any."""
    names = [one_line(name.decode(errors="replace")) for name in dropped]
    if names:
        text = "records of the shared state could not be read, and are begun anew: %s"
        _log.warning(text, ", ".join(names))
    return bool(names)
