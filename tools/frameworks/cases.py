"""The cases: the state of the pool, the way a program calls, and the required result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CALLS", "FAILING", "PLAIN", "ROTATING", "WAYS", "Case", "Fault", "Pool", "cases"]

Fault = Literal["minute", "day", "invalid", "good"]
CALLS = 2  # The second meets what the first has taught the pool.
WAYS = ("sync", "stream", "tool", "async_", "async_stream", "async_tool")


@dataclass(frozen=True, slots=True)
class Pool:
    """The keys of a pool in the order of their priority.

    Attributes:
        name: Its name in the report.
        keys: Key id to what the service makes of that key.
        home: The key id whose value is the program's single key; None is POOL_KEY.
        words: Texts that the user must see when every call fails; empty if none may fail.
    """

    name: str
    keys: dict[str, Fault]
    home: str | None = None
    words: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether no key of the pool can answer."""
        return "good" not in self.keys.values()


ROTATING = (
    Pool("one good", {"spent": "minute", "revoked": "invalid", "good": "good"}),
    Pool("home key spent", {"spent": "minute", "revoked": "invalid", "good": "good"}, "spent"),
)
PLAIN = Pool("no install()", {"good": "good"}, "good")
FAILING = (
    Pool("spent for the day", {"day1": "day", "day2": "day"}, None, ("RESOURCE_EXHAUSTED",)),
    Pool("all revoked", {"gone1": "invalid", "gone2": "invalid"}, None, ("API_KEY_INVALID",)),
)

# The class under which each framework's user catches it; agno returns text, no exception.
OWN_ERRORS: dict[tuple[str, str], str] = {
    ("langchain", "RESOURCE_EXHAUSTED"): "GoogleRateLimitError",
    ("langchain", "API_KEY_INVALID"): "GoogleInvalidRequestError",
    ("pydantic-ai", "RESOURCE_EXHAUSTED"): "ModelQuotaExceededError",
    ("pydantic-ai", "API_KEY_INVALID"): "ModelAuthenticationError",
    ("adk", "RESOURCE_EXHAUSTED"): "_ResourceExhaustedError",
    ("adk", "API_KEY_INVALID"): "ClientError",
    ("agno", "RESOURCE_EXHAUSTED"): "RuntimeError",
    ("agno", "API_KEY_INVALID"): "RuntimeError",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One process: a framework, a pool, a way to call."""

    framework: str
    pool: Pool
    way: str

    @property
    def app(self) -> str:
        """The name of the user program, for probe.py."""
        return self.framework.replace("-", "_")

    @property
    def errors(self) -> list[str]:
        """The names of the classes of which the user's exception must be one each."""
        return [OWN_ERRORS[self.framework, word] for word in self.pool.words]


def cases(framework: str) -> list[Case]:
    """List the cases of one framework."""
    return [Case(framework, pool, way) for pool in (*ROTATING, *FAILING) for way in WAYS]
