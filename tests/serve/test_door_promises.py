"""The sentences of docs/serve.md, one test each, over what really arrives at a provider.

What tests of calls and of attacks hold already is not here: see test_serve.py and
test_door_access.py.
"""

import asyncio
import contextlib
import gzip
import http.client
import itertools
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from door import BODY, CALL, Door, message
from recorder import DONE, Recorder, Reply, Sent, refusal, reply
from support.raw_server import chunk
from support.servers import wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from keyrot_middleware.serve.body import RequestBody

TOKEN = "a-token-of-the-tests-0123"
HAS_TOKEN = f"X-Goog-Api-Key: {TOKEN}"
MIB = 1 << 20
STREAM = CALL.replace("generateContent", "streamGenerateContent?alt=sse")
BEGIN = "/gemini/upload/v1beta/files"
UPLOAD = f"{BEGIN}?upload_id=1"
CHUNKED = "Transfer-Encoding: chunked"
EVENTS = (
    "HTTP/1.1 200 OK",
    "Content-Type: text/event-stream",
    CHUNKED,
    "Connection: close",
    "",
    "",
)
STREAM_HEAD = "\r\n".join(EVENTS).encode()


@pytest.fixture(scope="module")
def far() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


@pytest.fixture
def provider(far: Recorder) -> Recorder:
    """The provider of all doors of this file, which answers well until a test says otherwise."""
    far.reset()
    return far


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, Door]]:
    doors: dict[str, Door] = {}
    yield doors
    for one in doors.values():
        one.end()


@pytest.fixture
def plain(kept: dict[str, Door], provider: Recorder, clean_environment: None) -> Door:
    """A door without a token, of the tests that leave no mark in the pool."""
    if "plain" not in kept:
        kept["plain"] = Door(**provider.env())
    return kept["plain"]


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return str(file)


@pytest.fixture
def guarded(
    kept: dict[str, Door], provider: Recorder, clean_environment: None, token_file: str
) -> Door:
    """One with a token."""
    if "guarded" not in kept:
        kept["guarded"] = Door("--token-file", token_file, **provider.env())
    return kept["guarded"]


def code(got: str) -> int:
    """Return the status of a reply; an interim one (100) may stand before it."""
    return int(got.removeprefix("HTTP/1.1 100 Continue\r\n\r\n").split(" ", 2)[1])


def content(got: str) -> str:
    return got.rpartition("\r\n\r\n")[2]


# What goes up -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("?alt=json&a=%20b+c&a=d%2Fe&a=d%2Fe&empty=&flag&%24x=1", None),
        ("?key=mine&alt=json", "?alt=json"),
        ("?alt=json&key=a&monkey=z&keys=1&key=b", "?alt=json&monkey=z&keys=1"),
        ("?key=mine", ""),
    ],
)
def test_the_query_goes_as_it_is_but_for_a_key(plain, provider, asked, sent) -> None:
    """Its order, its repeats and its escapes too."""
    assert code(plain.raw(message(CALL + asked))) == 200
    path = CALL.removeprefix("/gemini")
    assert provider.log[0].line == f"POST {path}{asked if sent is None else sent} HTTP/1.1"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1beta/models?pageSize=2"),
        ("POST", "/v1beta/models/gemini%2D2.5-flash:generateContent"),
        ("PUT", "/upload/v1beta/files?upload_id=1"),
        ("PATCH", "/v1beta/cachedContents/x?updateMask=ttl"),
        ("DELETE", "/v1beta/files/x"),
    ],
)
def test_method_path_and_host_are_the_providers(plain, provider, method, path) -> None:
    """The path behind the provider's name is sent as it came, to the provider's own Host."""
    body = "" if method in ("GET", "DELETE") else BODY
    assert code(plain.raw(message(f"/gemini{path}", method=method, body=body))) == 200
    (sent,) = provider.log
    assert sent.line == f"{method} {path} HTTP/1.1"
    assert sent.values("host") == [provider.host.encode()]
    assert sent.body == body.encode()


def test_the_headers_of_a_program_go_up_each_as_often_as_it_came(guarded, provider) -> None:
    """But for those of this hop, and those that `Connection` names."""
    own = ["X-Two: a", "X-Two: b", "Anthropic-Beta: x", "Content-Type: application/json; x=y"]
    hop = ["TE: trailers", "Trailer: X-T", "Keep-Alive: 3", "Proxy-Authorization: Basic hop"]
    named = ["Connection: X-Named", "X-Named: hop", "Proxy-Connection: keep-alive"]
    got = guarded.raw(message(CALL, HAS_TOKEN, *own, *hop, *named, "Expect: 100-continue"))
    assert code(got) == 200
    (sent,) = provider.log
    assert sent.values("x-two") == [b"a", b"b"]
    assert sent.values("anthropic-beta") == [b"x"]
    assert sent.values("content-type") == [b"application/json; x=y"]
    lost = {"te", "trailer", "keep-alive", "proxy-authorization", "proxy-connection", "x-named"}
    assert not {name for name, _ in sent.headers} & (lost | {"expect", "upgrade"})
    assert not sent.holds("hop")


def test_a_cookie_of_one_program_is_not_sent_with_the_request_of_another(plain, provider) -> None:
    """What a reply sets belongs to the program that has asked."""
    provider.answer = lambda _: reply(DONE, "Set-Cookie: who=first; Path=/")
    assert [code(plain.raw(message())) for _ in range(2)] == [200, 200]
    assert [sent.values("cookie") for sent in provider.log] == [[], []]


