"""What the pool adds to requests of the HTTP libraries, beside google-genai in the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import requests

from .calls import MODEL, PROMPT, Call, Samples, Variant, added, micros, sync_calls
from .page import Row
from .server import Place
from .telemetry import untraced

__all__ = ["http_libraries"]

ROUNDS = 30
_IN_MEMORY = {"state_url": "memory://"}


def _by_httpx(place: Place) -> Call:
    client, url = httpx.Client(), f"{place.url}/v1beta/models/{MODEL}:generateContent"
    body = {"contents": [{"parts": [{"text": PROMPT}]}]}
    headers = {"x-goog-api-key": place.values[0]}
    return lambda: client.post(url, json=body, headers=headers)


def _by_requests(place: Place) -> Call:
    session, url = requests.Session(), f"{place.url}/v1beta/models/{MODEL}:generateContent"
    body = {"contents": [{"parts": [{"text": PROMPT}]}]}
    headers = {"x-goog-api-key": place.values[0]}
    return lambda: session.post(url, json=body, headers=headers)


def _by_openai(place: Place) -> Call:
    client = openai.OpenAI(api_key=place.values[0], base_url=f"{place.url}/v1beta/openai/")
    messages: Any = [{"role": "user", "content": PROMPT}]
    return lambda: client.chat.completions.create(model=MODEL, messages=messages)


_WAYS: dict[str, Callable[[Place], Call] | None] = {
    "httpx": _by_httpx,
    "requests": _by_requests,
    "openai": _by_openai,
    "google-genai": None,
}


def http_libraries(rounds: int = ROUNDS) -> list[Row]:
    """Measure each library with and without the pool, all in turns."""
    variants = {}
    for name, way in _WAYS.items():
        variants[name] = Variant(make_call=way)
        variants[f"{name}, pool"] = Variant(_IN_MEMORY, untraced, make_call=way)
    samples = sync_calls(variants, rounds)
    return [
        (
            f"added per call by {name}, memory state, no tracing, p50",
            _bar(name),
            _added(samples, name),
        )
        for name in _WAYS
    ]


def _bar(name: str) -> str:
    return "–" if name == "google-genai" else "≤ the row of google-genai"


def _added(samples: Samples, name: str) -> str:
    more, ratio = added(samples, f"{name}, pool", name)
    return f"{more:.0f} µs ({ratio:.3f} × plain, {micros(samples, name):.0f} µs)"
