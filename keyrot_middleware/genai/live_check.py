"""Send one cheap request with a key: does it work, and if not, why?"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from ..core.failures import classify
from ..core.model import CallInfo
from ..core.text import standard_key_hint
from ..errors import KeyrotError
from ..secrets import SecretCache
from ..settings import GOOGLE_HOST
from .call_info import failed_from_error, origin_from_url
from .pooled_calls import bypassed

__all__ = [
    "DEFAULT_MODEL",
    "LiveCheck",
    "base_url",
    "check_key",
    "check_keys",
    "describe_check",
    "require_allowed_host",
]

DEFAULT_MODEL = "gemini-flash-latest"
_AT_ONCE = 8
_TIMEOUT_MS = 20_000


@dataclass(frozen=True, slots=True)
class LiveCheck:
    """What came of one request."""

    ok: bool
    model: str
    seconds: float
    failure: str | None = None
    """The failure's class, such as `key_invalid`."""
    code: int | None = None
    text: str | None = None
    """What the server said, without keys."""


def base_url() -> str:
    """Return where checks are sent: where the SDK sends calls by default."""
    return os.environ.get("GOOGLE_GEMINI_BASE_URL") or f"https://{GOOGLE_HOST}"


def require_allowed_host(allowed_origins: Collection[str]) -> None:
    """Make sure that keys may be sent to `base_url`.

    Raises:
        KeyrotError: They may not.
    """
    origin = origin_from_url(base_url())
    if origin not in allowed_origins:
        raise KeyrotError(f"sent nothing: {origin or 'no host'} is not in KEYROT_ALLOWED_HOSTS")


def check_keys(secrets: SecretCache, models: Mapping[str, str | None]) -> dict[str, LiveCheck]:
    """Send one request with each key, eight at a time; see `check_key`.

    Call `require_allowed_host` first.

    Args:
        secrets: Where the values are.
        models: Key ids and the model to ask; None: `DEFAULT_MODEL`.
    """
    with ThreadPoolExecutor(_AT_ONCE) as workers:
        checks = workers.map(partial(check_key, secrets), models, models.values())
        return dict(zip(models, checks, strict=True))


def check_key(secrets: SecretCache, key_id: str, model: str | None) -> LiveCheck:
    """Send one request with a key; the pool, its limits and its state play no part.

    Call `require_allowed_host` first. The request asks for an answer of one token: counting tokens
    would cost less, but would not show an exhausted quota, an empty account or a model that is not
    offered.
    """
    from google import genai  # noqa: PLC0415 - a second of imports that only this needs
    from google.genai import types  # noqa: PLC0415

    model, began = model or DEFAULT_MODEL, time.monotonic()
    # vertexai: explicit, for the environment may say otherwise. A redirect is an answer like any
    # other: the key follows none.
    options = types.HttpOptions(
        base_url=base_url(), timeout=_TIMEOUT_MS, client_args={"follow_redirects": False}
    )
    client = genai.Client(vertexai=False, api_key=secrets.value(key_id), http_options=options)
    config = types.GenerateContentConfig(max_output_tokens=1)
    token = bypassed.set(True)
    try:
        client.models.generate_content(model=model, contents="Hi", config=config)
    except Exception as error:
        check = _failure(error, secrets, model, time.monotonic() - began)
        hint = standard_key_hint(secrets.value(key_id), str(check.failure))
        return replace(check, text=f"{check.text} {hint}") if hint else check
    finally:
        bypassed.reset(token)
        client.close()
    return LiveCheck(True, model, time.monotonic() - began)


def describe_check(key_id: str, check: LiveCheck) -> str:
    """Say in a sentence what came of a check."""
    if check.ok:
        return f"key {key_id} works: {check.model} answered in {check.seconds:.1f} s"
    return f"key {key_id} failed with {check.failure} ({check.code or 'no status'}): {check.text}"


def _failure(error: Exception, secrets: SecretCache, model: str, seconds: float) -> LiveCheck:
    facts = failed_from_error(error, secrets.redact, None).facts
    verdict = classify(facts, CallInfo(model, "generateContent"), time.time())
    text = secrets.redact(str(getattr(error, "message", None) or error)).strip()
    return LiveCheck(False, model, seconds, verdict.failure, verdict.code, text)
