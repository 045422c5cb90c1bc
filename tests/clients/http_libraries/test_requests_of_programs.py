"""Which requests go through the pool, with which key, and what the program sees of it."""

import asyncio
import json
import threading
from contextlib import closing, suppress
from itertools import chain, repeat
from typing import Any

import httpx
import httpx2
import pytest
import requests
import urllib3
from support.http_modes import BODY, HEADERS, MODEL, PATH
from support.json_server import JsonServer, Response
from support.raw_server import RawServer, chunk

import keyrot_middleware
from keyrot_middleware import errors
from keyrot_middleware.clients import call as calls
from keyrot_middleware.clients import routing, transport
from keyrot_middleware.clients.bounded import LONGEST_BODY
from keyrot_middleware.testing import FakeKey, Reply

LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2, requests], ids=lambda m: m.__name__)
OK = "ok from A"


def post(library, url, **options):
    with library.Session() if library is requests else library.Client() as client:
        return client.post(url, **options)


def native(gemini, verb="generateContent", root="v1beta") -> str:
    return f"{gemini.url}/{root}/models/{MODEL}:{verb}"


@LIBRARIES
@pytest.mark.parametrize(
    "where", ["header", "query", "query and a word", "query and a fragment", "bearer", "both"]
)
def test_a_key_is_taken_wherever_it_is(library, where, gemini, pool) -> None:
    """The key takes the place of the placeholder; of two, since Google refuses two, in one."""
    pool("A")
    bearer = {"Authorization": "Bearer keyrot-pool"}
    headers = {"header": HEADERS, "bearer": bearer, "both": HEADERS | bearer}.get(where, {})
    in_query = where.startswith("query")
    headers |= {"x-goog-api-key": "word"} if where.endswith("word") else {}
    query = "?key=keyrot-pool&alt=json" if in_query else ""
    query += "#part" if where.endswith("fragment") else ""  # which no server gets
    response = post(library, native(gemini) + query, json=BODY, headers=headers)
    assert response.status_code == 200
    [sent] = gemini.log
    assert (sent.key, "key=" in sent.path) == ("A", in_query)
    given = [*sent.header_values("x-goog-api-key"), *sent.header_values("authorization")]
    assert given == ([] if in_query else [gemini.key("A").value])
    assert "keyrot-pool" not in sent.path
    if in_query:
        assert "alt=json" in sent.path
        assert response.url == native(gemini) + query
        assert gemini.key("A").value not in repr(vars(response))


@pytest.mark.parametrize("answer", [None, "echo"])
def test_a_prepared_request_of_requests_stays_as_it_is(answer, gemini, pool) -> None:
    """With its own header, also where the key is echoed or no connection is made."""
    key = gemini.add_key("A").value
    pool("A")
    url = native(gemini) if answer else "http://127.0.0.1:9/v1beta/models/m:generateContent"
    if answer:
        gemini.script("A", Reply.OK.with_headers(**{"x-echo": key}))
    with requests.Session() as session:
        mine = session.prepare_request(
            requests.Request("POST", url, json=BODY, headers={"x-goog-api-key": key})
        )
        with suppress(requests.ConnectionError):
            session.send(mine)
    assert mine.headers["x-goog-api-key"] == key


@LIBRARIES
def test_a_proxy_gets_no_key_in_clear(library, gemini, pool, monkeypatch) -> None:
    """Plain HTTP within this machine is none where a proxy of the environment gets it."""
    with closing(JsonServer(lambda _: Response(200, {}))) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with pytest.warns(keyrot_middleware.KeyrotWarning, match="NO_PROXY=localhost,127"):
            keyrot_middleware.install(keys=[gemini.add_key("A").value], allowed_hosts=[gemini.host])
        with pytest.warns(keyrot_middleware.KeyrotWarning, match="bypass the pool"):
            post(library, native(gemini), json=BODY, headers=HEADERS)
        [sent] = proxy.requests
        assert sent.headers["x-goog-api-key"] == "keyrot-pool"
        keyrot_middleware.uninstall()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        keyrot_middleware.install(keys=[gemini.key("A").value], allowed_hosts=[gemini.host])
        assert post(library, native(gemini), json=BODY, headers=HEADERS).status_code == 200
    assert gemini.sent("A") == 1


