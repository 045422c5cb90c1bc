"""Run the SDKs of providers over three keys: one spent, one unknown to the provider, one good.

``python sdks.py`` runs them all; ``python sdks.py "openai 1" cohere`` those whose name begins so.
Each way of calling is a process of its own with 20 calls: the first two keys get one request each,
the good one answers every call, and tokens and cost are booked. The exit code is the number of
cases that failed, at most 100.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from run import TIME_LIMIT_S, lines_of
from upstream import KEPT
from venvs import HERE, python_of

from keyrot_middleware import POOL_KEY
from keyrot_middleware.testing import FakeAnthropic, FakeOpenAI, Scripted

CALLS = 20
WAYS = ("sync", "stream", "async_", "async_stream")
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
    """A program of sdks_app.py, and what it calls."""

    program: str
    provider: str
    environment: str = "sdks"
    ways: tuple[str, ...] = WAYS


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
    "pydantic-ai, OpenAI": Sdk("pydantic_ai", "openai", "sdks-frameworks", WAYS[:1]),
    "pydantic-ai, Anthropic": Sdk(
        "pydantic_ai_anthropic", "anthropic", "sdks-frameworks", WAYS[:1]
    ),
    "OpenAI Agents SDK": Sdk("openai_agents", "openai", "sdks-frameworks", WAYS[:1]),
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
    return FakeCohere() if provider == "cohere" else FakeOpenAI(provider)  # type: ignore[arg-type]  # names of both


def environment_of(sdk: Sdk, fake: Any, folder: Path) -> dict[str, str]:
    """Return the whole environment of a program, with three keys."""
    keys = ",".join(fake.add_key(label).value for label in ("A", "B", "C"))
    name = "CO" if sdk.provider == "cohere" else sdk.provider.upper().replace("-", "_")
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        f"{name}_API_KEY": POOL_KEY,
        f"{name}_API_KEYS": keys,
        f"{name}_BASE_URL": fake.base_url if sdk.provider == "openai" else fake.url,
        f"{name}_API_BASE": fake.base_url if sdk.provider == "openai" else fake.url,
        "KEYROT_ALLOWED_HOSTS": f"{sdk.provider}={fake.url}",
        "KEYROT_STATE_URL": f"sqlite://{folder}/state.sqlite3",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HOME": str(folder),
        "SDK": sdk.program,
        "URL": fake.url,
    }


def try_way(title: str, sdk: Sdk, way: str) -> bool:
    """Run one case and print its line; return whether it passed."""
    python = python_of(sdk.environment)
    with fake_of(sdk.provider) as fake, TemporaryDirectory() as folder:
        environment = environment_of(sdk, fake, Path(folder))
        fake.always("A", SPENT)
        fake.remove_key("B")
        options: Any = {"env": environment, "cwd": folder, "capture_output": True, "text": True}
        command = [str(python), str(HERE / "probe.py"), "sdks", way, str(CALLS)]
        done = subprocess.run(command, **options, timeout=TIME_LIMIT_S, check=False)
        status = [sys.executable, "-m", "keyrot_middleware", "status", "--json"]
        found = subprocess.run(status, **options, timeout=TIME_LIMIT_S, check=False).stdout
        sent = fake.sent("A"), fake.sent(None), fake.sent("C")
    calls = lines_of(done.stdout)
    failed = [call["failure"]["texts"][0] for call in calls if call.get("answer") != "ok from C"]
    today = json.loads(found)["summary"]["today"] if found.startswith("{") else {}
    booked = [today.get(name) for name in ("input_tokens", "output_tokens", "cost_usd")]
    is_good = len(calls) == CALLS and not failed and sent == (1, 1, CALLS) and all(booked)
    print(
        "ok  " if is_good else "FAIL",
        f"{title:23} {way:13}",
        *sent,
        len(failed),
        *booked,
        flush=True,
    )
    if not is_good:
        print(*dict.fromkeys(failed), *done.stderr.splitlines()[-1:], sep="\n")
    return is_good


def main(names: list[str]) -> int:
    """Run the named ones; return how many cases failed."""
    print("     SDK                     way           A B C failed input output USD")
    results = [
        try_way(title, sdk, way)
        for title, sdk in SDKS.items()
        if not names or title.startswith(tuple(names))
        for way in sdk.ways
    ]
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    return min(results.count(False), 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
