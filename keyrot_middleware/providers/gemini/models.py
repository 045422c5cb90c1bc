"""Names of models: those that examples use, and those that newer models answer."""

from __future__ import annotations

from collections.abc import Mapping

from ...core.model import Limits

CURRENT_MODEL = "gemini-3.8-flash"
"""What README, docs, examples and `keyrot check --live` ask for. No alias such as
`gemini-flash-latest`: those exist on `v1beta` alone, and google-genai 3 asks `v1`
(docs/gemini-api.md#v1-and-v1beta). When Google has closed it to new projects, name the next one
here, and replace it in README, docs and examples."""
REPLACED: Mapping[str, str] = {
    "gemini-3.5-flash": "gemini-3.6-flash",
    "gemini-3.7-flash": "gemini-3.8-flash",
    "gemini-2.5-pro": "gemini-3.8-flash",
    "gemini-2.5-flash": "gemini-3.5-flash-lite",
}
"""The models that Google answers by others, under their old names
(docs/gemini-api.md#models-that-answer-under-old-names). Each name counts with the one that
answers."""
_FLASH, _LITE = Limits(rpm=5, tpm=250_000, rpd=20), Limits(rpm=15, tpm=250_000, rpd=500)
FREE_LIMITS: Mapping[str, Limits] = {
    CURRENT_MODEL: _FLASH,
    "gemini-3.6-flash": _FLASH,
    "gemini-3.5-flash-lite": _LITE,
    "gemini-3.1-flash-lite": _LITE,
}
"""The limits of a free project as 429s of autumn 2026 named them; Google publishes none
(docs/gemini-api.md#limits-of-the-tiers). For examples and the fake service: a pool learns the true
ones."""
