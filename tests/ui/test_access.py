"""Who may open the page, and which requests may change something."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from asgi import TOKEN, Reply, request
from fake_source import FakeSource, key

from keyrot_middleware import ConfigError, ui


@pytest.fixture
def source() -> FakeSource:
    return FakeSource([key("free_1", state="cooling_down")])


def log_in(app: Any, **more: Any) -> Reply:
    return request(app, f"/?token={TOKEN}", **more)


def test_the_token_becomes_a_cookie_and_leaves_the_address(source: FakeSource) -> None:
    """`?token=` redirects to the clean address; the cookie is of this path, and ends."""
    app = ui.app(token=TOKEN, source=source)
    reply = log_in(app, root_path="/keyrot", scheme="https")
    assert (reply.status, reply.headers["location"]) == (303, "./")
    attributes = {part.strip().lower() for part in reply.headers["set-cookie"].split(";")[1:]}
    assert attributes == {"max-age=604800", "httponly", "samesite=lax", "secure"}
    assert TOKEN not in reply.headers["set-cookie"]
    behind_tls = log_in(app, x_forwarded_proto="https").headers["set-cookie"]
    assert ("secure" in behind_tls.lower(), "Secure" in log_in(app).headers["set-cookie"]) == (
        True,
        False,
    )
    page = request(app, root_path="/keyrot", cookie=reply.cookie)
    assert (page.status, TOKEN in page.text) == (200, False)
    assert request(app, "/api/status", cookie=reply.cookie).content["total"] == 1
    kept = request(app, f"/?key=free_1&token={TOKEN}&hours=24").headers["location"]
    assert kept == "./?key=free_1&hours=24"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
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


def test_a_forged_cookie_is_refused(source: FakeSource, monkeypatch: Any) -> None:
    """An invented end has no valid signature; one that is over lets nobody in."""
    app = ui.app(token=TOKEN, source=source)
    name, _, value = log_in(app).cookie.partition("=")
    end, _, signature = value.partition(".")
    forged = [f"9{end}.{signature}", f"{end}.", f".{signature}", end, f"x{value}"]
    statuses = {request(app, "/api/status", cookie=f"{name}={one}").status for one in forged}
    assert statuses == {401}
    monkeypatch.setattr(time, "time", lambda: float(end) + 1)
    assert request(app, "/api/status", cookie=f"{name}={value}").status == 401


@pytest.fixture
def post(source) -> Callable[..., Reply]:
    """Open a page that has actions; return what sends as it does, some headers aside."""
    app = ui.app(token=TOKEN, actions=True, source=source)
    cookie = log_in(app).cookie
    own = {"cookie": cookie, "origin": "http://127.0.0.1:8000"}

    def send(path: str = "/api/keys/free_1/reset", **headers: str) -> Reply:
        return request(app, path, method="POST", **(own | headers))

    return send


def test_actions_of_the_page_are_done(post, source) -> None:
    """The page may reset, disable and enable a key, and gets a message for each."""
    actions = ["reset", "disable", "enable"]
    replies = [post(f"/api/keys/free_1/{action}") for action in actions]
    assert [reply.status for reply in replies] == [200] * 3
    assert all(reply.content["ok"] and "free_1" in reply.content["sentence"] for reply in replies)
    assert source.changed == [(action, "free_1") for action in actions]


@pytest.mark.parametrize(
    "headers",
    [
        *({"origin": f"http://{value}"} for value in ("127.0.0.1:8001", "evil/127.0.0.1:8000")),
        *({"origin": value} for value in ("", "null")),
        {"cookie": ""},
    ],
    ids=str,
)
def test_another_site_changes_nothing(post, source, headers) -> None:
    """Without a cookie, or from another origin, a POST is refused."""
    assert post(**headers).status == (401 if "cookie" in headers else 403)
    assert source.changed == []


@pytest.mark.parametrize(
    "options",
    [{}, {"actions": True}, {"token": "short"}],
    ids=str,
)
def test_a_token_is_needed(options: Any) -> None:
    """Whether a proxy stands in front cannot be known."""
    with pytest.raises(ConfigError, match=r"a token.*secrets\.token_urlsafe"):
        ui.app(**options)


def test_a_script_needs_no_origin(source: FakeSource) -> None:
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
