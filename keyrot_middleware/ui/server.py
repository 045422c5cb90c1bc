"""The ASGI app: the page's files, its API under `api/`, who may open it, and the headers it sends.

With a token: whoever presents it. `?token=` sets a cookie and redirects to the address without it;
scripts send `Authorization: Bearer`. The cookie holds no token: it is a random session id, signed
with the token, so that several worker processes accept it.

With `local=True` and no token: only this machine, which may look and change nothing. The client's
address and the Host header must both be loopback (a foreign name that resolves to 127.0.0.1 is DNS
rebinding), an Origin must be this server, and nothing may show that a proxy forwarded the request.
A proxy can leave no trace at all, so this protects the status only.

A request that changes something also needs the session's CSRF token in `X-CSRF-Token` and an
Origin that is this server. A bearer token needs neither: no browser sends it by itself.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from html import escape
from importlib.resources import files
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..adapters.key_check import check_key
from ..core.availability import KEY_STATES
from ..core.text import did_you_mean
from ..errors import KeyrotError, handle_internal_error
from ..monitoring.view import DISABLED_S, SORTS, PoolReport, source_of
from ..providers.keys import hide_secrets, mask_keys
from ..runtime import current_pool
from ..runtime.pool import Pool

MAX_KEYS = 500
MAX_CALLS = 100
"""Keys, and calls, in one answer."""
MAX_TEXT = 300
"""Characters of a filter or of a model's name."""
MAX_NUMBER = 10**9
SESSION_S = 7 * 86_400
"""How long a browser needs the token no more."""
THREADS = 4
"""Requests that are worked on at once: the service has other uses for its threads."""
_HEADERS = {
    # Nothing is loaded from elsewhere, nothing runs that is not a file of this package, and no text
    # is ever parsed as HTML: Trusted Types make innerHTML an error.
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; "
        b"require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"} | {
    "svg": "image/svg+xml"
}
_ERROR_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>keyrot</title>
<link rel="icon" href="static/icon.svg">
<link rel="stylesheet" href="static/style.css">
<main class="refused"><h1>This page is not open to you</h1><p>{sentence}</p>{form}</main>
</html>
"""
_FORM = (
    '<form class="filters"><input name="token" type="password" aria-label="Token" required>'
    '<button class="primary">Open</button></form>'
)
_SENTENCES = {
    "Not Found": "There is nothing at this address.",
    "Method Not Allowed": "This address has other methods.",
}
"""In place of Starlette's."""
Work = Callable[[PoolReport, Request], dict[str, Any]]


def make_app(*, token: str | None, actions: bool, source: PoolReport | None) -> Starlette:
    """Make the app; see `keyrot_middleware.ui.app`."""
    server = _Server(Access(token), source)
    app = Starlette(
        routes=[
            Route("/", server.index),
            Route("/static/{name}", server.static),
            Route("/api/status", server.answering(_status)),
            Route("/api/attempts", server.answering(_attempts)),
            Route("/api/history", server.answering(_history)),
            Route("/api/explain", server.answering(_explain)),
            Route(
                "/api/keys/{key_id:path}/{action}",
                server.answering(_act, changes=True),
                methods=["POST"],
            ),
        ],
        middleware=[Middleware(_SecurityHeaders)],
        exception_handlers={HTTPException: _refuse},
    )
    app.state.actions = actions
    return app


