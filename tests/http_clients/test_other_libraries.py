"""Peace with those who wrap, mock or extend the same libraries."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import httpx2
import pytest
import requests
from google import genai
from support.http_modes import MODEL, send, send_async
from support.reporters import sent_to_sentry

import keyrot_middleware
from keyrot_middleware.testing import Reply

BODY = {"contents": [{"parts": [{"text": "hello"}]}]}
PATH = f"/v1beta/models/{MODEL}:generateContent"
OK = {"candidates": [{"content": {"parts": [{"text": "mocked"}]}}]}
QUOTA = {"error": {"code": 429, "message": "x", "status": "RESOURCE_EXHAUSTED"}}
HEADERS = {"x-goog-api-key": "keyrot-pool"}

HTTPX = pytest.mark.parametrize("library", [httpx, httpx2], ids=lambda m: m.__name__)


def keys_in(*requests_seen: Any) -> list[str]:
    """Return the keys of requests that a mock has seen."""
    return [one.headers["x-goog-api-key"] for one in requests_seen]


def value(gemini, *labels) -> list[str]:
    """Return the values of keys."""
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


@pytest.mark.parametrize("library", [httpx, httpx2, requests], ids=lambda m: m.__name__)
def test_the_method_may_be_called_unbound(library, gemini, pool) -> None:
    """Mocks call the function that they found in the class, for hosts that are not ours too."""
    pool("A")
    kind, name, url = (
        (requests.Session, "get_adapter", str)
        if library is requests
        else (library.Client, "_transport_for_url", library.URL)
    )
    found = vars(kind)[name]
    with kind() as client:
        for address in (gemini.url, "https://example.org"):
            assert found(client, url(address)) is not None
            assert found(client, url=url(address)) is not None


def test_respx_in_place_of_httpx_itself(gemini, pool) -> None:
    """Told to mock httpx, not httpcore, respx works as without a pool."""
    respx = pytest.importorskip("respx")
    pool("A")
    with respx.mock(using="httpx") as router:
        router.get("https://example.org/").respond(200)
        router.post(f"{gemini.url}{PATH}").respond(200, json=OK)
        assert httpx.get("https://example.org/").status_code == 200
        assert httpx.post(f"{gemini.url}{PATH}", json=BODY, headers=HEADERS).json() == OK


def test_pytest_httpx_sees_our_sends(gemini, pool, httpx_mock) -> None:
    """pytest-httpx answers each attempt, sync and async."""
    pool("A", "B", strategy="fill")
    url = f"{gemini.url}{PATH}"
    httpx_mock.add_response(url=url, status_code=429, json=QUOTA)
    httpx_mock.add_response(url=url, json=OK, is_reusable=True)
    assert httpx.post(url, json=BODY, headers=HEADERS).json() == OK

    async def go() -> Any:
        async with httpx.AsyncClient() as client:
            return await client.post(url, json=BODY, headers=HEADERS)

    assert asyncio.run(go()).json() == OK
    assert keys_in(*httpx_mock.get_requests()) == value(gemini, "A", "B", "B")


def test_an_adapter_of_requests_mock_sees_our_sends(gemini, pool) -> None:
    """Mounted in a session, requests-mock answers each attempt."""
    requests_mock = pytest.importorskip("requests_mock")
    pool("A", "B", strategy="fill")
    adapter = requests_mock.Adapter()
    adapter.register_uri(
        "POST",
        f"{gemini.url}{PATH}",
        [{"status_code": 429, "json": QUOTA}, {"json": OK}],
    )
    with requests.Session() as session:
        session.mount("http://", adapter)
        response = session.post(f"{gemini.url}{PATH}", json=BODY, headers=HEADERS)
    assert response.json() == OK
    assert keys_in(*adapter.request_history) == value(gemini, "A", "B")


def test_requests_mock_in_place_of_all_adapters_works_as_without_a_pool(gemini, pool) -> None:
    """It replaces what picks the adapter, so it sees what the program sends, once."""
    requests_mock = pytest.importorskip("requests_mock")
    pool("A")
    with requests_mock.Mocker() as mocked:
        mocked.post(f"{gemini.url}{PATH}", json=OK)
        with requests.Session() as session:
            response = session.post(f"{gemini.url}{PATH}", json=BODY, headers=HEADERS)
            assert response.json() == OK
        assert keys_in(*mocked.request_history) == ["keyrot-pool"]
    keyrot_middleware.uninstall()
    assert gemini.log == []


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


def test_vcrpy_records_and_replays(gemini, pool, tmp_path) -> None:
    """A cassette has each attempt; replayed, the calls rotate as they did."""
    vcr = pytest.importorskip("vcr")
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_MINUTE)
    recorder = vcr.VCR(filter_headers=["x-goog-api-key"], ignore_hosts=[])
    file = str(tmp_path / "calls.yaml")
    with recorder.use_cassette(file) as cassette, httpx.Client() as client:
        assert send(httpx, client, gemini.url, "keyrot-pool") == "ok from B"
        assert len(cassette) == 2
    keyrot_middleware.uninstall()
    pool("A", "B", strategy="fill")
    with recorder.use_cassette(file) as cassette, httpx.Client() as client:
        assert send(httpx, client, gemini.url, "keyrot-pool") == "ok from B"
        assert cassette.play_count == 2


@pytest.mark.parametrize("library", [httpx, httpx2, requests], ids=lambda m: m.__name__)
@pytest.mark.parametrize("where", ["header", "query"])
def test_cassettes_filter_the_place_of_the_programs_key(
    library, where, gemini, pool, tmp_path
) -> None:
    """What a program tells vcrpy to leave out holds the key of the pool, and nothing else does."""
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


@HTTPX
def test_cancelled_calls_end_their_leases(library, gemini, pool) -> None:
    """A task that is cancelled while it waits for the server leaves nothing in flight."""
    pool({"key_id": "A", "max_concurrency": 1}, max_wait_s=0)
    gemini.script("A", Reply.hang(30.0), Reply.OK.delayed(0.0))

    async def go() -> None:
        async with library.AsyncClient() as client:
            for stream in (False, True):
                if stream:
                    gemini.script("A", Reply.hang(30.0))
                task = asyncio.ensure_future(
                    send_async(client, gemini.url, "keyrot-pool", stream=stream)
                )
                while not gemini.log or pool.ledger.under_way == {}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert pool.ledger.under_way == {}
                gemini.clear_scripts()
            assert await send_async(client, gemini.url, "keyrot-pool") == "ok from A"

    asyncio.run(go())


@HTTPX
def test_trio_sends_once_with_the_home_key(library, gemini, pool) -> None:
    """Without asyncio there is no pool, and a placeholder still never leaves."""
    trio = pytest.importorskip("trio")
    pool("A")

    async def go() -> Any:
        async with library.AsyncClient() as client:
            return await client.post(f"{gemini.url}{PATH}", json=BODY, headers=HEADERS)

    assert trio.run(go).status_code == 200
    assert gemini.sent("A") == 1


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


@pytest.mark.parametrize(
    ("libraries", "ways", "order"),
    [("httpx", 5, "before"), ("httpx", 5, "after"), ("requests", 2, "before")],
)
def test_sentry_with_its_defaults(libraries, ways, order) -> None:
    """No key is in its events, breadcrumbs and spans, whichever wraps the libraries first."""
    found = sent_to_sentry(order, libraries)
    assert found["keys"] == 0
    assert found["events"] >= 4 * ways
    assert min(found["sent"]) >= ways
