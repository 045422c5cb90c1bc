"""A pool's key is sent to allowed hosts only."""

from __future__ import annotations

import warnings

import pytest
from google import genai
from google.auth.credentials import Credentials
from google.genai import types
from support.modes import MODES, ask, calls

import keyrot_middleware
from keyrot_middleware import KeyrotWarning
from keyrot_middleware.adapters.pooled_calls import PooledCalls
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.testing import FakeGemini, Reply

KEY = "x-goog-api-key"


@pytest.fixture
def elsewhere(clock):
    """Serve at another address, which is not allowed."""
    with FakeGemini(clock) as server:
        yield server


def pool_values(server, gemini) -> list[str]:
    """List the pool's key values that a server has seen anywhere in its requests."""
    ours = [gemini.key(label).value for label in ("A", "B")]
    return [value for value in ours for request in server.log if value in repr(vars_of(request))]


def vars_of(request) -> tuple:
    """Return the headers, path and body of a request."""
    return request.headers, request.path, request.body


@pytest.mark.parametrize("mode", MODES)
def test_a_client_with_a_foreign_base_url_is_untouched(
    mode, gemini, elsewhere, pool, connect
) -> None:
    """Its own key is sent to its own host, once, and the pool records nothing."""
    pool("A", "B")
    own = elsewhere.add_key("own")
    client = connect(own.value, client_options=elsewhere.http_options)
    assert ask(mode, client) == "ok from own"
    elsewhere.script("own", Reply.QUOTA_MINUTE)
    with pytest.raises(genai.errors.ClientError) as caught:
        ask(mode, client)
    assert not hasattr(caught.value, "__notes__")
    assert [request.key for request in elsewhere.log] == ["own", "own"]
    assert (gemini.count(), pool_values(elsewhere, gemini)) == (0, [])


@pytest.mark.parametrize("form", ["object", "dict"])
@pytest.mark.parametrize("mode", MODES)
def test_a_request_with_a_foreign_base_url_is_untouched(
    mode, form, gemini, elsewhere, pool, connect
) -> None:
    """The effective host counts: a request may carry its own base_url."""
    pool("A", "B")
    own = elsewhere.add_key("own")
    client = connect(own.value)
    options = {"base_url": elsewhere.url}
    http_options = options if form == "dict" else types.HttpOptions(**options)
    config = {"http_options": http_options}
    assert ask(mode, client, config=config) == "ok from own"
    assert (gemini.count(), pool_values(elsewhere, gemini)) == (0, [])
    assert ask(mode, client) in ("ok from A", "ok from B")


@pytest.mark.parametrize("form", ["object", "dict"])
@pytest.mark.parametrize("mode", MODES)
def test_a_pool_key_is_not_sent_to_a_foreign_host(
    mode, form, gemini, elsewhere, pool, connect
) -> None:
    """A client without a key of its own uses the pool's: a foreign request is sent without it."""
    pool("A", "B")
    client = connect()
    options = {"base_url": elsewhere.url, "headers": {"x-custom": "kept"}}
    http_options = options if form == "dict" else types.HttpOptions(**options)
    assert isinstance(calls(mode, client, 1, config={"http_options": http_options})[0], Exception)
    assert elsewhere.count() == 1
    assert elsewhere.log[0].header_values(KEY) == []
    assert elsewhere.log[0].header_values("x-custom") == ["kept"]
    assert pool_values(elsewhere, gemini) == []


def test_a_pool_key_is_not_sent_to_a_foreign_host_by_other_calls(
    gemini, elsewhere, pool, connect
) -> None:
    """Files, caches and embeddings to a foreign host are sent without the pool's key as well."""
    pool("A", "B")
    client = connect()
    options = {"http_options": {"base_url": elsewhere.url}}
    for call in (
        lambda: list(client.files.list(config=options)),
        lambda: client.caches.get(name="cachedContents/x", config=options),
        lambda: client.models.embed_content(
            model="gemini-embedding-001", contents="x", config=options
        ),
    ):
        with pytest.raises(genai.errors.ClientError):
            call()
    assert elsewhere.count() == 3
    assert pool_values(elsewhere, gemini) == []


