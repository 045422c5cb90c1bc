"""The providers of a pool: where their requests go, which paths they have, and what sends them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from .. import providers
from ..clients import transport
from ..core.wording import one_line
from ..errors import ConfigError
from ..hosts import hostname, is_loopback, origin_from_url
from ..providers.base import Provider, Route
from ..providers.gemini import VERTEX_EXPRESS
from ..settings import Config
from .access import METHODS

_VERSION = re.compile(r"(?:\A|/)v\d")
_TO_VERSION = re.compile(r".*?/v\d\w*")
_SHOWN = 200
"""Characters of a path in a message."""
_MOST_NEAR, _MOST_PARTS = 3, 6


class Upstream(NamedTuple):
    """A provider that the pool has keys of."""

    provider: Provider
    origin: str
    """Of its requests: `https://host`, perhaps with a port and a path."""

    def find(self, method: str, path: str) -> tuple[str, Route] | None:
        """Return the address and the route of a path, of a model's calls also without the version.

        Some clients take an address with `/v1`, and others without, by the same variable. Other
        paths have to be whole: a table may take any name for that of a collection.
        """
        plain = self._at("", method, path)
        has_version = _VERSION.search(path.partition("?")[0]) is not None
        if has_version or (plain is not None and hostname(self.origin) not in self.provider.hosts):
            return plain
        base = self.provider.base
        versioned = _TO_VERSION.match(base)  # behind it Gemini's has the name of a collection
        found = self._at(base if versioned is None else versioned[0], method, path)
        is_call = found is not None and found[1].counts_in_quota and not found[1].bound_to_owner
        return found if is_call else plain

    def _at(self, base: str, method: str, path: str) -> tuple[str, Route] | None:
        url = f"{self.origin}{base}/{path}"
        route = self.provider.route(method, url)
        return None if route is None else (url, route)


def upstream_of(config: Config) -> dict[str, Upstream]:
    """Return the providers that the pool has keys of, by name.

    Requests go to a host that `KEYROT_ALLOWED_HOSTS` names, or else to the provider's own.
    """
    upstreams: dict[str, Upstream] = {}
    for platform in dict.fromkeys(key.service for key in config.keys):
        provider, allowed = providers.of(platform), config.allowed[platform]
        if platform == VERTEX_EXPRESS or not allowed:
            continue
        own = {origin_from_url(f"https://{host}") for host in provider.hosts}
        origin = min(allowed - own or allowed).removesuffix(":443")
        upstreams[provider.name] = Upstream(provider, origin)
    return upstreams


def sender_to(origin: str) -> httpx.AsyncHTTPTransport:
    """Return what sends to an origin through the pool, by a proxy of the environment if any.

    Raises:
        ConfigError: That proxy cannot be used.
    """
    parts, known = urlsplit(origin), getproxies()
    proxy = known.get(parts.scheme) or known.get("all")
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host) or proxy_bypass(parts.netloc):  # or with its port
        proxy = None
    elif proxy is not None and "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        sender = httpx.AsyncHTTPTransport(proxy=proxy, limits=httpx.Limits(max_connections=None))
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        variable = f"{parts.scheme.upper()}_PROXY"
        raise ConfigError(f"{variable}: this proxy cannot be used: {error}") from None
    return transport(sender)


def near(known: Mapping[str, Upstream], method: str, path: str) -> str:
    """Say that nothing is at a path, and what is like it."""
    shown = one_line(path)[:_SHOWN]
    nearest = list(dict.fromkeys(_near(known, method, path)))[:_MOST_NEAR]
    there = f"near is {', '.join(nearest)}" if nearest else f"there is {_roots(known)}"
    return f"nothing is at {method} {shown}; {there}"


def _roots(known: Mapping[str, Upstream]) -> str:
    return ", ".join(f"/{name}/" for name in known) or "no provider with a key"


def _near(known: Mapping[str, Upstream], method: str, path: str) -> Iterator[str]:
    """Yield what a path may have been meant for: of another provider, or by another method."""
    parts = path.strip("/").split("/")[:_MOST_PARTS]
    named = parts[0] in known
    for name, there in sorted(known.items(), key=lambda one: one[0] != parts[0]):
        for begin in range(int(named), len(parts)):
            rest = "/".join(parts[begin:])
            for other in dict.fromkeys((method, *METHODS)):
                if (found := there.find(other, rest)) is not None:
                    yield f"{other} /{name}{found[0].removeprefix(there.origin)}"
                    break