@pytest.mark.parametrize(
    "name",
    ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "Via", "X-Real-IP"],
)
def test_the_address_of_a_user_never_goes_up(guarded, plain, provider, name) -> None:
    """With a token a proxy may stand in front, and says whose request it is: to the door only."""
    line = f"{name}: 203.0.113.7"
    assert code(guarded.raw(message(CALL, HAS_TOKEN, line))) == 200
    (sent,) = provider.log
    assert not sent.values(name.lower())
    assert not sent.holds("203.0.113.7")
    assert code(plain.raw(message(CALL, line))) == 403


def test_the_name_of_a_workload_is_for_the_door(door, provider, here) -> None:
    """And a request that names one which is not there is not sent."""
    (here / "keys.json").write_text('[{"key_id": "a", "workload": "batch"}]')
    one = door(KEYROT_ALLOWED_HOSTS=provider.host, GEMINI_KEY_a="FAKE-a")
    assert one(X_Keyrot_Workload="batch").status == 200
    assert one(X_Keyrot_Workload="chat").status == 400
    (sent,) = provider.log
    assert not sent.holds("keyrot")
    assert not sent.holds("batch")


def test_requests_go_to_the_gateway_of_a_provider_and_else_to_its_own_host(door, provider) -> None:
    """`KEYROT_ALLOWED_HOSTS` names gateways, some with a path; what is left goes to the provider.

    A proxy of the environment sees where, and lets nothing out.
    """
    hosts = f"openai=https://zz.test/openai,anthropic={provider.url}/gate"
    one = door(
        **provider.env(KEYROT_ALLOWED_HOSTS=hosts, HTTPS_PROXY=provider.url),
        KEYROT_MAX_RETRIES="0",
    )
    provider.answer = lambda sent: reply(
        status="403 Forbidden" if "CONNECT" in sent.line else "200 OK"
    )
    paths = ("/openai/v1/models", "/anthropic/v1/models", "/gemini/v1beta/models")
    assert [one(path, None, "GET").status for path in paths] == [502, 200, 502]
    assert [sent.line for sent in provider.log] == [
        "CONNECT zz.test:443 HTTP/1.1",
        "GET /gate/v1/models HTTP/1.1",
        "CONNECT generativelanguage.googleapis.com:443 HTTP/1.1",
    ]
    assert [sent.holds("FAKE") for sent in provider.log] == [False, True, False]


# What comes back ----------------------------------------------------------------------------------


def test_a_reply_comes_with_its_status_and_headers_but_for_those_of_a_hop(plain, provider) -> None:
    """Each as often as it was sent, and as the bytes that it was."""
    hop = ["Keep-Alive: timeout=3", "Trailer: X-T", "Proxy-Authenticate: Basic"]
    own = ["X-Two: a", "X-Two: b", "Retry-After: 7", "X-Ratelimit-Remaining-Requests: 3"]
    body = b'{"id": "1"}'
    provider.answer = lambda _: reply(body, *own, b"X-Name: Caf\xe9", *hop, status="201 Created")
    got = plain.raw(message())
    lines = got.partition("\r\n\r\n")[0].split("\r\n")
    assert lines[0].startswith("HTTP/1.1 201 ")
    pairs = [line.partition(": ")[::2] for line in lines[1:]]
    named = [(name.lower(), value) for name, value in pairs]
    assert [value for name, value in named if name == "x-two"] == ["a", "b"]
    expected = {("retry-after", "7"), ("x-ratelimit-remaining-requests", "3")}
    assert expected | {("x-name", "Caf\xe9"), ("content-length", "11")} <= set(named)
    assert not {"keep-alive", "trailer", "proxy-authenticate"} & {name for name, _ in named}
    assert content(got) == body.decode()


def test_a_connection_is_kept_though_the_provider_closes_its_own(plain, provider) -> None:
    """Each side of the door has its own connections."""
    connection = http.client.HTTPConnection("127.0.0.1", plain.port, timeout=120)
    with contextlib.closing(connection):
        for _ in range(2):
            connection.request("POST", CALL, BODY)
            assert connection.getresponse().read() == DONE
            used = connection.sock
            assert used is not None
        assert connection.sock is used
    assert len(provider.log) == 2


def test_a_coded_reply_comes_as_it_was_coded(plain, provider) -> None:
    """gzip goes as it is, where the program takes it."""
    coded = gzip.compress(DONE)
    provider.answer = lambda _: reply(coded, "Content-Encoding: gzip")
    got = plain(Accept_Encoding="br, gzip;q=0.5")
    assert provider.log[0].values("accept-encoding") == [b"gzip"]
    assert code(plain.raw(message(CALL, "Accept-Encoding: gzip;q=0, br"))) == 200
    assert provider.log[1].values("accept-encoding") == [b"identity"]
    assert (got.headers["content-encoding"], got.body) == ("gzip", coded)


def test_a_redirect_is_the_programs_to_follow_and_leads_back_to_the_door(plain, provider) -> None:
    """An address of the provider's becomes the door's, and another one stays as it is."""
    asked = "/gemini/v1beta/models"
    lines = [f"Location: {provider.url}/v1beta/x?y=1", f"Content-Location: {provider.url}/z"]
    provider.answer = lambda _: reply(b"", *lines, status="302 Found")
    got = plain(asked, None, "GET")
    assert (got.status, got.headers["location"]) == (302, f"{plain.url}/gemini/v1beta/x?y=1")
    assert got.headers["content-location"] == f"{plain.url}/gemini/z"
    provider.answer = lambda _: reply(b"", "Location: https://other.test/x", status="307 -")
    got = plain(asked, None, "GET")
    assert (got.status, got.headers["location"]) == (307, "https://other.test/x")
    assert len(provider.log) == 2


