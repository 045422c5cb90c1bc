"""Send one cheap request with a key: does it work, and if not, why?"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from .. import providers
from ..core.failures import FailureFacts
from ..core.model import CallInfo
from ..errors import KeyrotError
from ..hosts import AllowedOrigins, is_within, origin_from_url
from ..providers.base import Route
from ..runtime import bypassed
from ..secrets.cache import SecretCache
from .errors import lost_connection

_TIMEOUT_S = 20.0
_SHOWN = 200
"""Characters of an answer that is no error of the provider's."""


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What came of one request."""

    ok: bool
    model: str
    """The model, or the provider where no model was asked."""
    seconds: float = 0.0
    failure: str | None = None
    """The failure's class, such as `key_invalid`."""
    code: int | None = None
    text: str | None = None
    """What the server said, without keys."""
    advice: str = ""
    """What to change, where the answer shows it."""

    def describe(self, key_id: str) -> str:
        """Say in a sentence what came of it."""
        if self.ok:
            return f"key {key_id} works: {self.model} answered in {self.seconds:.1f} s"
        advice = f"; {self.advice}" if self.advice else ""
        code = self.code or "no status"
        return f"key {key_id} failed with {self.failure} ({code}): {self.text}{advice}"


def check_key(
    secrets: SecretCache, key_id: str, model: str | None, platform: str, allowed: AllowedOrigins
) -> KeyCheck:
    """Send one request with a key; the pool, its limits and its state play no part.

    Gemini is asked for an answer of one token: counting tokens would cost less, but would not show
    an exhausted quota, an empty account or a model that is not offered. Other providers are asked
    for something free.

    Raises:
        KeyrotError: The key may not go to the address that the environment names.
    """
    import requests  # noqa: PLC0415 - a library of google-genai's, which a mere import needs not

    provider = providers.of(platform)
    asked = (model or provider.check_model) if provider.check_model else provider.title
    if not provider.check_path:
        text = f"{provider.title} has no free request that shows whether it works"
        return KeyCheck(False, asked, failure="unknown", text=text)
    own = "".join(f"https://{host}" for host in provider.hosts[:1])
    base = (os.environ.get(provider.base_url_variable) or own).rstrip("/")
    if not is_within(base, allowed[platform]):
        origin = origin_from_url(base)
        raise KeyrotError(f"sent nothing: {origin or 'no host'} is not in KEYROT_ALLOWED_HOSTS")
    name, value = provider.key_field(Route(""), secrets.value(key_id).reveal())
    began, token = time.monotonic(), bypassed.set(True)
    try:
        reply = requests.request(
            "POST" if provider.check_body else "GET",
            provider.check_url(base, asked),
            json=provider.check_body,
            headers={name: value, **provider.check_headers},
            auth=lambda request: request,  # not that of ~/.netrc
            allow_redirects=False,  # an answer like any other: the key follows none
            timeout=_TIMEOUT_S,
        )
    except requests.RequestException as error:
        code, said, facts = None, str(error), lost_connection(error)
    else:
        code, said = reply.status_code, reply.text
        facts = FailureFacts(code, said, reply.headers.get("retry-after"))
    finally:
        bypassed.reset(token)
    seconds = time.monotonic() - began
    if code is not None and code < 300:
        return KeyCheck(True, asked, seconds)
    verdict = provider.classify(facts, CallInfo(asked, "generateContent"), time.time())
    said = secrets.redact(verdict.message or said[:_SHOWN]).strip()
    return KeyCheck(False, asked, seconds, verdict.failure, code, said, verdict.advice)