def test_a_pool_key_is_not_sent_to_a_foreign_host_in_bypass(
    gemini, elsewhere, pool, connect
) -> None:
    """bypass() changes nothing: the pool's key is not sent to a foreign host."""
    pool("A", "B")
    client = connect()
    config = {"http_options": {"base_url": elsewhere.url}}
    with keyrot_middleware.bypass(), pytest.raises(genai.errors.ClientError):
        ask("sync", client, config=config)
    assert pool_values(elsewhere, gemini) == []


def test_a_foreign_client_without_a_key_gets_none(elsewhere, pool) -> None:
    """The SDK's own error reports the missing key: the pool's is not for that host."""
    pool("A", "B")
    with pytest.raises(ValueError, match="API key"):
        genai.Client(http_options=elsewhere.http_options)


def test_a_pool_key_is_not_sent_to_a_foreign_host_by_a_download(
    gemini, elsewhere, pool, connect
) -> None:
    """A download does not use the four request methods; the rule still holds."""
    pool("A", "B")
    client = connect()
    config = {"http_options": {"base_url": elsewhere.url}}
    with pytest.raises(genai.errors.ClientError):
        client.files.download(file="files/abc", config=config)
    assert elsewhere.count() == 1
    assert pool_values(elsewhere, gemini) == []


def test_a_key_of_the_programs_own_is_sent_to_a_foreign_host(
    gemini, elsewhere, pool, connect
) -> None:
    """A client that uses the pool's key, a request with a header of its own: only that is sent."""
    pool("A", "B")
    own = elsewhere.add_key("own").value
    for name in (KEY, "X-Goog-Api-Key"):
        options = {"base_url": elsewhere.url, "headers": {name: own}}
        assert ask("sync", connect(), config={"http_options": options}) == "ok from own"
    assert [request.header_values(KEY) for request in elsewhere.log] == [[own]] * 2


def test_the_placeholder_is_not_sent_by_a_download(gemini, pool, connect) -> None:
    """A client made before install() with the placeholder downloads with the pool's first key.

    Both keys are of one project, or the owner of the file would be searched for in the other.
    """
    client = connect(keyrot_middleware.POOL_KEY)
    pool(*({"key_id": name, "project": "one"} for name in "AB"), strategy="fill")
    with pytest.raises(genai.errors.ClientError):
        client.files.download(file="files/abc")
    assert [request.header_values(KEY) for request in gemini.log] == [[gemini.key("A").value]]


def test_the_placeholder_is_not_sent_to_a_foreign_host(elsewhere, pool, connect) -> None:
    """It means no key, so none is sent: made before install(), after it, and in bypass()."""
    options = elsewhere.http_options
    before = connect(keyrot_middleware.POOL_KEY, client_options=options)
    pool("A", "B")
    after = connect(keyrot_middleware.POOL_KEY, client_options=options)
    calls("sync", before, 1)
    calls("sync", after, 1)
    with keyrot_middleware.bypass():
        calls("sync", before, 1)
    assert [request.header_values(KEY) for request in elsewhere.log] == [[]] * 3


def test_a_request_from_a_foreign_client_to_an_allowed_host(
    gemini, elsewhere, pool, connect
) -> None:
    """In this direction the pool serves it."""
    pool("A", "B", strategy="fill")
    client = connect("FAKE-own-key", client_options=elsewhere.http_options)
    assert ask("sync", client, config={"http_options": {"base_url": gemini.url}}) == "ok from A"


def test_a_host_is_allowed_with_its_port(gemini, elsewhere, pool, connect) -> None:
    """Another port of the same machine is another host; a path or a slash is the same one."""
    pool("A", "B", strategy="fill")
    client = connect("FAKE-own-key", base_url=f"{gemini.url}/")
    assert ask("sync", client) == "ok from A"
    shouting = connect("FAKE-own-key", base_url=f"HTTP://{gemini.host}")
    assert ask("sync", shouting) == "ok from A"
    calls("sync", connect("FAKE-own-key", base_url=elsewhere.url), 1)
    assert pool_values(elsewhere, gemini) == []