@LIBRARIES
def test_an_error_in_utf_16_is_understood(library, pool) -> None:
    """The key that it names as invalid is rejected, and another one serves the call."""
    bad = pool.key("A")
    detail = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    error = {"code": 400, "message": "no", "status": "INVALID_ARGUMENT", "details": [detail]}
    said = json.dumps({"error": error}).encode("utf-16")

    def answer(request: Any) -> Response:
        is_bad = request.headers["x-goog-api-key"] == bad
        return Response(400, said) if is_bad else Response(200, {})

    with JsonServer(answer) as server:
        pool("A", "B", strategy="fill", allowed_hosts=[server.host])
        assert post(library, server.url + PATH, json=BODY, headers=HEADERS).status_code == 200
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "rejected"


@LIBRARIES
def test_what_is_not_ours_passes_untouched(library, gemini, pool) -> None:
    """OAuth, requests without a key, own keys on other paths, bypassed calls: as they came."""
    pool("A")
    own = gemini.add_key("own")
    post(library, native(gemini), json=BODY, headers={"Authorization": "Bearer ya29.FAKE"})
    post(library, native(gemini), json=BODY)
    post(library, f"{gemini.url}/healthz", headers={"x-goog-api-key": own.value})
    assert gemini.sent("A") == 0
    with keyrot_middleware.bypass():
        response = post(library, native(gemini), json=BODY, headers={"x-goog-api-key": own.value})
        assert response.json()["candidates"][0]["content"]["parts"][0]["text"] == "ok from own"
        # A placeholder is never sent: the home key takes its place.
        response = post(library, native(gemini), json=BODY, headers=HEADERS)
    assert (response.status_code, gemini.sent("A")) == (200, 1)


@LIBRARIES
def test_google_genai_alone(library, gemini, pool) -> None:
    """`install(clients=("google-genai",))` leaves the HTTP libraries alone, but for a transport."""
    pool("A", "B", clients=("google-genai",), strategy="fill")
    url, headers = native(gemini), {"x-goog-api-key": gemini.key("B").value}
    assert post(library, url, json=BODY, headers=headers).status_code == 200
    assert gemini.sent("B") == 1
    assert post(library, url, json=BODY, headers=HEADERS).status_code == 400  # as it came
    assert (gemini.sent("A"), gemini.sent("B")) == (0, 1)
    if library is requests:
        return
    with library.Client(transport=transport(library.HTTPTransport())) as client:
        assert client.post(url, json=BODY, headers=headers).status_code == 200

    async def go() -> Any:
        sender = transport(library.AsyncHTTPTransport())
        async with library.AsyncClient(transport=sender) as client:
            return await client.post(url, json=BODY, headers=headers)

    assert asyncio.run(go()).status_code == 200
    assert gemini.sent("A") == 2


@LIBRARIES
def test_hooks_and_logs_see_no_key_of_the_pool(library, gemini, pool) -> None:
    """A program's hooks, its request and its response show the placeholder, and the real times."""
    pool("A")
    seen: list[Any] = []
    if library is requests:
        client = library.Session()
        client.hooks["response"].append(lambda response, **_: seen.append(response.request))
    else:
        hooks = {"request": [seen.append], "response": [lambda one: seen.append(one.request)]}
        client = library.Client(event_hooks=hooks)
    with client:
        response = client.post(native(gemini), json=BODY, headers=HEADERS)
    assert {one.headers["x-goog-api-key"] for one in [*seen, response.request]} == {"keyrot-pool"}
    assert str(response.url) == native(gemini)
    assert response.elapsed.total_seconds() > 0
    assert gemini.key("A").value not in repr([vars(one) for one in seen])


