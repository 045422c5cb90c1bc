"""Send one cheap request with a key: does it work, and if not, why?"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .. import providers
from ..adapters import facts_from_reported_error, origin_from_url
from ..core.failures import FailureFacts
from ..core.model import CallInfo
from ..errors import KeyrotError
from ..providers.base import Provider, Route
from ..providers.gemini import GEMINI_API, Gemini
from ..providers.gemini.models import CURRENT_MODEL
from ..runtime import bypassed
from ..secrets.cache import SecretCache
from ..settings import AllowedOrigins

_AT_ONCE = 8
_TIMEOUT_MS = 20_000


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What came of one request."""

    ok: bool
    model: str
    seconds: float
    failure: str | None = None
    """The failure's class, such as `key_invalid`."""
    code: int | None = None
    text: str | None = None
    """What the server said, without keys."""


def base_url(platform: str = GEMINI_API) -> str:
    """Return where checks are sent: where the SDK sends calls by default."""
    provider = providers.of(platform)
    own = "".join(f"https://{host}" for host in provider.hosts[:1])
    return os.environ.get(provider.base_url_variable) or own


def require_allowed_host(allowed: AllowedOrigins, platform: str = GEMINI_API) -> None:
    """Make sure that keys of a platform may be sent to its `base_url`.

    Raises:
        KeyrotError: They may not.
    """
    origin = origin_from_url(base_url(platform))
    if origin not in allowed[platform]:
        raise KeyrotError(f"sent nothing: {origin or 'no host'} is not in KEYROT_ALLOWED_HOSTS")


def check_keys(
    secrets: SecretCache, keys: Mapping[str, tuple[str | None, str]]
) -> dict[str, KeyCheck]:
    """Send one request with each key, eight at a time; see `check_key`.

    Call `require_allowed_host` first.

    Args:
        secrets: Where the values are.
        keys: Key ids, the model to ask (None: `CURRENT_MODEL`) and the platform of the key.
    """
    with ThreadPoolExecutor(_AT_ONCE) as workers:
        checks = workers.map(lambda key_id: check_key(secrets, key_id, *keys[key_id]), keys)
        return dict(zip(keys, checks, strict=True))


def check_key(
    secrets: SecretCache, key_id: str, model: str | None, platform: str = GEMINI_API
) -> KeyCheck:
    """Send one request with a key; the pool, its limits and its state play no part.

    Call `require_allowed_host` first. The request asks for an answer of one token: counting tokens
    would cost less, but would not show an exhausted quota, an empty account or a model that is not
    offered. Of another provider than Gemini it asks for something free.
    """
    provider = providers.of(platform)
    if provider.name != Gemini.name:
        text = f"{provider.title} has no free request that shows whether it works"
        if not provider.check_path:
            return KeyCheck(False, provider.title, 0.0, "unknown", None, text)
        return _check_free(provider, secrets, key_id)
    from google import genai  # noqa: PLC0415 - a second of imports that only this needs
    from google.genai import types  # noqa: PLC0415

    model, began = model or CURRENT_MODEL, time.monotonic()
    # vertexai: explicit, for the environment may say otherwise. A redirect is an answer like any
    # other: the key follows none.
    express = platform != GEMINI_API
    options = types.HttpOptions(
        base_url=base_url(platform), timeout=_TIMEOUT_MS, client_args={"follow_redirects": False}
    )
    client = genai.Client(
        vertexai=express, api_key=secrets.value(key_id).reveal(), http_options=options
    )
    config = types.GenerateContentConfig(max_output_tokens=1)
    token = bypassed.set(True)
    try:
        client.models.generate_content(model=model, contents="Hi", config=config)
    except Exception as error:
        return _failure(error, secrets, model, time.monotonic() - began)
    finally:
        bypassed.reset(token)
        client.close()
    return KeyCheck(True, model, time.monotonic() - began)


def _check_free(provider: Provider, secrets: SecretCache, key_id: str) -> KeyCheck:
    began, base = time.monotonic(), base_url(provider.platform).rstrip("/")
    path = provider.check_path
    if base.endswith("/v1"):
        path = path[path.find("/v1") + 3 :]
    name, text = provider.key_field(Route(""), secrets.value(key_id).reveal())
    request = Request(base + path, headers={name: text, **provider.check_headers})  # noqa: S310 - of an allowed host
    try:
        with build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_MS / 1_000) as reply:
            reply.read(1)
    except HTTPError as error:
        body, headers = error.read(65_536).decode("utf-8", "replace"), error.headers
        facts = FailureFacts(error.code, body, headers.get("retry-after"))
        verdict = provider.classify(facts, CallInfo("", "get"), time.time())
        said = secrets.redact(verdict.message or body[:200]).strip()
        seconds = time.monotonic() - began
        return KeyCheck(False, provider.title, seconds, verdict.failure, error.code, said)
    except OSError as error:
        said = secrets.redact(str(error))
        return KeyCheck(False, provider.title, time.monotonic() - began, "connect", None, said)
    return KeyCheck(True, provider.title, time.monotonic() - began)


class _NoRedirect(HTTPRedirectHandler):
    """A redirect is an answer like any other: the key follows none."""

    def redirect_request(self, *_given: object) -> None:
        """Follow nothing."""


def describe_check(key_id: str, check: KeyCheck) -> str:
    """Say in a sentence what came of a check."""
    if check.ok:
        return f"key {key_id} works: {check.model} answered in {check.seconds:.1f} s"
    return f"key {key_id} failed with {check.failure} ({check.code or 'no status'}): {check.text}"


def _failure(error: Exception, secrets: SecretCache, model: str, seconds: float) -> KeyCheck:
    facts = facts_from_reported_error(error, secrets.redact)
    verdict = Gemini().classify(facts, CallInfo(model, "generateContent"), time.time())
    text = secrets.redact(str(getattr(error, "message", None) or error)).strip()
    code = verdict.code or getattr(error, "code", None)  # also of a redirect
    return KeyCheck(False, model, seconds, verdict.failure, code, text)