class _Server:
    def __init__(self, access: Access, source: PoolReport | None) -> None:
        self._access, self._source = access, source
        self._report: tuple[Pool, PoolReport] | None = None
        self._threads = anyio.CapacityLimiter(THREADS)
        self._files = {file.name: file for file in (files(__package__) / "static").iterdir()}

    async def index(self, request: Request) -> Response:
        """Return the page; with `?token=` in its address, the way to the address without it."""
        given = request.query_params.get("token")
        if given is None or self._access.is_open:
            self._access.admit(request)
            return self._file("index.html")
        session = self._access.log_in(given)
        response = Response(status_code=303, headers={"Location": "./"})
        self._access.set_cookie(request, response, session)
        return response

    async def static(self, request: Request) -> Response:
        """Return a file of the page; these are public, since anybody can download the package."""
        name = request.path_params["name"]
        if name not in self._files or name == "index.html":
            raise HTTPException(404)
        return self._file(name)

    def _file(self, name: str) -> Response:
        media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
        return Response(self._files[name].read_bytes(), media_type=media_type)

    def answering(
        self, work: Work, changes: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that does *work* in a thread; what it raises becomes a sentence."""

        async def answer(request: Request) -> Response:
            try:
                session = self._access.admit(request)
                if changes:
                    self._access.require_same_origin(request, session)
                found = await anyio.to_thread.run_sync(
                    lambda: work(self._open_source(), request), limiter=self._threads
                )
            except HTTPException:
                raise
            except KeyrotError as error:
                return _error(503, str(error))
            except Exception:
                handle_internal_error("ui")
                return _error(500, "The request failed; the log of the service has more.")
            response = _json(200, found)
            if request.app.state.actions and session:
                response.headers["X-CSRF-Token"] = self._access.csrf_token(session)
            return response

        return answer

    def _open_source(self) -> PoolReport:
        if self._source is not None:
            return self._source
        pool = current_pool()
        if pool is None:
            self._report = None
            raise KeyrotError(
                "No pool is installed in this process: call keyrot_middleware.install() first."
            )
        if self._report is None or self._report[0] is not pool:
            # Kept, since one look at a large pool serves all requests of a second.
            self._report = pool, source_of(pool, check=partial(_check, pool))
        return self._report[1]


def _check(pool: Pool, key_id: str) -> str:
    if key_id not in pool.secrets.resolved:
        raise KeyrotError(f"key {key_id} has no value to check")
    for key in pool.configured:
        if key.key_id == key_id:
            allowed = pool.allowed_origins
            check = check_key(pool.secrets, key_id, key.model, key.platform, allowed)
            return check.describe(key_id)
    raise KeyError(key_id)


# The API -----------------------------------------------------------------------------------------


def _status(source: PoolReport, request: Request) -> dict[str, Any]:
    state, sort = _text(request, "state"), _text(request, "sort")
    if state and state not in KEY_STATES:
        hint = did_you_mean(state, KEY_STATES)
        raise HTTPException(400, f"state is one of {', '.join(KEY_STATES)}.{hint}")
    if sort.removeprefix("-") not in ("", *SORTS):
        raise HTTPException(400, f"sort is one of {', '.join(SORTS)}, or with - before it")
    found = source.status(
        offset=_number(request, "offset", 0, 0, MAX_NUMBER),
        limit=_number(request, "limit", 100, 1, MAX_KEYS),
        query=_text(request, "query"),
        state=state,
        sort=sort,
    )
    return {**found, "actions": request.app.state.actions}


def _attempts(source: PoolReport, request: Request) -> dict[str, Any]:
    limit = _number(request, "limit", MAX_CALLS, 1, MAX_CALLS)
    return source.attempts(key=_text(request, "key"), limit=limit)


def _history(source: PoolReport, request: Request) -> dict[str, Any]:
    by, hours = _text(request, "by"), _number(request, "hours", 1, 1, 24)
    if by not in ("", "key", "project", "model", "workload"):
        raise HTTPException(400, "by is one of key, project, model, workload")
    if hours not in (1, 24):
        raise HTTPException(400, "hours is 1 or 24")
    return source.history(by=by, name=_text(request, "name"), hours=hours)


def _explain(source: PoolReport, request: Request) -> dict[str, Any]:
    model, workload = _text(request, "model"), _text(request, "workload")
    if not model:
        raise HTTPException(400, "model is missing: name the model of the call")
    return source.explain(model, _number(request, "tokens", 0, 0, MAX_NUMBER), workload)


def _act(source: PoolReport, request: Request) -> dict[str, Any]:
    if not request.app.state.actions:
        raise HTTPException(
            403,
            "Actions are off: start with keyrot ui --actions, "
            "or mount keyrot_middleware.ui.app(actions=True, token=…).",
        )
    key_id, action = request.path_params["key_id"], request.path_params["action"]
    calls: dict[str, Callable[[], str]] = {
        "reset": lambda: source.reset(key_id),
        "disable": lambda: source.set_active(
            key_id, False, _number(request, "seconds", DISABLED_S, 1, DISABLED_S)
        ),
        "enable": lambda: source.set_active(key_id, True),
        "check": lambda: source.check(key_id),
    }
    if action not in calls:
        raise HTTPException(404, f"There is no such action; there are {', '.join(calls)}.")
    try:
        return {"ok": True, "sentence": calls[action]()}
    except KeyError:
        raise HTTPException(404, f"This pool has no key {hide_secrets(key_id)!r}.") from None
    except KeyrotError as error:
        raise HTTPException(409, str(error)) from None


def _text(request: Request, name: str) -> str:
    value = request.query_params.get(name, "").strip()
    if len(value) > MAX_TEXT:
        raise HTTPException(400, f"{name} has at most {MAX_TEXT} characters, found {len(value)}")
    return value


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name, "") or str(default)
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1
    if not least <= value <= most:
        raise HTTPException(400, f"{name} is a number from {least} to {most:,}")
    return value


# Answers -----------------------------------------------------------------------------------------


def _json(status: int, content: dict[str, Any], headers: Any = None) -> Response:
    """Make an answer; escapes keep half a character from being an error of the encoder."""
    return Response(mask_keys(json.dumps(content)), status, headers, "application/json")


def _error(status: int, sentence: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return _json(status, {"error": sentence}, headers)


async def _refuse(request: Request, error: Exception) -> Response:
    """Refuse with a page for a browser, else with JSON."""
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler of these
    status, sentence = error.status_code, _SENTENCES.get(error.detail, error.detail)
    if "text/html" not in request.headers.get("accept", ""):
        return _error(status, sentence)
    form = _FORM if status == 401 else ""
    html = _ERROR_PAGE.format(sentence=escape(sentence), form=form)
    return Response(html, status, media_type="text/html")


class _SecurityHeaders:
    """Adds the same headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS.items()]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


