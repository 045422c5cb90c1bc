"""What comes in place of a reply: a refusal of the server's, or a response of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..providers.base import Provider
from .no_key import NoKey

NO_RETRY = "x-should-retry"
"""openai retries 429 and 5xx twice unless a response says otherwise."""


class Explanation(NamedTuple):
    """What a response that ends a call carries for the exception that google-genai makes of it."""

    notes: Sequence[str]
    """One about each attempt."""
    no_key: NoKey | None = None
    """Why no key could serve the call."""
    last: tuple[int, Any, Any] | None = None
    """Code, body and response of the last refusal before that."""


class RefusalError(Exception):
    """No response that serves: a refusal, which goes to the program, or another attempt follows.

    It reaches no caller.
    """

    def __init__(self, response: Any, body: Any = None, no_key: NoKey | None = None) -> None:
        super().__init__()
        first = body[0] if isinstance(body, list) and body else body
        self.response = response
        self.body = body
        self.no_key = no_key
        self.code = 0
        self.details = first if isinstance(first, dict) else None
        """The body, as Google writes errors."""
        error = self.details.get("error") if self.details else None
        self.status = error.get("status") if isinstance(error, dict) else None


class OwnResponse(NamedTuple):
    """A response of our own, in place of one of the server's."""

    code: int
    headers: dict[str, str]
    body: bytes


def without_pool(provider: Provider, url: str) -> OwnResponse:
    """Return the response to a request that has a placeholder where there is no key to send."""
    return error_response(401, provider.error_body(401, f"keyrot: {provider.no_key}"), url)


def error_response(code: int, body: object, url: str) -> OwnResponse:
    """Return an error as the provider writes it, of a request to *url*."""
    path, _, query = url.partition("?")
    # Such a stream is an array, its errors too, and programs read it as one.
    is_array = ":stream" in path and "alt=sse" not in query
    content = json.dumps([body] if is_array else body).encode()
    headers = {
        "content-type": "application/json; charset=UTF-8",
        "content-length": str(len(content)),
        NO_RETRY: "false",
    }
    return OwnResponse(code, headers, content)
