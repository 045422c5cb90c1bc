"""What the pool adds to requests of the HTTP libraries, beside google-genai in the same run."""

from __future__ import annotations

import json
import timeit
from collections.abc import Callable
from typing import Any

import httpx
import openai
import requests

import keyrot_middleware

from .calls import MODEL, PROMPT, Call, Samples, Variant, added, p50, sync_calls
from .page import Row
from .server import Place
from .telemetry import untraced

__all__ = ["http_libraries"]

ROUNDS = 30
_FLOOR = "a transport of httpx that copies, writes a key, and parses both bodies"
_FOREIGN = "https://api.example.com/v1/things"
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


class _Copying:
    """Do the least that a pool does at a transport: copy, write the key, read what comes back."""

    def __init__(self, inner: Any, key: str) -> None:
        self._inner, self._key = inner, key

    def handle_request(self, request: Any) -> Any:
        sent = httpx.Request(
            request.method,
            request.url,
            headers=request.headers,
            stream=httpx.ByteStream(request.content),
            extensions=request.extensions,
        )
        sent.headers["x-goog-api-key"] = self._key
        sent.read()
        response = self._inner.handle_request(sent)
        assert not any(self._key.encode() in text for _, text in response.headers.raw)
        content = b"".join(response.stream)
        response.stream.close()
        response.stream = httpx.ByteStream(content)
        json.loads(request.content)
        json.loads(content)
        return response


def _by_copying(place: Place) -> Call:
    client, url = httpx.Client(), f"{place.url}/v1beta/models/{MODEL}:generateContent"
    pick = client._transport_for_url
    client._transport_for_url = lambda url: _Copying(pick(url), place.values[0])  # type: ignore[method-assign]  # it has the method that is called
    body = {"contents": [{"parts": [{"text": PROMPT}]}]}
    return lambda: client.post(url, json=body)


_WAYS: dict[str, Callable[[Place], Call] | None] = {
    "httpx": _by_httpx,
    "requests": _by_requests,
    "openai": _by_openai,
    "google-genai": None,
}


def http_libraries(rounds: int = ROUNDS) -> list[Row]:
    """Measure each library with and without the pool, all in turns; and a foreign host."""
    variants = {}
    for name, way in _WAYS.items():
        variants[name] = Variant(make_call=way)
        variants[f"{name}, pool"] = Variant(_IN_MEMORY, untraced, make_call=way)
    variants[_FLOOR] = Variant(make_call=_by_copying)
    samples = sync_calls(variants, rounds)
    rows = [
        (
            f"added per call by {name}, memory state, no tracing, p50",
            _bar(name),
            _added(samples, name),
        )
        for name in _WAYS
    ]
    micros, ratio = added(samples, _FLOOR, "httpx")
    floor = (f"added per call by {_FLOOR}, p50", "–", f"{micros:.0f} µs ({ratio:.3f} × plain)")
    return [*rows, floor, *_foreign()]


def _bar(name: str) -> str:
    return "–" if name == "google-genai" else "≤ the row of google-genai"


def _added(samples: Samples, name: str) -> str:
    micros, ratio = added(samples, f"{name}, pool", name)
    return f"{micros:.0f} µs ({ratio:.3f} × plain, {p50(samples[name]):.0f} µs)"


def _foreign() -> list[Row]:
    """Measure what a request to another host pays: the choice of its transport or adapter."""
    client, session, url = httpx.Client(), requests.Session(), httpx.URL(_FOREIGN)
    choices: dict[str, Callable[[], Any]] = {
        "httpx": lambda: client._transport_for_url(url),
        "requests": lambda: session.get_adapter(_FOREIGN),
    }
    plain = {name: _micros(choice) for name, choice in choices.items()}
    keyrot_middleware.install(keys=["FAKE-key"], **_IN_MEMORY)
    try:
        pooled = {name: _micros(choice) for name, choice in choices.items()}
    finally:
        keyrot_middleware.uninstall()
        client.close()
    return [
        (
            f"added to a request of {name} to another host",
            "≤ 2 µs",
            f"{pooled[name] - plain[name]:.2f} µs",
        )
        for name in choices
    ]


def _micros(choice: Callable[[], Any], number: int = 50_000) -> float:
    return min(timeit.repeat(choice, number=number, repeat=5)) / number * 1e6
