"""OpenRouter's API: OpenAI's protocol in front of many providers, whose failures it passes on.

Sources of the rows: OpenRouter's documentation of errors and limits, and recorded replies
(tests/providers/recorded.jsonl).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.failures import (
    FIRST_RULES,
    LAST_RULES,
    FailureFacts,
    ParsedError,
    Rule,
    error_words,
    for_an_hour,
    of_billing,
    rejected,
    until_retry_info,
)
from ..core.model import Scope
from .openai import OpenAILike, any_of

_UPSTREAM = "UPSTREAM"
"""Stands among the words of an error that another provider caused."""


class OpenRouter(OpenAILike):
    """openrouter.ai."""

    name = platform = otel = "openrouter"
    title = "OpenRouter"
    hosts = ("openrouter.ai",)
    variables = ("OPENROUTER_API_KEY",)
    check_path = "/api/v1/key"
    rules = (
        *FIRST_RULES,
        rejected(
            "key_invalid",
            (401,),
            text=r"^(?:Missing Authentication header|No cookie auth credentials|User not found)",
        ),
        Rule("too_large", (402,), text=r"can only afford \d"),
        Rule("overloaded", (402,), reasons=any_of("IN_FLIGHT_BUDGET_EXHAUSTED"), retry=True),
        of_billing(
            "credit_depleted",
            (402,),
            reasons=any_of("OPENROUTER_CREDITS"),
            until=for_an_hour,
        ),
        rejected("key_restricted", (402,), reasons=any_of("OPENROUTER_KEY_LIMIT")),
        Rule("overloaded", (429,), reasons=any_of(_UPSTREAM), retry=True),
        of_billing(
            "rate_limit",
            (429,),
            reasons=any_of("RATE_LIMIT_EXCEEDED"),
            scope=Scope.PROJECT_MODEL,
            until=until_retry_info,
            has_known_end=True,
        ),
        *LAST_RULES,
    )

    def parse_error(self, facts: FailureFacts, now: float) -> ParsedError:
        """Return what a failed response says; its `metadata` tells whose failure it is."""
        parsed = super().parse_error(facts, now)
        found = self.open(facts.body).get("metadata")
        data: Mapping[Any, Any] = found if isinstance(found, Mapping) else {}
        words = set(error_words(data, "error_type", "limit_source"))
        if data.get("provider_name") or data.get("provider_code"):
            words.add(_UPSTREAM)
        return parsed._replace(reasons=parsed.reasons | words)