@pytest.mark.parametrize(
    ("status", "name"), [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (499, "CANCELLED")]
)
def test_an_error_of_the_provider_comes_as_it_was_sent(plain, provider, status, name) -> None:
    """Status and body, for it says what the program did wrong."""
    provider.answer = lambda _: refusal(status, name, "as the provider says it")
    got = plain()
    assert (got.status, got.json["error"]["status"]) == (status, name)
    assert got.json["error"]["message"] == "as the provider says it"


def test_a_stream_comes_byte_for_byte(plain, provider) -> None:
    """Wherever its pieces end, in the middle of a letter too."""
    events = "".join(f': c\r\ndata: {{"n": {n}, "t": "é🙂"}}\n\n' for n in range(200)).encode()
    pieces = [events[at : at + 7] for at in range(0, len(events), 7)]
    provider.answer = lambda _: [STREAM_HEAD, *map(chunk, pieces), chunk(b"")]
    got = plain(STREAM)
    assert (got.status, got.body) == (200, events)
    assert got.headers["content-type"] == "text/event-stream"


def test_a_stream_that_breaks_off_breaks_off_for_the_program_too(plain, provider) -> None:
    """It must not take half of an answer for a whole one."""
    provider.answer = lambda _: [STREAM_HEAD, chunk(b"data: {}\n\n")]
    with pytest.raises(http.client.IncompleteRead):
        plain(STREAM)


def test_a_file_comes_whole(plain, provider) -> None:
    """A download of several MiB has the bytes that were sent."""
    data = bytes(range(256)) * (20 * 1024)
    provider.answer = lambda _: reply(data, "Content-Type: application/octet-stream")
    got = plain("/gemini/download/v1beta/files/a:download?alt=media", None, "GET")
    assert (got.status, got.body == data) == (200, True)


@pytest.mark.parametrize("size", [700, 3 * MIB])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_goes_up_whole(plain, provider, size, chunked) -> None:
    """Small or large, of a length that is named or not."""
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    pieces = [data[at : at + 50_000] for at in range(0, size, 50_000)]
    body = b"".join(map(chunk, [*pieces, b""])) if chunked else data
    assert code(plain.raw(message(UPLOAD, *([CHUNKED] if chunked else []), body=body))) == 200
    assert provider.log[0].body == data


# Who may call -------------------------------------------------------------------------------------

REFUSED = {
    "a page without an origin": (message(CALL, "Origin: null"), 403),
    "a page of the door's own address": (message(CALL, "Origin: http://localhost"), 403),
    "a page of the same site": (message(CALL, "Sec-Fetch-Site: same-site"), 403),
    "two sites, the last of them none": (
        message(CALL, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: none"),
        403,
    ),
    "a name with more behind it": (message(host="[::1]evil"), 403),
    "a name that begins as ours": (message(host="127.0.0.1.evil.test"), 403),
    "a name that ends as ours": (message(host="evil.localhost"), 403),
    "an address of all hosts": (message(host="0.0.0.0"), 403),
    "a user in the name": (message(host="127.0.0.1@evil.test"), 403),
    "no name": (message(host=""), 403),
}
ALLOWED = {
    "localhost and a port": message(host="localhost:1234"),
    "IPv6": message(host="[::1]:1234"),
    "another address of this machine": message(host="127.0.0.2"),
    "a program with a browser inside": message(CALL, "Sec-Fetch-Site: none"),
    "a worker of the same origin": message(CALL, "Sec-Fetch-Site: same-origin"),
}


def test_a_web_page_and_a_foreign_name_get_a_403(plain, provider) -> None:
    """However a browser writes it; and nothing is sent."""
    got = {name: code(plain.raw(request)) for name, (request, _) in REFUSED.items()}
    assert got == {name: status for name, (_, status) in REFUSED.items()}
    assert provider.begun == []


@pytest.mark.parametrize("name", ALLOWED)
def test_programs_of_this_machine_are_served(plain, provider, name) -> None:
    """By each of its names."""
    assert code(plain.raw(ALLOWED[name])) == 200
    assert len(provider.log) == 1


def test_what_proxies_add_gets_a_403_without_a_token(plain, provider) -> None:
    """The names of many kinds of proxies are known."""
    names = [
        *("True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP", "X-Original-Forwarded-For"),
        *("X-Envoy-External-Address", "X-Amzn-Trace-Id", "X-Appengine-User-IP", "X-ARR-SSL"),
        *("X-Azure-ClientIP", "CDN-Loop", "CF-Connecting-IP", "Fastly-Client-IP", "Fly-Client-IP"),
    ]
    got = {name: code(plain.raw(message(CALL, f"{name}: 203.0.113.7"))) for name in names}
    assert got == dict.fromkeys(names, 403)
    assert provider.begun == []


def test_with_a_token_a_proxy_may_speak_http_1_0(guarded, plain, provider) -> None:
    """nginx does by default; without a token it is refused, since it lets everybody in."""
    request = message(CALL, HAS_TOKEN, "X-Forwarded-For: 10.0.0.1", version="1.0")
    assert code(guarded.raw(request)) == 200
    assert code(plain.raw(message(version="1.0"))) == 403
    assert len(provider.log) == 1


def test_a_request_that_names_no_host_gets_a_400(guarded, provider) -> None:
    """HTTP/1.0 allows it; no address could be given back."""
    lines = [f"POST {CALL} HTTP/1.0", HAS_TOKEN, f"Content-Length: {len(BODY)}", "", BODY]
    assert code(guarded.raw("\r\n".join(lines))) == 400
    assert provider.begun == []


def test_a_token_opens_the_door_to_no_page(guarded, provider) -> None:
    """A browser may have been given the token."""
    assert code(guarded.raw(message(CALL, HAS_TOKEN, "Origin: https://x.test"))) == 403
    assert code(guarded.raw(message(CALL, HAS_TOKEN, "Sec-Fetch-Site: cross-site"))) == 403
    assert provider.begun == []


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (CALL, lambda error: (error["error"]["code"], error["error"]["status"])),
        ("/openai/v1/models", lambda error: (401, error["error"]["type"])),
        ("/anthropic/v1/models", lambda error: (401, error["error"]["type"], error["type"])),
    ],
)
def test_a_refusal_is_an_error_as_the_provider_writes_it(guarded, provider, path, where) -> None:
    """So that each SDK raises its own error, with our sentence."""
    got = guarded(path, BODY)
    assert (got.status, got.headers["content-type"]) == (401, "application/json")
    assert where(got.json) in (
        (401, "UNAUTHENTICATED"),
        (401, "authentication_error"),
        (401, "authentication_error", "error"),
    )
    assert "--token-file" in got.json["error"]["message"]
    assert provider.begun == []


