"""Peace with those who wrap, mock or extend the same libraries."""

from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests
from google import genai
from support.http_modes import BODY, HEADERS, MODEL, PATH
from support.modes import spread

from keyrot_middleware.testing import Reply

OK = {"candidates": [{"content": {"parts": [{"text": "mocked"}]}}]}
QUOTA = {"error": {"code": 429, "message": "x", "status": "RESOURCE_EXHAUSTED"}}

HTTPX = pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda m: m.__name__)


def keys_in(*requests_seen: Any) -> list[str]:
    return [one.headers["x-goog-api-key"] for one in requests_seen]


def value(gemini, *labels) -> list[str]:
    return [gemini.key(label).value for label in labels]


def test_respx_sees_our_sends(gemini, pool) -> None:
    """Respx answers each attempt, and records the key that it went with."""
    respx = pytest.importorskip("respx")
    pool("A", "B", strategy="fill")
    with respx.mock() as router:
        route = router.post(f"{gemini.url}{PATH}")
        route.side_effect = [httpx.Response(429, json=QUOTA), httpx.Response(200, json=OK)]
        response = httpx.post(f"{gemini.url}{PATH}", json=BODY, headers=HEADERS)
    assert response.json() == OK
    seen = [call.request for call in route.calls]
    assert keys_in(*seen) == value(gemini, "A", "B")
    assert seen[1].read() == response.request.content


@HTTPX
def test_a_transport_of_the_programs_own(library, gemini, pool) -> None:
    """A MockTransport gets each attempt."""
    pool("A", "B", strategy="fill")
    seen: list[Any] = []

    def answer(request: Any) -> Any:
        seen.append(request)
        return library.Response(
            429 if len(seen) == 1 else 200, json=QUOTA if len(seen) == 1 else OK
        )

    with library.Client(transport=library.MockTransport(answer)) as client:
        assert client.post(f"{gemini.url}{PATH}", json=BODY, headers=HEADERS).json() == OK
    assert keys_in(*seen) == value(gemini, "A", "B")


@pytest.mark.parametrize(
    ("library", "where"), spread([httpx, httpx2, requests], ["header", "query"])
)
def test_cassettes_filter_the_place_of_the_programs_key(
    library, where, gemini, pool, tmp_path
) -> None:
    """What a program makes vcrpy leave out holds the key of the pool, and nothing else does."""
    vcr = pytest.importorskip("vcr")
    pool("A")
    file, name = tmp_path / "call.yaml", "x-goog-api-key" if where == "header" else "key"
    given = {"headers" if where == "header" else "params": {name: "keyrot-pool"}}
    filters = {"filter_headers" if where == "header" else "filter_query_parameters": [name]}
    with (
        vcr.VCR(ignore_hosts=[], **filters).use_cassette(str(file)),
        library.Session() if library is requests else library.Client() as client,
    ):
        assert client.post(f"{gemini.url}{PATH}", json=BODY, **given).status_code == 200
    assert gemini.key("A").value not in file.read_text("utf-8")
    assert "generateContent" in file.read_text("utf-8")


@pytest.mark.parametrize("where", ["header", "query"])
@pytest.mark.parametrize("library", [httpx, httpx2, requests], ids=lambda m: m.__name__)
def test_a_cassette_without_filters_is_saved(library, where, gemini, pool, tmp_path) -> None:
    """It is replayed, and holds the key of the pool, as it would hold the program's own."""
    vcr = pytest.importorskip("vcr")
    pool("A")
    file, name = str(tmp_path / "call.yaml"), "x-goog-api-key" if where == "header" else "key"
    given = {"headers" if where == "header" else "params": {name: "keyrot-pool"}}
    for mode in ("once", "none"):
        with (
            vcr.VCR(ignore_hosts=[], record_mode=mode).use_cassette(file),
            library.Session() if library is requests else library.Client() as client,
        ):
            assert client.post(f"{gemini.url}{PATH}", json=BODY, **given).status_code == 200
    assert gemini.sent("A") == 1
    assert gemini.key("A").value in Path(file).read_text("utf-8")


def test_google_genai_over_trio_sends_once_too(gemini, pool) -> None:
    """Where no key is free its exception is the SDK's own; nothing waits for a loop."""
    trio = pytest.importorskip("trio")
    pool({"key_id": "A", "max_concurrency": 1})
    gemini.script("A", Reply.QUOTA_MINUTE)

    async def go() -> Any:
        async with httpx.AsyncClient() as sender:
            options = {"httpx_async_client": sender, "base_url": gemini.url}
            client = genai.Client(http_options=options)
            with pytest.raises(genai.errors.ClientError, match="429"):
                await client.aio.models.generate_content(model=MODEL, contents="hello")
            return await client.aio.models.generate_content(model=MODEL, contents="hello")

    assert trio.run(go).text == "ok from A"
    assert gemini.sent("A") == 2
