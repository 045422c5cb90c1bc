"""Stored things: files, caches, batches, operations, and tokens such as that of the next page.

Each belongs to one project; a key of another project gets an error. So a request that names one
goes with a key of its owner. A provider names each thing in one canonical form: the name that its
API uses, such as `files/abc` or `batch_1`, or a prefix of these and the id or token.
"""

from __future__ import annotations

from typing import NamedTuple

PAGE = "page:"
CONTINUATION = "continuation:"
HANDLE = "handle:"
"""Of a session that can be resumed."""
UPLOAD = "upload:"
"""Of an upload in several requests."""
INTERACTION = "interactions/"
VOICE = "voices/"
TYPED = ""

_UNCERTAIN = ("agents/", "credentials/", "environments/", VOICE)


def is_certain(name: str) -> bool:
    """Return whether a request that has this *name* in its body names a stored resource.

    Agents, environments and voices may also be the provider's own, with ids of the same form; the
    owner of such a name matters only if it is known.
    """
    return not name.startswith(_UNCERTAIN)


class Lifetime(NamedTuple):
    """How long the owner of a stored resource is remembered."""

    seconds: int
    renewed: bool
    """From each use on again: the resource itself does not end by a clock."""


_HOUR_S = 3_600
_DAY_S = 24 * _HOUR_S

_LIFETIMES = {
    "files/": Lifetime(49 * _HOUR_S, renewed=False),  # of an API that deletes files after two days
    **dict.fromkeys((PAGE, CONTINUATION, HANDLE, UPLOAD), Lifetime(_DAY_S, renewed=False)),
}
_LONG = Lifetime(60 * _DAY_S, renewed=True)
"""Of all else: much of it is kept until it is deleted."""


def owner_lifetime(name: str) -> Lifetime:
    """Return how long to remember the owner of the stored resource *name*."""
    return next((kept for begin, kept in _LIFETIMES.items() if name.startswith(begin)), _LONG)
