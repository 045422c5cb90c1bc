"""The SDK's own retries: the pool repeats in their place, as often, and never a key's failure."""

import pytest
from google import genai
from google.genai import types
from support.modes import MODES, ask, calls, spread

from keyrot_middleware.testing import Reply

QUICK = {"initial_delay": 0.001, "max_delay": 0.002, "exp_base": 1.0, "jitter": 0.001}
WHERE = ["client dict", "client object", "request dict", "request object"]


def client_and_request(where: str, gemini, connect, **retry):
    """Return a client and the arguments of a call, with retry options in the requested place."""
    options = {"retry_options": {**QUICK, **retry}}
    if where == "client dict":
        return connect(**options), {}
    if where == "client object":
        return connect(client_options=types.HttpOptions(**gemini.http_options, **options)), {}
    http_options = options if where == "request dict" else types.HttpOptions(**options)
    return connect(), {"config": {"http_options": http_options}}


@pytest.mark.parametrize(
    ("mode", "where", "codes"),
    spread(MODES, WHERE, ["", "429", "403", "401 402 403 429", "429 503"]),
)
def test_a_keys_failure_is_not_retried_with_it(mode, where, codes, gemini, pool, connect) -> None:
    """LangChain configures six attempts: a key that failed is tried once, and another serves.

    Where no code is left one attempt is set, since an empty list means the SDK's defaults.
    """
    pool("A", "B", "C", "D", strategy="fill")
    gemini.always("A", Reply.QUOTA_MINUTE)
    gemini.always("B", Reply.KEY_LEAKED)
    gemini.always("C", Reply.PREPAY)
    retry = {"attempts": 6} | ({"http_status_codes": [*map(int, codes.split())]} if codes else {})
    client, request = client_and_request(where, gemini, connect, **retry)
    assert ask(mode, client, **request) == "ok from D"
    assert [request.key for request in gemini.log] == ["A", "B", "C", "D"]


@pytest.mark.parametrize(("mode", "where"), list(zip(MODES, WHERE, strict=True)))
def test_a_5xx_is_retried_as_the_program_configured(mode, where, gemini, pool, connect) -> None:
    """As often, each time with a key that has not failed, if there is one."""
    pool("A", "B", strategy="fill")
    client, request = client_and_request(where, gemini, connect, attempts=3)
    gemini.script("A", Reply.OVERLOADED)
    gemini.script("B", Reply.INTERNAL)
    assert ask(mode, client, **request) == "ok from A"
    assert [request.key for request in gemini.log] == ["A", "B", "A"]
    gemini.reset_log()
    gemini.always_any(Reply.OVERLOADED)
    (error,) = calls(mode, client, 1, **request)
    assert isinstance(error, genai.errors.ServerError)
    assert [request.key for request in gemini.log] == ["A", "B", "A"]
