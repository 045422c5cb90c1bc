"""Who may open the page, and which requests may change something."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from asgi import Reply, request
from fake_source import FakeSource, key
from served import TOKEN

from keyrot_middleware import ConfigError, ui
from keyrot_middleware.ui.server import SESSION_S

OTHER = ("192.0.2.7", 40_000)


@pytest.fixture
def source() -> FakeSource:
    return FakeSource([key("free_1", state="cooling_down")])


def log_in(app: Any, **more: Any) -> Reply:
    return request(app, f"/?token={TOKEN}", **more)


def test_the_token_becomes_a_cookie_and_leaves_the_address(source: FakeSource) -> None:
    """`?token=` redirects to the clean address, with a cookie that only this app gets."""
    app = ui.app(token=TOKEN, source=source)
    replies = [
        log_in(app, root_path="/keyrot", scheme="https"),
        log_in(app, x_forwarded_proto="https"),  # the proxy took the prefix off, too
    ]
    for reply in replies:
        assert (reply.status, reply.headers["location"]) == (303, "./")
        attributes = {part.strip().lower() for part in reply.headers["set-cookie"].split(";")[1:]}
        # Without a path it is the folder that the browser sees.
        assert attributes == {f"max-age={SESSION_S}", "httponly", "samesite=lax", "secure"}
    assert "secure" not in log_in(app).headers["set-cookie"].lower()
    assert TOKEN not in reply.headers["set-cookie"]
    page = request(app, root_path="/keyrot", cookie=reply.cookie)
    assert (page.status, TOKEN in page.text) == (200, False)
    assert request(app, "/api/status", cookie=reply.cookie).content["total"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong-wrong-wrong-wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer é"},
        {"cookie": "keyrot=1"},
    ],
    ids=str,
)
def test_a_request_without_a_token_is_refused(source: FakeSource, headers: dict[str, str]) -> None:
    """Without the token there is a 401 with a message, for the API and for the page."""
    app = ui.app(token=TOKEN, source=source)
    for path in ("/", "/api/status", "/api/attempts", "/api/explain?model=m"):
        reply = request(app, path, **headers)
        assert (reply.status, "?token=" in reply.error) == (401, True)
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("token", ["", TOKEN[:-1], TOKEN + "x", "é"])
def test_a_wrong_token_is_refused(source: FakeSource, token: str) -> None:
    """A browser gets a page with the reason; nothing of the token is repeated."""
    reply = request(ui.app(token=TOKEN, source=source), f"/?token={token}", accept="text/html")
    assert (reply.status, "set-cookie" in reply.headers) == (401, False)
    assert "This token is wrong." in reply.text
    assert "text/html" in reply.headers["content-type"]


def test_a_session_ends(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cookie that was copied opens the page for a week, and no longer."""
    app = ui.app(token=TOKEN, source=source)
    cookie, now = log_in(app).cookie, time.time()
    for after, status in ((SESSION_S - 60, 200), (SESSION_S + 60, 401)):
        monkeypatch.setattr(time, "time", lambda after=after: now + after)
        assert request(app, "/api/status", cookie=cookie).status == status


def test_a_forged_cookie_is_refused(source: FakeSource) -> None:
    """An invented session id has no valid signature."""
    app = ui.app(token=TOKEN, source=source)
    name, _, value = log_in(app).cookie.partition("=")
    session_id, _, signature = value.partition(".")
    forged = [f"x{session_id}.{signature}", f"{session_id}.", f".{signature}", session_id, ""]
    statuses = {request(app, "/api/status", cookie=f"{name}={one}").status for one in forged}
    assert statuses == {401}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "[::1]:80"])
def test_without_a_token_this_machine_is_allowed(source: FakeSource, host: str) -> None:
    """A loopback client with a loopback Host gets the page."""
    app = ui.app(local=True, source=source)
    for client in (("127.0.0.1", 1), ("127.8.8.8", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)):
        assert request(app, host=host, client=client).status == 200
        assert request(app, "/api/status", host=host, client=client).status == 200
    assert request(app, "/api/status", host=host, origin=f"https://{host}").status == 200


FORWARDED = (
    *("forwarded", "via", "x_real_ip", "true_client_ip", "x_forwarded_for", "x_original_host"),
    *("x_envoy_external_address", "x_amzn_trace_id", "fastly_client_ip", "cf_ray", "cdn_loop"),
)
"""Headers by which proxies say that they forwarded a request."""


