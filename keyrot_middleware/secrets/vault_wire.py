"""One conversation with a Vault server: a request goes out, an answer or a fault comes back.

What hvac and requests raise stays in here: their exceptions carry the request with the token in
its headers and the login in its body. So nothing is raised, and nothing is made inside a handler,
where the exception would become its context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote, urljoin, urlsplit

from .base import Secret
from .vault_faults import Fault, not_vault, refused, sent_on, unreachable
from .vault_settings import VaultSettings

__all__ = ["Line"]

_CONNECT_S = 2.0
"""Long enough for a lost first packet, which is sent again after one second."""
_MOST_REDIRECTS = 3
"""Within one server: what is in front of it may put paths in order."""


class Line:
    """Requests to one server with one token. Use it as a context manager, from one thread.

    It is opened for each look-up and closed after it, so that no connection grows stale in the
    minutes between, none is shared with a forked child, and no object of hvac keeps a token.
    """

    __slots__ = ("_adapter", "_masked", "_patience_s", "_server")

    def __init__(self, settings: VaultSettings, token: Secret | None = None) -> None:
        from hvac.adapters import JSONAdapter  # noqa: PLC0415 - an optional library

        session = _session()
        session.verify, session.cert = settings.verify, settings.certificate
        session.max_redirects = _MOST_REDIRECTS
        self._server, self._patience_s = settings.server, settings.patience_s
        self._masked = (token.reveal(),) if token else ()
        self._adapter = JSONAdapter(
            base_uri=settings.address,
            token=token.reveal() if token else None,
            session=session,
            verify=settings.verify,
            cert=settings.certificate,
            timeout=(min(_CONNECT_S, self._patience_s), self._patience_s),
            namespace=settings.namespace,
        )

    def get(self, path: str) -> dict[str, Any] | Fault:
        """Read a path of the API, without `v1/`."""
        return self._ask("get", path)

    def post(
        self, path: str, body: Mapping[str, str], masked: tuple[str, ...] = ()
    ) -> dict[str, Any] | Fault:
        """Write to a path of the API; *masked* are the values that no message may show."""
        return self._ask("post", path, body, masked)

    def _ask(
        self,
        method: Literal["get", "post"],
        path: str,
        body: Mapping[str, str] | None = None,
        masked: tuple[str, ...] = (),
    ) -> dict[str, Any] | Fault:
        url = f"/v1/{quote(path)}"
        try:
            reply = self._adapter.request(method, url, json=body, raise_exception=False)
        except (OSError, ValueError) as error:  # all of requests' are OSErrors
            fault = unreachable(error, self._server, self._patience_s)
        else:
            if isinstance(reply, dict):
                return reply
            if getattr(reply, "is_redirect", False):
                return sent_on(self._server, reply.headers["Location"])
            if getattr(reply, "ok", True):
                return not_vault(self._server)
            return refused(reply, self._server, (*self._masked, *masked))
        return fault

    def close(self) -> None:
        """Close the connection."""
        self._adapter.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _session() -> Any:
    """Make a session that gives what it carries to one server only."""
    from requests import Response, Session  # noqa: PLC0415

    class OneServer(Session):
        def get_redirect_target(self, resp: Response) -> Any:
            """Follow no redirect to another server: token and login would go with it."""
            target = super().get_redirect_target(resp)
            if target is None or _origin(urljoin(resp.url, target)) == _origin(resp.url):
                return target
            return None

    session = OneServer()
    # Without it requests sends what ~/.netrc has for the host, or for any host.
    session.auth = _as_it_is
    return session


def _as_it_is(request: Any) -> Any:
    return request


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return parts.scheme, parts.hostname, port
