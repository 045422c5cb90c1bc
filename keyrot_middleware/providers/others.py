"""Rows: providers that speak OpenAI's protocol, or nearly, and differ by a few lines each.

Sources: recorded replies (tests/providers/recorded.jsonl), each provider's documentation, and
messages in public issues. What is not verified is not here: such a failure is raised, and penalizes
no key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..core.failures import (
    FIRST_RULES,
    LAST_RULES,
    FailureFacts,
    ParsedError,
    Rule,
    error_words,
    for_a_day,
    of_billing,
    of_model,
    paced,
    rejected,
    until_retry_info,
)
from ..core.model import NO_USAGE, Scope, Usage
from ..core.windows import next_month
from .base import Route
from .openai import LIMIT_RULES, SHARED_RULES, OpenAI, OpenAILike, any_of
from .openai_protocol import ChatEvents, parse_object


class Groq(OpenAILike):
    """api.groq.com."""

    name = platform = otel = "groq"
    title = "Groq"
    hosts = ("api.groq.com",)
    variables = ("GROQ_API_KEY",)
    base_url_variable = "GROQ_BASE_URL"
    check_path = "/openai/v1/models"
    limit_kinds = {"requests": "rpd", "tokens": "tpm"}
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


class Mistral(OpenAILike):
    """api.mistral.ai and its regions."""

    name = platform = "mistral"
    otel = "mistral_ai"
    title = "Mistral"
    hosts = ("api.mistral.ai", "api.eu.mistral.ai", "api.us.mistral.ai")
    variables = ("MISTRAL_API_KEY",)
    limit_header = "x-ratelimit-{word}-{kind}-minute"
    limit_kinds = {"req": "rpm", "tokens": "tpm"}
    rules = (
        *FIRST_RULES,
        rejected("key_invalid", (401,), text=r"^Invalid API Key"),
        Rule("overloaded", (429, 503), text=r"^Service tier capacity exceeded", retry=True),
        paced("rate_limit", reasons=any_of("RATE_LIMITED"), text=r"^Requests rate limit exceeded"),
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


_UPSTREAM = "UPSTREAM"
"""Stands among the words of an error that another provider caused."""


class OpenRouter(OpenAILike):
    """openrouter.ai."""

    name = platform = otel = "openrouter"
    title = "OpenRouter"
    hosts = ("openrouter.ai",)
    variables = ("OPENROUTER_API_KEY",)
    repeating_agent = " openrouter"
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
        of_billing("credit_depleted", (402,), reasons=any_of("OPENROUTER_CREDITS")),
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

    def error_body(
        self, code: int, text: str, *, reason: str = "", retry_in_s: float | None = None
    ) -> dict[str, Any]:
        """Return *text* as an error of OpenRouter's, whose codes are numbers."""
        more = {"metadata": {"error_type": reason}} if reason else {}
        return {"error": {"code": code, "message": text, **more}}


class XAI(OpenAILike):
    """api.x.ai, by HTTP; its gRPC passes through untouched."""

    name = platform = "xai"
    otel = "x_ai"
    prices = "x-ai"
    title = "xAI"
    hosts = ("api.x.ai",)
    variables = ("XAI_API_KEY",)
    limit_kinds = OpenAI.limit_kinds
    rules = (
        *FIRST_RULES,
        rejected("key_invalid", (400,), text=r"^Incorrect API key provided"),
        rejected("unauthorized", (401,)),
        of_billing(
            "credit_depleted",
            (403, 429),
            text=r"used all available credits or reached its monthly spending limit",
        ),
        paced("rate_limit"),
        *LAST_RULES,
    )

    def open(self, body: object) -> Mapping[Any, Any]:
        """Return the object of a failed response: `{"code": "…", "error": "…"}`."""
        if isinstance(body, dict) and isinstance(body.get("error"), str):
            return {"message": body["error"], "code": body.get("code")}
        return super().open(body)


class DeepSeek(OpenAILike):
    """api.deepseek.com, which limits concurrency alone."""

    name = platform = otel = "deepseek"
    check_path = "/models"
    title = "DeepSeek"
    hosts = ("api.deepseek.com",)
    variables = ("DEEPSEEK_API_KEY",)
    rules = (
        *FIRST_RULES,
        rejected("key_invalid", (401,), reasons=any_of("AUTHENTICATION_ERROR")),
        of_billing("credit_depleted", (402,)),
        of_model("rate_limit", (429,)),
        *LAST_RULES,
    )


class AzureOpenAI(OpenAILike):
    """A resource of Azure OpenAI; KEYROT_ALLOWED_HOSTS names its host."""

    name = platform = "azure-openai"
    otel = "azure.ai.openai"
    prices = "azure"
    check_path = "/openai/v1/models"
    title = "Azure OpenAI"
    variables = ("AZURE_OPENAI_API_KEY",)
    base_url_variable = "AZURE_OPENAI_ENDPOINT"
    key_header, key_scheme = "api-key", ""
    key_headers = ("api-key", "authorization")
    limit_kinds = OpenAI.limit_kinds
    rules = (
        *FIRST_RULES,
        rejected(
            "key_invalid",
            (401,),
            text=r"^Access denied due to invalid subscription key or wrong API",
        ),
        paced("rate_limit", reasons=any_of("RATELIMITREACHED", "429"), max_rotations=5),
        *LAST_RULES,
    )


