"""The blocks of a key, summed up in one of the states that users see."""

from __future__ import annotations

from math import inf

import pytest

from keyrot_middleware.core.availability import AVAILABLE, KEY_STATES, Availability, availability
from keyrot_middleware.core.model import Block


@pytest.mark.parametrize(
    ("reason", "until", "expected"),
    [
        ("rpm", 61.0, ("limited", 61.0)),
        ("tpm", 61.0, ("limited", 61.0)),
        ("rpd", 900.0, ("limited", 900.0)),
        ("concurrency", 1.1, ("limited", None)),
        ("quota_minute", 20.0, ("cooling_down", 20.0)),
        ("probe", 1.1, ("cooling_down", None)),
        ("key_method_blocked", inf, ("cooling_down", None)),
        ("key_invalid", inf, ("rejected", None)),
        ("project_suspended", 86400.0, ("rejected", 86400.0)),
        ("disabled", 900.0, ("disabled", 900.0)),
        ("a_class_of_another_version", 20.0, ("cooling_down", 20.0)),
    ],
)
def test_each_reason_has_its_state(reason: str, until: float, expected: tuple[str, float]) -> None:
    """Full windows are `limited`, refusals `cooling_down` or `rejected`; a known end is given."""
    found = availability(Block(reason, until))
    assert found == Availability(*expected, reason)
    assert found.state in KEY_STATES


def test_no_block_is_available() -> None:
    """A key without any record can be leased."""
    assert availability(None) == AVAILABLE
