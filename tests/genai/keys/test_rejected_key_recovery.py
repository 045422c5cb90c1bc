"""A rejected key is probed on a slow backoff, and at once after a reset."""

from __future__ import annotations

import pytest
from support.modes import MODES, ask, calls, spread

import keyrot_middleware
from keyrot_middleware.testing import Reply

DAY_S = 86_400


@pytest.mark.parametrize(
    ("mode", "reply", "seconds"),
    spread(
        MODES,
        [
            (Reply.KEY_INVALID, 900),
            (Reply.TOKEN_UNSUPPORTED, 900),
            (Reply.KEY_LEAKED, DAY_S),
            (Reply.KEY_SUSPENDED, DAY_S),
        ],
    ),
)
def test_a_key_that_google_accepts_again_is_used_again(
    mode, reply, seconds, gemini, pool, connect, clock
) -> None:
    """Google was wrong, or lifted the suspension: the next probe succeeds, and it is available."""
    pool("A", "B", strategy="fill")
    gemini.script("A", reply)
    client = connect()
    assert ask(mode, client) == "ok from B"
    clock.advance(seconds - 1)
    assert ask(mode, client) == "ok from B"
    clock.advance(1)
    assert [ask(mode, client) for _ in range(2)] == ["ok from A"] * 2
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "available"


@pytest.mark.parametrize("mode", MODES)
def test_a_single_rejected_key_is_an_error_until_it_is_probed(
    mode, gemini, pool, connect, clock
) -> None:
    """Nothing is sent meanwhile, the error is Google's rejection, and then calls succeed."""
    pool("A")
    gemini.script("A", Reply.KEY_INVALID)
    client = connect()
    (first,) = calls(mode, client, 1)
    notes = "\n".join(first.__notes__)
    assert "key_invalid (400), rejected; replace its value; tried again at" in notes
    (second,) = calls(mode, client, 1)
    assert type(second) is keyrot_middleware.KeyPoolExhausted
    assert (second.code, second.status) == (400, "INVALID_ARGUMENT")
    assert second.retry_at.timestamp() == pytest.approx(clock.time() + 900, abs=5)
    assert gemini.sent("A") == 1
    clock.advance(900)
    assert ask(mode, client) == "ok from A"


@pytest.mark.parametrize("mode", MODES)
def test_reset_makes_a_rejected_key_available_at_once(mode, gemini, pool, connect) -> None:
    """Its owner has repaired it at Google, and does not wait."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.KEY_LEAKED)
    client = connect()
    assert ask(mode, client) == "ok from B"
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "rejected"
    keyrot_middleware.reset("A")
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "available"
    assert ask(mode, client) == "ok from A"


def test_reset_repeats_no_value(pool, gemini) -> None:
    """Who gives a value instead of an id gets an error without it."""
    pool("A")
    for reset in (keyrot_middleware.reset, keyrot_middleware.get_key_manager().report_success):
        with pytest.raises(KeyError, match=r"no key '\[a key\]' in pool"):
            reset(gemini.key("A").value)


def test_reset_names_the_keys_that_there_are(pool) -> None:
    """An unknown id is a KeyError; without a pool there is nothing to reset."""
    pool("A", "B")
    with pytest.raises(KeyError, match="no key 'C' in pool 'default'; there are: A, B"):
        keyrot_middleware.reset("C")
    keyrot_middleware.uninstall()
    with pytest.raises(keyrot_middleware.KeyrotError, match="no pool is installed"):
        keyrot_middleware.reset("A")
