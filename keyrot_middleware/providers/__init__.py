"""The providers of APIs that the pool knows: what only one of them says is in its own module.

`__all__` is what the author of another provider needs (docs/providers.md); the rest is the pool's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from ..core.failures import (
    FIRST_RULES,
    LAST_RULES,
    Implies,
    Rule,
    find_problem,
    join,
    of_billing,
    of_model,
    of_project,
    of_request,
    of_service,
    paced,
    rejected,
    restricted,
)
from ..core.wording import one_line
from .base import Provider, Route
from .keys import mask_keys
from .openai import OpenAILike

__all__ = [
    "FIRST_RULES",
    "LAST_RULES",
    "Implies",
    "OpenAILike",
    "Provider",
    "Route",
    "Rule",
    "of_billing",
    "of_model",
    "of_project",
    "of_request",
    "of_service",
    "paced",
    "rejected",
    "restricted",
]

GROUP = "keyrot_middleware.providers"
"""The entry points of providers of other distributions: name and class."""

_BUILT_IN = {
    "gemini_api": "gemini:Gemini",
    "vertex_express": "gemini:VertexExpress",
    "openai": "openai:OpenAI",
    "anthropic": "anthropic:Anthropic",
    "openrouter": "others:OpenRouter",
    "groq": "others:Groq",
    "mistral": "others:Mistral",
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
    return (*_BUILT_IN, *plugged_in()[0])


def names() -> tuple[str, ...]:
    """Return the names of all providers, as keys.json has them."""
    return tuple(dict.fromkeys(of(platform).name for platform in platforms()))


@cache
def of(platform: str) -> Provider:
    """Return the provider of a platform; one of ours is imported when it is first asked for.

    Raises:
        KeyError: There is none.
    """
    if platform not in _BUILT_IN:
        return plugged_in()[0][platform]
    module, _, name = _BUILT_IN[platform].partition(":")
    provider: Provider = getattr(import_module(f".{module}", __name__), name)()
    join(provider.rules)
    return provider


def _known(platform: str) -> Provider | None:
    """Return a provider; None: a state knows it, from a process that has another package."""
    try:
        return of(platform)
    except KeyError:
        return None


def replaced_by(platform: str, model: str) -> str:
    """Return the model that answers in place of another, as its provider has announced; or ""."""
    found = _known(platform)
    return "" if found is None else found.replaced.get(model, "")


def names_models(platform: str) -> bool:
    """Return whether requests name models themselves; see `Provider.names_models`."""
    found = _known(platform)
    return found is not None and found.names_models


def how_answered(platform: str, model: str, by: str) -> str:
    """Say in a sentence, without its end, which model answers calls of another."""
    provider = _known(platform)
    who = platform if provider is None else provider.vendor or provider.title
    text = f"{who} answers {mask_keys(one_line(model))} by {mask_keys(one_line(by))}"
    if replaced_by(platform, model) == by:
        return f"{text}; both names count in one limit, and each call costs what {by} costs"
    return f"{text}; each call costs what that model costs"


@cache
def plugged_in() -> tuple[Mapping[str, Provider], Mapping[str, str]]:
    """Return the providers of other distributions, and why those that cannot be used cannot.

    Of two that give a failure class different meanings, the first one can be used.
    """
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        points.setdefault(point.name, []).append(point)
    found: dict[str, Provider] = {}
    wrong: dict[str, str] = {}
    for platform in _BUILT_IN if points else ():  # their classes are known, whatever the pool has
        of(platform)
    for name, same in points.items():
        point, *others = same
        try:
            if others or name in (*_BUILT_IN, "gemini"):
                problem = "another provider has this name; rename it, or uninstall a package"
            elif not isinstance(one := point.load()(), Provider) or not (
                one.name == one.platform == name
            ):
                problem = f"its class is no Provider whose name and platform are {name}"
            elif not (problem := find_problem(one.rules)):
                join(one.rules)
                found[name] = one
                continue
        except Exception as error:
            text = f'see why by python -c "import {point.module}", or uninstall the package'
            problem = f"loading it raises {type(error).__name__}; {text}"
        packages = ", ".join(sorted(one.dist.name if one.dist else "?" for one in same))
        wrong[name] = (
            f"the provider {name} of the package{'s' * bool(others)} {packages} (entry point "
            f"{point.value}) cannot be used: {problem}"
        )
    return found, wrong
