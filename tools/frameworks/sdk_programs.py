"""Programs over the SDKs of providers, as their users wrote them, without a line about a pool.

Each function takes the address of the provider, and returns what calls it: sync, as a stream, and
the same async, or fewer. Nothing is imported but the SDK that is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

HI: list[Any] = [{"role": "user", "content": "Say hello."}]


def chat(module: str, name: str, model: str, url: str, **options: Any) -> list[Any]:
    """Chat completions, as most SDKs have them."""
    sdk = import_module(module)
    options = {"base_url": url, **options}
    client, asynchronous = getattr(sdk, name)(**options), getattr(sdk, f"Async{name}")(**options)
    return completions(client.chat.completions.create, asynchronous.chat.completions.create, model)


def completions(create: Callable[..., Any], acreate: Callable[..., Any], model: str) -> list[Any]:
    """Calls of one function and of its async one."""

    def text(chunks: Iterable[Any]) -> str:
        return "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)

    async def async_() -> str:
        return str((await acreate(model=model, messages=HI)).choices[0].message.content)

    async def async_stream() -> str:
        return text([one async for one in await acreate(model=model, messages=HI, stream=True)])

    return [
        lambda: create(model=model, messages=HI).choices[0].message.content,
        lambda: text(create(model=model, messages=HI, stream=True)),
        async_,
        async_stream,
    ]


def openai(url: str) -> list[Any]:
    """OpenAI's; a stream reports no usage unless it is asked for."""
    return chat("openai", "OpenAI", "gpt-5-mini", f"{url}/v1")


def azure_old(url: str) -> list[Any]:
    """AzureOpenAI, with a version of the API."""
    sdk, options = import_module("openai"), {"azure_endpoint": url, "api_version": "2024-10-21"}
    client, asynchronous = sdk.AzureOpenAI(**options), sdk.AsyncAzureOpenAI(**options)
    return completions(
        client.chat.completions.create, asynchronous.chat.completions.create, "gpt-5-mini"
    )


def azure_v1(url: str) -> list[Any]:
    """OpenAI over Azure's newer path, with a bearer token."""
    key = os.environ["AZURE_OPENAI_API_KEY"]
    return chat("openai", "OpenAI", "gpt-5-mini", f"{url}/openai/v1/", api_key=key)


def groq(url: str) -> list[Any]:
    """Groq's."""
    return chat("groq", "Groq", "llama-3.3-70b-versatile", url)


def together(url: str) -> list[Any]:
    """Together's."""
    return chat("together", "Together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", f"{url}/v1")


def cerebras(url: str) -> list[Any]:
    """Cerebras's."""
    return chat("cerebras.cloud.sdk", "Cerebras", "llama3.1-8b", url, warm_tcp_connection=False)


def fireworks(url: str) -> list[Any]:
    """Fireworks's."""
    return chat("fireworks", "Fireworks", "accounts/fireworks/models/deepseek-v3p2", url)


def perplexity(url: str) -> list[Any]:
    """Perplexity's."""
    return chat("perplexity", "Perplexity", "sonar", url)


def huggingface(url: str) -> list[Any]:
    """huggingface_hub's, over Together."""
    hub = import_module("huggingface_hub")
    options = {"base_url": f"{url}/v1", "api_key": os.environ["TOGETHER_API_KEY"]}
    client, asynchronous = hub.InferenceClient(**options), hub.AsyncInferenceClient(**options)
    model = "meta-llama/Llama-3.3-70B-Instruct-Turbo"
    return completions(client.chat_completion, asynchronous.chat_completion, model)


def openrouter(url: str) -> list[Any]:
    """OpenRouter's."""
    key = os.environ["OPENROUTER_API_KEY"]
    client = import_module("openrouter").OpenRouter(server_url=f"{url}/api/v1", api_key=key)
    return completions(client.chat.send, client.chat.send_async, "openai/gpt-5-mini")


def litellm(_url: str) -> list[Any]:
    """litellm's, over OpenAI."""
    sdk = import_module("litellm")
    return completions(sdk.completion, sdk.acompletion, "openai/gpt-5-mini")


def litellm_anthropic(_url: str) -> list[Any]:
    """The same over Anthropic."""
    sdk = import_module("litellm")
    return completions(sdk.completion, sdk.acompletion, "anthropic/claude-haiku-4-5")


