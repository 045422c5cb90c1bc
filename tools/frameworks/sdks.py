"""Run the SDKs of providers over three keys: one spent, one unknown to the provider, one good.

``python sdks.py`` runs them all; ``python sdks.py "openai 1" cohere`` those whose name begins so.
Each way of calling is a program of its own, by `keyrot run`. It makes 20 calls: the first two keys
get one request each, the good one answers every call, and tokens and cost are booked. The exit code
is the number of ways that failed, at most 100.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from sdk_probe import CALLS, MARK
from upstream import KEPT
from venvs import python_of

from keyrot_middleware import providers
from keyrot_middleware.testing import FakeAnthropic, FakeOpenAI, Scripted

PROBE = Path(__file__).resolve().with_name("sdk_probe.py")
TIME_LIMIT_S = 600.0
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
    "pydantic-ai, Anthropic": Sdk("pydantic_ai_anthropic", "anthropic", "sdks-frameworks", 1),
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


def environment_of(provider: str, url: str, base: str, keys: list[str]) -> dict[str, str]:
    """Return what a user sets, and the address of the service, which differs only here."""
    name = providers.of(provider).variables[0].removesuffix("_API_KEY")
    return {
        **{variable: os.environ[variable] for variable in KEPT if variable in os.environ},
        f"{name}_API_KEYS": ",".join(keys),
        **{f"{name}_{address}": base for address in ("BASE_URL", "API_BASE")},
        "KEYROT_ALLOWED_HOSTS": f"{provider}={url}",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it fetches another one
    }


def try_way(title: str, sdk: Sdk, place: int) -> bool:
    """Run one way of an SDK, print its line; return whether it passed."""
    keyrot = python_of(sdk.environment).with_name("keyrot")
    with fake_of(sdk.provider) as fake, TemporaryDirectory() as folder:
        keys = [fake.add_key(label).value for label in ("A", "B", "C")]
        fake.always("A", SPENT)
        fake.remove_key("B")
        base = fake.base_url if sdk.provider == "openai" else fake.url
        try:
            done = subprocess.run(
                [keyrot, "run", PROBE, sdk.program, fake.url, str(place)],
                env=environment_of(sdk.provider, fake.url, base, keys),
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            print(f"FAIL {title} {WAYS[place]}: no end in {TIME_LIMIT_S:g} s", flush=True)
            return False
        sent = fake.sent("A"), fake.sent(None), fake.sent("C")
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    answers, booked = json.loads(lines[-1].removeprefix(MARK)) if lines else ([done.stderr], [0])
    failed = [answer for answer in answers if answer != "ok from C"]
    is_good = not failed and sent == (1, 1, CALLS) and all(booked[:3])
    row = f"{title:23} {WAYS[place]:12}", *sent, len(failed), *booked
    print("ok  " if is_good else "FAIL", *row, *dict.fromkeys(failed), flush=True)
    return is_good


def main(names: list[str]) -> int:
    """Run the named ones, each in its environment; return how many ways failed."""
    print("     SDK                     way          A B C failed input output USD estimated")
    results = [
        try_way(title, sdk, place)
        for title, sdk in SDKS.items()
        if not names or title.startswith(tuple(names))
        for place in range(sdk.ways)
    ]
    failed = results.count(False)
    print(f"{len(results) - failed} passed, {failed} failed")
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
