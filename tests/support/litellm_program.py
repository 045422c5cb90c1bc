"""A program that uses litellm over a pool, in each of its ways; prints what came of it as JSON.

A process of its own: litellm sets up logging, event loops and clients for the whole process.
"""

import json
import os
import sys
from typing import Any

import google.genai  # noqa: F401 - a program may use both, and its patches meet ours here

import keyrot_middleware
from keyrot_middleware.errors import raise_internal_errors
from keyrot_middleware.testing import FakeGemini, Reply
from support.http_modes import LITELLM, MESSAGES

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would be fetched from the network


def _install(gemini: FakeGemini, *labels: str, **settings: Any) -> None:
    values = [gemini.add_key(label).value for label in labels]
    settings = {"keys": values, "allowed_hosts": (gemini.host,), "secrets_ttl_s": 0.0, **settings}
    keyrot_middleware.install(**settings)


def _rotated(mode: str) -> dict[str, Any]:
    """Send twelve calls where A is exhausted, B invalid, and C good."""
    with FakeGemini() as gemini:
        _install(gemini, "A", "B", "C")
        gemini.always("A", Reply.QUOTA_DAY)
        gemini.always("B", Reply.KEY_INVALID)
        texts = LITELLM[mode](gemini.url, "keyrot-pool", 12)
        keyrot_middleware.uninstall()
        return {"texts": sorted(set(texts)), "sent": [gemini.sent(one) for one in "ABC"]}


def _exhausted(mode: str) -> dict[str, Any]:
    import litellm

    with FakeGemini() as gemini:
        _install(gemini, "A", "B", max_wait_s=0.0)
        for label in "AB":
            gemini.always(label, Reply.QUOTA_DAY)
        errors = []
        for _ in range(2):
            try:
                LITELLM[mode](gemini.url, "keyrot-pool", 1)
            except (litellm.RateLimitError, litellm.exceptions.MidStreamFallbackError) as error:
                # The second holds the first, where a stream was asked for, for every 429.
                inner = getattr(error, "original_exception", None) or error
                errors.append([type(inner).__name__, str(error)])
        keyrot_middleware.uninstall()
        return {"errors": errors, "sent": [gemini.sent(one) for one in "AB"]}


def _refused() -> dict[str, Any]:
    import litellm

    with FakeGemini() as gemini:
        _install(gemini, "A", "B", strategy="fill")
        gemini.always("A", Reply.BAD_REQUEST)
        options = {"api_key": "keyrot-pool", "api_base": f"{gemini.url}/v1beta"}
        try:
            litellm.completion(model="gemini/gemini-3.1-flash-lite", messages=MESSAGES, **options)
        except litellm.BadRequestError as error:
            found = type(error).__name__
        keyrot_middleware.uninstall()
        return {"error": found, "sent": [gemini.sent(one) for one in "AB"]}


if __name__ == "__main__":
    with raise_internal_errors():
        some = ("litellm-completion", "litellm-stream", "litellm-acompletion")
        found = {
            "rotated": {mode: _rotated(mode) for mode in LITELLM},
            "exhausted": {mode: _exhausted(mode) for mode in some},
            "refused": _refused(),
        }
    sys.stdout.write(f"\n{json.dumps(found)}\n")
