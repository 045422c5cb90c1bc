"""Express mode: Vertex AI with API keys goes through the pool, and platforms never mix."""

from typing import Any

import pytest
from google import genai
from google.genai import types
from support.modes import MODEL, MODES, ask, calls, spread

from keyrot_middleware import POOL_KEY, KeyPoolExhausted
from keyrot_middleware.testing import Reply


def express(key_id: str, **more: Any) -> dict[str, Any]:
    return {"key_id": key_id, "platform": "vertex_express", **more}


@pytest.fixture
def vertex(gemini, monkeypatch) -> Any:
    """Make clients of express mode, and close them at the end."""
    clients: list[genai.Client] = []

    def make(api_key: str | None = None, **more: Any) -> genai.Client:
        options = types.HttpOptions(**{**gemini.http_options, **more})
        clients.append(genai.Client(vertexai=True, api_key=api_key, http_options=options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def spent_invalid_good(gemini, pool, **settings: Any) -> None:
    """A = 429, B = invalid, C = good for express mode; D and E are keys of the Developer API."""
    pool("D", express("A"), express("B"), express("C"), "E", **settings)
    gemini.always("A", Reply.QUOTA_MINUTE)
    gemini.always("B", Reply.KEY_INVALID)


@pytest.mark.parametrize(("strategy", "mode"), spread(["spread", "fill"], MODES))
def test_an_express_call_rotates_over_express_keys(mode, strategy, gemini, pool, vertex) -> None:
    spent_invalid_good(gemini, pool, strategy=strategy)
    client = vertex(gemini.key("A").value)
    assert set(calls(mode, client, 30)) == {"ok from C"}
    assert [gemini.sent(key) for key in "ABCDE"] == [1, 1, 30, 0, 0]
    assert {entry.path.partition("?")[0].rpartition(":")[0] for entry in gemini.log} == {
        f"/v1beta1/publishers/google/models/{MODEL}"
    }


@pytest.mark.parametrize("mode", MODES)
def test_with_no_usable_key_of_its_platform_a_call_fails(mode, gemini, pool, vertex, connect):
    pool(express("A"), "D", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_DAY)
    with pytest.raises(genai.errors.ClientError) as failed:
        ask(mode, vertex(gemini.key("A").value))
    assert failed.value.code == 429
    with pytest.raises(KeyPoolExhausted) as exhausted:
        ask(mode, vertex(gemini.key("A").value))
    assert set(exhausted.value.reasons) == {"A"}
    assert gemini.sent("D") == 0
    assert ask(mode, connect()) == "ok from D"


@pytest.mark.parametrize(
    ("mode", "source"), spread(MODES, ["argument", "environment", "before install"])
)
def test_the_placeholder_is_for_express_too(
    mode, source, gemini, pool, vertex, connect, monkeypatch
) -> None:
    """A client with keyrot-pool for a key gets the express keys, wherever it has that from."""
    if source == "environment":
        monkeypatch.setenv("GOOGLE_API_KEY", POOL_KEY)
    client = vertex(POOL_KEY) if source == "before install" else None
    spent_invalid_good(gemini, pool)
    client = client or vertex(POOL_KEY if source == "argument" else None)
    assert ask(mode, client) == "ok from C"
    assert gemini.sent("D") == gemini.sent("E") == 0


def test_the_placeholder_without_an_express_key_is_refused(gemini, pool, vertex) -> None:
    pool("D")
    with pytest.raises(genai.errors.ClientError, match="vertex_express") as refused:
        ask("sync", vertex(POOL_KEY))
    assert refused.value.code == 401
    assert gemini.count() == 0


def test_google_hosts_are_each_for_one_platform() -> None:
    """By default a developer key goes to one host, an express key to the other, over TLS."""
    from keyrot_middleware.hosts import allowed_origins
    from keyrot_middleware.settings import load

    allowed = allowed_origins(load().settings.allowed_hosts)
    assert allowed == {
        "gemini_api": {"https://generativelanguage.googleapis.com:443"},
        "vertex_express": {"https://aiplatform.googleapis.com:443"},
    }
    mine = allowed_origins(["127.0.0.1:8080", "aiplatform.googleapis.com:443"])
    assert "https://127.0.0.1:8080" in mine["gemini_api"] & mine["vertex_express"]
    assert not any("aiplatform" in origin for origin in mine["gemini_api"])
