"""The models, the buckets in which their quota is counted, and pages of lists."""

from __future__ import annotations

import threading
from typing import Any

from keyrot_middleware.core.model_names import CURRENT_MODEL

__all__ = ["ModelCatalogue", "describe_model", "list_page"]

_LISTED = (
    CURRENT_MODEL,
    "gemini-flash-lite-latest",
    "gemini-pro-latest",
    "gemini-3.8-flash",
    "gemini-3.7-flash",
    "gemini-3.6-flash",
    "gemini-3.5-flash-lite",
    "gemini-3.1-flash-lite",
    "gemini-3.1-pro-preview",
    "gemini-embedding-001",
    "gemma-4-31b-it",
    "imagen-4.0-generate-001",
)
# Every name in one of these families is a model, so a test may use any.
_FAMILIES = ("gemini", "gemma", "text-embedding", "embedding", "imagen", "veo", "learnlm", "tuned")


class ModelCatalogue:
    """Models and the aliases of their quota buckets; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._aliases: dict[str, str] = {}
        self._removed: set[str] = set()

    def alias(self, model: str, bucket: str) -> None:
        """Count requests for `model` under `bucket`."""
        with self._lock:
            self._aliases[model] = bucket

    def bucket(self, model: str) -> str:
        """Return the quota bucket of a model."""
        with self._lock:
            return self._aliases.get(model, model)

    def remove(self, model: str) -> None:
        """Answer 404 for a model from now on."""
        with self._lock:
            self._removed.add(model)

    def serves(self, model: str) -> bool:
        """Return whether the model exists: of a known family, and not removed."""
        with self._lock:
            return model.startswith(_FAMILIES) and model not in self._removed

    def all(self) -> list[dict[str, Any]]:
        """Return the listed models."""
        with self._lock:
            return [describe_model(model) for model in _LISTED if model not in self._removed]


def describe_model(model: str) -> dict[str, Any]:
    """Return a model as `models.get` does."""
    verbs = ["generateContent", "countTokens", "createCachedContent", "batchGenerateContent"]
    if "embedding" in model:
        verbs = ["embedContent", "countTextTokens"]
    elif model.startswith("imagen"):
        verbs = ["predict"]
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": verbs,
    }


def list_page(name: str, items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """Return one page of a list; the token is the index of the next item.

    Args:
        name: The field that holds the items, e.g. `models`.
        items: All of them.
        query: The request's, with `pageSize` (50 if not given) and `pageToken`.
    """
    token, size = query.get("pageToken", ""), query.get("pageSize", "")
    start = int(token) if token.isdigit() else 0
    end = start + (int(size) if size.isdigit() and int(size) else 50)
    result: dict[str, Any] = {name: items[start:end]} if items[start:end] else {}
    return result | ({"nextPageToken": str(end)} if end < len(items) else {})
