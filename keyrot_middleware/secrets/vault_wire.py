"""One conversation with a Vault server: a request goes out, an answer or a fault comes back.

What hvac and requests raise stays in here: their exceptions carry the request with the token in
its headers and the login in its body. So nothing is raised, and nothing is made inside a handler,
where the exception would become its context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

from .base import Secret
from .vault_faults import Fault, not_vault, refused, unreachable
from .vault_settings import VaultSettings

__all__ = ["Line"]

_CONNECT_S = 2.0
"""Long enough for a lost first packet, which is sent again after one second."""
_MOST_REDIRECTS = 3
"""A standby node sends its clients on to the active one."""


class Line:
    """Requests to one server with one token. Use it as a context manager, from one thread.

    It is opened for each look-up and closed after it, so that no connection grows stale in the
    minutes between, none is shared with a forked child, and no object of hvac keeps a token.
    """

    __slots__ = ("_adapter", "_masked", "_patience_s", "_server")

    def __init__(self, settings: VaultSettings, token: Secret | None = None) -> None:
        from hvac.adapters import JSONAdapter  # noqa: PLC0415 - an optional library
        from requests import Session  # noqa: PLC0415

        session = Session()
        session.verify, session.cert = settings.verify, settings.certificate
        session.max_redirects = _MOST_REDIRECTS
        if settings.address.lower().startswith("https:"):
            del session.adapters["http://"]  # no redirect takes the token out of TLS
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