@LIBRARIES
def test_the_answer_is_redacted(library, gemini, pool) -> None:
    """A key that the server repeats, in an error, a redirect or a response, is replaced."""
    pool("A")
    value = gemini.key("A").value
    echo = {"error": {"code": 400, "message": f"bad {value}", "status": "INVALID_ARGUMENT"}}
    gemini.script("A", *(Reply.custom(status, echo) for status in (400, 302, 200)))
    for _ in range(3):
        response = post(library, native(gemini), json=BODY, headers=HEADERS)
        assert value not in response.text
        assert "[redacted]" in response.text


@LIBRARIES
def test_a_body_from_a_generator_is_sent_again(library, gemini, one_good) -> None:
    """What a program yields once goes out with each key that is tried."""
    one_good(strategy="fill")

    def pieces():
        yield from (b'{"contents": [{"parts": [', b'{"text": "hello"}]}]}')

    headers = HEADERS | {"content-type": "application/json"}
    content = {"data": pieces()} if library is requests else {"content": pieces()}
    response = post(library, native(gemini), headers=headers, **content)
    assert response.status_code == 200
    assert [one.status for one in gemini.log] == [429, 400, 200]


def test_retries_of_urllib3_do_not_repeat_the_failure_of_a_key(gemini, pool) -> None:
    """A `Retry` that asks for it, or one that honors Retry-After: the next key is used at once."""
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.QUOTA_DAY.with_headers(Retry_After="1"))
    retries = urllib3.Retry(3, allowed_methods=None, status_forcelist=[429, 500])
    with requests.Session() as session:
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
        assert session.post(native(gemini), json=BODY, headers=HEADERS).status_code == 200
    assert (gemini.sent("A"), gemini.sent("B")) == (1, 1)


def test_a_file_that_is_too_long_to_be_kept_is_sent_again(pool, tmp_path) -> None:
    """By requests, from where the program had it, and whole; nothing of it is read beforehand."""
    values = [pool.key("A"), pool.key("B")]
    size, skipped = 32 * 1024 * 1024 + 9, 5
    path = tmp_path / "long"
    path.write_bytes(b"begin")
    with path.open("r+b") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")

    def answer(request: Any) -> Response:
        is_first = request.headers["x-goog-api-key"] == values[0]
        return Response(429 if is_first else 200, {"error": {"code": 429}} if is_first else {})

    with closing(JsonServer(answer)) as server:
        pool("A", "B", strategy="fill", allowed_hosts=(server.host,))
        with path.open("rb") as file:
            file.seek(skipped)
            url = f"{server.url}/v1beta/models/{MODEL}:generateContent"
            assert requests.post(url, data=file, headers=HEADERS, timeout=60).status_code == 200
        sent = server.requests
    assert [one.headers["x-goog-api-key"] for one in sent] == values
    whole = bytes(size - skipped - 3) + b"end"
    assert [one.body == whole for one in sent] == [True, True]


def _sync(library: Any, url: str, content: Any) -> Any:
    given = {"data" if library is requests else "content": content}
    return post(library, url, headers=HEADERS, **given)


def _async(library: Any, url: str, content: Any) -> Any:
    async def pieces() -> Any:
        for piece in content:
            yield piece

    async def go() -> Any:
        async with library.AsyncClient() as client:
            return await client.post(url, content=pieces(), headers=HEADERS)

    return asyncio.run(go())


SENDERS = pytest.mark.parametrize(
    ("library", "sender"),
    [(requests, _sync), *((one, how) for one in (httpx, httpx2) for how in (_sync, _async))],
)


@SENDERS
@pytest.mark.parametrize("broken", [(routing, "_route"), (calls, "parse_body")])
def test_no_placeholder_is_sent_after_an_internal_error(
    broken, library, sender, gemini, pool, monkeypatch
) -> None:
    """The call goes on with the home key, and with its whole body."""
    pool("A")
    monkeypatch.setattr(errors, "_strict", False)
    monkeypatch.setattr(*broken, lambda *_: 1 / 0)
    content = json.dumps(BODY).encode()
    response = sender(library, native(gemini), iter((content[:9], content[9:])))
    assert response.json()["candidates"][0]["content"]["parts"][0]["text"] == OK
    assert gemini.sent("A") == 1