def test_probes_need_no_token_and_say_no_more_than_ok(guarded) -> None:
    """Whoever probes has no key; another path has the door's 404."""
    for name in ("healthz", "readyz"):
        got = guarded(f"/{name}", None, "GET")
        assert (got.status, got.json) == (200, {"status": "ok"})
    assert guarded("/healthz/x", None, "GET", X_Goog_Api_Key=TOKEN).status == 404


# The state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before", ["", "import keyrot_middleware; keyrot_middleware.install()"], ids=["alone", "otel"]
)
def test_counts_are_kept_in_a_file_that_status_reads(door, provider, tmp_path, before) -> None:
    """Nothing has to be set for that; a program with `KEYROT_STATE_URL=sqlite` shares it.

    Nor under opentelemetry-instrument, which installs a pool before.
    """
    env = provider.env(XDG_STATE_HOME=str(tmp_path), KEYROT_POOL="mine")
    one = door(before=before, **env, KEYROT_STATE_URL=None)
    assert one().status == 200
    file = tmp_path / "keyrot" / "mine.sqlite3"
    assert file.exists()
    shared = {**env, "KEYROT_STATE_URL": "sqlite"}
    command = [sys.executable, "-m", "keyrot_middleware", "status", "--json"]
    environ = {**os.environ, **shared}
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert "gemini-3.1-flash-lite" in ran.stdout
    one.stop()
    with contextlib.closing(sqlite3.connect(file)) as read:
        assert "gemini-3.1-flash-lite" in "\n".join(read.iterdump())
    again = door(**env, KEYROT_STATE_URL=None, KEYROT_MAX_WAIT_S="0")
    assert again("/readyz", None, "GET").status == 200


def test_no_file_is_made_where_the_state_is_somewhere_else(door, provider, tmp_path) -> None:
    """`KEYROT_STATE_URL` says so."""
    one = door(**provider.env(XDG_STATE_HOME=str(tmp_path)), KEYROT_STATE_URL="memory://")
    assert one().status == 200
    assert not list(tmp_path.rglob("*.sqlite3"))


# Limits of size and time --------------------------------------------------------------------------


