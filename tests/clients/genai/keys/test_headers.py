"""One key header on the wire; headers that the program set stay unchanged."""

import copy

import pytest
from google.genai import types
from support.modes import MODES, ask, calls, spread

import keyrot_middleware
from keyrot_middleware.testing import Reply

KEY = "x-goog-api-key"
CASES = [KEY, "X-Goog-Api-Key", "X-GOOG-API-KEY"]


WHERE = ("client", "request dict", "request object")


def client_and_request(where: str, connect, key: str | None, headers: dict[str, str]):
    """Return a client and the arguments of a call, with headers in the requested place."""
    if where == "client":
        return connect(key, headers=headers), {}
    options = {"headers": headers}
    http_options = options if where == "request dict" else types.HttpOptions(**options)
    return connect(key), {"config": {"http_options": http_options}}


@pytest.mark.parametrize(("mode", "name", "where"), spread(MODES, CASES, WHERE))
def test_a_key_header_of_another_key_is_untouched(mode, name, where, gemini, pool, connect) -> None:
    headers = {name: gemini.add_key("other").value}
    client, request = client_and_request(where, connect, "FAKE-unused", headers)
    plain = calls(mode, client, 1, **copy.deepcopy(request))
    wire = keys_of(gemini)
    pool("A")
    assert list(map(repr, calls(mode, client, 1, **request))) == list(map(repr, plain))
    assert keys_of(gemini) == wire * 2
    assert gemini.sent("A") == 0


BEARER = ["Authorization", "authorization", "AUTHORIZATION"]


@pytest.mark.parametrize(("mode", "name", "where"), spread(MODES, [*CASES, *BEARER], WHERE))
def test_the_home_key_again_is_sent_once(mode, name, where, gemini, pool, connect) -> None:
    """A header that repeats the client's own key, in any case or as a bearer, is no choice."""
    home = gemini.add_key("home").value
    headers = {name: f"Bearer {home}" if name in BEARER else home, "x-custom": "kept"}
    pool("A")
    client, request = client_and_request(where, connect, home, headers)
    assert ask(mode, client, **request) == "ok from A"
    assert keys_of(gemini) == [[gemini.key("A").value]]
    assert gemini.log[0].header_values("authorization") == []
    assert gemini.log[0].header_values("x-custom") == ["kept"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("where", WHERE)
def test_the_placeholder_in_a_header_is_not_sent(where, name, gemini, pool, connect) -> None:
    pool("A")
    headers = {name: keyrot_middleware.POOL_KEY}
    client, request = client_and_request(where, connect, None, headers)
    assert ask("sync", client, **request) == "ok from A"
    assert keys_of(gemini) == [[gemini.key("A").value]]


@pytest.mark.parametrize(("form", "mode"), spread(["object", "dict"], MODES))
def test_options_of_the_program_are_not_changed(mode, form, gemini, pool, connect) -> None:
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


PROJECT = "x-goog-user-project"


@pytest.mark.parametrize(
    ("mode", "name", "where"), spread(MODES, [PROJECT, "X-Goog-User-Project"], WHERE)
)
def test_a_project_of_the_program_does_not_go_out(mode, name, where, gemini, pool, connect) -> None:
    """Google would answer about that project, and the pool would take it for the key's."""
    pool("A")
    headers = {name: "theirs", "x-custom": "kept"}
    client, request = client_and_request(where, connect, "FAKE-home", headers)
    assert ask(mode, client, **request) == "ok from A"
    [sent] = gemini.log
    assert (sent.header_values(PROJECT), sent.header_values("x-custom")) == ([], ["kept"])


def test_with_the_clients_own_key_its_project_goes_out(gemini, pool, connect) -> None:
    """Where that is the home key: of a file that no key of the pool has."""
    pool("A")
    own = gemini.add_key("own", tier="paid")
    name = gemini.add_file("own", b"text")
    client = connect(own.value, headers={PROJECT: "mine"})
    assert client.files.get(name=name).name == name
    [sent] = gemini.log
    assert (sent.key, sent.header_values(PROJECT)) == ("own", ["mine"])


def keys_of(gemini) -> list[list[str]]:
    return [request.header_values(KEY) for request in gemini.log]
