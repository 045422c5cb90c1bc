"""One key header on the wire; headers that the program set stay unchanged."""

from __future__ import annotations

import copy

import pytest
from google.genai import types
from support.modes import MODEL, MODES, ask, calls

import keyrot_middleware
from keyrot_middleware.testing import Reply

KEY = "x-goog-api-key"
CASES = [KEY, "X-Goog-Api-Key", "X-GOOG-API-KEY"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_a_clients_own_key_header_is_untouched(mode, name, gemini, pool, connect) -> None:
    """A client with another key's header has chosen a key: the request is sent as without us."""
    other = gemini.add_key("other").value
    client = connect("FAKE-unused", headers={name: other})
    plain = calls(mode, client, 1)
    wire = [request.headers for request in gemini.log]
    gemini.reset_log()
    pool("A")
    assert list(map(repr, calls(mode, client, 1))) == list(map(repr, plain))
    assert keys_of(gemini) == [[v for n, v in h if n.lower() == KEY] for h in wire]
    assert gemini.sent("A") == 0


@pytest.mark.parametrize("form", ["object", "dict"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_a_requests_own_key_header_is_untouched(mode, name, form, gemini, pool, connect) -> None:
    """The same for the header of one request."""
    other = gemini.add_key("other").value
    options = {"headers": {name: other}}
    config = {"http_options": options if form == "dict" else types.HttpOptions(**options)}
    client = connect("FAKE-unused")
    plain = calls(mode, client, 1, config=copy.deepcopy(config))
    wire = keys_of(gemini)
    gemini.reset_log()
    pool("A")
    assert list(map(repr, calls(mode, client, 1, config=config))) == list(map(repr, plain))
    assert keys_of(gemini) == wire
    assert gemini.sent("A") == 0
    assert ask(mode, client) == "ok from A"


@pytest.mark.parametrize("where", ["client", "request"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_the_home_key_again_in_another_case_is_sent_once(
    mode, name, where, gemini, pool, connect
) -> None:
    """A header that repeats the client's own key is no choice; one key header is sent."""
    home = gemini.add_key("home").value
    headers = {name: home, "x-custom": "kept"}
    pool("A")
    client = connect(home, **({"headers": headers} if where == "client" else {}))
    config = {"http_options": {"headers": headers}} if where == "request" else None
    assert ask(mode, client, config=config) == "ok from A"
    assert keys_of(gemini) == [[gemini.key("A").value]]
    assert gemini.log[0].header_values("x-custom") == ["kept"]


@pytest.mark.parametrize("name", CASES)
def test_the_placeholder_in_a_header_is_not_sent(name, gemini, pool, connect) -> None:
    """The placeholder in a header means the pool."""
    pool("A")
    client = connect(headers={name: keyrot_middleware.POOL_KEY})
    assert ask("sync", client) == "ok from A"
    config = {"http_options": {"headers": {name: keyrot_middleware.POOL_KEY}}}
    assert ask("sync", connect(), config=config) == "ok from A"
    assert keys_of(gemini) == [[gemini.key("A").value]] * 2


@pytest.mark.parametrize("where", ["client", "request"])
@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
@pytest.mark.parametrize("mode", MODES)
def test_the_home_key_as_bearer_is_dropped(mode, name, where, gemini, pool, connect) -> None:
    """Some frameworks send the key twice; the second form would contradict the pool's key."""
    home = gemini.add_key("home").value
    headers = {name: f"Bearer {home}"}
    pool("A")
    client = connect(home, **({"headers": headers} if where == "client" else {}))
    config = {"http_options": {"headers": headers}} if where == "request" else None
    assert ask(mode, client, config=config) == "ok from A"
    assert gemini.log[0].header_values("authorization") == []
    assert keys_of(gemini) == [[gemini.key("A").value]]


def test_anothers_bearer_stays(gemini, pool, connect) -> None:
    """A gateway's token in `Authorization` is not changed."""
    pool("A")
    client = connect(headers={"Authorization": "Bearer FAKE-gateway"})
    assert ask("sync", client) == "ok from A"
    assert gemini.log[0].header_values("authorization") == ["Bearer FAKE-gateway"]


@pytest.mark.parametrize("mode", MODES)
def test_every_request_has_one_key_header(mode, gemini, pool, connect) -> None:
    """Over a pool of four, each request has the key of its lease and no other."""
    pool("A", "B", "C", "D")
    calls(mode, connect(), 12, at_once=4)
    assert [request.header_values(KEY) for request in gemini.log] == [
        [gemini.key(request.key).value] for request in gemini.log
    ]
    assert sorted(request.key for request in gemini.log) == sorted(pool.ledger.keys)


@pytest.mark.parametrize("form", ["object", "dict"])
@pytest.mark.parametrize("mode", MODES)
def test_options_of_the_program_are_not_changed(mode, form, gemini, pool, connect) -> None:
    """The client's options and the request's are the same values after a failover as before."""
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.KEY_INVALID)
    retry = {"attempts": 3, "initial_delay": 0.001, "max_delay": 0.002}
    of_client = {**gemini.http_options, "headers": {"x-one": "1"}, "retry_options": retry}
    of_request = {"headers": {"x-two": "2"}, "retry_options": retry, "extra_body": {"labels": {}}}
    if form == "object":
        of_client, of_request = types.HttpOptions(**of_client), types.HttpOptions(**of_request)
    config = types.GenerateContentConfig(http_options=of_request, temperature=0.5)
    before = copy.deepcopy((of_client, of_request, config.model_dump()))
    client = connect(client_options=of_client)
    held = client._api_client._http_options.model_dump()
    assert ask(mode, client, config=config) == "ok from B"
    assert (of_client, of_request, config.model_dump()) == before
    assert client._api_client._http_options.model_dump() == held
    assert client._api_client.api_key == keyrot_middleware.POOL_KEY
    assert (gemini.log[-1].header_values("x-one"), gemini.log[-1].header_values("x-two")) == (
        ["1"],
        ["2"],
    )


def test_the_request_dict_is_changed_no_more_than_by_the_sdk(gemini, pool, connect) -> None:
    """After a failover the caller's dict is unchanged, except for changes by the SDK itself."""
    body = {
        "contents": [{"parts": [{"text": "hello"}], "role": "user"}],
        "_url": {"model": MODEL},
        "generationConfig": {"temperature": 0.5},
    }
    path = f"models/{MODEL}:generateContent"
    options = types.HttpOptions(extra_body={"generationConfig": {"topK": 3}})
    client = connect(gemini.add_key("own").value)
    plain = copy.deepcopy(body)
    client._api_client.request("post", path, plain, options)
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.KEY_INVALID)
    pooled = copy.deepcopy(body)
    client._api_client.request("post", path, pooled, options)
    assert pooled in (body, plain)
    sent = [request.body for request in gemini.log]
    assert sent[0] == sent[1] == sent[2]
    assert sent[0]["generationConfig"] == {"temperature": 0.5, "topK": 3}


def keys_of(gemini) -> list[list[str]]:
    """List the key headers of each request on the wire."""
    return [request.header_values(KEY) for request in gemini.log]