_FORWARDED = (
    *("forwarded", "via", "true-client-ip", "x-client-ip", "x-cluster-client-ip", "x-real-ip"),
    *("x-forwarded", "x-original-", "x-envoy-", "x-amzn-", "x-appengine-", "x-arr-", "x-azure-"),
    *("cdn-", "cf-", "fastly-", "fly-"),
)
"""How the names of headers begin that proxies add."""


class Access:
    """Decide about each request."""

    def __init__(self, token: str | None) -> None:
        """Require *token*; None: let only this machine in."""
        self._token = None if token is None else token.encode()
        # Cookies ignore ports: two pages of one host must not overwrite each other's.
        self._cookie = f"keyrot_{hashlib.sha256(self._token or b'').hexdigest()[:8]}"

    @property
    def is_open(self) -> bool:
        """Whether this machine needs no token."""
        return self._token is None

    def admit(self, request: Request) -> str:
        """Return the session of a request; empty for one without a cookie.

        Raises:
            HTTPException: It may not see anything.
        """
        if self._token is None:
            _require_loopback(request)
            return ""
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self._is_token(value.strip()):
                return ""
        elif session := self._cookie_session(request):
            return session
        raise HTTPException(401, "This page needs a token. " + _HOW_TO_OPEN)

    def require_same_origin(self, request: Request, session: str) -> None:
        """Refuse a change that this page did not ask for.

        Raises:
            HTTPException: Another site sent it, or the CSRF token is missing or wrong.
        """
        if not session:
            return
        if not _is_same_origin(request):
            raise HTTPException(403, "This request came from another site; nothing was changed.")
        sent = request.headers.get("x-csrf-token", "")
        if not hmac.compare_digest(sent.encode(), self.csrf_token(session).encode()):
            raise HTTPException(403, "The CSRF token is missing or wrong; reload the page.")

    def log_in(self, token: str) -> str:
        """Return a new session for whoever presents the token; `set_cookie` hands it out.

        Raises:
            HTTPException: The token is wrong.
        """
        if not self._is_token(token):
            raise HTTPException(401, "This token is wrong. " + _HOW_TO_OPEN)
        return f"{time.time():.0f}-{secrets.token_urlsafe(18)}"

    def csrf_token(self, session: str) -> str:
        """Return what a change of that session has to present."""
        return self._sign("csrf", session)

    def _is_token(self, value: str) -> bool:
        return hmac.compare_digest(value.encode(), self._token or b"")

    def set_cookie(self, request: Request, response: Response, session: str) -> None:
        """Give the browser a new session: for the folder of the address that it has for the page.

        A proxy may have taken a prefix and TLS off; who claims TLS harms its own cookie only.
        """
        scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
        response.set_cookie(
            self._cookie,
            f"{session}.{self._sign('session', session)}",
            max_age=SESSION_S,
            path=None,
            secure=scheme.lower() == "https",
            httponly=True,
            samesite="lax",  # a link in a colleague's message opens the page; a POST needs more,
        )

    def _cookie_session(self, request: Request) -> str:
        session, _, signature = request.cookies.get(self._cookie, "").partition(".")
        right = hmac.compare_digest(signature.encode(), self._sign("session", session).encode())
        began = session.partition("-")[0]  # an older version wrote no time
        lasts = began.isdecimal() and time.time() < int(began) + SESSION_S
        return session if right and lasts else ""

    def _sign(self, purpose: str, session_id: str) -> str:
        text = f"{purpose}:{session_id}".encode()
        return hmac.new(self._token or b"", text, hashlib.sha256).hexdigest()


_HOW_TO_OPEN = (
    "Open the address that `keyrot ui` printed, which ends in ?token=…, "
    "or send the header Authorization: Bearer <token>."
)
_NEEDS_TOKEN = (
    "Without a token this page opens only on the machine that serves it, as 127.0.0.1, [::1] or "
    "localhost. To open it from elsewhere or through a proxy, set a token: "
    "keyrot_middleware.ui.app(token=…), or keyrot ui --token-file FILE."
)


def _is_same_origin(request: Request) -> bool:
    """Return whether a page of this server sent it; False without an Origin."""
    # Without the scheme: behind a proxy that ends TLS, this app sees plain HTTP.
    origin = request.headers.get("origin", "").partition("://")[2]
    return bool(origin) and origin == request.headers.get("host")


def _require_loopback(request: Request) -> None:
    client = request.client.host if request.client is not None else ""
    try:
        name = urlsplit("//" + request.headers.get("host", "")).hostname or ""
    except ValueError:
        name = ""
    is_local = is_loopback(client) and is_loopback(name)
    forwarded = any(header.startswith(_FORWARDED) for header in request.headers)
    # Browsers do not send HTTP/1.0; nginx does by default, and adds no header. "1": granian's word.
    forwarded = forwarded or request.scope.get("http_version") in ("1.0", "1")
    # Another site can read the answer if the service allows it, as many do for all (CORS).
    foreign = "origin" in request.headers and not _is_same_origin(request)
    if forwarded or foreign or not is_local:
        raise HTTPException(403, _NEEDS_TOKEN)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
