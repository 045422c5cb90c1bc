"""Programs in any language over the pool: each gets what the provider sends, and no key."""

import json
import shutil
import socket
import subprocess
import threading

import pytest
from door import BODY, CALL, over
from support.json_server import JsonServer, Request, Response
from support.raw_server import RawServer, answer, chunk

import keyrot_middleware
from keyrot_middleware.testing import FakeAnthropic, FakeGemini, FakeOpenAI, Reply, Scripted

CHAT = json.dumps({"model": "gpt-5", "messages": [{"role": "user", "content": "Hi"}]})
CLAUDE = json.dumps({**json.loads(CHAT), "model": "claude-opus-5", "max_tokens": 9})
WAYS = {
    "gemini": (FakeGemini, CALL, BODY),
    "openai": (FakeOpenAI, "/openai/v1/chat/completions", CHAT),
    "anthropic": (FakeAnthropic, "/anthropic/v1/messages", CLAUDE),
}
LIMITED = {"message": "Too many", "type": "rate_limit_error", "code": "rate_limit_exceeded"}


@pytest.fixture
def service():
    with FakeGemini() as server:
        yield server


def more(connection: socket.socket) -> bytes:
    """Return what comes next; a connection that has ended fails the test, which would wait."""
    piece = connection.recv(65_536)
    assert piece, "the connection has ended"
    return piece


@pytest.mark.parametrize("provider", WAYS)
def test_each_bad_key_costs_one_request(provider, door, here) -> None:
    """An exhausted and an invalid key are met once, and none of 20 calls fails."""
    fake, path, body = WAYS[provider]
    with fake() as server:
        values = {f"KEYROT_KEY_{label}": server.add_key(label).value for label in "ABC"}
        entries = [{"key_id": label, "provider": provider} for label in "ABC"]
        (here / "keys.json").write_text(json.dumps(entries))
        is_gemini = provider == "gemini"
        an_hour = (("retry-after", "3600"),)  # longer than 20 calls take on a busy machine
        limited = Scripted(429, lambda _: {"error": LIMITED}, headers=an_hour)
        server.always("A", Reply.QUOTA_DAY if is_gemini else limited)
        if is_gemini:
            server.always("B", Reply.KEY_INVALID)
        else:
            server.remove_key("B")
        host = server.host if is_gemini else f"{provider}={server.url}"
        open_door = door(KEYROT_ALLOWED_HOSTS=host, KEYROT_STRATEGY="fill", **values)
        assert {open_door(path, body).status for _ in range(20)} == {200}
        refused = "B" if is_gemini else None  # a key that was removed has no label
        assert [server.sent(label) for label in ("A", refused, "C")] == [1, 1, 20]


def test_an_error_in_a_200_goes_to_another_key_through_the_door(door) -> None:
    """As for programs in Python: the client sees the reply of the key that works."""
    values = [f"gsk_FAKE{letter}7Zx9Lm3Np5Rt8Vw2Yb4Dd6Ff0q7Zx9Lm3Np" for letter in "AB"]
    reply = {"choices": [{"message": {"content": "Hi"}}]}

    def answer(request: Request) -> Response:
        is_bad = values[0] in request.headers["authorization"]
        return Response(200, {"code": 1113, "msg": "no money"} if is_bad else reply)

    with JsonServer(answer) as server:
        env = {"KEYROT_ALLOWED_HOSTS": f"groq={server.url}", "GROQ_API_KEYS": ",".join(values)}
        one = door(**env, KEYROT_STRATEGY="fill")
        got = one("/groq/openai/v1/chat/completions", CHAT)
        assert (got.status, got.json, len(server.requests)) == (200, reply, 2)


def test_curl_is_served_by_the_line_that_is_printed(door, service) -> None:
    """The command that stands in the output works, and the variables name the door."""
    one = door(**over(service, "A"))
    assert f"GOOGLE_GEMINI_BASE_URL={one.url}/gemini" in one.lines
    command = next(line for line in one.lines if "curl" in line).partition(": ")[2]
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert "ok from A" in ran.stdout
    assert service.count() == 1


