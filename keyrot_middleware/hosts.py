"""Where keys may go: the hosts that the settings allow, and what is at an address."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from itertools import combinations
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from . import providers
from .core.wording import did_you_mean
from .errors import ConfigError
from .providers.gemini import Gemini, VertexExpress
from .providers.keys import display

GOOGLE_HOST, VERTEX_HOST = Gemini.hosts[0], VertexExpress.hosts[0]

_USER_INFO = re.compile(r"(https?:/+)?.*@", re.DOTALL)
"""What may stand in front of a host in a URL, a password for one; no host has it."""
_HOST = re.compile(
    r"(?:([a-z][a-z0-9-]*)=(?:https://)?)?(http://)?([a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(\d{1,5}))?"
    r"(?(1)((?:/(?!\.)[\w.~-]+)*))"
)
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|\[::1\]")


@lru_cache(maxsize=256)
def hostname(url: str) -> str:
    """Return the host of a URL, without its port; empty for none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


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
    """Return `scheme://host:port` of a URL, in the form of `origins`; empty without host.

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


def is_within(url: str, places: Collection[str]) -> bool:
    """Return whether an address is at one of these origins, or below the path that one names."""
    origin = origin_from_url(url)
    if not origin or origin in places:
        return origin != ""
    below = f"{origin}{unquote(urlsplit(url).path)}/"
    return "/../" not in below and any(
        one != origin and below.startswith(f"{one}/") for one in places
    )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


@lru_cache(maxsize=256)
def is_clear_here(url: str) -> bool:
    """Return whether an address is of this machine, in clear: a key goes there, and to no proxy."""
    return url.startswith(("http://", "ws://")) and is_loopback(hostname(url))


def good_host(host: str) -> str:
    """Return an entry of `KEYROT_ALLOWED_HOSTS` in the form that is compared.

    Raises:
        ValueError: It is none.
    """
    begin = len(host) if "=" not in host else host.find("/", host.rfind("://") + 3)
    host = host[:begin].lower() + host[begin:] if begin >= 0 else host.lower()
    match = _HOST.fullmatch(host)
    if match is None or not 0 < int(match[4] or 443) < 65536:
        masked = _USER_INFO.sub(r"\1[redacted]@", host)
        raise ValueError(f"found {display(masked)}; allowed: host or host:port in full")
    if match[1] and match[1] not in (known := providers.names()):
        hint = did_you_mean(match[1], known)
        text = f"found the provider {display(match[1])}; there is none.{hint}"
        raise ValueError(providers.plugged_in()[1].get(match[1], text))
    return host


AllowedOrigins = Mapping[str, frozenset[str]]
"""Where keys may be sent, by their platform."""


def origins(hosts: Iterable[str]) -> frozenset[str]:
    """Return the origins of these hosts, in the form of `origin_from_url`.

    That is TLS, and plain HTTP only where it stays in this machine, not at a proxy, or is written
    in front of the host. Without a port it is the scheme's own.
    """
    allowed: set[str] = set()
    for entry, match in ((entry, _HOST.fullmatch(entry)) for entry in hosts):
        if match is None:
            continue
        _, plain, host, port, path = match.groups()
        if not plain:
            allowed.add(f"https://{host}:{port or 443}{path or ''}")
        if plain or (_LOOPBACK.fullmatch(host) and not is_proxied(entry)):
            allowed.add(f"http://{host}:{port or 80}{path or ''}")
    return frozenset(allowed)


def _host(entry: str) -> str:
    match = _HOST.fullmatch(entry)
    return match[3] if match else ""


def is_proxied(entry: str) -> bool:
    """Return whether a proxy of the environment gets what is sent to a host of this machine."""
    match = _HOST.fullmatch(entry)
    if match is None or match[2] or not _LOOPBACK.fullmatch(match[3]):
        return False
    proxies = getproxies()  # libraries read a port or a dot in NO_PROXY in different ways
    named = {one.strip().lower() for one in proxies.get("no", "").split(",")}
    return bool(proxies.get("http") or proxies.get("all")) and not named & {match[3], "*"}


def allowed_origins(hosts: Iterable[str], platforms: Iterable[str] = ()) -> AllowedOrigins:
    """Return where the keys of each platform may go.

    Args:
        hosts: Those of `KEYROT_ALLOWED_HOSTS`. One without a provider is for Google's platforms,
            and Google's own are for one of them alone.
        platforms: Those that the pool has keys of; Google's two are always there.
    """
    named: dict[str, list[str]] = {}
    for name, _, host in (entry.rpartition("=") for entry in hosts):
        named.setdefault(name, []).append(f"{name}={host}" if name else host)
    given = named.get("") or [GOOGLE_HOST, VERTEX_HOST]
    given += named.get(Gemini.name, ())
    allowed = {
        Gemini.platform: origins(h for h in given if not _host(h).endswith(VERTEX_HOST)),
        VertexExpress.platform: origins(h for h in given if _host(h) != GOOGLE_HOST),
    }
    for platform in platforms:
        if platform not in allowed:
            allowed[platform] = origins([*providers.of(platform).hosts, *named.get(platform, ())])
    for one, other in combinations(allowed, 2):
        if allowed[one] & allowed[other] and providers.of(one).is_asked_like(providers.of(other)):
            place = min(allowed[one] & allowed[other])
            raise ConfigError(
                f"KEYROT_ALLOWED_HOSTS: requests to {place} may be for {one} or for {other}; "
                f"allowed: a path for each, such as {one}={place}/{one}."
            )
    return allowed