def test_four_of_the_largest_bodies_are_read_at_a_time(door, provider) -> None:
    """The others wait until one has ended, and small ones do not wait."""
    one = door(**provider.env())
    request = message(UPLOAD, f"Content-Length: {1 << 30}", body=bytes(3 * MIB // 2))

    def reading() -> int:
        return sum(received > MIB for received in provider.received)

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(one.connect()) for _ in range(8)]
        for client in clients[:4]:
            client.sendall(request)
        wait_for(lambda: reading() == 4)
        for client in clients[4:]:
            threading.Thread(target=_send, args=(client, request), daemon=True).start()
        assert [one().status for _ in range(5)] == [200] * 5
        assert reading() == 4
        clients[0].close()
        wait_for(lambda: reading() == 5)


def _send(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        client.sendall(data)


@pytest.mark.parametrize(("mib", "requests"), [(2, 2), (33, 1)])
def test_a_body_above_32_mib_is_sent_once_and_a_smaller_one_again(
    door, provider, mib, requests
) -> None:
    """What is not kept cannot be sent with another key: the program gets the error."""
    answers = iter([refusal(429, "RESOURCE_EXHAUSTED")])
    provider.answer = lambda _: next(answers, reply())
    env = provider.env(KEYROT_STRATEGY="fill", GEMINI_API_KEYS="FAKE-a,FAKE-b")
    one = door(**env, KEYROT_MAX_WAIT_S="0")
    body = json.dumps({"contents": [{"parts": [{"text": "x" * (mib * MIB)}]}]})
    got = one(CALL, body)
    assert (got.status, len(provider.begun)) == (200 if requests == 2 else 429, requests)
    assert {len(sent.body) for sent in provider.log} == {len(body)}


def test_bodies_of_a_few_mib_take_no_more_than_their_size(door, provider) -> None:
    """Eight of them that stop leave room for a ninth."""
    before = "import keyrot_middleware.serve.body as body; body.IDLE_S = 600.0"
    one = door(**provider.env(), before=before)
    body = json.dumps({"contents": [{"parts": [{"text": "x" * MIB}]}]})
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(one.connect())
            client.sendall(message(CALL, f"Content-Length: {2 * MIB}", body="{"))
        assert one(CALL, body).status == 200


def test_a_body_takes_its_room_until_the_provider_answers(door, provider) -> None:
    """A long stream does not keep others out."""
    done = threading.Event()

    def stream(_: Sent) -> Iterator[bytes]:
        yield STREAM_HEAD + chunk(b"data: {}\n\n")
        done.wait()

    body = chunk(json.dumps({"contents": [], "x": "x" * (2 * MIB)}).encode()) + chunk(b"")
    provider.answer = stream
    one = door(**provider.env())
    with contextlib.ExitStack() as stack:
        stack.callback(done.set)
        for _ in range(6):
            client = stack.enter_context(one.connect())
            client.sendall(message(STREAM, CHUNKED, body=body))
            assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_waits_for_room_too_long_gets_a_503(door, provider) -> None:
    """After five minutes, which are shorter here; it says when to come again."""
    before = "import keyrot_middleware.serve.body as body; body.SPACE_S = 0.5"
    one = door(**provider.env(), before=before)
    request = message(UPLOAD, f"Content-Length: {1 << 30}", body=bytes(3 * MIB // 2))
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(one.connect()).sendall(request)
        wait_for(lambda: sum(received > MIB for received in provider.received) == 4)
        fifth = stack.enter_context(one.connect())
        fifth.sendall(request[:-MIB])
        got = fifth.recv(65_536).lower()
    assert (got.startswith(b"http/1.1 503 "), b"\r\nretry-after: " in got) == (True, True)
    assert len(provider.begun) == 4


def test_a_body_above_32_mib_goes_on_before_it_has_ended(door, provider) -> None:
    """As it comes; what of it is there is sent."""
    one = door(**provider.env())
    size = 40 * MIB
    with one.connect() as client:
        client.sendall(message(CALL, f"Content-Length: {size}", body=b" " * (size - 1)))
        wait_for(lambda: sum(provider.received) > 0)
        assert provider.log == []
        client.sendall(b" ")
        wait_for(lambda: provider.log)
        assert len(provider.log[0].body) == size


def test_a_body_above_4_gib_is_refused_before_it_is_read(plain, provider) -> None:
    """By its length alone."""
    with plain.connect() as client:
        client.sendall(message(CALL, f"Content-Length: {5 << 30}", body="x"))
        assert client.recv(65_536).startswith(b"HTTP/1.1 413 ")
    assert provider.begun == []


def test_a_body_of_no_length_has_the_same_bound(door, provider) -> None:
    """It is refused when so much has come, which is less here; the provider gets it not whole."""
    before = f"import keyrot_middleware.serve.body as body; body.LARGEST = {2 * MIB}"
    one = door(**provider.env(), before=before)
    pieces = b"".join(map(chunk, [bytes(MIB)] * 3))
    with one.connect() as client:
        _send(client, message(UPLOAD, CHUNKED, body=pieces))
        assert client.recv(65_536).startswith(b"HTTP/1.1 413 ")
    assert provider.log == []


def test_a_program_that_takes_nothing_of_a_reply_is_left(door, provider) -> None:
    """After five minutes, which are shorter here; the provider's connection is closed too."""
    left = threading.Event()

    def endless(_: Sent) -> Iterator[bytes]:
        try:
            yield STREAM_HEAD
            while True:
                yield chunk(b"data: {}\n\n" * 10_000)
        finally:
            left.set()

    provider.answer = endless
    before = "import keyrot_middleware.serve.server as server; server.TAKE_S = 0.5"
    one = door(**provider.env(), before=before)
    with one.connect() as client:
        client.sendall(message(STREAM))
        assert left.wait(120)


def test_a_provider_may_be_silent_for_longer_than_libraries_wait(plain, provider) -> None:
    """How long a reply may take is the program's own timeout: httpx's default is five seconds."""

    def silent(_: Sent) -> Iterator[bytes]:
        time.sleep(5.5)
        yield reply()

    provider.answer = silent
    assert plain().status == 200


def test_a_connection_to_the_provider_that_fails_is_a_502(door, provider) -> None:
    """In words of the door, as an error of the provider."""
    provider.answer = lambda _: b""
    one = door(**provider.env(), KEYROT_MAX_RETRIES="0")
    got = one()
    assert (got.status, got.json["error"]["code"]) == (502, 502)
    assert "connection to the provider" in got.json["error"]["message"]
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # which is closed again
        port = nobody.getsockname()[1]
    hosts = ",".join(f"{name}=http://127.0.0.1:{port}" for name in HOME)
    one = door(**provider.env() | {"KEYROT_ALLOWED_HOSTS": hosts}, KEYROT_MAX_RETRIES="0")
    said = "keyrot serve: the connection to the provider failed: the connection is refused"
    assert one().json["error"]["message"] == said


def test_a_provider_that_does_not_answer_in_time_is_a_504(door, provider) -> None:
    """After an hour, which is shorter here."""
    done = threading.Event()

    def silent(_: Sent) -> Iterator[bytes]:
        done.wait(60)
        yield b""

    provider.answer = silent
    soon = "\n ".join(
        [
            "import httpx\nclass Soon(httpx.Timeout):",
            "def __init__(self, *args, **more):",
            " super().__init__(0.5)",
        ]
    )
    before = f"{soon}\nhttpx.Timeout = Soon"
    got = door(**provider.env(), KEYROT_MAX_RETRIES="0", before=before)()
    done.set()
    assert (got.status, "in time" in got.json["error"]["message"]) == (504, True)


def test_a_call_waits_for_a_key_as_a_python_program_does(door, provider) -> None:
    """Where the only key is free again in a second."""
    body = b'{"error": {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED"}}'
    limited = reply(body, "Retry-After: 1", status="429 -")
    answers = iter([limited])
    provider.answer = lambda _: next(answers, reply())
    assert door(**provider.env())().status == 200
    assert len(provider.log) == 2


# Whether it serves, and how it ends ---------------------------------------------------------------


def test_it_is_not_ready_while_calls_fail_and_is_again_when_they_succeed(door, provider) -> None:
    """A provider that is down is nothing a caller could do about; the process still lives."""
    one = door(**provider.env(), KEYROT_MAX_RETRIES="0")
    provider.answer = lambda _: b""
    assert [one().status for _ in range(3)] == [502] * 3
    assert one("/readyz", None, "GET").status == 503
    assert one("/healthz", None, "GET").status == 200
    provider.answer = lambda _: reply()
    assert [one().status for _ in range(3)] == [200] * 3
    assert one("/readyz", None, "GET").status == 200


def test_it_is_not_ready_while_its_only_key_is_rejected_and_is_if_another_is_not(
    door, provider
) -> None:
    """Of two keys one is enough; a refusal of the request itself is no reason."""
    bad = refusal(403, "PERMISSION_DENIED", "Your API key was reported as leaked.")
    keys = {"KEYROT_STRATEGY": "fill", "KEYROT_MAX_WAIT_S": "0"}
    one = door(**provider.env(**keys, GEMINI_API_KEYS="FAKE-a,FAKE-b"))
    provider.answer = lambda sent: bad if sent.holds("FAKE-a") else reply()
    assert one().status == 200
    assert one("/readyz", None, "GET").status == 200
    provider.answer = lambda _: bad
    assert one().status == 403
    assert one("/readyz", None, "GET").status == 503


LAST = b'data: {"n": 2}\n\n'


@pytest.mark.parametrize("path", [CALL, STREAM])
def test_a_reply_in_flight_comes_whole_after_sigterm(door, provider, path) -> None:
    """No new request is taken meanwhile; then the process ends, and says nothing."""
    go_on = threading.Event()

    def slow(_: Sent) -> Reply:
        if path == STREAM:
            yield STREAM_HEAD + chunk(b"data: {}\n\n")
        go_on.wait(60)
        yield chunk(LAST) + chunk(b"") if path == STREAM else reply()

    provider.answer = slow
    one = door(**provider.env())
    got: list[bytes] = []
    with one.connect() as client:
        client.sendall(message(path))
        wait_for(lambda: provider.log)
        if path == STREAM:
            got.append(client.recv(65_536))
        one.process.send_signal(signal.SIGTERM)
        wait_for(lambda: _refuses(one))
        time.sleep(0.5)  # it is not cut a moment later
        go_on.set()
        got += iter(lambda: client.recv(65_536), b"")
    text = b"".join(got)
    assert text.startswith(b"HTTP/1.1 200 ")
    assert text.endswith(DONE if path == CALL else chunk(LAST) + chunk(b""))
    assert "Traceback" not in one.process.communicate(timeout=120)[1]
    assert one.process.returncode == 0


def _refuses(one: Door) -> bool:
    try:
        with one.connect():
            return False
    except ConnectionError:
        return True


def test_no_body_is_logged(door, provider, tmp_path) -> None:
    """Neither a prompt nor an answer is in what it prints or in its file, whatever happens."""
    one = door(**provider.env(XDG_STATE_HOME=str(tmp_path)), KEYROT_STATE_URL=None)
    prompt = BODY.replace("Hi", "PROMPT-OF-A-USER")
    answers: list[Callable[[Sent], Reply]] = [
        lambda _: reply(DONE.replace(b"ok", b"ANSWER-OF-A-MODEL")),
        lambda _: refusal(400, "INVALID_ARGUMENT"),
        lambda _: refusal(500, "INTERNAL"),
        lambda _: b"",
        lambda _: [STREAM_HEAD, chunk(b"data: ANSWER-OF-A-MODEL\n\n")],
    ]
    for answer in answers:
        provider.answer = answer
        with contextlib.suppress(http.client.IncompleteRead):
            one(STREAM, prompt)
    one("/gemini/v1beta/nothing", prompt)
    assert len(provider.log) >= len(answers)
    written = "\n".join(one.lines) + one.stop()
    for file in tmp_path.rglob("*.sqlite3*"):
        written += file.read_bytes().decode("latin-1")
    assert "gemini-3.1-flash-lite" in written  # the file was read
    assert "PROMPT-OF-A-USER" not in written
    assert "ANSWER-OF-A-MODEL" not in written


# Keys, headers and methods ------------------------------------------------------------------------

HOME = {
    "gemini": ("X-Goog-Api-Key: {}", CALL),
    "openai": ("Authorization: Bearer {}", "/openai/v1/chat/completions"),
    "anthropic": ("X-Api-Key: {}", "/anthropic/v1/messages"),
}
"""Where a program of each provider sends its key."""
PLACES = {
    "api-key": "Api-Key: {}",
    "x-api-key": "X-Api-Key: {}",
    "x-goog-api-key": "X-Goog-Api-Key: {}",
    "authorization": "Authorization: Bearer {}",
    "authorization without a scheme": "Authorization: {}",
    "bearer twice": "Authorization: Bearer Bearer {}",
    "in quotes": 'Authorization: Bearer "{}"',
    "key": "?key={}",
    "an escape in key": "?%6bey={}",
    "another escape in key": "?alt=json&ke%79={}",
    "api_key": "?api_key={}",
    "access_token": "?access_token={}",
}
"""Where else a key may be."""
PLACES_OF_TOKEN = PLACES | {
    "X-Secret": "X-Secret: {}",
    "Helicone-Auth": "Helicone-Auth: Bearer {}",
    "sig": "?sig={}",
    "two in one": "?alt=json;key={}",
}
"""And where it is known by its value alone."""
CHAT = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]})
OWN_KEYS = {
    "gemini": "AIza" + "FAKE-key-of-a-program-that-moved-0",
    "openai": "sk-proj-" + "FAKE-key-of-a-program-that-moved-1",
}


def keyed(name: str, place: str, value: str, *lines: str) -> bytes:
    """Return a call with a key in a place."""
    _, path = HOME[name]
    where = PLACES_OF_TOKEN[place].format(value)
    if where.startswith("?"):
        path += where
    else:
        lines += (where,)
    return message(path, *lines, body=BODY if name == "gemini" else CHAT)


@pytest.mark.parametrize("place", PLACES_OF_TOKEN)
@pytest.mark.parametrize("name", HOME)
def test_a_token_goes_up_in_no_place(guarded, provider, name, place) -> None:
    """Clients send theirs in two places, such as `api-key` beside `Authorization`."""
    home = HOME[name][0].format(TOKEN)
    assert code(guarded.raw(keyed(name, place, TOKEN, home))) == 200
    (sent,) = provider.log
    assert not sent.holds(TOKEN)
    assert sent.holds(f"FAKE-of-{name}")


@pytest.mark.parametrize("whose", OWN_KEYS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOME)
def test_a_real_key_is_refused_in_each_place(plain, provider, name, place, whose) -> None:
    """A program that sends its own key is set up wrongly, whichever provider's it is."""
    got = plain.raw(keyed(name, place, OWN_KEYS[whose], "User-Agent: x"))
    assert (code(got), "keyrot-pool" in got, provider.begun) == (401, True, [])
    assert OWN_KEYS[whose] not in got


@pytest.mark.parametrize("place", PLACES)
def test_a_login_that_has_no_shape_of_a_key_does_not_go_up_either(plain, provider, place) -> None:
    """Nor does any other text in a place of a key."""
    login = "ya29.FAKE-login-of-a-program"
    assert code(plain.raw(keyed("openai", place, login))) == 200
    assert not provider.log[0].holds(login)


@pytest.mark.parametrize(
    "name",
    [
        *("True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP", "X-Original-Forwarded-For"),
        *("X-Envoy-External-Address", "X-Appengine-User-IP", "X-Azure-ClientIP"),
        *("CF-Connecting-IP", "Fastly-Client-IP", "Fly-Client-IP"),
    ],
)
def test_no_other_header_of_a_proxy_goes_up(guarded, provider, name) -> None:
    """By which a request is refused without a token, an address of a user is sent on with none."""
    assert code(guarded.raw(message(CALL, HAS_TOKEN, f"{name}: 203.0.113.7"))) == 200
    assert not provider.log[0].holds("203.0.113.7")


@pytest.mark.parametrize(("said", "scheme"), [("https", "https"), ("http", "http"), (None, "http")])
def test_the_address_of_an_upload_has_the_scheme_that_the_program_used(
    guarded, provider, said, scheme
) -> None:
    """A server with TLS in front says so; the token would go in clear otherwise."""
    address = f"{provider.url}/upload/v1beta/files?upload_id=abc"
    provider.answer = lambda _: reply(b"", f"X-Goog-Upload-URL: {address}")
    begin = ["X-Goog-Upload-Protocol: resumable", "X-Goog-Upload-Command: start"]
    forwarded = [f"X-Forwarded-Proto: {said}"] if said else []
    got = guarded.raw(message(BEGIN, HAS_TOKEN, *begin, *forwarded, body="{}"))
    there = f"{scheme}://localhost/gemini/upload/v1beta/files?upload_id=abc"
    assert f"x-goog-upload-url: {there}\r\n" in got


@pytest.mark.parametrize(
    "line",
    [b"X-Title: Caf\xe9", "X-Title: Café".encode(), "User-Agent: Zoë/1".encode("latin-1")],
)
def test_a_header_goes_up_as_the_bytes_that_it_is(plain, provider, line) -> None:
    """A title of OpenRouter's may have any letter."""
    assert code(plain.raw(message(CALL, line))) == 200
    name, _, value = line.partition(b": ")
    assert provider.log[0].values(name.decode().lower()) == [value]


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PROPFIND", "post", "X" * 500])
def test_another_method_gets_a_405_that_names_those_that_are_served(
    plain, provider, method
) -> None:
    """None of an API has another one, and nothing is sent."""
    got = plain.raw(message(method=method))
    assert (code(got), provider.begun) == (405, [])
    (allow,) = [line for line in got.split("\r\n") if line.lower().startswith("allow: ")]
    named = set(allow.partition(": ")[2].replace(" ", "").split(","))
    assert named - {"HEAD"} == {"GET", "POST", "PUT", "PATCH", "DELETE"}


def test_the_head_of_what_get_reads_is_served(plain, provider) -> None:
    """It is sent on as it is, and its answer has no body."""
    got = plain.raw(message("/gemini/v1beta/models", method="HEAD", body=""))
    assert (code(got), content(got)) == (200, "")
    assert provider.log[0].line == "HEAD /v1beta/models HTTP/1.1"


# Addresses ----------------------------------------------------------------------------------------


def test_a_404_names_what_was_asked_and_what_is_near(plain, provider) -> None:
    """So that one sees which part of an address is wrong."""
    path = "/gemini/v1/chat/completions"
    said = plain(path, CHAT).json["error"]["message"]
    assert f"POST {path}" in said
    assert "/openai/v1/chat/completions" in said
    said = str(plain("/nothing", None, "GET").json)
    assert "GET /nothing" in said
    assert all(f"/{name}/" in said for name in HOME)
    assert provider.begun == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gemini/nothing"),
        ("DELETE", "/gemini/nothing"),
        ("POST", "/gemini/nothing:here"),
        ("POST", "/gemini/v1beta/m:generateContent"),
        ("GET", "/gemini"),
        ("GET", "/openai/"),
    ],
)
def test_what_is_in_no_table_is_never_sent(plain, provider, method, path) -> None:
    """Below the version neither: a word is not the name of a model."""
    assert (plain(path, "{}", method).status, provider.begun) == (404, [])


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("/anthropic/messages", "/v1/messages"),
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/gemini/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/gemini/openai/chat/completions", "/v1beta/openai/chat/completions"),
        ("/anthropic/anthropic/v1/messages", "/v1/messages"),
    ],
)
def test_a_path_without_its_version_is_served_with_it(plain, provider, asked, sent) -> None:
    """Some clients take an address with `/v1` by the same variable as others one without.

    And one puts the path of that address before an address that the door has written.
    """
    assert plain(asked, CHAT).status == 200
    assert provider.log[0].line == f"POST {sent} HTTP/1.1"


