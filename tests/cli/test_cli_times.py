"""The times that options of `keyrot` take."""

import pytest
import typer

from keyrot_middleware.cli.app import seconds_in


@pytest.mark.parametrize(("text", "found"), [("90s", 90), ("15M", 900), (" 6h ", 21_600)])
def test_a_time_is_read_in_its_unit(text: str, found: float) -> None:
    assert seconds_in(text) == found


@pytest.mark.parametrize("text", ["", "6", "0s", "1w", "3651d", "-1h"])
def test_what_is_no_time_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="allowed: a time such as 90s"):
        seconds_in(text)