@pytest.mark.parametrize(
    "arguments",
    [
        *({"client": client} for client in (OTHER, None, ("testclient", 1))),
        *({"host": host} for host in ("evil.example", "127.0.0.1.evil.example", "", "[::1")),
        {"host": "evil.example#@127.0.0.1"},
        *({name: "192.0.2.7"} for name in FORWARDED),
        {"http_version": "1.0"},  # nginx before 1.29.7, which adds no header by default
        {"http_version": "1"},  # the same, as granian writes it
        {"origin": "http://localhost:3000"},
        {"origin": "null"},
    ],
    ids=str,
)
def test_without_a_token_other_machines_are_refused(source: FakeSource, arguments: Any) -> None:
    """A foreign client, Host (DNS rebinding), proxy or site gets a 403 that names what to do."""
    app = ui.app(local=True, source=source)
    for path, method in (("/", "GET"), ("/api/status", "GET"), ("/api/keys/free_1/reset", "POST")):
        reply = request(app, path, method=method, **arguments)
        assert reply.status == 403
        assert "keyrot_middleware.ui.app(token=…)" in reply.error
    assert source.changed == []


@pytest.fixture
def post(source) -> Callable[..., Reply]:
    """Open a page that has actions; return what sends as it does, some headers aside."""
    app = ui.app(token=TOKEN, actions=True, source=source)
    cookie = log_in(app).cookie
    csrf = request(app, "/api/status", cookie=cookie).headers["x-csrf-token"]
    own = {"cookie": cookie, "origin": "http://127.0.0.1:8000", "x_csrf_token": csrf}

    def send(path: str = "/api/keys/free_1/reset", **headers: str) -> Reply:
        kept = {name: value for name, value in (own | headers).items() if value}
        return request(app, path, method="POST", **kept)

    return send


def test_actions_of_the_page_are_done(post, source) -> None:
    """The page may reset, disable, enable and check a key, and gets a message for each."""
    actions = ["reset", "disable", "enable", "check"]
    replies = [post(f"/api/keys/free_1/{action}") for action in actions]
    assert [reply.status for reply in replies] == [200] * 4
    assert all(reply.content["ok"] and "free_1" in reply.content["sentence"] for reply in replies)
    assert source.changed == [(action, "free_1") for action in actions]


@pytest.mark.parametrize(
    "headers",
    [
        *({"x_csrf_token": value} for value in ("", "é")),
        *({"origin": f"http://{value}"} for value in ("127.0.0.1:8001", "evil/127.0.0.1:8000")),
        *({"origin": value} for value in ("", "null")),
        {"cookie": ""},
    ],
    ids=str,
)
def test_another_site_changes_nothing(post, source, headers) -> None:
    """Without cookie or CSRF token, or from another origin, a POST is refused."""
    assert post(**headers).status == (401 if "cookie" in headers else 403)
    assert source.changed == []


@pytest.mark.parametrize(
    "options",
    [{}, {"actions": True}, {"actions": True, "local": True}, {"token": "short"}],
    ids=str,
)
def test_a_token_is_needed(options: Any) -> None:
    """Whether a proxy stands in front cannot be known: without a token only if `local` says so."""
    with pytest.raises(ConfigError, match=r"a token.*secrets\.token_urlsafe"):
        ui.app(**options)


def test_a_script_needs_no_csrf_token(source: FakeSource) -> None:
    """A browser never sends a bearer token on its own."""
    app = ui.app(token=TOKEN, actions=True, source=source)
    headers = {"authorization": f"Bearer {TOKEN}", "method": "POST"}
    assert request(app, "/api/keys/free_1/reset", **headers).status == 200
    assert source.changed == [("reset", "free_1")]


def test_actions_are_off_by_default(source: FakeSource) -> None:
    """Without actions=True a POST is refused, and the error names the setting."""
    app = ui.app(token=TOKEN, source=source)
    headers = {"authorization": f"Bearer {TOKEN}", "method": "POST"}
    reply = request(app, "/api/keys/free_1/reset", **headers)
    assert (reply.status, source.changed) == (403, [])
    assert "--actions" in reply.error
    assert request(app, "/api/status", authorization=f"Bearer {TOKEN}").content["actions"] is False
