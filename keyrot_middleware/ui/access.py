"""Who may open the page, and which requests may change something.

With a token: whoever presents it. `?token=` sets a cookie and redirects to the address without it;
scripts send `Authorization: Bearer`. The cookie holds no token: it is a random session id, signed
with the token, so that several worker processes accept it.

Each wrong token makes the check of every token slow for a minute, also of the right one: else the
time of an answer would tell which it is. Cookies are checked at once.

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
import secrets
import time
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from math import inf
from urllib.parse import urlsplit

import anyio
from starlette.requests import Request
from starlette.responses import Response

WRONG_TOKEN_S = 1.0
"""How long the check of a token takes after a wrong one."""
SLOW_S = 60.0
"""How long a wrong token makes checks slow."""
_FORWARDED = (
    *("forwarded", "via", "true-client-ip", "x-client-ip", "x-cluster-client-ip", "x-real-ip"),
    *("x-forwarded", "x-original-", "x-envoy-", "x-amzn-", "x-appengine-", "x-arr-", "x-azure-"),
    *("cdn-", "cf-", "fastly-", "fly-"),
)
"""How the names of headers begin that proxies add."""


class AccessDenied(Exception):  # noqa: N818 - a reply of HTTP, not a fault
    """The reply to a request that is refused."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that was let in with the token; everyone else has an empty id."""

    session_id: str
    csrf_token: str


class Access:
    """Decide about each request."""

    def __init__(self, token: str | None) -> None:
        """Require *token*; None: let only this machine in."""
        self._token = None if token is None else token.encode()
        self._wrong_at = -inf
        """When the last wrong token came, by `time.monotonic()`."""
        # Cookies ignore ports: two pages of one host must not overwrite each other's.
        self._cookie = f"keyrot_{hashlib.sha256(self._token or b'').hexdigest()[:8]}"

    @property
    def is_open(self) -> bool:
        """Whether this machine needs no token."""
        return self._token is None

    async def admit(self, request: Request) -> Session:
        """Return the session of a request.

        Raises:
            AccessDenied: It may not see anything.
        """
        if self._token is None:
            _require_loopback(request)
            return Session("", "")
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if await self._check(value.strip()):
                return Session("", "")
        elif (session := self._cookie_session(request)) is not None:
            return session
        raise AccessDenied(401, "This page needs a token. " + _HOW_TO_OPEN)

    def require_same_origin(self, request: Request, session: Session) -> None:
        """Refuse a change that this page did not ask for.

        Raises:
            AccessDenied: Another site sent it, or the CSRF token is missing or wrong.
        """
        if not session.session_id:
            return
        if not _is_same_origin(request):
            raise AccessDenied(403, "This request came from another site; nothing was changed.")
        sent = request.headers.get("x-csrf-token", "")
        if not hmac.compare_digest(sent.encode(), session.csrf_token.encode()):
            raise AccessDenied(403, "The CSRF token is missing or wrong; reload the page.")

    async def log_in(self, token: str) -> Session:
        """Return a new session for whoever presents the token; `set_cookie` hands it out.

        Raises:
            AccessDenied: The token is wrong.
        """
        if not await self._check(token):
            raise AccessDenied(401, "This token is wrong. " + _HOW_TO_OPEN)
        session_id = secrets.token_urlsafe(18)
        return Session(session_id, self._sign("csrf", session_id))

    async def _check(self, value: str) -> bool:
        """Return whether *value* is the token; at once, unless a wrong one came lately."""
        right = hmac.compare_digest(value.encode(), self._token or b"")
        now = time.monotonic()
        if not right:
            self._wrong_at = now
        if now - self._wrong_at < SLOW_S:
            await anyio.sleep(WRONG_TOKEN_S)
        return right

    def set_cookie(self, request: Request, response: Response, session: Session) -> None:
        """Give the browser a new session, for this app's path only."""
        response.set_cookie(
            self._cookie,
            f"{session.session_id}.{self._sign('session', session.session_id)}",
            path=request.scope.get("root_path", "") + "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",  # a link in a colleague's message opens the page; a POST needs more,
        )

    def _cookie_session(self, request: Request) -> Session | None:
        session_id, _, signature = request.cookies.get(self._cookie, "").partition(".")
        expected = self._sign("session", session_id)
        if not session_id or not hmac.compare_digest(signature.encode(), expected.encode()):
            return None
        return Session(session_id, self._sign("csrf", session_id))

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
    is_local = _is_loopback(client) and (name == "localhost" or _is_loopback(name))
    forwarded = any(header.startswith(_FORWARDED) for header in request.headers)
    # Browsers do not send HTTP/1.0; nginx does by default, and adds no header. "1": granian's word.
    forwarded = forwarded or request.scope.get("http_version") in ("1.0", "1")
    # Another site can read the answer if the service allows it, as many do for all (CORS).
    foreign = "origin" in request.headers and not _is_same_origin(request)
    if forwarded or foreign or not is_local:
        raise AccessDenied(403, _NEEDS_TOKEN)


def _is_loopback(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