class Together(OpenAILike):
    """api.together.ai, whose limits change with the use."""

    name = platform = otel = "together"
    title = "Together AI"
    hosts = ("api.together.ai", "api.together.xyz")
    variables = ("TOGETHER_API_KEY",)
    rules = (
        *FIRST_RULES,
        rejected("key_invalid", (401,)),
        of_billing("payment_required", (402,)),
        of_model(
            "rate_limit",
            (429,),
            reasons=any_of("DYNAMIC_REQUEST_LIMITED", "DYNAMIC_TOKEN_LIMITED"),
            until=until_retry_info,
        ),
        *LAST_RULES,
    )

    def open(self, body: object) -> Mapping[Any, Any]:
        """Return the object of a failed response; its words may stand in `error_type`."""
        error = super().open(body)
        return {**error, "type": error["error_type"]} if "error_type" in error else error


class Fireworks(OpenAILike):
    """api.fireworks.ai."""

    name = platform = otel = "fireworks"
    check_path = "/inference/v1/models"
    title = "Fireworks"
    hosts = ("api.fireworks.ai",)
    variables = ("FIREWORKS_API_KEY",)
    rules = (
        *FIRST_RULES,
        rejected("key_invalid", (401, 403)),
        of_billing("billing_cap", (412,), text=r"^Account \S+ is suspended"),
        of_billing("payment_required", (402,)),
        of_model("rate_limit", (429,), until=until_retry_info),
        *LAST_RULES,
    )


class Cerebras(OpenAILike):
    """api.cerebras.ai."""

    name = platform = otel = "cerebras"
    title = "Cerebras"
    hosts = ("api.cerebras.ai",)
    variables = ("CEREBRAS_API_KEY",)
    rules = (
        *FIRST_RULES,
        rejected("key_invalid", (401,)),
        paced("quota_minute", text=r"^(?:Requests|Tokens) per minute limit exceeded"),
        of_model("model_denied", (404,), until=for_a_day, max_rotations=1),
        *SHARED_RULES,
    )


class Perplexity(OpenAILike):
    """api.perplexity.ai."""

    name = platform = otel = "perplexity"
    check_path = ""
    title = "Perplexity"
    hosts = ("api.perplexity.ai",)
    variables = ("PERPLEXITY_API_KEY",)
    rules = (
        *FIRST_RULES,
        rejected("key_invalid", (401,), reasons=any_of("INVALID_API_KEY")),
        of_model("rate_limit", (429,)),
        *LAST_RULES,
    )


_COHERE = re.compile(r"/v[12]/(chat|embed|rerank|classify|tokenize|detokenize|models)\Z")


@lru_cache(maxsize=64)
def _cohere_route(path: str) -> Route | None:
    found = _COHERE.search(path)
    verb = {"embed": "embeddings"}.get(found[1], found[1]) if found else ""
    return Route(verb, counts_in_quota=verb != "models") if verb else None


def _billed(body: object) -> Usage:
    """Return what is billed for a reply, or for the end of a stream."""
    body = body if isinstance(body, dict) else {}
    found = body.get("usage") or body.get("meta")
    units = found.get("billed_units") if isinstance(found, dict) else None
    units = units if isinstance(units, dict) else {}
    sent, received = units.get("input_tokens"), units.get("output_tokens")
    return Usage(
        int(sent) if isinstance(sent, int | float) else None,
        int(received) if isinstance(received, int | float) else None,
    )


class CohereEvents(ChatEvents):
    """Reads the stream of a response, of either version."""

    def feed(self, body: Mapping[str, Any]) -> bool:
        """Add an event; return whether it is the last one."""
        found, kind = body.get("delta"), body.get("type") or body.get("event_type")
        is_last = kind in ("message-end", "stream-end")
        if is_last:
            usage = _billed(found or body.get("response"))
        else:
            usage = self.estimated([found, body.get("text")])
        if usage != NO_USAGE:
            self.usage = usage
        return is_last


class Cohere(OpenAILike):
    """api.cohere.com: a protocol of its own, and trial keys with limits of their own."""

    name = platform = otel = "cohere"
    title = "Cohere"
    hosts = ("api.cohere.com", "api.cohere.ai")
    variables = ("CO_API_KEY", "COHERE_API_KEY")
    limit_header = "x-trial-endpoint-{kind}-{word}"
    limit_kinds = {"call": "rpm"}
    rules = (
        *FIRST_RULES,
        rejected(
            "key_invalid",
            (401,),
            text=r"^(?:Incorrect API key provided|invalid api token|Your API key has expired)",
        ),
        of_billing(
            "billing_cap",
            (402,),
            text=r"^Maximum billing reached for this API key",
            until=lambda _parsed, now: next_month(now, "UTC"),
        ),
        of_billing("payment_required", (402,), text=r"^Please add or update your payment method"),
        paced("quota_minute", text=r"per minute request limit|calls / minute|tokens per minute"),
        Rule("model_not_found", (404,), text=r"^model '"),
        *LAST_RULES,
    )

    def route(self, method: str, url: str) -> Route | None:
        """Return what a request is."""
        return _cohere_route(url.partition("?")[0])

    def read_reply(
        self, route: Route, text: str, *, in_full: bool
    ) -> tuple[Usage, tuple[str, ...]]:
        """Return the usage of a whole response: what is billed."""
        return _billed(parse_object(text)), ()

    def events(self, route: Route) -> CohereEvents:
        """Return what reads the stream of a response."""
        return CohereEvents()

    def parse_error(self, facts: FailureFacts, now: float) -> ParsedError:
        """Return what a failed response says: `{"id": "…", "message": "…"}`."""
        parsed = super().parse_error(facts, now)
        return parsed._replace(has_shape=isinstance(facts.body, dict), is_sure=False)