@SENDERS
def test_a_body_that_is_too_long_to_keep_is_offered_to_one_key(
    library, sender, gemini, pool
) -> None:
    """It can be sent only once: the program gets the refusal, and sends it again if it likes."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_DAY)
    for code in (429, 200):
        content = chain((json.dumps(BODY).encode(),), repeat(b" " * 2**20, LONGEST_BODY // 2**20))
        assert sender(library, native(gemini), content).status_code == code
    assert [one.key for one in gemini.log] == ["A", "B"]


@LIBRARIES
def test_no_key_is_a_response(library, gemini, pool) -> None:
    """Where no key can serve, the library's own response says why, and when to come again."""
    pool("A", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_MINUTE)
    for _ in range(2):
        response = post(library, native(gemini), json=BODY, headers=HEADERS)
        assert response.status_code == 429
        assert "A: quota_minute until" in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "30"
        assert response.headers["x-should-retry"] == "false"
        with pytest.raises(library.HTTPError if library is requests else library.HTTPStatusError):
            response.raise_for_status()
    assert gemini.sent("A") == 1


@LIBRARIES
@pytest.mark.parametrize("reply", [Reply.QUOTA_MINUTE, Reply.KEY_INVALID])
@pytest.mark.parametrize("alt", ["?alt=sse", ""])
def test_an_error_of_a_stream_has_the_form_of_the_stream(library, alt, reply, gemini, pool) -> None:
    """Without `alt=sse` a response is an array, and where no key can serve, its error is in one."""
    pool("A", max_wait_s=0)
    gemini.always("A", reply)
    url, headers = native(gemini, "streamGenerateContent") + alt, HEADERS
    for _ in range(2):
        found = post(library, url, json=BODY, headers=headers).json()
        assert [type(found)] == [dict if alt else list]
        error = (found if alt else found[0])["error"]
        assert error["message"].startswith(("No Gemini API key of pool", "API key not valid"))
    assert gemini.sent("A") == 1


@LIBRARIES
def test_a_placeholder_never_leaves_without_a_pool(library, gemini) -> None:
    """Where install() finds no key, a request with keyrot-pool gets a 401 that says what to do."""
    with pytest.warns(keyrot_middleware.KeyrotWarning):
        keyrot_middleware.install(allowed_hosts=(gemini.host,))
    response = post(library, native(gemini), json=BODY, headers=HEADERS)
    assert response.status_code == 401
    assert "GEMINI_API_KEYS" in response.json()["error"]["message"]
    assert gemini.log == []


@LIBRARIES
@pytest.mark.parametrize(
    "path",
    [
        f"v1beta1/projects/p/locations/l/publishers/google/models/{MODEL}:generateContent",
        "healthz",
    ],
)
def test_a_placeholder_never_leaves_for_a_path_that_no_table_knows(
    path, library, gemini, pool
) -> None:
    """As that of another platform: the home key goes there, whatever is in it."""
    value = r"FAKE\1-odd\g<0>" + "x" * 30
    gemini.add_key("A", value=value)
    pool("A")
    post(library, f"{gemini.url}/{path}", json=BODY, headers=HEADERS)
    [sent] = gemini.log
    assert sent.header_values("x-goog-api-key") == [value]


@LIBRARIES
@pytest.mark.parametrize(("method", "sent"), [("GET", 2), ("POST", 1)])
def test_only_what_reads_is_repeated_on_a_path_that_no_table_knows(
    method, sent, library, gemini, pool
) -> None:
    """A POST may have made something before it failed."""
    pool("A", max_retries=1)
    gemini.always("A", Reply.OVERLOADED)
    with library.Session() if library is requests else library.Client() as client:
        url = f"{gemini.url}/v1beta/inventions"
        assert client.request(method, url, headers=HEADERS).status_code == 503
    assert gemini.sent("A") == sent


