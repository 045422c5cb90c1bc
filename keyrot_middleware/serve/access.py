"""Who may call through the door, and with which key: none of their own.

Any page of the web can send requests to 127.0.0.1, so what a browser sends is refused, and a Host
that is no name of this machine (a foreign name that resolves to 127.0.0.1 is DNS rebinding). Where
a token is required no page has it, and a server in front passes on the name that it is called by.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from urllib.parse import unquote_plus

from starlette.types import Scope

from ..hosts import is_loopback
from ..providers.keys import has_key_shape

Given = Sequence[tuple[str, str]]
"""Names of headers in lower case, and their values."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
NOT_SERVED = 501
MOST_HEADERS = 100
"""With thousands of them httpx takes seconds."""


class RequestRefused(Exception):  # noqa: N818 - an answer of ours
    """A request that is not sent."""

    def __init__(self, code: int, text: str, *headers: tuple[str, str]) -> None:
        super().__init__(text)
        self.code, self.text, self.headers = code, text, headers


class DoorAccess:
    """Decides about each request."""

    def __init__(self, host: str, token: str | None) -> None:
        """Let in programs of this machine, and those that have the *token*.

        Args:
            host: Where the door listens.
            token: What a program has to send as its key; None: anything but a real key.
        """
        self._host, self._token = host, None if token is None else token.encode()

    def admit(self, scope: Scope, given: Given) -> None:
        """Let a request in.

        Raises:
            RequestRefused: It may be a browser's or a proxy's, or is none that can be sent on.
        """
        headers, names = dict(given), [name for name, _ in given]
        if len(given) > MOST_HEADERS:
            raise RequestRefused(431, f"a request has at most {MOST_HEADERS} headers")
        lengths = names.count("content-length") + names.count("transfer-encoding")
        if lengths > 1 or names.count("host") != 1:
            raise RequestRefused(400, "a request has one Host and one length")
        sites = {value for name, value in given if name == "sec-fetch-site"}
        if "origin" in headers or not sites <= {"none", "same-origin"}:
            raise RequestRefused(403, "pages in a browser may not call")
        if self._token is None and not self._is_here(headers["host"]):
            raise RequestRefused(403, "the Host header names another server")
        if self._token is None and _is_forwarded(scope, names):
            raise RequestRefused(403, "behind a proxy it needs --token-file")
        # Any other upgrade, as to HTTP/2 by Java's client, may be ignored: the answer is HTTP/1.1.
        if "websocket" in headers.get("upgrade", "").lower():
            raise RequestRefused(
                NOT_SERVED, "websockets are not served, so neither Live nor Realtime are"
            )
        if scope["method"] not in METHODS:
            allowed = ", ".join(METHODS)
            raise RequestRefused(
                405, f"this method is not served; there are {allowed}", ("allow", allowed)
            )

    def _is_here(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        name = "" if found is None else found[1].strip("[]").lower()
        return name == self._host or is_loopback(name)

    def require_key(self, given: Given, query: str) -> None:
        """Look at what a program sends as its key; none of it is sent on.

        Raises:
            RequestRefused: It is not the token; or, without one, it is a real key.
        """
        keys = [*_in_headers(given), *_in_query(query)]
        if self._token is None:
            if any(map(has_key_shape, keys)):
                raise RequestRefused(
                    401, "the pool has the keys: set this program's to keyrot-pool"
                )
        elif not any(hmac.compare_digest(key.encode(), self._token) for key in keys):
            raise RequestRefused(401, "send the token of --token-file as the API key")

    def without_keys(self, query: str) -> str:
        """Return a query without what has a key: by its name, or because it is the token."""
        kept = (one for one in query.split("&") if not names_key(_name_of(one)))
        return "&".join(one for one in kept if not self.is_shown(unquote_plus(one).encode()))

    def is_shown(self, text: bytes) -> bool:
        """Return whether the token is in a text, whatever its name."""
        return self._token is not None and self._token in text

    def scheme(self, scope: Scope, headers: dict[str, str]) -> str:
        """Return the scheme of the address that the program has used.

        Only behind a token may a proxy say so: none stands in front of a door without.
        """
        said = headers.get("x-forwarded-proto", "") if self._token is not None else ""
        return "https" if said.lower().startswith("https") else str(scope["scheme"])


_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d+)?")
"""A Host header: the name, and perhaps a port."""
FORWARDED = (
    *("forwarded", "via", "true-client-ip", "x-client-ip", "x-cluster-client-ip", "x-real-ip"),
    *("x-forward", "x-original-", "x-envoy-", "x-amzn-", "x-appengine-", "x-arr-", "x-azure-"),
    *("cdn-", "cf-", "fastly-", "fly-", "akamai-", "ngrok-", "tailscale-", "x-varnish", "x-nginx-"),
    *("client-ip", "x-host", "x-rewrite-", "x-scheme", "front-end-", "wl-proxy-", "x-proxy"),
    *("max-forwards", "proxy-connection"),
)
"""How the names of headers begin that proxies add."""


def _is_forwarded(scope: Scope, names: Sequence[str]) -> bool:
    """Return whether a proxy shows itself. One that adds nothing cannot be seen.

    nginx before 1.29.7 speaks HTTP/1.0 by default, and no browser does.
    """
    return scope["http_version"] == "1.0" or any(name.startswith(FORWARDED) for name in names)


# A program's own key ------------------------------------------------------------------------------

_KEY = re.compile(
    r"key|authorization|(?:.*[-_])?(?:api[-_]?key|subscription-key|(?:access|auth|oauth)[-_]?token)"
)


@lru_cache(maxsize=1024)
def names_key(name: str) -> bool:
    """Return whether a header or parameter of this name, in lower case, has a key or a login.

    Of any provider: clients send theirs in several places, such as `api-key` beside
    `Authorization`. What has such a name is looked at, and never sent on.
    """
    return _KEY.fullmatch(name) is not None


def _name_of(parameter: str) -> str:
    return unquote_plus(parameter.partition("=")[0]).strip().lstrip("$.").lower()


def _in_headers(given: Given) -> Iterator[str]:
    for name, value in given:
        if names_key(name):
            yield value.rpartition(" ")[2].strip("\"'")  # behind the scheme


def _in_query(query: str) -> Iterator[str]:
    for one in query.split("&") if query else ():
        if names_key(_name_of(one)):
            yield unquote_plus(one.partition("=")[2])
