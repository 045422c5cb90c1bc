"""The ASGI app: the page's files, its API, and the headers that every answer has."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..monitoring.view import PoolReport
from .access import Access, AccessDenied
from .api import Api, error_response

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
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"} | {
    ".svg": "image/svg+xml"
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


def make_app(*, token: str | None, actions: bool, source: PoolReport | None) -> Starlette:
    """Make the app; see `keyrot_middleware.ui.app`."""
    access = Access(token)
    api, page = Api(access, source, actions), Page(access)
    return Starlette(
        routes=[
            Route("/", page.index),
            Route("/static/{name}", page.static),
            Route("/api/status", api.status),
            Route("/api/attempts", api.attempts),
            Route("/api/history", api.history),
            Route("/api/explain", api.explain),
            Route("/api/keys/{key_id:path}/{action}", api.act, methods=["POST"]),
        ],
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={HTTPException: _http_error},
    )


class Page:
    """Answer the requests for the page itself."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._files = {
            file.name: Response(
                file.read_bytes(), media_type=_MEDIA_TYPES[file.name[file.name.rindex(".") :]]
            )
            for file in (files(__package__) / "static").iterdir()
            if file.name.endswith(tuple(_MEDIA_TYPES))
        }

    async def index(self, request: Request) -> Response:
        """Return the page; with `?token=` in its address, the way to the address without it."""
        given = request.query_params.get("token")
        try:
            if given is None or self._access.is_open:
                await self._access.admit(request)
                return self._file("index.html")
            session = await self._access.log_in(given)
        except AccessDenied as refused:
            return _refusal(request, refused)
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
        kept = self._files[name]
        return Response(kept.body, media_type=kept.media_type)


def _refusal(request: Request, refused: AccessDenied) -> Response:
    """Refuse with a page for a browser, else with JSON."""
    if "text/html" not in request.headers.get("accept", ""):
        return error_response(refused.status, refused.sentence)
    html = _ERROR_PAGE.format(
        sentence=escape(refused.sentence), form=_FORM if refused.status == 401 else ""
    )
    return Response(html, refused.status, media_type="text/html")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    sentence = {404: "There is nothing at this address.", 405: "This address has other methods."}
    return error_response(status, sentence.get(status, "The request cannot be answered."))


class SecurityHeaders:
    """Add the same headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS.items()]}
            await send(message)

        await self._app(scope, receive, send_with_headers)
