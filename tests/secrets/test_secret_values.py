"""A secret shows its value only on request."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from keyrot_middleware.secrets import Secret

VALUE = "AIza" + "FAKE" + "s" * 31


def test_a_secret_is_masked_everywhere() -> None:
    """Repr, str, format, containers and the fingerprint do not contain the value."""
    secret = Secret(f" {VALUE}\n")
    shown = [repr(secret), str(secret), f"{secret:>40}", f"{[secret]}", "%s" % secret]  # noqa: UP031
    assert not any(VALUE in text for text in [*shown, secret.fingerprint])
    assert secret.reveal() == VALUE


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_cannot_be_pickled(protocol: int) -> None:
    """No pickle and no JSON contains the value."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Secret(VALUE), protocol)
    with pytest.raises(TypeError):
        json.dumps(Secret(VALUE))


def test_secrets_compare_by_value() -> None:
    """Equal values are equal secrets, also as members of a set and as copies."""
    assert Secret(VALUE) == Secret(VALUE)
    assert Secret(VALUE) != Secret("other")
    assert Secret(VALUE) != VALUE
    assert len({Secret(VALUE), Secret(VALUE), copy.deepcopy(Secret(VALUE))}) == 1
    assert copy.copy(Secret(VALUE)) == Secret(VALUE)


def test_a_fingerprint_distinguishes_values() -> None:
    """It is 8 hexadecimal digits, the same for the same value."""
    assert Secret(VALUE).fingerprint == Secret(VALUE + " ").fingerprint
    assert Secret(VALUE).fingerprint != Secret(VALUE + "x").fingerprint
    assert int(Secret(VALUE).fingerprint, 16) < 16**8


def test_a_blank_secret_is_false() -> None:
    """A value of blanks alone is empty."""
    assert not Secret(" \n")
    assert Secret("x")
