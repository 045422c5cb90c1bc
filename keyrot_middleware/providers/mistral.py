"""Mistral's API: OpenAI's protocol, with errors of its gateway's and of its own.

Sources of the rows: recorded replies (tests/providers/recorded.jsonl) and messages in public
issues.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.failures import FIRST_RULES, Rule, of_model, paced, rejected, until_minute_end
from .openai import SHARED_RULES, OpenAILike, any_of


class Mistral(OpenAILike):
    """api.mistral.ai and its regions."""

    name = platform = "mistral"
    otel = "mistral_ai"
    title = "Mistral"
    hosts = ("api.mistral.ai", "api.eu.mistral.ai", "api.us.mistral.ai")
    variables = ("MISTRAL_API_KEY",)
    limit_header = "x-ratelimit-{word}-{kind}-minute"
    limit_kinds = {"req": "rpm", "tokens": "tpm"}  # noqa: RUF012 - data, like all of it
    rules = (
        *FIRST_RULES,
        rejected("key_invalid", (401,), text=r"^Invalid API Key"),
        Rule("overloaded", (429, 503), text=r"^Service tier capacity exceeded", retry=True),
        paced(
            "rate_limit",
            reasons=any_of("RATE_LIMITED"),
            text=r"^Requests rate limit exceeded",
            until=until_minute_end,
        ),
        of_model("model_denied", (403,)),
        *SHARED_RULES,
    )

    def open(self, body: object) -> Mapping[Any, Any]:
        """Return the object of a failed response; its gateway writes `{"detail": "…"}`."""
        error = super().open(body)
        detail = error.get("detail")
        if isinstance(detail, str):
            return {"message": detail, "code": None}
        return {"code": None, **error} if isinstance(body, dict) and "message" in error else error
