"""Read the response of a request that failed: no more of it than is kept, and without keys.

Whoever reads it afterwards, the SDK, a log or an error reporter, finds no key in it. An error that
is longer than any of Google's is cut, so that a body of gigabytes, or of a few that were compressed
to nothing, costs no more than a short one.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from ..adapters.bodies import auntil_enough, until_enough
from ..adapters.redaction import ENOUGH, Redact, kept_error, scrub

__all__ = [
    "aread_error",
    "http_library",
    "read_aiohttp_error",
    "read_error",
    "response_type",
    "response_type_of",
    "with_content",
]

_CHUNK = 65_536


def http_library(cls: type) -> Any:
    """Return the library, httpx or httpx2, of a class of it or derived from it; None for others."""
    roots = (base.__module__.partition(".")[0] for base in cls.__mro__)
    name = next((root for root in roots if root in ("httpx", "httpx2")), "")
    return sys.modules.get(name)


def response_type(http: Any) -> Any:
    """Return the `Response` class of the library of an HTTP client; None for another client."""
    return getattr(http_library(type(http)), "Response", None)


def response_type_of(api_client: Any) -> Any:
    """Return the same for the client of an api client."""
    return response_type(getattr(api_client, "_httpx_client", None))


def read_error(response: Any, redact: Redact) -> Any:
    """Return what a response of httpx says, as one that is read."""
    try:
        body = until_enough(response.iter_bytes())
    finally:
        response.close()
    return _read(response, body, redact)


async def aread_error(response: Any, redact: Redact) -> Any:
    """Return what an async response of httpx says, as one that is read."""
    try:
        body = await auntil_enough(response.aiter_bytes())
    finally:
        await response.aclose()
    return _read(response, body, redact)


def _read(response: Any, body: bytes, redact: Redact) -> Any:
    scrub(response, redact)
    kept = kept_error(response.status_code, body, redact, response.charset_encoding)
    return with_content(response, kept)


def with_content(response: Any, content: bytes) -> Any:
    """Return a response of httpx like this one, with another content."""
    made = http_library(type(response)).Response(
        response.status_code,
        content=content,
        extensions=response.extensions,
        history=response.history,
        default_encoding=response.default_encoding,
    )
    made.headers = response.headers  # which name a length and a coding that were
    with suppress(RuntimeError):  # there is none
        made.request = response.request
    with suppress(RuntimeError):  # it was not measured
        made.elapsed = response.elapsed
    return made


async def read_aiohttp_error(response: Any, redact: Redact) -> None:
    """Read what a response of aiohttp says."""
    body = bytearray()
    try:
        while len(body) < ENOUGH and (chunk := await response.content.read(_CHUNK)):
            body += chunk[: ENOUGH - len(body)]
        if not body:
            await response.read()  # there is nothing, or it was read
    except BaseException:
        response.close()
        raise
    if len(body) == ENOUGH:
        response.close()
    scrub(response, redact)
    if body:  # `read()` keeps it there, and nothing public sets it
        response._body = kept_error(response.status, bytes(body), redact, response.charset)
