"""What the service knows of one request when it makes up an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from keyrot_middleware.testing.keys import FakeKey
from keyrot_middleware.testing.quota import Kind, Limits
from keyrot_middleware.testing.routes import Route

__all__ = ["FakeRequest"]


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """One request, before it is answered.

    Attributes:
        route: What the path asks for.
        key: The key it came with, or None if it had none that is known.
        value: The key's value as it was sent, or empty.
        bucket: The quota bucket of the model.
        now: Epoch seconds by the service's clock.
        limits: What the key's project may use of the bucket.
        broken: The limits that the request would overrun.
        wait_s: After how many seconds it would fit into its minute; None: at the next :00.
        body: The JSON body, or an empty dict.
        tokens: The input tokens of the body.
        resource: The stored thing that the request names, or empty.
    """

    route: Route
    key: FakeKey | None = None
    value: str = ""
    bucket: str = ""
    now: float = 0.0
    limits: Limits = field(default_factory=Limits)
    broken: tuple[Kind, ...] = ()
    wait_s: float | None = None
    body: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    resource: str = ""

    @property
    def free(self) -> bool:
        """Whether the key's project is of the free tier."""
        return self.key is None or self.key.tier == "free"

    @property
    def label(self) -> str:
        """The key's label, or a word for a key that is not known."""
        return self.key.label if self.key else "nobody"

    @property
    def consumer(self) -> str:
        """The key's project as Google's error bodies name it."""
        return f"projects/{self.key.number if self.key else '100000000000'}"
