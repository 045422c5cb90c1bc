"""Groq's API: OpenAI's protocol; requests count by the day, tokens by the minute.

Sources of the rows: Groq's documentation of errors and rate limits, and messages in public issues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.failures import FIRST_RULES, Rule, for_a_day, of_model
from ..core.model import Reported
from .openai import LIMIT_RULES, SHARED_RULES, OpenAI, OpenAILike, any_of, six_limits


class Groq(OpenAILike):
    """api.groq.com."""

    name = platform = otel = "groq"
    title = "Groq"
    hosts = ("api.groq.com",)
    variables = ("GROQ_API_KEY",)
    base_url_variable = "GROQ_BASE_URL"
    check_path = "/openai/v1/models"
    limit_headers = OpenAI.limit_headers
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

    def read_limits(self, headers: Mapping[str, str]) -> Sequence[Reported]:
        """Return the limits that the headers of a success name."""
        return tuple(six_limits(headers, requests="rpd"))
