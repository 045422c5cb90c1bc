"""The providers of APIs that the pool knows: what only one of them says is in its own module."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from .base import Provider

GROUP = "keyrot_middleware.providers"
"""The entry points of providers of other distributions: name and class."""

_BUILT_IN = {
    "gemini_api": "gemini:Gemini",
    "vertex_express": "gemini:VertexExpress",
    "openai": "openai:OpenAI",
    "anthropic": "anthropic:Anthropic",
    "openrouter": "openrouter:OpenRouter",
    "groq": "groq:Groq",
    "mistral": "mistral:Mistral",
    "xai": "others:XAI",
    "deepseek": "others:DeepSeek",
    "azure-openai": "others:AzureOpenAI",
    "together": "others:Together",
    "fireworks": "others:Fireworks",
    "cerebras": "others:Cerebras",
    "perplexity": "others:Perplexity",
    "cohere": "others:Cohere",
}
"""Module and class of each platform."""


def platforms() -> tuple[str, ...]:
    """Return all platforms that a key can be for."""
    return (*_BUILT_IN, *(found.name for found in entry_points(group=GROUP)))


@cache
def names() -> tuple[str, ...]:
    """Return the names of all providers, as keys.json has them."""
    return tuple(dict.fromkeys(of(platform).name for platform in platforms()))


@cache
def of(platform: str) -> Provider:
    """Return the provider of a platform; it is imported when it is first asked for.

    Raises:
        KeyError: There is none.
    """
    if platform in _BUILT_IN:
        module, _, name = _BUILT_IN[platform].partition(":")
        found = getattr(import_module(f".{module}", __name__), name)
    else:
        found = {one.name: one for one in entry_points(group=GROUP)}[platform].load()
    provider: Provider = found()
    return provider
