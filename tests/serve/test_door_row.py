"""The row of the door in the table of what a program can look at: one cell, one test or a reason.

tests/clients/http_libraries/test_what_programs_see.py has the rows of the libraries.
"""

import gzip
import importlib
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from door import BODY, CALL, message, over
from support.json_server import JsonServer, Request, Response
from support.raw_server import RawServer, answer

from keyrot_middleware import providers
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.serve.upstream import Upstream, sender_to
from keyrot_middleware.testing import FakeGemini

CELLS = {
    "head": "test_door_promises:"
    "test_a_reply_comes_with_its_status_and_headers_but_for_those_of_a_hop",
    "body": "test_door_promises:test_a_body_goes_up_whole",
    "echo in every coding": "test_door_row:test_no_coding_of_a_reply_shows_the_key",
    "redirect": "test_door_promises:"
    "test_a_redirect_is_the_programs_to_follow_and_leads_back_to_the_door",
    "upload address": "test_door_promises:"
    "test_the_address_of_an_upload_has_the_scheme_that_the_program_used",
    "leave": "test_serve:test_a_client_that_leaves_ends_its_request",
    "stop": "test_door_promises:test_a_reply_in_flight_comes_whole_after_sigterm",
    "pipelining": "test_door_row:test_requests_on_one_connection_are_answered_in_their_order",
    "method": "test_door_promises:test_another_method_gets_a_405_that_names_those_that_are_served",
    "header names": "test_door_promises:test_a_token_goes_up_in_no_place",
    "limits of time": "test_door_promises:test_a_body_that_stops_gets_a_408",
    "limits of size": "test_door_promises:test_a_body_above_4_gib_is_refused_before_it_is_read",
    "errors": "test_door_promises:test_an_error_of_the_provider_comes_as_it_was_sent",
    "logs": "test_door_promises:test_no_body_is_logged",
}
EMPTY = {
    "repr": "a program in another language has no object of ours",
    "pickle": "as above",
    "history": "the program follows redirects itself",
    "fork": "workers are started anew, and share nothing but the socket",
    "thread": "a connection has no thread",
}


def test_each_cell_is_filled_or_said_to_be_empty() -> None:
    """By a test that there is."""
    for cell, named in CELLS.items():
        module, _, name = named.partition(":")
        assert hasattr(importlib.import_module(module), name), cell
    assert not CELLS.keys() & EMPTY.keys()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("coding", CODINGS)
def test_no_coding_of_a_reply_shows_the_key(door, coding, status) -> None:
    """A provider that repeats the key, in head and body, whatever the program has asked for."""
    key = "AIza" + "FAKE" + "7Zx9Lm3Np5Rt8Vw2Yb4Dd6Ff0q7Zx9L"
    said = {"error": {"code": 400, "message": f"bad {key}"}, "text": key}

    def reply(_: Request) -> Response:
        headers = {"X-Echo": key, "Content-Encoding": coding}
        return Response(status, CODINGS[coding](json.dumps(said).encode()), headers)

    with JsonServer(reply) as server:
        one = door(KEYROT_ALLOWED_HOSTS=server.host, GEMINI_API_KEYS=key)
        for asked in ("gzip, deflate, br, zstd", "identity"):
            got = one(Accept_Encoding=asked)
            assert got.status == status
            coded = got.headers.get("content-encoding")
            read = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(coded or "", bytes)
            shown = read(got.body).decode()
            assert "text" in shown
            assert key[10:] not in shown + repr(got.headers)
        assert server.requests[-1].headers["x-goog-api-key"] == key


def test_a_reply_that_is_shorter_without_the_key_ends_its_connection(door) -> None:
    """Its length has gone down already, and the program would wait for the rest of it."""
    key = "FAKE-of-gemini-7Zx9Lm3Np5Rt8Vw2Yb4Dd6"

    def reply(_: Request) -> Response:
        return Response(200, f"it is {key}".encode(), {"Content-Type": "text/plain"})

    with JsonServer(reply) as server:
        one = door(KEYROT_ALLOWED_HOSTS=server.host, GEMINI_API_KEYS=key)
        call = message().replace(b"Connection: close\r\n", b"")
        assert one.raw(call).endswith("it is [redacted]")


