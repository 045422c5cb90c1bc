"""Where a request goes: its host, and its origin as allowed hosts have it."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import urlsplit


@lru_cache(maxsize=256)
def host_from_url(base_url: str) -> str:
    """Return `host`, or `host:port` for a port that is not the default; empty for no URL."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        return ""
    if port is None or (parts.scheme, port) in (("https", 443), ("http", 80)):
        return parts.hostname or ""
    return f"{parts.hostname or ''}:{port}"


_PORTS = {"https": 443, "wss": 443, "http": 80, "ws": 80}


@lru_cache(maxsize=256)
def origin_from_url(url: str) -> str:
    """Return `scheme://host:port` of a URL, in the form of `settings.origins`; empty without host.

    A websocket over TLS has the origin of its host's HTTPS.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (KeyError, ValueError):
        return ""
    host = parts.hostname or ""
    scheme = {"wss": "https", "ws": "http"}.get(parts.scheme, parts.scheme)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" if host else ""