LIVE = "/gemini/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"


def test_a_program_that_wants_live_can_read_why_it_is_not_served(plain, provider) -> None:
    """Clients show the reason of a websocket's close; a page gets a 403 as ever."""
    address = f"ws://127.0.0.1:{plain.port}{LIVE}?key=keyrot-pool"
    with connect(address) as session, pytest.raises(ConnectionClosed) as closed:
        session.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    assert "neither Live nor Realtime" in closed.value.rcvd.reason
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, origin="https://x.test")
    assert provider.begun == []


def test_an_offer_of_http_2_is_passed_over(plain, provider) -> None:
    """Java's client makes one with each request in clear."""
    lines = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]
    assert code(plain.raw(message(CALL, *lines))) == 200
    assert not provider.log[0].holds("h2c")


# Bodies that take long ----------------------------------------------------------------------------


def test_small_bodies_that_stop_keep_nobody_out(door, provider) -> None:
    """Node and Go stream prompts of 100 bytes; only a body above 1 MiB is a large one."""
    before = "import keyrot_middleware.serve.body as body; body.IDLE_S = 600.0"
    one = door(**provider.env(), before=before)
    assert one().status == 200  # it answers at once from now on
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(one.connect())
            client.sendall(message(CALL, CHUNKED, body=chunk(b'{"contents": ')))
        client = stack.enter_context(one.connect())
        client.sendall(message(CALL, CHUNKED, body=chunk(BODY[:9].encode())))
        time.sleep(0.3)  # it is read in two pieces, as from a program that makes them
        client.sendall(chunk(BODY[9:].encode()) + chunk(b""))
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert len(provider.begun) == 2
        assert [sent.body for sent in provider.log] == [BODY.encode()] * 2


