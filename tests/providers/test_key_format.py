"""Values that are no Gemini API key; no part of a value is shown."""

import pytest

from keyrot_middleware.providers.gemini import Gemini
from keyrot_middleware.providers.keys import check_key_format

STANDARD = "AIza" + "FAKE".ljust(35, "x")
AUTH = "AQ." + "FAKE".ljust(40, "x")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("sk-proj-" + "x" * 40, "begins with sk-"),
        ("your-key-here", "looks like a placeholder"),
        ("YOUR_API_KEY", "looks like a placeholder"),
        ("<your-key>", "looks like a placeholder"),
        ("changeme", "looks like a placeholder"),
        ("xxxxxx", "looks like a placeholder"),
        ("gemini-api-key-here", "looks like a placeholder"),
        (f"{STANDARD};{STANDARD}", "several keys in one"),
        (f"{STANDARD}|{AUTH}", "several keys in one"),
        (STANDARD[:38], "it may be cut off"),
    ],
)
def test_a_value_that_is_no_gemini_key_is_reported(value: str, text: str) -> None:
    """A key of another provider, a placeholder, several keys in one, a part of one."""
    found = check_key_format(value, Gemini())
    assert found is not None
    assert text in found
    assert value not in found


@pytest.mark.parametrize(
    "value", [STANDARD, AUTH, "FAKE-value-of-a-key", "gateway-token-17", "keys-of-mine"]
)
def test_other_values_are_not_reported(value: str) -> None:
    """A gateway may have keys of any shape."""
    assert check_key_format(value, Gemini()) is None
