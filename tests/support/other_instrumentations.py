"""The three other instrumentations of google-genai, set up and removed as a program does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from google.genai import caches, models
from google.genai._api_client import BaseApiClient
from openinference.instrumentation.google_genai import GoogleGenAIInstrumentor
from opentelemetry.instrumentation.google_genai import GoogleGenAiSdkInstrumentor
from opentelemetry.instrumentation.google_generativeai import GoogleGenerativeAiInstrumentor
from opentelemetry.trace import TracerProvider

interactions = pytest.importorskip(
    "google.genai._gaos.google_genai",
    reason="they are tested as they wrap google-genai 2 and newer",
)

OFFICIAL = "opentelemetry.instrumentation.google_genai"
OPENINFERENCE = "openinference.instrumentation.google_genai"
TRACELOOP = "opentelemetry.instrumentation.google_generativeai"
OTHERS: dict[str, Any] = {
    OFFICIAL: GoogleGenAiSdkInstrumentor,
    OPENINFERENCE: GoogleGenAIInstrumentor,
    TRACELOOP: GoogleGenerativeAiInstrumentor,
}
"""By the scope of their spans."""

_WRAPPED = (
    BaseApiClient,
    models.Models,
    models.AsyncModels,
    caches.Caches,
    caches.AsyncCaches,
    interactions.GeminiNextGenInteractions,
    interactions.AsyncGeminiNextGenInteractions,
)


def instrument(name: str, provider: TracerProvider) -> None:
    """Instrument; the official one refuses google-genai 3.x unless its check is skipped."""
    OTHERS[name]().instrument(tracer_provider=provider, skip_dep_check=True)


def uninstrument(name: str) -> None:
    OTHERS[name]().uninstrument()


@contextmanager
def instrumented(provider: TracerProvider, *names: str) -> Iterator[None]:
    """Instrument with them, and uninstrument in the opposite order."""
    for name in names:
        instrument(name, provider)
    try:
        yield
    finally:
        for name in reversed(names):
            uninstrument(name)


@contextmanager
def plain_sdk() -> Iterator[None]:
    """Restore the SDK's own functions at the end, whatever the test did to them."""
    before: list[tuple[Any, dict[str, Any]]] = [(owner, dict(vars(owner))) for owner in _WRAPPED]
    try:
        yield
    finally:
        for owner, names in before:
            for name, value in names.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)
