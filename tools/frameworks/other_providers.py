"""Run frameworks over keys of OpenAI and Anthropic: one spent, one rejected, one good.

Each program is the one that the framework's own documentation shows, without a line about a pool.
Prints a row for each; the exit code is the number of programs that did not do as a pool should.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import agents
import litellm
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent

import keyrot_middleware
from keyrot_middleware.testing import FakeAnthropic, FakeOpenAI, Scripted

CALLS = 20
SPENT = Scripted(
    429,
    lambda _: {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "code": "rate_limit_exceeded",
            "message": "This request would exceed your organization's rate limit.",
        },
    },
    headers=(("retry-after", "3600"),),
)


def langchain_openai() -> str:
    """LangChain over OpenAI."""
    return str(ChatOpenAI(model="gpt-5-mini").invoke("Say hello.").content)


def langchain_openai_stream() -> str:
    """LangChain over OpenAI, as a stream."""
    return "".join(str(one.content) for one in ChatOpenAI(model="gpt-4o").stream("Say hello."))


def langchain_anthropic() -> str:
    """LangChain over Anthropic."""
    return str(ChatAnthropic(model="claude-haiku-4-5").invoke("Say hello.").content)


def pydantic_ai_openai() -> str:
    """pydantic-ai over OpenAI."""
    return str(Agent("openai-chat:gpt-5-mini").run_sync("Say hello.").output)


def pydantic_ai_anthropic() -> str:
    """pydantic-ai over Anthropic."""
    return str(Agent("anthropic:claude-haiku-4-5").run_sync("Say hello.").output)


def litellm_openai() -> str:
    """Litellm over OpenAI."""
    messages = [{"role": "user", "content": "Say hello."}]
    return str(litellm.completion("openai/gpt-5-mini", messages).choices[0].message.content)


def litellm_anthropic() -> str:
    """Litellm over Anthropic."""
    messages = [{"role": "user", "content": "Say hello."}]
    reply = litellm.completion("anthropic/claude-haiku-4-5", messages)
    return str(reply.choices[0].message.content)


def openai_agents() -> str:
    """The OpenAI Agents SDK, over the Responses API."""
    agents.set_tracing_disabled(True)
    agent = agents.Agent(name="Greeter", model="gpt-5-mini")
    return str(agents.Runner.run_sync(agent, "Say hello.").final_output)


PROGRAMS: dict[str, list[Callable[[], str]]] = {
    "openai": [
        langchain_openai,
        langchain_openai_stream,
        pydantic_ai_openai,
        litellm_openai,
        openai_agents,
    ],
    "anthropic": [langchain_anthropic, pydantic_ai_anthropic, litellm_anthropic],
}


def run(name: str, program: Callable[[], str]) -> bool:
    """Return whether a program does as it should."""
    with FakeOpenAI() if name == "openai" else FakeAnthropic() as fake:
        keys = [fake.add_key(label).value for label in ("A", "B", "C")]
        fake.always("A", SPENT)
        fake.remove_key("B")
        variable = f"{name.upper()}_API_KEY"
        os.environ |= {
            variable: keyrot_middleware.POOL_KEY,
            f"{variable}S": ",".join(keys),
            f"{name.upper()}_BASE_URL": fake.base_url,
            f"{name.upper()}_API_BASE": fake.base_url,
        }
        keyrot_middleware.install(allowed_hosts=f"{name}={fake.url}")
        try:
            texts = {program() for _ in range(CALLS)}
        except Exception as error:
            texts = {f"{type(error).__name__}: {error}"}
        finally:
            keyrot_middleware.uninstall()
        counts = fake.sent("A"), fake.sent(None), fake.sent("C")
    good = texts == {"ok from C"} and counts == (1, 1, CALLS)
    print("ok  " if good else "FAIL", program.__name__, counts, "" if good else texts, flush=True)
    return good


if __name__ == "__main__":
    results = [run(name, program) for name, some in PROGRAMS.items() for program in some]
    sys.exit(results.count(False))
