"""Records that cannot be read: dropped, named in a warning, and written anew by who needed them.

Somebody else's tool, a broken restore or another version may leave anything under our names. What
is read by scripts makes them fail; only then is it found out, so that calls pay nothing for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from ...core.model import Candidate, Lease
from ...core.text import one_line
from .connections import RedisStateError

__all__ = ["UNREADABLE", "may_be_unreadable", "names_of", "warn"]

_log = logging.getLogger("keyrot_middleware")

UNREADABLE = (RedisStateError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What is raised where a record is read that is none."""


def may_be_unreadable(error: Exception) -> bool:
    """Return whether a failure may come of a record, and not of the server."""
    return not isinstance(error, RedisStateError) or error.may_be_a_record


def names_of(base: str, keys: Iterable[Candidate | Lease], *buckets: str) -> list[str]:
    """Name every record that a script reads of *keys*, and of models counted in *buckets*."""

    def each() -> Iterator[str]:
        yield f"{base}:epoch"
        yield f"{base}:buckets"
        for bucket in buckets:
            yield f"{base}:bucket:{bucket}"
        for key in keys:
            yield f"{base}:cooldown:billing:{key.billing_account}"
            yield f"{base}:cooldown:project:{key.project}"
            yield f"{base}:cooldown:key:{key.record}"
            yield f"{base}:health:{key.key_id}"
            yield f"{base}:lease:{key.record}"
            for bucket in buckets:
                yield f"{base}:quota:{len(key.project.encode())}:{key.project}:{bucket}"

    return list(dict.fromkeys(each()))


def warn(dropped: Iterable[Any]) -> bool:
    """Name records that were dropped; True where there were any."""
    names = [one_line(name.decode(errors="replace")) for name in dropped]
    if names:
        text = "records of the shared state could not be read, and are begun anew: %s"
        _log.warning(text, ", ".join(names))
    return bool(names)
