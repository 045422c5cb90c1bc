"""Who may call through the door, and with which key: none of their own.

Any page of the web can send requests to 127.0.0.1, so what a browser sends is refused, and a Host
that is no name of this machine (a foreign name that resolves to 127.0.0.1 is DNS rebinding).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from starlette.types import Scope

from ..hosts import is_loopback
from ..providers.base import Provider
from ..providers.keys import has_key_shape

Given = Sequence[tuple[str, str]]
"""Names of headers in lower case, and their values."""
MOST_HEADERS = 100
"""With thousands of them httpx takes seconds."""
WILDCARDS = ("0.0.0.0", "::")


class Refused(Exception):  # noqa: N818 - an answer of ours
    """A request that is not sent."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class Access:
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
            Refused: It may be a browser's or a proxy's, or is none that can be sent on.
        """
        headers, names = dict(given), [name for name, _ in given]
        if len(given) > MOST_HEADERS:
            raise Refused(431, f"a request has at most {MOST_HEADERS} headers")
        lengths = names.count("content-length") + names.count("transfer-encoding")
        if lengths > 1 or names.count("host") != 1:
            raise Refused(400, "a request has one Host and one length")
        site = headers.get("sec-fetch-site", "none")
        if "origin" in headers or site not in ("none", "same-origin"):
            raise Refused(403, "pages in a browser may not call")
        try:
            name = urlsplit(f"//{headers['host']}").hostname or ""
        except ValueError:
            name = ""
        if name != self._host and not is_loopback(name) and self._host not in WILDCARDS:
            raise Refused(403, "the Host header names another server")
        # Browsers do not send HTTP/1.0; nginx does by default, and adds no header.
        is_old = scope["http_version"] == "1.0"
        is_old |= any(name.startswith(_FORWARDED) for name in names)
        if self._token is None and is_old:
            raise Refused(403, "behind a proxy it needs --token-file")
        if "upgrade" in headers:
            raise Refused(501, "websockets (Live) are not served")

    def require_key(self, provider: Provider, given: Given, query: str) -> None:
        """Look at what a program sends as its key; none of it is sent on.

        Raises:
            Refused: It is not the token; or, without one, it is a real key.
        """
        keys = parse_qs(query).get("key", [])
        for name, value in given:
            if name in provider.key_headers:
                scheme, _, text = value.strip().partition(" ")
                keys.append(text.strip() if scheme.lower() == "bearer" else value.strip())
        if self._token is None:
            if any(map(has_key_shape, keys)):
                raise Refused(401, "the pool has the keys: set this program's to keyrot-pool")
        elif not any(hmac.compare_digest(key.encode(), self._token) for key in keys):
            raise Refused(401, "send the token of --token-file as the API key")


_FORWARDED = (
    *("forwarded", "via", "true-client-ip", "x-client-ip", "x-cluster-client-ip", "x-real-ip"),
    *("x-forwarded", "x-original-", "x-envoy-", "x-amzn-", "x-appengine-", "x-arr-", "x-azure-"),
    *("cdn-", "cf-", "fastly-", "fly-"),
)
"""How the names of headers begin that proxies add."""