STOPPED = {
    "a small body": message(CALL, "Content-Length: 100", body="{"),
    "a chunked one": message(CALL, CHUNKED, body=chunk(b"{")),
    "a large one": message(UPLOAD, f"Content-Length: {1 << 30}", body=bytes(2 * MIB)),
    "a large chunked one": message(UPLOAD, CHUNKED, body=chunk(bytes(2 * MIB))),
}


def test_a_body_that_stops_gets_a_408(door, provider) -> None:
    """After a minute, which is shorter here; the provider gets none of it as a whole."""
    before = "import keyrot_middleware.serve.body as body; body.IDLE_S = 0.5"
    one = door(**provider.env(), before=before)
    assert {name: code(one.raw(request)) for name, request in STOPPED.items()} == dict.fromkeys(
        STOPPED, 408
    )
    assert provider.log == []


def test_a_body_that_comes_a_byte_at_a_time_gets_a_408_too(door, provider) -> None:
    """It has a bound in all, not only between two pieces."""
    before = "import keyrot_middleware.serve.body as body; body.BODY_S = 1.0"
    one = door(**provider.env(), before=before)
    with one.connect() as client:
        client.sendall(message(CALL, f"Content-Length: {MIB}", body="{"))
        until = time.monotonic() + 60
        while not select.select([client], [], [], 0.1)[0]:
            assert time.monotonic() < until, "it reads on"
            _send(client, b" ")
        assert client.recv(65_536).startswith(b"HTTP/1.1 408 ")
    assert provider.begun == []