def anthropic(url: str) -> list[Any]:
    """Anthropic's."""
    sdk = import_module("anthropic")
    client, asynchronous = sdk.Anthropic(base_url=url), sdk.AsyncAnthropic(base_url=url)
    ask: dict[str, Any] = {"model": "claude-3-haiku-20240307", "max_tokens": 50, "messages": HI}

    def stream() -> str:
        with client.messages.stream(**ask) as events:
            return "".join(events.text_stream)

    async def async_() -> str:
        return str((await asynchronous.messages.create(**ask)).content[0].text)

    async def async_stream() -> str:
        async with asynchronous.messages.stream(**ask) as events:
            return str(await events.get_final_text())

    return [lambda: client.messages.create(**ask).content[0].text, stream, async_, async_stream]


def mistral(url: str) -> list[Any]:
    """Mistral's."""
    try:
        from mistralai import Mistral  # noqa: PLC0415
    except ImportError:
        from mistralai.client import Mistral  # noqa: PLC0415
    api = Mistral(server_url=url, api_key=os.environ["MISTRAL_API_KEY"]).chat
    ask: Any = {"model": "mistral-small-latest", "messages": HI}

    def text(events: Iterable[Any]) -> str:
        return "".join(event.data.choices[0].delta.content or "" for event in events)

    async def async_() -> str:
        return str((await api.complete_async(**ask)).choices[0].message.content)

    async def async_stream() -> str:
        return text([event async for event in await api.stream_async(**ask)])

    return [
        lambda: api.complete(**ask).choices[0].message.content,
        lambda: text(api.stream(**ask)),
        async_,
        async_stream,
    ]


def cohere(url: str) -> list[Any]:
    """Cohere's."""
    sdk, options = import_module("cohere"), {"base_url": url, "api_key": os.environ["CO_API_KEY"]}
    client, asynchronous = sdk.ClientV2(**options), sdk.AsyncClientV2(**options)
    ask: dict[str, Any] = {"model": "command-a-03-2025", "messages": HI}

    def text(events: Iterable[Any]) -> str:
        found = (event.delta.message.content.text for event in events if event.type == DELTA)
        return "".join(found)

    async def async_() -> str:
        return str((await asynchronous.chat(**ask)).message.content[0].text)

    async def async_stream() -> str:
        return text([event async for event in asynchronous.chat_stream(**ask)])

    return [
        lambda: client.chat(**ask).message.content[0].text,
        lambda: text(client.chat_stream(**ask)),
        async_,
        async_stream,
    ]


DELTA = "content-delta"


def langchain(module: str, name: str, model: str) -> list[Any]:
    """LangChain's chat models."""
    llm = getattr(import_module(module), name)(model=model)

    async def async_() -> str:
        return str((await llm.ainvoke("Say hello.")).text)

    async def async_stream() -> str:
        return "".join([str(one.text) async for one in llm.astream("Say hello.")])

    return [
        lambda: str(llm.invoke("Say hello.").text),
        lambda: "".join(str(one.text) for one in llm.stream("Say hello.")),
        async_,
        async_stream,
    ]


def langchain_openai(_url: str) -> list[Any]:
    """LangChain over OpenAI."""
    return langchain("langchain_openai", "ChatOpenAI", "gpt-5-mini")


def langchain_anthropic(_url: str) -> list[Any]:
    """LangChain over Anthropic."""
    return langchain("langchain_anthropic", "ChatAnthropic", "claude-haiku-4-5")


def pydantic_ai(_url: str, model: str = "openai-chat:gpt-5-mini") -> list[Any]:
    """pydantic-ai over OpenAI."""
    agent = import_module("pydantic_ai").Agent(model)
    return [lambda: str(agent.run_sync("Say hello.").output)]


def pydantic_ai_anthropic(url: str) -> list[Any]:
    """The same over Anthropic."""
    return pydantic_ai(url, "anthropic:claude-haiku-4-5")


def openai_agents(_url: str) -> list[Any]:
    """The OpenAI Agents SDK, over the Responses API."""
    agents = import_module("agents")
    agents.set_tracing_disabled(True)
    agent = agents.Agent(name="Greeter", model="gpt-5-mini")
    return [lambda: str(agents.Runner.run_sync(agent, "Say hello.").final_output)]
