"""What a call and an event of a stream cost in code of ours: the benchmark's exact counts, held."""

import sys
from collections.abc import Callable

import pytest

from benchmarks import call_path

Figures = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def found() -> Figures:
    return call_path.measured()


def too_many(found: Figures, kind: str, bar: Callable[[call_path.Bar], float]) -> str:
    """Return the table if a count is above its bar, else nothing."""
    above = [
        name
        for name, one in call_path.BARS.items()
        if found[name][kind] > call_path.ROOM * bar(one)
    ]
    return f"{', '.join(above)}\n{call_path.as_table(found)}" if above else ""


@pytest.mark.skipif(
    sys.version_info[:2] != call_path.PYTHON,
    reason=f"the bars are those of Python {call_path.PYTHON[0]}.{call_path.PYTHON[1]}",
)
def test_a_call_and_an_event_run_few_bytecodes(found: Figures) -> None:
    """Two percent more are a change to look at: a bar is one line of the benchmark."""
    assert not (failed := too_many(found, "bytecodes", lambda bar: bar.bytecodes)), failed


def test_a_call_and_an_event_change_files_seldom(found: Figures) -> None:
    """By whichever version of Python: so a reader can follow them."""
    assert not (failed := too_many(found, "changes", lambda bar: bar.changes)), failed
