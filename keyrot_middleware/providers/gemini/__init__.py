"""Google's Gemini API: the Developer API, and Vertex AI in express mode."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from typing import Any
from urllib.parse import parse_qs

from ...core.failures import KEY_REJECTIONS
from ...core.model import DEFAULT_PLATFORM, POOL_KEY
from ..base import Provider, Route, bearer_token
from . import errors, failures, replies, requests
from .models import CURRENT_MODEL, REPLACED

GEMINI_API = DEFAULT_PLATFORM
VERTEX_EXPRESS = "vertex_express"
"""Google's two services: the Gemini Developer API, and Vertex AI in express mode."""
EXPRESS_POOL_KEY = f"{POOL_KEY}-vertex-express"
"""What stands for `POOL_KEY` inside a client of express mode, so that its requests show which
platform they are for."""

KEY_HEADER, BEARER_HEADER = "x-goog-api-key", "authorization"
_SNIFFED = ("timeout", "403", "500", "502", "503")
_STATUSES = {
    400: "FAILED_PRECONDITION",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
}
_TYPE = "type.googleapis.com/google.rpc."
_ONE_TOKEN = {
    "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
    "generationConfig": {"maxOutputTokens": 1},
}


class Gemini(Provider):
    """The Gemini Developer API."""

    name = "gemini"
    platform = GEMINI_API
    title, vendor = "Gemini", "Google"
    otel = "gcp.gemini"
    prices = "google"
    hosts = ("generativelanguage.googleapis.com",)
    variables = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
    base_url_variable = "GOOGLE_GEMINI_BASE_URL"
    beta, default_version = "v1beta", "v1"
    """The API version of previews, and the one that google-genai 3 asks by itself."""
    check_path = "/v1beta/models/{model}:generateContent"
    check_body = _ONE_TOKEN
    check_model = CURRENT_MODEL
    zone = failures.ZONE
    key_header, key_scheme = KEY_HEADER, ""
    key_headers = (KEY_HEADER, BEARER_HEADER)
    account_headers, account_params = ("x-goog-user-project",), ("userproject",)
    tier_header = "x-gemini-service-tier"
    upload_header = "x-goog-upload-url"
    replaced = REPLACED
    model_marks = (b"thoughtSignature", b"thought_signature")
    rules = failures.RULES
    says = failures.SAYS
    route = staticmethod(requests.route_of)
    read_request = staticmethod(requests.read_request)
    conversation = staticmethod(requests.conversation)
    read_reply = staticmethod(replies.read_reply)
    events = staticmethod(replies.events_of)
    parse_error = staticmethod(errors.parse_error)

    def check_url_path(self, model: str) -> str:
        """Return the path in the API version that the program's google-genai asks by itself."""
        path = super().check_url_path(model)
        return path.replace(self.beta, self._sdk_version(), 1)

    def check_url(self, base: str, model: str) -> str:
        """Return its address: google-genai adds a version to any *base*."""
        return base + self.check_url_path(model)

    def _sdk_version(self) -> str:
        """Return that version (docs/gemini-api.md#v1-and-v1beta).

        The SDK has no public name for it. Before 3 it is `v1beta`, whatever the variable says.
        """
        try:
            major = int(version("google-genai").partition(".")[0])
        except (PackageNotFoundError, ValueError):
            return self.beta  # it has all models
        if major < 3:
            return self.beta
        chosen = os.environ.get("GOOGLE_GENAI_API_VERSION") or self.default_version
        return self.beta if chosen == "beta" else chosen

    def find_key(self, route: Route, headers: Any, url: str) -> tuple[str, bool]:
        """Return the key of a request where Google reads it, or a placeholder from anywhere."""
        header = (headers.get(KEY_HEADER) or "").strip()
        in_query = ""
        if "key=" in url:
            in_query = parse_qs(url.partition("?")[2]).get("key", ("",))[0]
        bearer = bearer_token(headers)
        is_openai = route.protocol == "openai"
        given = bearer if is_openai else header or in_query
        if bearer.startswith(POOL_KEY):
            given = bearer
        elif in_query.startswith(POOL_KEY):
            given = in_query
        elif header.startswith(POOL_KEY):
            given = header
        is_in_query = in_query != "" and in_query == given and header != given
        return given, is_in_query and not is_openai

    def key_field(self, route: Route, key: str) -> tuple[str, str]:
        """Return the header that carries *key*, in the form of the path."""
        if route.protocol == "openai":
            return BEARER_HEADER, f"Bearer {key}"
        return KEY_HEADER, key

    def with_model(
        self, route: Route, url: str, content: bytes, models: tuple[str, str]
    ) -> tuple[str, bytes] | None:
        """Return a request to another model, which its path names, or its body."""
        before, after = models
        if route.protocol == "openai":
            return super().with_model(route, url, content, models)
        begin, found, verb = url.partition(f"models/{before}:")
        return (f"{begin}models/{after}:{verb}", content) if found else None

    def error_body(
        self, code: int, text: str, *, reason: str = "", retry_in_s: float | None = None
    ) -> dict[str, Any]:
        """Return an error as Google writes it: with a QuotaFailure for a day, and a RetryInfo."""
        details: list[dict[str, Any]] = []
        if reason in ("rpd", "usd"):
            what = "requests" if reason == "rpd" else reason
            quota = f"KeyPool{what.capitalize()}PerDay"
            violation = {"quotaMetric": f"keyrot/{what}", "quotaId": quota}
            details.append({"@type": f"{_TYPE}QuotaFailure", "violations": [violation]})
        if retry_in_s is not None:
            details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": _delay(retry_in_s)})
        status = _STATUSES.get(code, "UNKNOWN")
        if code == 400 and reason in KEY_REJECTIONS:
            status = "INVALID_ARGUMENT"
        error: dict[str, Any] = {"code": code, "message": text, "status": status}
        return {"error": {**error, "details": details} if details else error}


class VertexExpress(Gemini):
    """Vertex AI in express mode: the same API at another host, with other keys."""

    platform = VERTEX_EXPRESS
    replaced: Mapping[str, str] = {}
    otel = "gcp.vertex_ai"
    hosts = ("aiplatform.googleapis.com",)
    base_url_variable = "GOOGLE_VERTEX_BASE_URL"
    beta = default_version = "v1beta1"
    check_path = "/v1beta1/publishers/google/models/{model}:generateContent"
    route = staticmethod(requests.express_route_of)

    @property
    def no_key(self) -> str:
        """What to do where there is no key at all."""
        return (
            "there is no key for Vertex AI in express mode to send this with: write a keys.json "
            'that has one with "platform": "vertex_express", or give the client an api_key other '
            "than keyrot-pool"
        )


def is_vertex(url: str) -> bool:
    """Return whether an address is one of Vertex AI."""
    return requests.VERTEX.search(url) is not None


def _delay(seconds: float) -> str:
    """Round up to whole seconds, past numbers that are taken for another error's code."""
    whole = max(ceil(seconds), 1)
    while any(word in str(whole) for word in _SNIFFED):
        whole += 1
    return f"{whole}s"