def test_a_body_may_take_longer_the_larger_it_is(door, provider) -> None:
    """A slow line is no attack: what has come already gives it time."""
    before = "import keyrot_middleware.serve.body as body; body.BODY_S = 0.5"
    one = door(**provider.env(), before=before)
    with one.connect() as client:
        client.sendall(message(UPLOAD, f"Content-Length: {2 * MIB}", body=bytes(2 * MIB - 1)))
        time.sleep(1.5)
        client.sendall(b"x")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
    assert len(provider.log[0].body) == 2 * MIB


def test_the_time_that_others_take_is_not_that_of_a_body(monkeypatch) -> None:
    """It waits for space, for a key, and for a provider that reads slowly."""
    monkeypatch.setattr("keyrot_middleware.serve.body.BODY_S", 30.0)
    monkeypatch.setattr("keyrot_middleware.serve.body.monotonic", lambda: clock[0])
    sent, clock = itertools.count(1), [0.0]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"a", "more_body": next(sent) < 5}

    async def read() -> bytes:
        pieces = b""
        async for piece in RequestBody(receive, None).rest(b""):
            pieces += piece
            clock[0] += 100.0
        return pieces

    assert asyncio.run(read()) == b"aaaaa"


@pytest.mark.parametrize("reason", ["no token", "the provider", "no such path"])
def test_an_upload_that_is_refused_gets_the_answer(guarded, plain, provider, reason) -> None:
    """Many clients send all of it before they read: no reset may take the answer away."""
    size, path, expected = 60_000_000, UPLOAD, {"no token": 401, "no such path": 404}
    one = plain if reason == "the provider" else guarded
    lines = [f"Content-Length: {size}"]
    if reason == "no such path":
        path = "/gemini/v1beta/nothing"
        lines.append(HAS_TOKEN)
    provider.early = lambda _: refusal(413, "INVALID_ARGUMENT", "too large")
    got = one.raw(message(path, *lines, body=bytes(size)))
    assert code(got) == expected.get(reason, 413)
    assert json.loads(content(got))["error"]["message"]
