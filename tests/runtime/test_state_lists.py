"""The lists of a state, in which another version or somebody else has written."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from keyrot_middleware.core.activity import ActivityRows
from keyrot_middleware.core.model import NO_BUDGET, RetryPolicy, Terms
from keyrot_middleware.monitoring.facts import Fact, keep_fact, read_facts
from keyrot_middleware.runtime.call_settings import CallSettings, read_said, read_settings
from keyrot_middleware.runtime.rotations import Rotation, add_rotation, emptied_at, rotations
from keyrot_middleware.runtime.state_lists import report_skipped
from keyrot_middleware.state import MemoryState, State

NOW = 1_764_158_400.0
FACT = Fact("key_rejected", "key a", since=NOW)
ROTATION = Rotation("n", "a", "1", "2", NOW, "begun")
TERMS = Terms("batch", True, 0.5, NO_BUDGET, "chat")
SETTINGS = CallSettings({"batch": TERMS, None: Terms()}, frozenset({"free"}), {"m": "n"}, 9.0)
ODD = (
    "5",
    "null",
    "true",
    "[5]",
    "[null]",
    '["x"]',
    "[[]]",
    '{"a":1}',
    '[["x"]]',
    "[" * 9_999,
    "NaN",
    "x",
)


def _add(state: State, name: str, *texts: str) -> None:
    state.add_activity(ActivityRows({}, {name: (list(texts), 100)}))


def _add_settings(state: State) -> None:
    state.add_activity(ActivityRows({}, SETTINGS.texts(NOW)))


LISTS: dict[str, tuple[Callable[[State], Any], Callable[[State], Any], Any]] = {
    "facts": (lambda s: keep_fact(s, FACT), read_facts, {FACT.name: FACT}),
    "rotations": (lambda s: add_rotation(s, ROTATION), rotations, [ROTATION]),
    "settings": (
        _add_settings,
        lambda state: read_settings(read_said(state), NOW, CallSettings(wait_s=1.0)),
        SETTINGS,
    ),
    "emptied": (
        lambda state: _add(state, "emptied", str(NOW)),
        lambda state: emptied_at(state, NOW),
        NOW,
    ),
}
"""Of each list: what writes a row, what reads it, and what that finds."""


@pytest.fixture
def state() -> MemoryState:
    """Keep lists, and let what is skipped be said anew."""
    report_skipped.cache_clear()
    return MemoryState(RetryPolicy(), lambda: NOW)


@pytest.mark.parametrize("name", LISTS)
def test_what_is_no_row_is_skipped_and_said_once(
    name: str, state: MemoryState, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is, what stands beside it is read."""
    add, read, found = LISTS[name]
    odd = [text for text in ODD if name != "emptied" or text not in ("5", "NaN")]
    _add(state, name, *odd)
    add(state)
    _add(state, name, *odd)
    with caplog.at_level(logging.WARNING):
        assert [read(state), read(state)] == [found, found]
    said = [one.getMessage() for one in caplog.records]
    assert said == [f"the state's list {name} has a row that cannot be read; it is skipped"]


@pytest.mark.parametrize("name", ["facts", "rotations", "settings"])
def test_a_row_of_a_newer_version_is_read(name: str, state: MemoryState) -> None:
    """Without what it says more at its end."""
    add, read, found = LISTS[name]
    add(state)
    (text,) = state.activity_log(name)
    row = [*json.loads(text), "new", {"new": 1}]
    if name == "settings":
        row[1] = [[*terms, "new"] for terms in row[1]]
    newer = MemoryState(RetryPolicy(), lambda: NOW)
    _add(newer, name, json.dumps(row))
    assert read(newer) == found


def test_a_fact_of_an_older_version_has_defaults(state: MemoryState) -> None:
    """It may lack what came to the row later."""
    _add(state, "facts", '["key_rejected", "key a"]')
    assert read_facts(state) == {FACT.name: FACT._replace(since=0.0)}