@pytest.mark.parametrize("base_url", ["http://user@{}", "http://{}@evil.test", "http://evil.test"])
def test_unusual_addresses(base_url, gemini, pool, connect) -> None:
    """Only the part between `@` and `/` is the host: a name before the `@` allows nothing."""
    pool("A", "B")
    at = base_url.format(gemini.host)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KeyrotWarning)  # of the host that is not allowed
        allowed = {"gemini_api": frozenset({gemini.url})}
        serves = PooledCalls(current_pool(), allowed).serves("", at)
    assert serves is ("evil" not in at)


def test_the_default_host_is_googles(gemini, pool, connect) -> None:
    """Without allowed_hosts a loopback server is foreign."""
    pool("A", "B", allowed_hosts=None)
    client = connect(gemini.add_key("own").value)
    assert ask("sync", client) == "ok from own"
    assert (gemini.sent("A"), gemini.sent("B")) == (0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_vertex_client_with_a_key_is_untouched(mode, gemini, pool, connect) -> None:
    """Vertex in express mode has keys of its own, and uses them."""
    pool("A", "B")
    client = genai.Client(vertexai=True, api_key="FAKE-express", http_options=gemini.http_options)
    assert isinstance(calls(mode, client, 1)[0], Exception)
    client.close()
    assert [request.header_values(KEY) for request in gemini.log] == [["FAKE-express"]]
    assert "publishers/google" in gemini.log[0].path


class _Token(Credentials):
    """Credentials that never expire."""

    def __init__(self) -> None:
        super().__init__()
        self.token = "FAKE-token"

    @property
    def expired(self) -> bool:
        """Return False."""
        return False

    def refresh(self, request: object) -> None:
        """Do nothing."""


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_a_vertex_client_without_a_key_gets_none(by, gemini, pool, monkeypatch) -> None:
    """It uses its credentials: it gets no key, and none is sent."""
    if by == "variable":
        monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "True")
    pool("A", "B")
    client = genai.Client(
        vertexai=True if by == "argument" else None,
        credentials=_Token(),
        project="p",
        location="us-central1",
        http_options=gemini.http_options,
    )
    assert not client._api_client.api_key
    assert isinstance(calls("sync", client, 1)[0], Exception)
    client.close()
    assert gemini.log[0].header_values(KEY) == []
    assert gemini.log[0].header_values("authorization") == ["Bearer FAKE-token"]


def refusal(**arguments) -> str:
    """Return the text with which the SDK refuses to make a client."""
    with pytest.raises(ValueError, match=r".+") as caught:
        genai.Client(**arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"project": "p", "location": "l"},
        {"project": "p", "api_key": "FAKE-key"},
        {"api_key": "FAKE-key", "credentials": _Token()},
        {"http_options": {"no_such_option": 1}},
        {"http_options": {"base_url": "http://elsewhere.test"}},
    ],
    ids="+".join,
)
def test_the_sdk_refuses_the_same_with_us(arguments, pool) -> None:
    """With the same message: the pool's key is not mentioned."""
    plain = refusal(**arguments)
    pool("A", "B")
    assert refusal(**arguments) == plain


@pytest.mark.parametrize("mode", MODES)
def test_an_ephemeral_token_is_untouched(mode, gemini, pool, connect) -> None:
    """A client of an `auth_tokens/` key works as without us."""
    client = connect("auth_tokens/FAKE-token")
    plain = calls(mode, client, 1)[0]
    before = [vars_of(request)[1:] for request in gemini.log]
    gemini.reset_log()
    pool("A", "B")
    pooled = calls(mode, client, 1)[0]
    assert type(pooled) is type(plain)
    assert str(pooled) == str(plain)
    assert [vars_of(request)[1:] for request in gemini.log] == before
    assert pool_values(gemini, gemini) == []
