"""How values are shown."""

from datetime import timedelta
from pathlib import Path

import pytest

from keyrot_middleware.core.text import (
    did_you_mean,
    hide_escaped,
    is_page,
    of_all,
    plural,
    remaining,
    seconds_in,
    short_time,
    text_of_page,
    utc,
)
from keyrot_middleware.providers.keys import display, hide_secrets, holds_key, mask_keys

KEY = "AIza" + "FAKE" + "k" * 31
AUTH = "AQ." + "FAKE" + "z" * 46


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"api_key:{KEY}", "api_key:AIza…[redacted]"),
        (f"{KEY}{KEY}", "AIza…[redacted]"),
        (f"AIza{KEY} {AUTH}", "AIza…[redacted] AQ.…[redacted]"),
        (f"\\n{AUTH}'", "\\nAQ.…[redacted]'"),
        (f"%3A{KEY}%27", "%3AAIza…[redacted]%27"),
        ("AIza and AQ. are prefixes", "AIza and AQ. are prefixes"),
    ],
)
def test_text_that_looks_like_a_key_is_masked(text: str, masked: str) -> None:
    """No part of a key remains, and masking twice is masking once."""
    assert mask_keys(text) == masked
    assert mask_keys(masked) == masked
    assert not holds_key(masked)


def test_a_part_of_a_number_has_a_noun_in_the_right_form() -> None:
    """Only the one of one is singular."""
    counts = (0, 1), (1, 1), (1, 2), (2, 2), (0, 1_200)
    assert [of_all(*one, "key") for one in counts] == [
        "0 of 1 keys",
        "1 of 1 key",
        "1 of 2 keys",
        "2 of 2 keys",
        "0 of 1,200 keys",
    ]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"no escape of {KEY}", "no escape of AIza…[redacted]"),
        (f"AIz\\u0061{KEY[4:]}", "AIza…[redacted]"),
        (f"AIz\\\\x61{KEY[4:]}", "AIza…[redacted]"),
        (f"key%3DAIz%2561{KEY[4:]}", "key=AIza…[redacted]"),
        (f"AIz&#97;{KEY[4:]} AIz&amp;#x0061;{KEY[4:]}", "AIza…[redacted] AIza…[redacted]"),
        (f"a\\/b AIz%61{KEY[4:]}", "a/b AIza…[redacted]"),
        (f"%22AIz%61{KEY[4:]}\\u0022", "%22AIza…[redacted]\\u0022"),
        ("50 %25 of \\u0041nything #1", "50 %25 of \\u0041nything #1"),
    ],
)
def test_a_key_behind_escapes_is_masked(text: str, hidden: str) -> None:
    """In every way to write a character; a text without a key stays as it is."""
    assert hide_escaped(text, mask_keys) == hidden


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ä", '"ä"'),
        ("\ud800", '"\\ud800"'),
        ("a\u202eb\x9b31m", '"a\\u202eb\\x9b31m"'),
        ("a\u200bb\ufeffc\xad\U000e0041", '"a\\u200bb\\ufeffc\\xad\\U000e0041"'),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ([KEY], "a list"),
        ({KEY: 1}, "an object"),
        (Path(KEY), f"a value of type {type(Path()).__name__}"),
        (KEY.lower(), '"[a key]"'),
        ("redis://u:p@ss@h/0", '"redis://[redacted]@h/0"'),
        ("redis://u:pa/55 w#rd@h:1/0", '"redis://[redacted]@h:1/0"'),
        ("redis:/u:p@h", '"redis:/[redacted]@h"'),
        ("http://u:pa 55@h", '"http://[redacted]@h"'),
        ("u:p@h", '"[redacted]@h"'),
        ("//u@h", '"[redacted]@h"'),
        ("me@example.test", '"me@example.test"'),
        ("redis://h/0?password=p@s s&db=1", '"redis://h/0?password=[redacted]&db=1"'),
        ("x" * 100, '"' + "x" * 79 + "…"),
    ],
)
def test_a_value_is_shown_in_short_and_without_secrets(value: object, text: str) -> None:
    """Keys in any case, passwords, and values inside containers are hidden."""
    assert display(value) == text


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"found {KEY[:-1]}!", "found [a key]!"),
        (f"found {KEY[1:]}!", "found [a key]!"),
        ("found sk-proj-1a2b3c4d5e6f7g8h9i0j1k2l3m!", "found [a key]!"),
        ("generate-content-requests-per-day-2", "generate-content-requests-per-day-2"),
        ("1a2b3c4d5e6f", "1a2b3c4d5e6f"),
    ],
)
def test_text_that_is_nearly_a_key_is_hidden(text: str, hidden: str) -> None:
    """A truncated key, or another vendor's, is as secret; a long word is none."""
    assert hide_secrets(text) == hidden


def test_times_numbers_and_names_as_people_read_them() -> None:
    """In one unit, precise enough to decide whether to wait; beyond the calendar at its end."""
    seconds = (-3, 89, 840, 18_000, 259_200)
    spoken = ["in 0 s", "in 89 s", "in 14 min", "in 5 h", "in 3 days"]
    assert [remaining(s) for s in seconds] == spoken
    assert [plural(n, "key") for n in (0, 1, 1200)] == ["0 keys", "1 key", "1,200 keys"]
    assert short_time("2026-01-02T08:00:59Z") == "2026-01-02 08:00Z"
    moments = (0.0, 253402300799.9, 1e12, 1e300, -1e12)
    assert [utc(moment).year for moment in moments] == [1970, 9999, 9999, 9999, 1]
    assert utc(1e12).utcoffset() == timedelta(0)
    assert did_you_mean("Stratgy", ("strategy", "pool")) == ' Did you mean "strategy"?'
    assert did_you_mean("STRATGY", ("STRATEGY", "POOL")) == ' Did you mean "STRATEGY"?'
    assert did_you_mean("xyz", ("strategy", "pool")) == ""


@pytest.mark.parametrize(("text", "found"), [("90s", 90), ("15M", 900), (" 6h ", 21_600)])
def test_a_time_is_read_in_its_unit(text: str, found: float) -> None:
    assert seconds_in(text) == found


@pytest.mark.parametrize("text", ["", "6", "0s", "1w", "3651d", "-1h"])
def test_what_is_no_time_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: a time such as 90s"):
        seconds_in(text)


PAGE = (
    "<!-- x --> <!DOCTYPE html>\n<html><head><title>Guest&nbsp;WiFi</title>"
    "<style>p > a {color: red}</style><script>if (a < b) go()</script></head>"
    "<body><!-- hidden <b> --><p class='a'>Accept\nterms &amp; go<br"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (PAGE, "Guest WiFi Accept terms & go"),
        ("\ufeff<?xml version='1.0'?><!DOCTYPE html PUBLIC><html>A</html>", "A"),
        ("<h1>Bad gateway</h1>", "Bad gateway"),
        ("Requests from referer <empty> are blocked.", None),
        ("<empty> is no page", None),
        ('{"html": "<html>"}', None),
        ("", None),
    ],
)
def test_a_page_is_shown_by_its_text(text: str, shown: str | None) -> None:
    """What begins like an HTML page is shown without tags and scripts, other text as it is."""
    assert is_page(text) is (shown is not None)
    assert text_of_page(text) == (text if shown is None else shown)
