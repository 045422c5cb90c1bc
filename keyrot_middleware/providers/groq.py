"""Groq's API: OpenAI's protocol; requests count by the day, tokens by the minute.

Sources of the rows: Groq's documentation of errors and rate limits, and messages in public issues.
"""

from __future__ import annotations

from ..core.failures import FIRST_RULES, Rule, for_a_day, of_model
from .openai import LIMIT_RULES, SHARED_RULES, OpenAILike, any_of


class Groq(OpenAILike):
    """api.groq.com."""

    name = platform = otel = "groq"
    title = "Groq"
    hosts = ("api.groq.com",)
    variables = ("GROQ_API_KEY",)
    base_url_variable = "GROQ_BASE_URL"
    check_path = "/openai/v1/models"
    limit_kinds = {"requests": "rpd", "tokens": "tpm"}  # noqa: RUF012 - data, like all of it
    rules = (
        *FIRST_RULES,
        *LIMIT_RULES,
        of_model(
            "model_denied",
            (404,),
            reasons=any_of("MODEL_NOT_FOUND"),
            until=for_a_day,
            max_rotations=1,
        ),
        Rule("overloaded", (498,), retry=True),
        *SHARED_RULES,
    )
