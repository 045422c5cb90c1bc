"""Google's Gemini API: the Developer API, and Vertex AI in express mode."""

from __future__ import annotations

from ...core.failures import FailureFacts, ParsedError
from ..base import Provider
from . import errors, failures


class Gemini(Provider):
    """The Gemini Developer API."""

    name = "gemini"
    platform = "gemini_api"
    title = "Gemini"
    otel = "gcp.gemini"
    hosts = ("generativelanguage.googleapis.com",)
    variables = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
    base_url_variable = "GOOGLE_GEMINI_BASE_URL"
    account_word = "billing account"
    zone = "America/Los_Angeles"
    key_header, key_scheme = "x-goog-api-key", ""
    key_headers = ("x-goog-api-key", "authorization")
    rules = failures.RULES
    says = failures.SAYS

    def parse_error(self, facts: FailureFacts, now: float) -> ParsedError:
        """Return what a failed response says."""
        return errors.parse_error(facts, now)


class VertexExpress(Gemini):
    """Vertex AI in express mode: the same API at another host, with other keys."""

    platform = "vertex_express"
    otel = "gcp.vertex_ai"
    hosts = ("aiplatform.googleapis.com",)
    base_url_variable = "GOOGLE_VERTEX_BASE_URL"