@LIBRARIES
def test_a_download_is_read_as_it_comes(library, pool) -> None:
    """Not whole first: a video may be longer than the memory."""
    has_begun = threading.Event()

    def talk(connection: Any, _key: str) -> None:
        connection.sendall(HEAD + chunk(b"begin"))
        if has_begun.wait(60):
            connection.sendall(chunk(b"end"))
        connection.sendall(b"0\r\n\r\n")

    with closing(RawServer(talk)) as server:
        pool("A", allowed_hosts=(server.host,))
        url, found = f"{server.url}/v1beta/files/a:download?alt=media", []
        with library.Session() if library is requests else library.Client() as client:
            if library is requests:
                pieces = client.get(url, headers=HEADERS, stream=True).iter_content(None)
            else:
                request = client.build_request("GET", url, headers=HEADERS)
                pieces = client.send(request, stream=True).iter_bytes()
            for piece in pieces:
                found.append(piece)
                has_begun.set()
    assert found == [b"begin", b"end"]


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@LIBRARIES
def test_an_upload_goes_to_no_other_host(library, gemini, pool) -> None:
    """A server that sends it elsewhere is refused; a key in the address is taken out."""
    pool("A")
    key, url = gemini.key("A").value, f"{gemini.url}/upload/v1beta/files"
    for where, status in (
        (f"https://elsewhere.test/{key}?upload_id=1", 400),
        (f"{gemini.url}/{key}?key={key}&upload_id=1", 200),
    ):
        gemini.script("A", Reply.custom(200, {}).with_headers(**{"x-goog-upload-url": where}))
        response = post(library, url, json={"file": {}}, headers=HEADERS)
        assert response.status_code == status
        assert key not in str(dict(response.headers)) + response.text
    assert response.headers["x-goog-upload-url"].endswith("[redacted]?upload_id=1")


@LIBRARIES
def test_uninstall_restores(library, gemini, pool) -> None:
    """After uninstall() the library is as before, whichever order, and requests go out as given."""
    owners = (library.Session,) if library is requests else (library.Client, library.AsyncClient)
    name = "get_adapter" if library is requests else "_transport_for_url"
    before = [vars(owner)[name] for owner in owners]
    pool("A")
    assert all(vars(owner)[name] is not one for owner, one in zip(owners, before, strict=True))
    keyrot_middleware.uninstall()
    assert all(vars(owner)[name] is one for owner, one in zip(owners, before, strict=True))


@LIBRARIES
@pytest.mark.parametrize("where", ["header", "query", "bearer"])
def test_a_key_outside_the_pool_is_the_callers_own(library, where, gemini, pool) -> None:
    """Its request goes as it is, with its error too; so does one with any other word."""
    pool("A")
    own: FakeKey = gemini.add_key("own")
    for value, status in ((own.value, 200), ("let me in", 400)):
        url, headers, body = native(gemini), {}, BODY
        if where == "header":
            headers = {"x-goog-api-key": value}
        elif where == "query":
            url = f"{url}?key={value}"
        else:
            url = f"{gemini.url}/v1beta/openai/chat/completions"
            headers = {"Authorization": f"Bearer {value}"}
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        assert post(library, url, json=body, headers=headers).status_code == status
    assert gemini.sent("own") == 1
    assert gemini.sent("A") == 0


def test_a_placeholder_never_leaves_for_a_provider_without_keys(pool) -> None:
    """The reply says what to set, and nothing is sent; a key of the program's own goes as it is."""
    pool("A")
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"])
        return httpx.Response(200)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        for value in ("keyrot-pool", "own"):
            headers = {"authorization": f"Bearer {value}"}
            reply = client.post("https://api.openai.com/v1/responses", headers=headers, json={})
            assert reply.status_code == (200 if value == "own" else 401)
            assert ("OPENAI_API_KEYS" in reply.text) is (value != "own")
    assert sent == ["Bearer own"]
