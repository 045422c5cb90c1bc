"""The page's API: parameters, errors, headers, and mounts."""

import json

import pytest
from asgi import TOKEN, request
from fake_source import FakeSource, key, sample
from starlette.applications import Starlette
from starlette.routing import Mount

from keyrot_middleware import ui
from keyrot_middleware.errors import handle_internal_error

VALUE = "AIza" + "FAKEFAKEFAKEFAKEFAKEFAKEFAKEFAKE123"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/api/status?offset=-1", "offset is a number from 0 to 1,000,000,000"),
        ("/api/status?offset=1e3", "offset is a number"),
        ("/api/status?offset=99999999999999999999999", "offset is a number"),
        ("/api/status?limit=0", "limit is a number from 1 to 500"),
        ("/api/status?limit=501", "limit is a number from 1 to 500"),
        ("/api/status?limit=%D9%A1", "limit is a number"),
        ("/api/status?state=availible", 'Did you mean "available"?'),
        (f"/api/status?query={'x' * 301}", "query has at most 300 characters, found 301"),
        ("/api/attempts?limit=101", "limit is a number from 1 to 100"),
        ("/api/history?by=weather", "by is one of key, project, model, workload"),
        ("/api/history?hours=2", "hours is 1 or 24"),
        ("/api/explain", "model is missing"),
        ("/api/explain?model=%20", "model is missing"),
        ("/api/explain?model=m&tokens=many", "tokens is a number"),
    ],
)
def test_a_wrong_parameter_is_named(path: str, sentence: str) -> None:
    """A wrong parameter is a 400 that names what is allowed."""
    reply = request(ui.app(token=TOKEN, source=FakeSource()), path)
    assert reply.status == 400
    assert sentence in reply.error


@pytest.mark.parametrize("action", ["reset", "disable", "enable"])
def test_an_unknown_key_is_not_found(action: str) -> None:
    """An action on a key that is not in the pool is a 404 with the source's sentence."""
    app = ui.app(actions=True, token="x" * 16, source=FakeSource([key("free_1")]))
    headers = {"authorization": "Bearer " + "x" * 16, "method": "POST"}
    reply = request(app, f"/api/keys/free_9/{action}", **headers)
    assert (reply.status, reply.error) == (404, "This pool has no key 'free_9'.")
    assert request(app, "/api/keys/free_1/delete", **headers).status == 404


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/static/style.css", "/api/status", "/x"])
def test_every_answer_has_strict_headers(path: str) -> None:
    """Nothing may be loaded from elsewhere, framed, sniffed, stored or sent as a referrer."""
    headers = request(ui.app(token=TOKEN, source=FakeSource()), path).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_an_internal_error_is_raised_in_tests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal error is logged, and answered without its text."""
    source = FakeSource()

    def fail() -> None:
        raise RuntimeError("with a secret")

    source.before = fail
    with pytest.raises(RuntimeError):
        request(ui.app(token=TOKEN, source=source), "/api/status")
    monkeypatch.setattr(f"{handle_internal_error.__module__}._strict", False)
    reply = request(ui.app(token=TOKEN, source=source), "/api/status")
    assert (reply.status, "secret" in reply.text) == (500, False)


def test_without_a_pool_the_api_names_what_to_do() -> None:
    """Mounted before install(), the page opens, and its API names what is missing."""
    app = ui.app(token=TOKEN)
    assert request(app).status == 200
    reply = request(app, "/api/status")
    assert reply.status == 503
    assert "keyrot_middleware.install()" in reply.error


def test_text_that_looks_like_a_key_is_masked() -> None:
    """Whatever a source returns, the value of a key is not sent."""
    source = FakeSource([key("free_1", sentence=f"Google answered: {VALUE} is invalid")])
    text = request(ui.app(token=TOKEN, source=source), "/api/status").text
    assert VALUE not in text
    assert "[redacted]" in json.loads(text)["keys"][0]["sentence"]


@pytest.mark.parametrize("mount", ["/keyrot", "/admin/keyrot"])
def test_the_page_works_at_any_path(mount: str) -> None:
    """Mounted in another app it finds its files and API, without a lifespan."""
    outer = Starlette(routes=[Mount(mount, ui.app(token=TOKEN, source=sample()))])
    assert request(outer, f"{mount}/").status == 200
    assert request(outer, f"{mount}/static/app.js").status == 200
    assert request(outer, f"{mount}/api/status").content["total"] == 7
    moved = request(outer, mount)
    assert (moved.status, moved.headers["location"]) == (307, f"http://127.0.0.1:8000{mount}/")
