"""What the cloud stores have in common: places to names, names to answers, answers to keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..errors import SecretError
from .base import Secret
from .fault import Answer, Fault
from .fields import key_in

__all__ = ["Spot", "look_up", "split_field"]


class Spot(NamedTuple):
    """Where a key is, once its place has been understood."""

    name: str
    """Of the secret, as the store's reader takes it."""
    place: str
    """As people write it: `aws://prod/gemini#pro_01`."""
    field: str | None = None
    """Of the JSON object in the secret."""


def look_up(
    refs: Mapping[str, str | None],
    spot_of: Callable[[str, str | None], Spot | str],
    read: Callable[[Iterable[str]], Mapping[str, Answer]],
) -> dict[str, Secret | SecretError]:
    """Find keys: each secret is read once, however many keys are in it.

    Args:
        refs: The place of each key id; None: the default one.
        spot_of: Understands a key id's place, or says in words what is wrong with it.
        read: Answers for each of the names it is given.
    """
    spots = {key_id: spot_of(key_id, ref) for key_id, ref in refs.items()}
    names = dict.fromkeys(spot.name for spot in spots.values() if isinstance(spot, Spot))
    answers = read(names) if names else {}
    return {key_id: _found(key_id, spot, answers) for key_id, spot in spots.items()}


def split_field(place: str) -> tuple[str, str | None]:
    """Take `#field` off a place."""
    path, there, field = place.partition("#")
    return path, field if there else None


def _found(key_id: str, spot: Spot | str, answers: Mapping[str, Answer]) -> Secret | SecretError:
    if isinstance(spot, str):
        return SecretError(f"key {key_id}: {spot}")
    answer = answers[spot.name]
    if isinstance(answer, Fault):
        return SecretError(f"key {key_id}: {spot.place}: {answer.words}")
    found = key_in(answer, spot.field, key_id)
    return SecretError(f"key {key_id}: {spot.place}: {found}") if isinstance(found, str) else found
