"""Run the SDKs of providers over three keys: one spent, one unknown to the provider, one good.

``python sdks.py`` runs them all; ``python sdks.py "openai 1" cohere`` those whose name begins so.
Each way of calling makes 20 calls over a pool of its own: the first two keys get one request each,
the good one answers every call, and tokens and cost are booked. The exit code is the number of
ways that failed, at most 100.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

import sdk_programs
from venvs import python_of

import keyrot_middleware
from keyrot_middleware import POOL_KEY
from keyrot_middleware.core.activity import POOL, ActivityLog
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.testing import FakeAnthropic, FakeOpenAI, Scripted

IN_ENVIRONMENT = "--in-environment"
TIME_LIMIT_S = 600.0
CALLS = 20
WAYS = ("sync", "stream", "async", "async stream")
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


class Sdk(NamedTuple):
    """A program of sdk_programs.py, and what it calls."""

    program: str
    provider: str
    environment: str = "sdks"
    ways: int = len(WAYS)
    """How many of them it has."""


SDKS = {
    "openai 3": Sdk("openai", "openai"),
    "openai 2": Sdk("openai", "openai", "sdks-2"),
    "openai 1": Sdk("openai", "openai", "sdks-1"),
    "anthropic 2": Sdk("anthropic", "anthropic"),
    "anthropic 0.34": Sdk("anthropic", "anthropic", "sdks-1"),
    "mistralai 3": Sdk("mistral", "mistral"),
    "mistralai 1": Sdk("mistral", "mistral", "sdks-1"),
    "groq": Sdk("groq", "groq"),
    "together 3": Sdk("together", "together"),
    "together 1": Sdk("together", "together", "sdks-1"),
    "cohere 7": Sdk("cohere", "cohere"),
    "cohere 5": Sdk("cohere", "cohere", "sdks-1"),
    "cerebras": Sdk("cerebras", "cerebras"),
    "fireworks": Sdk("fireworks", "fireworks"),
    "perplexity": Sdk("perplexity", "perplexity"),
    "openrouter": Sdk("openrouter", "openrouter"),
    "huggingface_hub": Sdk("huggingface", "together"),
    "litellm": Sdk("litellm", "openai", "sdks-frameworks"),
    "litellm, Anthropic": Sdk("litellm_anthropic", "anthropic", "sdks-frameworks"),
    "azure old": Sdk("azure_old", "azure-openai"),
    "azure v1": Sdk("azure_v1", "azure-openai"),
    "LangChain, OpenAI": Sdk("langchain_openai", "openai", "sdks-frameworks"),
    "LangChain, Anthropic": Sdk("langchain_anthropic", "anthropic", "sdks-frameworks"),
    "pydantic-ai, OpenAI": Sdk("pydantic_ai", "openai", "sdks-frameworks", 1),
    "pydantic-ai, Anthropic": Sdk(
        "pydantic_ai_anthropic", "anthropic", "sdks-frameworks", WAYS[:1]
    ),
    "OpenAI Agents SDK": Sdk("openai_agents", "openai", "sdks-frameworks", 1),
}


class FakeCohere(FakeOpenAI):
    """Cohere's chat, as far as its SDKs use it here."""

    def reply(self, asked: Any) -> Any:
        """Return the answer, or the events of its stream."""
        text = {"type": "text", "text": self.text(asked)}
        start = {"message": {"content": {**text, "text": ""}}}
        usage = {"billed_units": {"input_tokens": asked.tokens, "output_tokens": 3}}
        ended, at = {"finish_reason": "COMPLETE", "usage": usage}, {"index": 0}
        if not asked.body.get("stream"):
            return {"id": "chat-1", "message": {"role": "assistant", "content": [text]}, **ended}
        empty: dict[str, Any] = {"content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        begun = {"role": "assistant", **empty}
        return [
            {"type": "message-start", "id": "chat-1", "delta": {"message": begun}},
            {"type": "content-start", **at, "delta": start},
            {"type": "content-delta", **at, "delta": {"message": {"content": text}}},
            {"type": "content-end", **at},
            {"type": "message-end", "delta": ended},
        ]


def fake_of(provider: str) -> Any:
    """Return the fake of a provider."""
    if provider == "anthropic":
        return FakeAnthropic()
    return (FakeCohere if provider == "cohere" else FakeOpenAI)(provider)  # type: ignore[arg-type]  # a name


async def calls_of(way: Any) -> list[str]:
    """Return the answers of the calls, or what they raised; nothing suspends in a sync one."""
    found = list[str]()
    for _ in range(CALLS):
        try:
            answer = way()
            found.append(str(await answer if inspect.isawaitable(answer) else answer))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def run(way: Any) -> list[str]:
    """Call a way: an async one in one event loop, a sync one in none."""
    if inspect.iscoroutinefunction(way):
        return asyncio.run(calls_of(way))
    try:
        calls_of(way).send(None)
    except StopIteration as done:
        return list(done.value)
    raise AssertionError("a sync way suspended")


def try_way(title: str, sdk: Sdk, place: int) -> bool:
    """Run one way of an SDK, print its line; return whether it passed."""
    program, name = getattr(sdk_programs, sdk.program), sdk.provider.upper().replace("-", "_")
    name = "CO" if name == "COHERE" else name
    with fake_of(sdk.provider) as fake:
        keys = [fake.add_key(label).value for label in ("A", "B", "C")]
        fake.always("A", SPENT)
        fake.remove_key("B")
        base = fake.base_url if sdk.provider == "openai" else fake.url
        os.environ |= {f"{name}_API_KEY": POOL_KEY, f"{name}_API_KEYS": ",".join(keys)}
        os.environ |= {f"{name}_BASE_URL": base, f"{name}_API_BASE": base}
        keyrot_middleware.install(allowed_hosts=f"{sdk.provider}={fake.url}")
        answers, pool = run(program(fake.url)[place]), current_pool()
        assert pool is not None  # noqa: S101 - it is installed
        pool.activity.send()
        log = ActivityLog(pool.state.activity, pool.state.activity_log, pool.activity.zone)
        today = log.view((), time.time()).today[POOL]
        keyrot_middleware.uninstall()
        sent = fake.sent("A"), fake.sent(None), fake.sent("C")
    failed = [answer for answer in answers if answer != "ok from C"]
    booked = today.input_tokens, today.output_tokens, today.cost_usd
    is_good = not failed and sent == (1, 1, CALLS) and all(booked)
    row = f"{title:23} {WAYS[place]:12}", *sent, len(failed), *booked, today.estimated_tokens
    print("ok  " if is_good else "FAIL", *row, *dict.fromkeys(failed), flush=True)
    return is_good


def main(names: list[str]) -> int:
    """Run the named ones, each in its environment; return how many ways failed."""
    failed, os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = 0, "True"  # it fetches another one
    print("     SDK                     way          A B C failed input output USD estimated")
    for title, sdk in SDKS.items():
        if not names or title.startswith(tuple(names)):
            python, quiet = str(python_of(sdk.environment)), ("-W", "ignore")
            command = [python, *quiet, __file__, IN_ENVIRONMENT, title]
            failed += subprocess.run(command, timeout=TIME_LIMIT_S, check=False).returncode
    print(f"{failed} ways failed")
    return min(failed, 100)


if __name__ == "__main__":
    if sys.argv[1:2] != [IN_ENVIRONMENT]:
        sys.exit(main(sys.argv[1:]))
    made = SDKS[sys.argv[2]]
    sys.exit([try_way(sys.argv[2], made, place) for place in range(made.ways)].count(False))
