"""Which model has answered: providers answer requests to a replaced model by a newer one.

A response names the model that answered. Often that is the requested one in other words: with a
number or a date behind it, without the name of a publisher before it, or what an alias stands for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

MAX_LENGTH = 200
"""Of a name that is counted: what is longer is no name of a model."""
_VERSION = re.compile(
    r"[-@](?:0|latest|v?\d{3,4}|\d{6}|\d{8}(?:-v\d)?|\d{4}-\d{2}-\d{2}|\d{2}-\d{4})$"
)
"""What stands for a version of the same model: `-0`, `-latest`, `-001`, `-0709`, `-20250929`,
`-2024-08-06`."""
_OWN = ("tunedModels", "endpoints", "openrouter")
"""What stands before a name that a user, or a router, has given to what another model answers."""


class Answered(NamedTuple):
    """Calls of a day that named one model, and were answered by another."""

    platform: str
    model: str
    """As requested."""
    by: str
    calls: int = 0


def is_other_model(requested: str, answered: str | None) -> bool:
    """Return whether a response names another model than its request.

    Args:
        requested: As in the request; empty if it names none.
        answered: As in the response; None or empty if that names none.
    """
    if not requested or not answered or requested == answered or is_alias(requested):
        return False
    if len(requested) > MAX_LENGTH or len(answered) > MAX_LENGTH:
        return False
    return _plain(requested) != _plain(answered)


def is_alias(model: str) -> bool:
    """Return whether a name stands for a model that its provider chooses, or its user has tuned.

    Such are `…-latest`, `…/auto`, `openrouter/…`, `tunedModels/…` and `…/endpoints/…`.
    """
    *before, name = model.split("/")
    is_own = bool(before) and before[-1] in _OWN
    return is_own or name.lower().endswith("latest") or name.lower() == "auto"


def _plain(model: str) -> tuple[list[str], list[str]]:
    """Return the words of a name, sorted, and its numbers in their order.

    Without publisher, variant and version: `claude-3.7-sonnet` and `claude-sonnet-3-7` are one.
    """
    name = model.rpartition("/")[2].partition(":")[0].lower()
    parts = re.split(r"[-._]", _VERSION.sub("", name) or name)
    numbers = [part for part in parts if part.isdigit()]
    return sorted(part for part in parts if not part.isdigit()), numbers


def answer_entry(platform: str, model: str, by: str) -> str:
    """Return under which name calls are counted that another model has answered."""
    return "\n".join((platform, model, by))


def read_answers(counts: Mapping[str, int]) -> list[Answered]:
    """Return what `answer_entry` has counted, the most calls first."""
    answers = []
    for name, calls in counts.items():
        platform, _, rest = name.partition("\n")
        model, _, by = rest.partition("\n")
        if model and by:
            answers.append(Answered(platform, model, by, calls))
    return sorted(answers, key=lambda one: (-one.calls, one))
