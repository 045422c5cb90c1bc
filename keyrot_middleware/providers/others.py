"""Rows: providers that speak OpenAI's protocol, or nearly, and differ by a few lines each.

Sources: recorded replies (tests/providers/recorded.jsonl), each provider's documentation, and
messages in public issues. What is not verified is not here: `unknown_limit` and `unknown_refusal`
serve the call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..core.failures import (
    FailureFacts,
    ParsedError,
    Rule,
    denied_model,
    error_words,
    for_a_day,
    limited,
    no_model,
    of_billing,
    paced,
    rejected,
    reset_s,
    restricted,
)
from ..core.model import NO_USAGE, Usage
from ..core.windows import next_month
from .base import Route
from .openai import LIMIT_RULES, MODEL_DENIED, OpenAI, OpenAILike, any_of
from .openai_protocol import ChatEvents, parse_object

BACKED_OFF = limited("rate_limit")
"""Of those whose limits are no windows: the time that they name, else the exponential cooldown."""


class Groq(OpenAILike):
    """api.groq.com."""

    name = platform = otel = "groq"
    title = "Groq"
    hosts = ("api.groq.com",)
    variables = ("GROQ_API_KEY",)
    base_url_variable = "GROQ_BASE_URL"
    check_path = "/openai/v1/models"
    limit_kinds = {"requests": "rpd", "tokens": "tpm"}
    own_rules = (MODEL_DENIED, Rule("overloaded", (498,), retry=True))


class Mistral(OpenAILike):
    """api.mistral.ai and its regions."""

    name = platform = "mistral"
    otel = "mistral_ai"
    title = "Mistral"
    hosts = ("api.mistral.ai", "api.eu.mistral.ai", "api.us.mistral.ai")
    variables = ("MISTRAL_API_KEY",)
    limit_header = "x-ratelimit-{word}-{kind}-minute"
    limit_kinds = {"req": "rpm", "tokens": "tpm"}
    own_rules = (
        rejected("key_invalid", (401,), text=r"^Unauthorized"),
        Rule("overloaded", (429, 503), text=r"^Service tier capacity exceeded", retry=True),
        paced("rate_limit", reasons=any_of("RATE_LIMITED"), text=r"^Requests rate limit exceeded"),
        denied_model("model_denied", (403,)),
    )


_UPSTREAM, _MODERATED = "UPSTREAM", "MODERATED"
"""Stand among the words of an error that another provider, or the prompt, caused."""


class OpenRouter(OpenAILike):
    """openrouter.ai."""

    name = platform = otel = "openrouter"
    title = "OpenRouter"
    hosts = ("openrouter.ai",)
    variables = ("OPENROUTER_API_KEY",)
    repeating_agent = " openrouter"
    check_path = "/api/v1/key"
    own_rules = (
        rejected(
            "key_invalid",
            (401,),
            text=r"^(?:Missing Authentication header|User not found|No (?:cookie )?auth cred)",
        ),
        Rule(
            "too_large",  # for what this account has left: another one may have more
            (402,),
            text=r"can only afford \d|^(?:Prompt tokens|max_tokens) limit exceeded",
            rotate=True,
        ),
        Rule("overloaded", (402,), reasons=any_of("IN_FLIGHT_BUDGET_EXHAUSTED"), retry=True),
        of_billing("credit_depleted", (402,), reasons=any_of("OPENROUTER_CREDITS")),
        restricted(
            "key_restricted",
            (402, 403),
            reasons=any_of("OPENROUTER_KEY_LIMIT"),
            text=r"^Key limit exceeded",
            exhausted_code=403,
        ),
        Rule("bad_request", (403,), reasons=any_of(_MODERATED)),
        Rule("overloaded", (429,), reasons=any_of(_UPSTREAM), retry=True),
        limited(
            "rate_limit",
            reasons=any_of("RATE_LIMIT_EXCEEDED"),
            text=r"^Rate limit exceeded: (?!free-models-per-day)",
        ),
    )

    def parse_error(self, facts: FailureFacts, now: float) -> ParsedError:
        """Return what a failed response says; its `metadata` says whose failure it is."""
        parsed = super().parse_error(facts, now)
        found = self.open(facts.body).get("metadata")
        data: Mapping[Any, Any] = found if isinstance(found, Mapping) else {}
        words = set(error_words(data, "error_type", "limit_source"))
        if data.get("provider_name") or data.get("provider_code"):
            words.add(_UPSTREAM)
        if data.get("reasons"):
            words.add(_MODERATED)
        return parsed._replace(reasons=parsed.reasons | words)

    def body_delay(self, error: Mapping[Any, Any], now: float) -> float | None:
        """Return the delay that an error names; it has the headers of a 429 in it."""
        data = error.get("metadata")
        headers = data.get("headers") if isinstance(data, Mapping) else None
        found = reset_s(headers, now) if isinstance(headers, Mapping) else None
        return found or super().body_delay(error, now)

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
    own_rules = (rejected("unauthorized", (401,)),)


class DeepSeek(OpenAILike):
    """api.deepseek.com, which limits concurrency alone."""

    name = platform = otel = "deepseek"
    check_path = "/models"
    title = "DeepSeek"
    hosts = ("api.deepseek.com",)
    variables = ("DEEPSEEK_API_KEY",)
    own_rules = (of_billing("credit_depleted", (402,)), BACKED_OFF)


class AzureOpenAI(OpenAILike):
    """A resource of Azure OpenAI; KEYROT_ALLOWED_HOSTS names its host."""

    name = platform = "azure-openai"
    otel = "azure.ai.openai"
    prices = "azure"
    check_path = "/openai/v1/models"
    title = "Azure OpenAI"
    names_models = False
    variables = ("AZURE_OPENAI_API_KEY",)
    base_url_variable = "AZURE_OPENAI_ENDPOINT"
    key_header, key_scheme = "api-key", ""
    key_headers = ("api-key", "authorization")
    limit_kinds = OpenAI.limit_kinds
    own_rules = (
        rejected(
            "key_invalid",
            (401,),
            text=r"^Access denied due to invalid subscription key or wrong API"
            r"|^Unauthorized\. Access token is missing",
        ),
        paced("rate_limit", reasons=any_of("RATELIMITREACHED", "429"), max_rotations=5),
    )


class Together(OpenAILike):
    """api.together.ai, whose limits change with the use."""

    name = platform = otel = "together"
    title = "Together AI"
    hosts = ("api.together.ai", "api.together.xyz")
    variables = ("TOGETHER_API_KEY",)
    own_rules = (rejected("key_invalid", (401,)), *LIMIT_RULES, BACKED_OFF)


class Fireworks(OpenAILike):
    """api.fireworks.ai."""

    name = platform = otel = "fireworks"
    check_path = "/inference/v1/models"
    title = "Fireworks"
    hosts = ("api.fireworks.ai",)
    variables = ("FIREWORKS_API_KEY",)
    own_rules = (
        rejected("key_invalid", (401,)),
        of_billing("billing_cap", (412,), text=r"^Account \S+ is suspended"),
        BACKED_OFF,
    )


class Cerebras(OpenAILike):
    """api.cerebras.ai."""

    name = platform = otel = "cerebras"
    title = "Cerebras"
    hosts = ("api.cerebras.ai",)
    variables = ("CEREBRAS_API_KEY",)
    limit_kinds = {"requests-day": "rpd", "tokens-minute": "tpm"}
    own_rules = (
        rejected("key_invalid", (401,)),
        Rule("overloaded", (429,), reasons=any_of("QUEUE_EXCEEDED"), retry=True),
        denied_model("model_denied", (404,), until=for_a_day, max_rotations=1),
    )


class Perplexity(OpenAILike):
    """api.perplexity.ai."""

    name = platform = otel = "perplexity"
    check_path = ""
    title = "Perplexity"
    hosts = ("api.perplexity.ai",)
    variables = ("PERPLEXITY_API_KEY",)
    own_rules = (BACKED_OFF,)


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
        if not is_last:
            self.add_text([found, body.get("text")])
        elif (usage := _billed(found or body.get("response"))) != NO_USAGE:
            self._counted, self._size = usage, 0  # nothing is left to estimate
        return is_last


class Cohere(OpenAILike):
    """api.cohere.com: a protocol of its own, and trial keys with limits of their own."""

    name = platform = otel = "cohere"
    title = "Cohere"
    hosts = ("api.cohere.com", "api.cohere.ai")
    variables = ("CO_API_KEY", "COHERE_API_KEY")
    limit_header = "x-trial-endpoint-{kind}-{word}"
    limit_kinds = {"call": "rpm"}
    own_rules = (
        rejected(
            "key_invalid",
            (401,),
            text=r"^(?:invalid api token|no api key supplied)",
        ),
        of_billing(
            "billing_cap",
            (402,),
            text=r"^Maximum billing reached for this API key",
            until=lambda _parsed, now: next_month(now, "UTC"),
        ),
        of_billing("payment_required", (402,), text=r"^Please add or update your payment method"),
        no_model("model_not_found", (404,), text=r"^model '"),
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
