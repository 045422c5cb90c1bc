"""No text shows a key: what looks like one, nearly one, or one behind escapes is hidden."""

from pathlib import Path

import pytest

from keyrot_middleware.core.hiding import hide_escaped
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
