"""The page about failures agrees with the table, row by row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from keyrot_middleware.core.failures import DAILY_BACKOFF, Rule
from keyrot_middleware.core.model import Scope
from keyrot_middleware.providers.gemini.failures import RULES

PAGE = Path(__file__).parents[3] / "docs" / "failures.md"
SCOPES = {
    Scope.NONE: "none",
    Scope.KEY: "the key",
    Scope.KEY_VERB: "the key, for one method",
    Scope.KEY_MODEL: "the key, for one model",
    Scope.PROJECT_MODEL: "the project, for one model",
    Scope.PROJECT_CACHE: "the project, for cached content",
    Scope.PROJECT: "the project",
    Scope.BILLING: "the billing account",
}
ENDS = {
    "until_backoff": "backoff",
    "for_ten_minutes": "10 minutes",
    "for_an_hour": "1 hour",
    "until_cap_reset": "1 hour, or the end of the month",
    "for_a_day": "24 hours",
    "until_day_end": "midnight Pacific time, or a named time over 300 s",
    "until_minute_end": "the named time, else the next minute",
    "until_retry_info": "the named time",
}


def _rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in cells}


def _end(rule: Rule) -> str:
    end = "-" if rule.scope is Scope.NONE else ENDS[rule.until.__name__]
    if rule.rejected:
        return "rejected for a day" if rule.backoff is DAILY_BACKOFF else "rejected"
    if rule.name == "spend_rate":
        return f"{end}, else backoff up to 10 minutes"
    return f"{end}, else backoff" if rule.name == "batch_quota" else end


def _does(rule: Rule) -> str:
    if rule.retry:
        return "retries once" if rule.max_retries == 1 else "retries"
    if rule.scope is Scope.NONE and not rule.rotate:
        return "raises"
    if rule.has_known_end and rule.may_wait:
        return "tries another key; waits"
    return "tries another key, at most five" if rule.max_rotations == 5 else "tries another key"


def test_rows_are_in_the_order_of_the_table() -> None:
    """Every row's name is on the page, in the order in which rows are matched."""
    assert list(_rows()) == [rule.name for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_row_describes_the_rule(rule: Rule) -> None:
    _, signal, scope, end, does, _ = _rows()[rule.name]
    assert (scope, end) == (SCOPES[rule.scope], _end(rule))
    assert does.startswith(_does(rule))
    assert all(word in signal or word.lower() in signal for word in _documented_reasons(rule))


def _documented_reasons(rule: Rule) -> set[str]:
    """Return the reasons that the page names; restricted keys share one row's prefix."""
    return set() if rule.name == "key_restricted" else set(rule.reasons)


def test_every_source_is_an_address() -> None:
    """Each source mark has its address at the foot of the page, and none is unused."""
    text = PAGE.read_text("utf-8")
    marks = {m for row in _rows().values() for m in re.findall(r"\[(\w+)\]", row[-1])}
    assert marks == set(re.findall(r"^\[(\w+)\]: https://\S+$", text, re.MULTILINE))
