"""A proxy is not Google: its refusals penalize no key, project or account."""

from __future__ import annotations

import pytest
from google import genai
from support.modes import MODES, ask, calls

import keyrot_middleware
from keyrot_middleware.testing import Reply

HTML = "text/html; charset=UTF-8"
BODIES = {
    "a login page": Reply.custom(401, "<html><title>Sign in</title></html>", content_type=HTML),
    "nothing": Reply.custom(401, b""),
    "foreign JSON": Reply.custom(401, {"error": "unauthorized"}),
    "JSON of an API gateway": Reply.custom(401, {"message": "API key not found", "code": 401}),
    "JSON with a code": Reply.custom(401, {"error": {"code": 401, "message": "Unauthorized"}}),
    "another API's JSON": Reply.custom(
        401, {"error": {"message": "Bad key.", "type": "auth_error", "code": "invalid_request"}}
    ),
    "no money, HTML": Reply.custom(402, "<html>402</html>", content_type=HTML),
    "no money, nothing": Reply.custom(402, b""),
    "no money, foreign JSON": Reply.custom(402, {"detail": "Payment required"}),
}


@pytest.mark.parametrize("reply", BODIES.values(), ids=BODIES.keys())
def test_a_gateways_refusal_is_raised_and_penalizes_no_key(reply, gemini, pool, connect) -> None:
    """It is sent once, the error is raised, and every key is still available."""
    pool("A", "B", "C")
    client = connect()
    gemini.always_any(reply)
    (error,) = calls("sync", client, 1)
    assert type(error) is genai.errors.ClientError
    assert gemini.count() == 1
    keys = keyrot_middleware.status()["keys"]
    assert all(key["active"] and not key["in_cooldown"] for key in keys.values())
    gemini.clear_scripts()
    assert ask("sync", client).startswith("ok from")


@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode(mode, gemini, pool, connect) -> None:
    """Streams and tasks read the same bodies in other ways."""
    pool("A", "B")
    gemini.always_any(BODIES["a login page"])
    (error,) = calls(mode, connect(), 1)
    assert isinstance(error, genai.errors.ClientError)
    assert gemini.count() == 1


@pytest.mark.parametrize("reply", [Reply.TOKEN_UNSUPPORTED, Reply.PREPAY])
@pytest.mark.parametrize("mode", MODES)
def test_googles_own_refusal_is_believed(mode, reply, gemini, pool, connect) -> None:
    """A refusal of Google's shape: the next key is used."""
    pool("A", "B", strategy="fill")
    gemini.always("A", reply)
    assert calls(mode, connect(), 3) == ["ok from B"] * 3
    assert gemini.sent("A") == 1


@pytest.mark.parametrize("reply", [Reply.TOKEN_UNSUPPORTED, Reply.PREPAY])
def test_googles_refusal_in_a_list_is_believed(reply, gemini, pool, connect) -> None:
    """Some endpoints wrap an error in a list of one."""
    pool("A", "B", strategy="fill")
    gemini.always("A", reply.list_wrapped())
    assert calls("sync", connect(), 3) == ["ok from B"] * 3
    assert gemini.sent("A") == 1