def test_no_project_of_a_program_goes_up(door, service) -> None:
    """Google would answer about that project, and the pool would switch its keys off."""
    one = door(**over(service, "A"))
    path = f"{CALL}?$userProject=theirs&quotaUser=u"
    assert one(path, X_Goog_User_Project="theirs", X_Custom="kept").status == 200
    [sent] = service.log
    assert (sent.header_values("x-goog-user-project"), sent.header_values("x-custom")) == (
        [],
        ["kept"],
    )
    assert sent.path.endswith("?quotaUser=u")


def test_a_stream_comes_as_it_is_sent(door) -> None:
    """An event reaches the client before the next one exists."""
    go_on = threading.Event()

    def talk(connection: socket.socket, key: str) -> None:
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        )
        connection.sendall(f"{head}Set-Cookie: a=b\r\nConnection: close\r\n\r\n".encode())
        connection.sendall(chunk(b"data: {}\n\n"))
        assert go_on.wait(60)
        connection.sendall(chunk(b"data: {}\n\n") + chunk(b""))

    server = RawServer(talk)
    try:
        one = door(KEYROT_ALLOWED_HOSTS=server.host, GEMINI_API_KEYS="FAKE-a")
        path = CALL.replace("generateContent", "streamGenerateContent?alt=sse")
        with socket.create_connection(("127.0.0.1", one.port), timeout=120) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(BODY)}\r\n\r\n"
            client.sendall(f"{head}{BODY}".encode())
            got = b""
            while b"data: {}" not in got:
                got += more(client)
            assert b"set-cookie" not in got.lower()
            go_on.set()
            while not got.endswith(b"0\r\n\r\n"):
                got += more(client)
            assert got.count(b"data: {}") == 2
    finally:
        go_on.set()
        server.close()


def test_a_client_that_leaves_ends_its_request(door, here) -> None:
    """The provider's connection is closed, and the only lease of the key is there for the next."""
    asked, left = threading.Event(), threading.Event()

    def talk(connection: socket.socket, key: str) -> None:
        if asked.is_set():
            connection.sendall(answer(b"{}", status="200 OK"))
            return
        asked.set()
        connection.recv(1)
        left.set()

    server = RawServer(talk)
    try:
        (here / "keys.json").write_text('[{"key_id": "a", "max_concurrency": 1}]')
        one = door(KEYROT_ALLOWED_HOSTS=server.host, GEMINI_KEY_a="FAKE-a", KEYROT_MAX_WAIT_S="0")
        with socket.create_connection(("127.0.0.1", one.port)) as client:
            head = f"POST {CALL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n"
            client.sendall(f"{head}{BODY}".encode())
            assert asked.wait(60)
        assert left.wait(60)
        assert one().status == 200
    finally:
        server.close()


def test_a_large_body_is_not_collected(door) -> None:
    """Its bytes reach the provider before the last ones exist; a client that leaves ends that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        host = f"127.0.0.1:{server.getsockname()[1]}"
        one = door(KEYROT_ALLOWED_HOSTS=host, GEMINI_API_KEYS="FAKE-a")
        with socket.create_connection(("127.0.0.1", one.port)) as client:
            head = "POST /gemini/upload/v1beta/files?upload_id=1 HTTP/1.1\r\nHost: localhost\r\n"
            client.sendall(f"{head}Content-Length: {1 << 30}\r\n\r\n{'x' * 99_999}".encode())
            provider, _ = server.accept()
            provider.settimeout(60)
            got = b""
            while got.count(b"x") < 99_999:
                got += more(provider)
        with provider:
            assert not provider.recv(65_536)


def test_programs_of_this_host_share_one_limit(door, service, here, monkeypatch) -> None:
    """A door and this Python program over one file: 20 requests of 20 a day, and not one more."""
    (here / "keys.json").write_text('[{"key_id": "a", "rpd": 20}]')
    env = {
        "GEMINI_KEY_a": service.add_key("a", tier="paid").value,
        "KEYROT_ALLOWED_HOSTS": service.host,
        "KEYROT_STATE_URL": f"sqlite:///{here}/state",
        "KEYROT_MAX_WAIT_S": "0",
    }
    one = door(**env)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    keyrot_middleware.install()
    try:
        from google import genai

        for _ in range(12):
            assert one().status == 200
        with genai.Client(http_options=service.http_options) as client:
            for _ in range(8):
                client.models.generate_content(model="gemini-3.1-flash-lite", contents="Hi")
            refused = one()
            assert (refused.status, refused.json["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
            assert int(refused.headers["retry-after"]) > 0
            with pytest.raises(keyrot_middleware.KeyPoolExhausted):
                client.models.generate_content(model="gemini-3.1-flash-lite", contents="Hi")
        assert service.count() == 20
    finally:
        keyrot_middleware.uninstall()


def test_an_upload_goes_through_the_door(door, service) -> None:
    """The address of its bytes is the door's, and the file belongs to the key that began it."""
    one = door(**over(service, "A", "B"))
    begin = {"X_Goog_Upload_Protocol": "resumable", "X_Goog_Upload_Command": "start"}
    size = {"X_Goog_Upload_Header_Content_Length": "5", "Content_Type": "application/json"}
    begun = one("/gemini/upload/v1beta/files", "{}", **begin, **size)
    address = begun.headers["x-goog-upload-url"]
    assert address.startswith(f"{one.url}/gemini/upload/v1beta/files?")
    finish = {"X_Goog_Upload_Command": "upload, finalize", "X_Goog_Upload_Offset": "0"}
    done = one(address.removeprefix(one.url), "hello", **finish)
    name = done.json["file"]["name"]
    assert one(f"/gemini/v1beta/{name}", None, "GET").json["name"] == name
    assert {request.key for request in service.log} == {service.log[0].key}