def test_of_a_coded_reply_no_more_is_decoded_than_of_one_that_is_not(door) -> None:
    """Some kilobytes of zeros are gigabytes."""
    pack = zlib.compressobj(wbits=31)
    zeros = b"\0" * (1 << 20)
    bomb = b"".join(pack.compress(zeros) for _ in range(200)) + pack.flush()
    with JsonServer(lambda _: Response(200, bomb, {"Content-Encoding": "gzip"})) as server:
        one = door(KEYROT_ALLOWED_HOSTS=server.host, GEMINI_API_KEYS="FAKE-of-gemini")
        assert one(Accept_Encoding="gzip").body == bomb
        status = Path(f"/proc/{one.process.pid}/status")
        if status.exists():
            [peak] = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
            assert int(peak) < 200_000


def test_requests_on_one_connection_are_answered_in_their_order(door) -> None:
    """Sent at once, before the first answer."""
    with FakeGemini() as service:
        one = door(**over(service, "A"))
        size = f"Host: localhost\r\nContent-Length: {len(BODY)}\r\n"
        call = f"POST {CALL} HTTP/1.1\r\n{size}\r\n{BODY}"
        probe = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        last = f"POST {CALL} HTTP/1.1\r\n{size}Connection: close\r\n\r\n{BODY}"
        got = one.raw(call + probe + call + last)
        heads = [line for line in got.split("\r\n") if "HTTP/1.1 " in line]
        assert len(heads) == 4
        assert got.count("ok from A") == 3
        assert got.index("ok from A") < got.index('{"status": "ok"}') < got.rindex("ok from A")
        assert service.sent("A") == 3


def test_requests_go_by_the_proxy_of_the_environment(door) -> None:
    """As those of a Python program do; what is on this machine goes without one."""
    asked: list[str] = []

    class Proxy(RawServer):
        def _read(self, connection):
            asked.append(connection.recv(65_536).decode().partition("\r\n")[0])
            return ""

    proxy = Proxy(lambda connection, _: connection.sendall(answer(b"", status="403 No")))
    try:
        env = {"GEMINI_API_KEYS": "FAKE-a", "HTTPS_PROXY": proxy.url, "KEYROT_MAX_RETRIES": "0"}
        assert door(**env)().status in (502, 503)
        assert asked[0] == "CONNECT generativelanguage.googleapis.com:443 HTTP/1.1"
        asked.clear()
        with FakeGemini() as service:
            assert door(**env | over(service, "A"))().status == 200
        assert asked == []
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("platform", "origin", "path", "sent"),
    [
        ("openai", "https://api.openai.com", "chat/completions", "/v1/chat/completions"),
        ("openai", "https://gateway.test", "chat/completions", "/chat/completions"),
        ("groq", "https://api.groq.com", "chat/completions", "/openai/v1/chat/completions"),
        ("groq", "https://api.groq.com", "openai/v1/models", "/openai/v1/models"),
        ("perplexity", "https://api.perplexity.ai", "chat/completions", "/chat/completions"),
    ],
)
def test_a_table_that_takes_a_path_without_its_version_sends_it_with_it(
    platform, origin, path, sent
) -> None:
    """To the provider itself; a gateway may have another one, or none."""
    method = "GET" if path.endswith("models") else "POST"
    found = Upstream(providers.of(platform), origin).find(method, path)
    assert found is not None
    assert found[0] == f"{origin}{sent}"


def test_a_proxy_that_cannot_be_used_is_an_error_that_names_its_variable(monkeypatch) -> None:
    """And not its password; hosts of NO_PROXY need none."""
    for proxy in ("gopher://user:FAKE-password@proxy.test", "http://user:FAKE-password@proxy:x"):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with pytest.raises(ConfigError, match="HTTPS_PROXY") as error:
            sender_to("https://api.test")
        assert "FAKE-password" not in str(error.value)
    monkeypatch.setenv("NO_PROXY", "api.test,other.test:8443")
    assert sender_to("https://api.test")
    assert sender_to("https://other.test:8443")
    assert sender_to("http://127.0.0.1:1")
