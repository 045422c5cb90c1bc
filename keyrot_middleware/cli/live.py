"""One cheap request with each key: is it any good, and if not, whose fault is it?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from ..core.failures import classify
from ..core.model import CallInfo
from ..core.text import standard_key_hint
from ..genai.facts import failed
from ..secrets import Ring

__all__ = ["DEFAULT_MODEL", "Answer", "ask_all"]

DEFAULT_MODEL = "gemini-flash-latest"
_AT_ONCE = 8
_TIMEOUT_MS = 20_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    ok: bool
    model: str
    seconds: float
    failure: str | None = None
    """The failure's class, such as `key_invalid`."""
    code: int | None = None
    text: str | None = None
    """What the server said, without keys."""


def ask_all(ring: Ring, models: Mapping[str, str | None]) -> dict[str, Answer]:
    """Send one request with each key; the pool, its limits and its state play no part.

    It asks for an answer of one token: counting tokens would cost less, but would not show a
    spent quota, an empty account or a model that is not offered.

    Args:
        ring: Where the values are.
        models: Key ids and the model to ask; None: `DEFAULT_MODEL`.
    """
    with ThreadPoolExecutor(_AT_ONCE) as workers:
        answers = workers.map(partial(_ask, ring), models, models.values())
        return dict(zip(models, answers, strict=True))


def _ask(ring: Ring, key_id: str, model: str | None) -> Answer:
    from google import genai  # noqa: PLC0415 - a second of imports that only --live needs
    from google.genai import types  # noqa: PLC0415

    model, began = model or DEFAULT_MODEL, time.monotonic()
    # vertexai: explicit, for the environment may say otherwise. A redirect is an answer like any
    # other: the key follows none.
    options = types.HttpOptions(timeout=_TIMEOUT_MS, client_args={"follow_redirects": False})
    client = genai.Client(vertexai=False, api_key=ring.value(key_id), http_options=options)
    config = types.GenerateContentConfig(max_output_tokens=1)
    try:
        client.models.generate_content(model=model, contents="Hi", config=config)
    except Exception as error:
        answer = _failure(error, ring, model, time.monotonic() - began)
        hint = standard_key_hint(ring.value(key_id), str(answer.failure))
        return replace(answer, text=f"{answer.text} {hint}") if hint else answer
    finally:
        client.close()
    return Answer(True, model, time.monotonic() - began)


def _failure(error: Exception, ring: Ring, model: str, seconds: float) -> Answer:
    facts = failed(error, ring.redact, None).facts
    verdict = classify(facts, CallInfo(model, "generateContent"), time.time())
    text = ring.redact(str(getattr(error, "message", None) or error)).strip()
    return Answer(False, model, seconds, verdict.failure, verdict.code, text)
