"""The cases: a framework, the state of the pool, the way a program calls, the required result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from answers import dspy, instructor, smolagents

__all__ = ["FRAMEWORKS", "ONE_GOOD", "PLAIN", "Case", "Fault", "Framework", "Pool", "cases"]

Fault = Literal["spent", "invalid", "good"]
WAYS = ("sync", "stream", "tool", "async_", "async_stream", "async_tool")


@dataclass(frozen=True, slots=True)
class Framework:
    """What is run, and what its user catches.

    Attributes:
        name: Its program is `<name>_app.py`, with `_` for `-`, without `-openai`.
        title: Its name in the table.
        distribution: The package that is pinned for it.
        sends_by: The library that makes its requests.
        spent: The class that its user catches where all keys are spent for the day.
        revoked: The same where all keys are revoked.
        spent_in_stream: That of a stream, if it is another one.
        environment: It works with `requirements-<environment>.txt`; its own name if empty.
        ways: How its program can call.
        answer: What a model answers to its prompts; None: a text, or a call of the tool.
        model: What its program asks for, if that is not written there.
        key_variables: What its user sets to the placeholder; of all others `keyrot run` sets one.
        shows_status: The error shows Google's status and reason beside the message.
    """

    name: str
    title: str
    distribution: str
    sends_by: str
    spent: str
    revoked: str
    spent_in_stream: str = ""
    environment: str = ""
    ways: tuple[str, ...] = WAYS
    answer: Callable[[dict[str, Any]], Any] | None = None
    model: str = ""
    key_variables: tuple[str, ...] = ()
    shows_status: bool = True

    @property
    def requirements(self) -> str:
        """The name of its environment."""
        return self.environment or self.name

    @property
    def app(self) -> str:
        """The name of the user program, for probe.py."""
        return self.name.removesuffix("-openai").replace("-", "_")


_OVER_OPENAI = ("OPENAI_API_KEY",)
_ADK = Framework(
    name="adk",
    title="Google ADK",
    distribution="google-adk",
    sends_by="google-genai",
    spent="_ResourceExhaustedError",
    revoked="ClientError",
)
_AGNO = Framework(
    name="agno",
    title="agno",
    distribution="agno",
    sends_by="google-genai",
    # agno raises nothing: its run has a status and the text, of which its program makes this.
    spent="RuntimeError",
    revoked="RuntimeError",
)
_LANGCHAIN = Framework(
    name="langchain",
    title="LangChain",
    distribution="langchain-google-genai",
    sends_by="google-genai",
    spent="GoogleRateLimitError",
    revoked="GoogleInvalidRequestError",
)
_PYDANTIC_AI = Framework(
    name="pydantic-ai",
    title="pydantic-ai",
    distribution="pydantic-ai-slim",
    sends_by="google-genai",
    model="google:gemini-3.1-flash-lite",
    spent="ModelQuotaExceededError",
    revoked="ModelAuthenticationError",
)
_OPENAI_AGENTS = Framework(
    name="openai-agents",
    title="OpenAI Agents SDK",
    distribution="openai-agents",
    sends_by="openai",
    spent="openai.RateLimitError",
    revoked="openai.BadRequestError",
    environment="openai",
    ways=tuple(way for way in WAYS if way != "stream"),
    key_variables=_OVER_OPENAI,
    shows_status=False,
)
_AUTOGEN = Framework(
    name="autogen",
    title="AutoGen",
    distribution="autogen-ext",
    sends_by="openai",
    spent="openai.RateLimitError",
    revoked="openai.BadRequestError",
    environment="openai",
    ways=WAYS[3:],
    shows_status=False,
)
_LANGCHAIN_OPENAI = Framework(
    name="langchain-openai",
    title="LangChain's ChatOpenAI",
    distribution="langchain-openai",
    sends_by="openai",
    spent="OpenAIRateLimitError",
    revoked="OpenAIInvalidRequestError",
    environment="openai",
    key_variables=_OVER_OPENAI,
    shows_status=False,
)
_PYDANTIC_AI_OPENAI = Framework(
    name="pydantic-ai-openai",
    title="pydantic-ai's OpenAI model",
    distribution="pydantic-ai-slim",
    sends_by="openai",
    model="openai-chat:gemini-3.1-flash-lite",
    spent="ModelRateLimitError",
    revoked="ModelRequestRejectedError",
    environment="openai",
    key_variables=_OVER_OPENAI,
)
_INSTRUCTOR = Framework(
    name="instructor",
    title="instructor",
    distribution="instructor",
    sends_by="openai",
    spent="InstructorRetryException",
    revoked="InstructorRetryException",
    ways=("sync", "stream", "async_", "async_stream"),
    answer=instructor,
    key_variables=_OVER_OPENAI,
)
_LLM_GEMINI = Framework(
    name="llm-gemini",
    title="llm",
    distribution="llm-gemini",
    sends_by="httpx",
    spent="llm.ModelError",
    revoked="llm.ModelError",
    environment="openai",
    key_variables=("LLM_GEMINI_KEY",),
    shows_status=False,
)
_DSPY = Framework(
    name="dspy",
    title="DSPy",
    distribution="dspy",
    sends_by="litellm",
    spent="LMRateLimitError",
    spent_in_stream="LMServerError",  # litellm makes an error of its own of a 429 in a stream
    revoked="LMAuthError",
    environment="litellm",
    answer=dspy,
)
_SMOLAGENTS = Framework(
    name="smolagents",
    title="smolagents",
    distribution="smolagents",
    sends_by="litellm",
    spent="AgentGenerationError",
    revoked="AgentGenerationError",
    environment="litellm",
    ways=WAYS[:3],
    answer=smolagents,
)
_HAYSTACK = Framework(
    name="haystack",
    title="Haystack",
    distribution="google-genai-haystack",
    sends_by="google-genai",
    spent="RuntimeError",
    revoked="RuntimeError",
)
_ANY_LLM = Framework(
    name="any-llm",
    title="any-llm",
    distribution="any-llm-sdk",
    sends_by="google-genai",
    spent="ClientError",
    revoked="ClientError",
    ways=("sync", "stream", "async_", "async_stream"),
)
FRAMEWORKS = {
    framework.name: framework
    for framework in (
        _LANGCHAIN,
        _PYDANTIC_AI,
        _ADK,
        _AGNO,
        _HAYSTACK,
        _ANY_LLM,
        _OPENAI_AGENTS,
        _AUTOGEN,
        _LANGCHAIN_OPENAI,
        _PYDANTIC_AI_OPENAI,
        _INSTRUCTOR,
        _DSPY,
        _SMOLAGENTS,
        _LLM_GEMINI,
    )
}


@dataclass(frozen=True, slots=True)
class Pool:
    """The keys of a pool in the order of their priority.

    Attributes:
        name: Its name in the report.
        keys: Key id to what the service makes of that key.
        calls: How many are made; the later ones meet what the first has taught the pool.
        home: The key id whose value is the program's own key. Its program calls install(); without
            one of its own it is started by `keyrot run`.
        message: Texts that the user must read when every call fails; empty if none may fail.
        status: What Google calls it.
    """

    name: str
    keys: dict[str, Fault]
    calls: int = 2
    home: str | None = None
    message: tuple[str, ...] = ()
    status: str = ""

    @property
    def fails(self) -> bool:
        """Whether no key of the pool can answer."""
        return "good" not in self.keys.values()

    def sent(self, way: str) -> dict[str, int]:
        """Return how many requests must come with each key."""
        each = 2 if "tool" in way else 1
        return {
            key_id: self.calls * each if fault == "good" else 1
            for key_id, fault in self.keys.items()
        }


ONE_GOOD = Pool("one good", {"spent": "spent", "revoked": "invalid", "good": "good"}, calls=60)
HOME_SPENT = Pool(
    "home key spent", {"spent": "spent", "revoked": "invalid", "good": "good"}, home="spent"
)
SPENT = Pool(
    "spent for the day",
    {"day1": "spent", "day2": "spent"},
    message=("No Gemini API key of pool ", " is available. day1: quota_day until "),
    status="RESOURCE_EXHAUSTED",
)
REVOKED = Pool(
    "all revoked",
    {"gone1": "invalid", "gone2": "invalid"},
    message=("API key not valid",),
    status="API_KEY_INVALID",
)
PLAIN = Pool("no install()", {"good": "good"}, home="good")


@dataclass(frozen=True, slots=True)
class Case:
    """One process: a framework, a pool, a way to call."""

    framework: Framework
    pool: Pool
    way: str

    @property
    def error(self) -> str:
        """The name of a class of the exception that the user must get."""
        framework, spent = self.framework, self.framework.spent
        if "stream" in self.way:
            spent = framework.spent_in_stream or spent
        return (spent if self.pool is SPENT else framework.revoked).rpartition(".")[2]

    @property
    def words(self) -> tuple[str, ...]:
        """The texts that the exception must show."""
        pool = self.pool
        return (*pool.message, pool.status) if self.framework.shows_status else pool.message


def cases(framework: Framework, *, plain: bool = False) -> list[Case]:
    """List the cases of one framework, or those without install()."""
    pools = (PLAIN,) if plain else (ONE_GOOD, HOME_SPENT, SPENT, REVOKED)
    return [Case(framework, pool, way) for pool in pools for way in framework.ways]