def test_only_what_belongs_to_the_request_goes_on(door) -> None:
    """No cookie, login, address or hop-by-hop header passes in either direction."""
    reply = {"Set-Cookie": "a=b", "Alt-Svc": "h3", "Server": "x", "X-Request-Id": "7"}
    with JsonServer(lambda request: Response(200, {"ok": True}, reply)) as server:
        one = door(KEYROT_ALLOWED_HOSTS=server.host, GEMINI_API_KEYS="FAKE-a")
        given = {
            "Cookie": "c=d",
            "Referer": "http://x.test/",
            "Connection": "x-mine",
            "X_Mine": "1",
            "Authorization": "Bearer something",
            "X_Goog_Api_Key": "something",
            "Sec_Fetch_Mode": "cors",
            "Accept_Encoding": "br, zstd",
            "User_Agent": "curl/8",
        }
        got = one(f"{CALL}?key=something&x=1", **given)
        assert got.json == {"ok": True}
        assert got.headers["x-request-id"] == "7"
        assert not {"set-cookie", "alt-svc", "server"} & {name.lower() for name in got.headers}
        (request,) = server.requests
        sent = set(request.headers)
        assert not {"cookie", "referer", "x-mine", "authorization", "sec-fetch-mode"} & sent
        assert request.headers["x-goog-api-key"] == "FAKE-a"
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["user-agent"] == "curl/8"
        assert "something" not in str(request)


def test_a_workload_is_named_by_a_header(door, service, here) -> None:
    """The keys of that workload are used first, and a name that nobody configured is refused."""
    (here / "keys.json").write_text(
        '[{"key_id": "a"}, {"key_id": "b", "workload": "batch"}, {"key_id": "c"}]'
    )
    values = {f"GEMINI_KEY_{k}": service.add_key(k, tier="paid").value for k in "abc"}
    one = door(KEYROT_ALLOWED_HOSTS=service.host, **values)
    assert [one(X_Keyrot_Workload="batch").status for _ in range(4)] == [200] * 4
    assert service.sent("b") == 4
    assert "there is batch" in one(X_Keyrot_Workload="chat").json["error"]["message"]


def test_it_says_whether_it_is_ready_and_ends_with_its_last_call(door, service) -> None:
    """`/readyz` turns when no key can serve; SIGTERM ends the process quietly."""
    one = door(**over(service, "A"))
    assert [one(f"/{name}", None, "GET").status for name in ("healthz", "readyz")] == [200, 200]
    service.always("A", Reply.KEY_INVALID)
    refused = one()
    assert (refused.status, service.key("A").value in refused.body.decode()) == (400, False)
    assert one("/readyz", None, "GET").status == 503
    assert "Traceback" not in one.stop()
    assert one.process.returncode == 0
