"""Model names from a program's users: few are counted separately, all are counted."""

from __future__ import annotations

from support.pool import INFO

from keyrot_middleware.core.model_names import IDLE_S, MAX_LENGTH, MAX_NAMES, OTHER, ModelNames


def counted(names: ModelNames, model: str, now: float = 0.0) -> str:
    """Return the name under which a state counts a call."""
    return names.bounded(INFO._replace(model=model), now).model


def test_names_beyond_the_most_are_counted_together() -> None:
    """The first ones keep their own count, however many others come."""
    names = ModelNames()
    assert [counted(names, f"m{n}") for n in range(MAX_NAMES)] == [
        f"m{n}" for n in range(MAX_NAMES)
    ]
    assert {counted(names, f"junk{n}") for n in range(1_000)} == {OTHER}
    assert counted(names, "m0") == "m0"


def test_a_name_that_is_not_used_for_an_hour_is_dropped() -> None:
    """One that is in use keeps its own count."""
    names = ModelNames()
    for n in range(MAX_NAMES):
        counted(names, f"m{n}")
    assert counted(names, "m0", IDLE_S) == "m0"
    assert counted(names, "new", IDLE_S) == "new"
    assert counted(names, "m1", IDLE_S / 2) == OTHER
    assert counted(names, "m0", IDLE_S) == "m0"


def test_a_long_name_is_none_and_no_name_stays_so() -> None:
    """A prompt in place of a model is not stored; a call without a model has no count."""
    names = ModelNames()
    assert counted(names, "x" * (MAX_LENGTH + 1)) == OTHER
    assert counted(names, "") == ""


def test_a_call_that_is_not_made_takes_no_name() -> None:
    """It learns the name under which it would be counted."""
    names = ModelNames()
    for n in range(MAX_NAMES):
        assert names.preview(INFO._replace(model="new"), 0.0).model == "new"
        counted(names, f"m{n}")
    assert names.preview(INFO._replace(model="new"), 0.0).model == OTHER
    assert names.preview(INFO._replace(model="m0"), 0.0).model == "m0"
