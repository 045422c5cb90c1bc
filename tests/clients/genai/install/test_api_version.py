"""The API version: the installed SDK finds README's model, and the check asks as the SDK does."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from typing import Any

import httpx
import pytest
from google import genai
from support.docs_blocks import ROOT, blocks

import keyrot_middleware
from keyrot_middleware.clients.key_check import check_key
from keyrot_middleware.providers import gemini as provider
from keyrot_middleware.providers.gemini import Gemini, VertexExpress
from keyrot_middleware.secrets.stores import open_secret_cache
from keyrot_middleware.settings import load
from keyrot_middleware.testing import FakeGemini

ALIAS = "gemini-flash-latest"
MODEL = Gemini.check_model
GENERATE = f"models/{MODEL}:generateContent"


@pytest.fixture
def program(gemini: FakeGemini, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what `keyrot fake` prints, and nothing else; uninstall at the end."""
    monkeypatch.setenv("GEMINI_API_KEYS", gemini.add_key("key_1").value)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", gemini.url)
    monkeypatch.setenv("KEYROT_ALLOWED_HOSTS", gemini.host)
    yield
    keyrot_middleware.uninstall()


def path_of(gemini: FakeGemini) -> str:
    return gemini.log[-1].path


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_quick_start_runs_as_it_stands(program, gemini, capsys) -> None:
    """README's model is in the version that the installed SDK asks by itself."""
    code = next(b.code for b in blocks(ROOT / "README.md") if "genai.Client()" in b.code)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - README's own
    names["client"].close()
    assert capsys.readouterr().out == "ok from key_1\n"
    assert path_of(gemini) == Gemini().check_url_path(MODEL)


@pytest.mark.parametrize("chosen", [None, "", "v1", "beta", "v1beta", "v1alpha"])
def test_the_check_asks_the_version_that_the_sdk_asks(chosen, program, gemini, monkeypatch) -> None:
    """Whatever the SDK's own variable says."""
    if chosen is not None:
        monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", chosen)
    keyrot_middleware.install()
    with genai.Client() as client:
        client.models.generate_content(model=MODEL, contents="hello")
    assert path_of(gemini) == Gemini().check_url_path(MODEL)


@pytest.mark.parametrize(
    ("installed", "chosen", "path"),
    [
        ("1.65.0", "v1", f"/v1beta/{GENERATE}"),
        ("2.34.0", "", f"/v1beta/{GENERATE}"),
        ("3.0.0", "", f"/v1/{GENERATE}"),
        ("", "v1", f"/v1beta/{GENERATE}"),
    ],
)
def test_older_versions_do_not_read_the_variable(installed, chosen, path, monkeypatch) -> None:
    """Before 3 they ask v1beta; so does the check where there is no SDK, since that has all."""

    def version(_name: str) -> str:
        if not installed:
            raise PackageNotFoundError
        return str(installed)

    monkeypatch.setattr(provider, "version", version)
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", chosen)
    assert Gemini().check_url_path(MODEL) == path
    express = VertexExpress().check_url_path(MODEL)
    assert express == f"/v1beta1/publishers/google/{GENERATE}"


def test_the_check_adds_a_version_to_an_address_as_the_sdk_does(
    program, gemini, monkeypatch
) -> None:
    """Also to one that ends with a version: the program's requests are a 404 there."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"{gemini.url}/v1")
    keyrot_middleware.install()
    with genai.Client() as client, suppress(genai.errors.APIError):
        client.models.generate_content(model=MODEL, contents="hello")
    asked, config = path_of(gemini), load()
    secrets = open_secret_cache(config)
    secrets.refresh_all()
    check_key(secrets, "key_1", MODEL, "gemini_api", config.allowed)
    secrets.close()
    assert path_of(gemini) == asked


def test_a_model_that_v1_lacks_is_advised_about(pool, gemini, connect, caplog) -> None:
    """The SDK's own error has a note; a caller of httpx, who gets a response, finds a log line."""
    pool("A")
    with pytest.raises(genai.errors.ClientError, match="is not found for API version v1,") as found:
        connect(api_version="v1").models.generate_content(model=ALIAS, contents="hello")
    (note,) = found.value.__notes__
    text = "model_not_found (404): v1beta may have this model, v1 does not: set GOOGLE_GENAI_"
    assert note.startswith(f"keyrot: attempt 1 with key A: {text}API_VERSION=v1beta")
    address = f"{gemini.url}/v1/models/{ALIAS}:generateContent"
    for _ in range(2):
        body = {"contents": [{"parts": [{"text": "hello"}]}]}
        key = {"x-goog-api-key": keyrot_middleware.POOL_KEY}
        assert httpx.post(address, json=body, headers=key).status_code == 404
    lines = [r.getMessage() for r in caplog.records if "v1beta may have" in r.getMessage()]
    assert [line.partition(": model")[0] for line in lines] == [f"pool default, {ALIAS}"]
