"""The ASGI app: the page's files, its API under `api/`, who may open it, and the headers it sends.

Whoever presents the token may look. `?token=` sets a cookie and redirects to the address without
it; scripts send `Authorization: Bearer`. The cookie holds no token: it is the time of its own end,
signed with the token, so that several worker processes accept it. A request that changes something
also needs an Origin that is this server, unless it has the token itself: no browser sends that on
its own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.judgement import KEY_STATES
from ..core.wording import did_you_mean
from ..errors import KeyrotError, handle_internal_error
from ..monitoring.report import DISABLED_S, SORTS, PoolReport, source_of
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
"""How long a browser that had the token may look, without it."""
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


def make_app(*, token: str, actions: bool, source: PoolReport | None) -> Starlette:
    """Make the app; see `keyrot_middleware.ui.app`."""
    server = _Server(PageAccess(token), source)
    app = Starlette(
        routes=[
            Route("/", server.index),
            # These are public, since anybody can download the package.
            Mount("/static", StaticFiles(packages=[(__package__, "static")])),
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
    def __init__(self, access: PageAccess, source: PoolReport | None) -> None:
        self._access, self._source = access, source
        self._report: tuple[Pool, PoolReport] | None = None
        self._threads = anyio.CapacityLimiter(THREADS)

    async def index(self, request: Request) -> Response:
        """Return the page; with `?token=` in its address, the way to the address without it."""
        given = request.query_params.get("token")
        if given is None:
            self._access.admit(request)
            return FileResponse(Path(__file__).with_name("index.html"))
        if not self._access.is_token(given):
            raise HTTPException(401, "This token is wrong. " + HOW_TO_OPEN)
        kept = urlencode([one for one in request.query_params.multi_items() if one[0] != "token"])
        address = f"./?{kept}" if kept else "./"
        response = Response(status_code=303, headers={"Location": address})
        self._access.set_cookie(request, response)
        return response

    def answering(
        self, work: Work, changes: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that does *work* in a thread; what it raises becomes a sentence."""

        async def answer(request: Request) -> Response:
            try:
                self._access.admit(request, changes=changes)
                content = await anyio.to_thread.run_sync(
                    lambda: work(self._open_source(), request), limiter=self._threads
                )
            except HTTPException:
                raise
            except KeyrotError as error:
                return _error(503, str(error))
            except Exception:
                handle_internal_error("ui")
                return _error(500, "The request failed; the log of the service has more.")
            return _json(200, content)

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
            self._report = pool, source_of(pool)
        return self._report[1]


# The API -----------------------------------------------------------------------------------------


def _status(source: PoolReport, request: Request) -> dict[str, Any]:
    state, sort = _text(request, "state"), _text(request, "sort")
    if state and state not in KEY_STATES:
        hint = did_you_mean(state, KEY_STATES)
        raise HTTPException(400, f"state is one of {', '.join(KEY_STATES)}.{hint}")
    if sort.removeprefix("-") not in ("", *SORTS):
        raise HTTPException(400, f"sort is one of {', '.join(SORTS)}, or with - before it")
    answer = source.status(
        offset=_number(request, "offset", 0, 0, MAX_NUMBER),
        limit=_number(request, "limit", 100, 1, MAX_KEYS),
        query=_text(request, "query"),
        state=state,
        sort=sort,
    )
    return {**answer, "actions": request.app.state.actions}


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


class PageAccess:
    """Decide about each request."""

    def __init__(self, token: str) -> None:
        """Require *token*."""
        self._token = token.encode()
        # Cookies ignore ports: two pages of one host must not overwrite each other's.
        self._cookie = f"keyrot_{hashlib.sha256(self._token).hexdigest()[:8]}"

    def admit(self, request: Request, *, changes: bool = False) -> None:
        """Let a request pass.

        Raises:
            HTTPException: It may not see anything, or another site sent it.
        """
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(value.strip()):
            return
        end = request.cookies.get(self._cookie, "").partition(".")[0]
        right = end.isascii() and end.isdecimal() and time.time() < int(end[:12])
        if scheme or not right or not _equal(request.cookies[self._cookie], self._signed(end)):
            raise HTTPException(401, "This page needs a token. " + HOW_TO_OPEN)
        # Without the scheme: behind a proxy that ends TLS, this app sees plain HTTP.
        origin = request.headers.get("origin", "").partition("://")[2]
        if changes and (not origin or origin != request.headers.get("host")):
            raise HTTPException(403, "This request came from another site; nothing was changed.")

    def is_token(self, value: str) -> bool:
        """Return whether it is the token."""
        return _equal(value, self._token.decode())

    def set_cookie(self, request: Request, response: Response) -> None:
        """Let the browser in for a while: at the path that it asked for, as it sees it."""
        is_tls = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
        response.set_cookie(
            self._cookie,
            self._signed(str(int(time.time()) + SESSION_S)),
            max_age=SESSION_S,
            path=None,
            secure=is_tls,
            httponly=True,
            samesite="lax",  # a link in a colleague's message opens the page; a POST needs more
        )

    def _signed(self, end: str) -> str:
        return f"{end}.{hmac.new(self._token, end.encode(), hashlib.sha256).hexdigest()}"


HOW_TO_OPEN = (
    "Open the address that `keyrot ui` printed, which ends in ?token=…, "
    "or send the header Authorization: Bearer <token>."
)


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
