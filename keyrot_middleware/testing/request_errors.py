"""Bodies of errors about the request itself, the model, or the service.

Sources: GEMINI.md A1, A8 to A10.
"""

from __future__ import annotations

from typing import Any

from keyrot_middleware.testing.asked import Asked
from keyrot_middleware.testing.key_errors import error

__all__ = ["bad_field", "help_only", "model_not_found", "new_users"]

_TYPE = "type.googleapis.com/google.rpc."


def bad_field(_asked: Asked) -> dict[str, Any]:
    """Write the 400 of a field that the service does not know."""
    message = 'Invalid JSON payload received. Unknown name "unknownField": Cannot find field.'
    violation = {"description": message}
    detail = {"@type": f"{_TYPE}BadRequest", "fieldViolations": [violation]}
    return error(400, "INVALID_ARGUMENT", message, detail)


def help_only(_asked: Asked) -> dict[str, Any]:
    """Write the 429 that has no detail but a link."""
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more "
        "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."
    )
    link = {
        "description": "Learn more about Gemini API quotas",
        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
    }
    return error(429, "RESOURCE_EXHAUSTED", message, {"@type": f"{_TYPE}Help", "links": [link]})


def model_not_found(asked: Asked) -> dict[str, Any]:
    """Write the 404 of a model that is not there or cannot do what is asked."""
    route = asked.route
    message = (
        f"models/{route.model or 'unknown'} is not found for API version "
        f"{route.version or 'v1beta'}, or is not supported for {route.verb or 'generateContent'}. "
        "Call ModelService.ListModels to see the list of available models and their supported "
        "methods."
    )
    return error(404, "NOT_FOUND", message)


def new_users(asked: Asked) -> dict[str, Any]:
    """Write the 404 of an old model in a project that never used it."""
    message = (
        f"This model models/{asked.route.model or 'gemini-2.5-flash'} is no longer available to "
        "new users, use models/gemini-3.5-flash-lite."
    )
    return error(404, "NOT_FOUND", message)
