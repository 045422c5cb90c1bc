"""The value of one scripted reply, and how it is bent: later, in mid-stream, in another shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from keyrot_middleware.testing.asked import Asked

__all__ = ["JSON", "Ending", "Scripted"]

JSON = "application/json; charset=UTF-8"
Ending = Literal["end", "close", "reset"]


@dataclass(frozen=True, slots=True)
class Scripted:
    """How the service shall answer one request.

    Attributes:
        name: The member's name in `Reply`, or `CUSTOM`; it stands in the request log.
        status: The HTTP status; 0 if nothing is answered.
        body: Makes the JSON value, text or bytes of the body; None is the ordinary answer.
        content_type: The header of that name.
        headers: More headers.
        delay_s: Seconds before the first byte, by the machine's clock.
        gap_s: Seconds before every chunk of a stream but the first.
        after: In a stream, how many chunks go out before the fault; None is the fault at once.
        ending: What happens to the connection afterwards.
        listwrap: Whether the error comes in a list of one.
        interactions: Whether the error has the shape of the Interactions API.
        spares_reads: Whether requests that run no model are answered as ever.
        charged: Whether a refused request counts against the quota all the same.
        continues: Whether the ordinary answer ends with CONTINUATION and a token.
    """

    status: int = 200
    body: Callable[[Asked], Any] | None = None
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    gap_s: float = 0.0
    after: int | None = None
    ending: Ending = "end"
    listwrap: bool = False
    interactions: bool = False
    spares_reads: bool = False
    charged: bool = False
    continues: bool = False
    name: str = "CUSTOM"

    def delayed(self, seconds: float) -> Scripted:
        """Return the same reply, its first byte `seconds` later."""
        return replace(self, delay_s=seconds)

    def in_stream(self, after: int = 0) -> Scripted:
        """Return the same error, inside a stream under HTTP 200, after so many chunks.

        A request that is not a stream gets it as an HTTP error still.
        """
        return replace(self, after=after)

    def list_wrapped(self) -> Scripted:
        """Return the same error in a list of one, as some endpoints send it."""
        return replace(self, listwrap=True)

    def as_interactions(self) -> Scripted:
        """Return the same error as `{"error": {"message", "code": "too_many_requests"}}`."""
        return replace(self, interactions=True)

    def with_headers(self, **headers: str) -> Scripted:
        """Return the same reply with more headers; `_` in a name stands for `-`."""
        more = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        return replace(self, headers=self.headers + more)

    @property
    def counts(self) -> bool:
        """Whether the request counts against the quota: 400 and 5xx do as well (GEMINI.md B5)."""
        return self.status == 200 or self.status >= 500 or self.charged

    @property
    def answers(self) -> bool:
        """Whether this is the ordinary answer (perhaps slow, cut or continued), not an error."""
        return self.status == 200 and self.body is None
