"""What keys look like: so that no text shows one, and none goes to another provider's API."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NoReturn

from ..core.hiding import mask_url
from ..core.wording import one_line
from .base import Provider

KEY_STARTS: Mapping[str, tuple[str, ...]] = {
    "AIza": ("gemini",),
    "AQ.": ("gemini",),
    "sk-ant-": ("anthropic",),
    "sk-or-": ("openrouter",),
    "sk-proj-": ("openai",),
    "sk-svcacct-": ("openai",),
    "sk-admin-": ("openai",),
    "sk-": ("openai", "deepseek"),
    "gsk_": ("groq",),
    "xai-": ("xai",),
    "csk-": ("cerebras",),
    "pplx-": ("perplexity",),
    "fw_": ("fireworks",),
    "tgp_v1_": ("together",),
}
"""How keys begin, and the providers whose keys do; the longer of two comes first. Those of other
providers have no shape of their own."""

# One that was cut or copied badly is as secret. The repeats are open-ended, so that no tail of a
# longer run stays behind. Google's two formats are in docs/gemini-api.md#formats.
_OTHERS = "|".join(start for start in KEY_STARTS if start not in ("AIza", "AQ."))
_KEY = re.compile(
    r"(A?Iza)[0-9A-Za-z_-]{20,}|(AQ\.)[0-9A-Za-z_-]{20,}"
    rf"|((?<![0-9A-Za-z])(?:{_OTHERS}))[0-9A-Za-z_-]{{20,}}"
)
_MARKS = ("Iza", "AQ.", "sk-", "sk_", "xai-", "pplx-", "fw_", "tgp_")
"""One of them is in each key; to look for them is many times as fast as the pattern."""
_RUN = re.compile(r"[0-9A-Za-z_-]{30,}")
_EDGE = re.compile(r"(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)")
_MOST_EDGES = 3
"""Transitions between letters and digits in a name; 30 characters of a key have about 8."""
_KEY_ANY_CASE = re.compile(_KEY.pattern, re.IGNORECASE)
_STARTS = re.compile(r"AIza|AQ\.")
_LONGEST = 80


class StaysHere:
    """Base of what holds keys: it cannot be pickled or copied."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be pickled: its keys stay in this process")


def holds_key(text: str) -> bool:
    """Return whether something in *text* has the shape of an API key."""
    return _KEY.search(text) is not None


def mask_keys(text: str) -> str:
    """Replace everything that has the shape of an API key by `AIza…[redacted]`."""
    if not any(map(text.__contains__, _MARKS)):
        return text
    return _KEY.sub(lambda key: f"{key[1] or key[2] or key[3]}…[redacted]", text)


def has_key_shape(value: str) -> bool:
    """Return whether the whole of *value* has the shape of an API key."""
    return _KEY.fullmatch(value) is not None


def foreign_key(value: str, provider: str) -> str | None:
    """Say whose key *value* is by its shape, if it is none of a *provider*'s."""
    for start, owners in KEY_STARTS.items():
        if value.startswith(start):
            if provider in owners:
                return None
            return f"its value begins with {start}, as keys of {owners[0]} do; it is for {provider}"
    return None


def is_ambiguous(value: str) -> bool:
    """Return whether keys of gateways too begin as *value* does."""
    starts = [start for start in KEY_STARTS if value.startswith(start)]
    return starts in ([], ["sk-"])


_STANDARD_KEY_LENGTH = 39
_SEPARATOR = re.compile(r"[,;|\s]")
_PLACEHOLDER = re.compile(
    r"^(?:<.*>|\.\.\.|x{3,}|(?:your|my|insert|enter|paste|put|replace|change)[-_ ]?\w*[-_ ].*"
    r"|change_?me|placeholder|todo|none|null)$|(?:api[-_]?key|key)[-_](?:here|goes[-_]here)$",
    re.IGNORECASE,
)


def check_key_format(value: str, provider: Provider) -> str | None:
    """Return why *value* does not look like a key of a provider's, without quoting it; or None."""
    if _SEPARATOR.search(value) or len(_STARTS.findall(value)) > 1:
        variable = f"{provider.variables[-1]}S" if provider.variables else "keys.json"
        return f"its value holds several keys in one; put them into {variable}, with commas"
    if foreign := foreign_key(value, provider.name):
        return foreign
    if _PLACEHOLDER.search(value):
        return "its value looks like a placeholder that was never replaced"
    if value.startswith("AIza") and len(value) < _STANDARD_KEY_LENGTH:
        return "its value begins like a Gemini API key and is too short for one; it may be cut off"
    return None


def display(value: object) -> str:
    """Return *value* for an error message: as JSON, truncated, without keys and passwords."""
    if isinstance(value, list | tuple | set):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if value is not None and not isinstance(value, str | int | float):
        return f"a value of type {type(value).__name__}"
    value = mask_url(value) if isinstance(value, str) else value
    text = one_line(hide_secrets(json.dumps(value, ensure_ascii=False)))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def hide_secrets(text: str) -> str:
    """Replace what may be a key, also one that was cut or copied badly, by `[a key]`.

    For text written by hand: a long mixture of letters and digits is no word, in any case.
    """
    return _RUN.sub(_word, _KEY_ANY_CASE.sub("[a key]", text))


def _word(run: re.Match[str]) -> str:
    return "[a key]" if len(_EDGE.findall(run[0])) > _MOST_EDGES else run[0]
