"""Rows of lists: what is read of those that another version has written, or nobody."""

import json
from math import inf, nan

import pytest

from keyrot_middleware.core.json_rows import NUMBER, known_fields, read_row, read_rows

KINDS = (str, NUMBER, bool | None)


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (["a", 1, None], ["a", 1, None]),
        (["a", 1.5, True, "new", {}], ["a", 1.5, True]),
        (["a"], ["a"]),
        ([], []),
        (["a", inf], ["a", inf]),
    ],
)
def test_the_fields_that_are_known_are_read(row: list[object], fields: list[object]) -> None:
    """Of a longer row, and of a shorter one as many as it has."""
    assert read_row(json.dumps(row), KINDS) == fields


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "5", "null", "true", '"a"', '{"a":1}', "[" * 100_000),
        *map(json.dumps, ([1], [None], [["a"]], ["a", "1"], ["a", None], ["a", 1, 1])),
        *(f'["a",{number}]' for number in (nan, 10**400, -(10**30), 1e300, -inf)),
    ],
)
def test_what_is_no_row_is_refused(text: str) -> None:
    """A number that no clock and no counter has is none too."""
    with pytest.raises(ValueError, match=r"."):
        read_row(text.replace("nan", "NaN").replace("-inf", "-Infinity"), KINDS)


def test_what_is_no_row_does_not_hide_the_rest() -> None:
    """Neither what cannot be read nor what is too short; each is reported."""
    skipped: list[None] = []

    def read(text: str) -> tuple[object, ...]:
        name, number = read_row(text, KINDS[:2])
        return known_fields([name], [str])[0], number

    texts = ['["a",1]', "x", '["b"]', '["c",2,"more"]']
    assert read_rows(texts, read, lambda: skipped.append(None)) == [("a", 1), ("c", 2)]
    assert len(skipped) == 2
