"""What is patched of google-genai: the key of a client, its retries, and its exceptions.

Its requests are those of HTTP libraries like any other, and are served there. A client without a
key of its own holds the placeholder. While a request is sent the placeholder stands for the
client's own key too, so that nothing the SDK has of it shows a key.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from contextvars import Token
from functools import lru_cache
from typing import Any

import wrapt

from ..core.model import POOL_KEY
from ..errors import handle_internal_error
from ..hosts import AllowedOrigins, is_within
from ..providers.gemini import (
    BEARER_HEADER,
    EXPRESS_POOL_KEY,
    GEMINI_API,
    KEY_HEADER,
    VERTEX_EXPRESS,
    is_vertex,
)
from ..runtime import SdkCall, sdk_call
from ..secrets import PlainText
from .patching import Args, Kwargs, Wrapped, Wrapper
from .pooled_calls import PooledCalls, is_key
from .serving import explanation_of

_API = "google.genai._api_client"
_ERRORS = "google.genai.errors"
_GAOS = "google.genai._gaos"
_STAINLESS = "google.genai._interactions._base_client"
"""The client that google-genai has for Interactions since 2.0, and the one of 1.x."""
_ARGUMENTS = ("vertexai", "api_key", "credentials", "project", "location", "http_options")
"""Of the api client's constructor, in their order."""
_DO_REQUEST = ("hook_ctx", "request", "is_error_status_code", "stream", "retry_config")
_KEY_FAILURES = frozenset({"401", "402", "403", "429"})
_DEFAULT_ATTEMPTS = 5
"""The SDK's, where retry options leave it open."""


def wrappers(calls: PooledCalls | None, allowed: AllowedOrigins) -> dict[tuple[str, str], Wrapper]:
    """Return the wrapper of each method; none where no key was found at all."""
    if calls is None:
        return {}
    of = _Clients(calls, allowed)
    return {
        (_API, "BaseApiClient.__init__"): of.init,
        (_API, "BaseApiClient._request"): of.request,
        (_API, "BaseApiClient._async_request"): of.async_request,
        (f"{_GAOS}.basesdk", "BaseSDK.do_request"): of.do_request,
        (f"{_GAOS}.basesdk", "AsyncBaseSDK.do_request_async"): of.do_request_async,
        (_ERRORS, "APIError.raise_error"): raise_error,
        (_ERRORS, "APIError.raise_error_async"): raise_error_async,
        (f"{_GAOS}.lib.compat_errors", "wrap_sdk_error"): made_error,
        (_STAINLESS, "BaseClient._make_status_error_from_response"): made_error,
    }


class _Clients:
    """Serves the SDK's clients."""

    def __init__(self, calls: PooledCalls, allowed: AllowedOrigins) -> None:
        self._calls, self._allowed = calls, allowed

    def init(self, wrapped: Wrapped, _client: object, args: Args, kwargs: Kwargs) -> Any:
        """Wrap the api client's `__init__`: a client without a key gets the placeholder."""
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        placeholder = placeholder_for(given, self._allowed)
        if placeholder is None:
            return wrapped(*args, **kwargs)
        return wrapped(**{**given, "api_key": placeholder})

    def request(self, wrapped: Wrapped, client: Any, args: Args, kwargs: Kwargs) -> Any:
        """Wrap `_request`: the pool repeats in place of the SDK, with other keys."""
        token, request, stream = self._begin_request(client, *args, **kwargs)
        if token is None:
            return wrapped(*args, **kwargs)
        try:
            return client._request_once(request, stream)
        finally:
            self._end(token)

    async def async_request(self, wrapped: Wrapped, client: Any, args: Args, kwargs: Kwargs) -> Any:
        """Wrap `_async_request`: without the SDK's hidden reconnect too, which sleeps for long."""
        token, request, stream = self._begin_request(client, *args, **kwargs)
        if token is None:
            return await wrapped(*args, **kwargs)
        once = client._async_request_once
        hidden = "implicit_retry" in (getattr(once, "__kwdefaults__", None) or ())
        try:
            response = await once(request, stream, **({"implicit_retry": False} if hidden else {}))
        finally:
            self._end(token)
        return _Stream(response) if stream else response

    def do_request(self, wrapped: Wrapped, _sdk: object, args: Args, kwargs: Kwargs) -> Any:
        """Wrap the method of that name, through which Interactions go."""
        given = dict(zip(_DO_REQUEST, args, strict=False)) | kwargs
        token = self._begin_interaction(given)
        try:
            response = wrapped(**given)
            if response.status_code >= 400:
                response.read()
                _raise_exhausted(response)
            return response
        finally:
            if token is not None:
                self._end(token)

    async def do_request_async(
        self, wrapped: Wrapped, _sdk: object, args: Args, kwargs: Kwargs
    ) -> Any:
        """Wrap the method of that name."""
        given = dict(zip(_DO_REQUEST, args, strict=False)) | kwargs
        token = self._begin_interaction(given)
        try:
            response = await wrapped(**given)
            if response.status_code >= 400:
                await response.aread()
                _raise_exhausted(response)
            return response
        finally:
            if token is not None:
                self._end(token)

    def _begin_request(
        self, client: Any, http_request: Any, http_options: Any = None, stream: bool = False
    ) -> tuple[Token[SdkCall | None] | None, Any, bool]:
        """Return what ends the call, None if it is not the pool's; its request, and its kind."""
        token = None
        try:
            shared = client._http_options
            retry = option(http_options, "retry_options") or shared.retry_options
            attempts = 1
            if retry is not None:
                asked = option(retry, "attempts")
                attempts = _DEFAULT_ATTEMPTS if asked is None else asked
            http_request.headers = headers = dict(http_request.headers)  # 1.x: those of the client
            call, platform = SdkCall(attempts=attempts), platform_of(client)
            token = self._begin(client.api_key, http_request.url, headers, platform, call)
        except Exception:
            handle_internal_error("genai")
        return token, http_request, stream

    def _begin_interaction(self, given: Kwargs) -> Token[SdkCall | None] | None:
        try:
            request, source = given["request"], given["hook_ctx"].security_source
            key, retry = getattr(source, "api_key", None), _without_key_failures(given)
            url = str(request.url)
            platform = None if is_vertex(url) else GEMINI_API
            call = SdkCall(repeats=retry is not None)
            token = self._begin(key, url, request.headers, platform, call)
        except Exception:
            handle_internal_error("genai")
            return None
        if token is not None:
            given["retry_config"] = retry
        return token

    def _begin(
        self, key: object, url: str, headers: dict[str, str], platform: str | None, call: SdkCall
    ) -> Token[SdkCall | None] | None:
        """Let the placeholder stand for a client's key in the headers of a request."""
        if not isinstance(key, str) or not key or platform is None:
            return None
        names = _key_header_names(tuple(headers))
        if not self._calls.serves(key, url, platform=platform) or has_foreign_key(headers, key):
            for name in names if not is_allowed(self._allowed, url) else ():
                if not is_key(headers[name]):  # a placeholder
                    del headers[name]
            return None
        call.own = PlainText(key if is_key(key) else "")
        if not self._calls.begin(call):
            return None
        for name in names:
            if name.lower() == KEY_HEADER or headers[name].split()[1:] == [key]:
                del headers[name]
        headers[KEY_HEADER] = POOL_KEY if platform == GEMINI_API else EXPRESS_POOL_KEY
        return sdk_call.set(call)

    def _end(self, token: Token[SdkCall | None]) -> None:
        self._calls.begun.discard(sdk_call.get())
        sdk_call.reset(token)


def has_foreign_key(headers: Mapping[str, str] | None, own: str) -> bool:
    """Return whether the caller has set a key header other than the client's own key."""
    if not headers:
        return False
    for name in _key_header_names(tuple(headers)):
        text = headers[name].strip()
        if name.lower() == KEY_HEADER and text != own and not text.startswith(POOL_KEY):
            return True
    return False


@lru_cache(maxsize=256)
def _key_header_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the headers that can carry a key; programs use few sets of names, each many times."""
    return tuple(name for name in names if name.lower() in (KEY_HEADER, BEARER_HEADER))


def _without_key_failures(given: Kwargs) -> Any:
    """Return the retries of Interactions without those of a key's failure; None if none is left."""
    config, codes = given.get("retry_config") or (None, ())
    if config is None:
        return None
    codes = getattr(config, "status_codes_override", None) or codes
    left = [
        code
        for some in codes
        for code in (map(str, range(400, 500)) if some.upper() == "4XX" else (some,))
        if code not in _KEY_FAILURES
    ]
    config = copy.copy(config)
    config.status_codes_override = None
    return (config, left) if left else None


class _Stream(wrapt.ObjectProxy):  # type: ignore[type-arg]  # of wrapt 2 alone
    """The SDK's response of an async stream, which would keep itself alive when it is dropped."""

    def __aiter__(self) -> Any:
        return self.__wrapped__.async_segments()


def option(options: object, name: str) -> Any:
    """Read an option, or an option of retries, from the object or a dict that stands for one."""
    if not isinstance(options, dict):
        return getattr(options, name, None)
    head, *humps = name.split("_")
    return options.get(head + "".join(map(str.capitalize, humps)), options.get(name))


def is_allowed(allowed: AllowedOrigins, url: str) -> bool:
    """Return whether any key of the pool may go to an address."""
    return any(is_within(url, origins) for origins in allowed.values())


# Clients ----------------------------------------------------------------------------------------


def placeholder_for(given: Kwargs, allowed: AllowedOrigins) -> str | None:
    """Return the placeholder of a client made with these arguments; None if it needs no home key.

    Args:
        given: The arguments of the api client's constructor, by name.
        allowed: Where the pool's keys may go.
    """
    key = given.get("api_key")
    others = (given.get(name) for name in ("credentials", "project", "location"))
    if is_key(key) or any(others):
        return None  # a key of its own, Vertex AI, or arguments that the SDK refuses
    platform = VERTEX_EXPRESS if _vertex(given.get("vertexai")) else GEMINI_API
    if key != POOL_KEY and is_key(_env_key()):
        return None
    if key != POOL_KEY and platform == VERTEX_EXPRESS and _has_own_auth():
        return None
    base_url = option(given.get("http_options"), "base_url")
    if base_url and not is_within(base_url, allowed[platform]):
        return None
    return POOL_KEY if platform == GEMINI_API else EXPRESS_POOL_KEY


def platform_of(client: Any) -> str | None:
    """Return the platform of an api client; None for Vertex AI with a project or credentials."""
    if not client.vertexai:
        return GEMINI_API
    others = (client.project, client.location, client._credentials)
    return VERTEX_EXPRESS if client.api_key and not any(others) else None


def _env_key() -> str | None:
    """Read the variables as the SDK does: GOOGLE_API_KEY first."""
    return os.environ.get("GOOGLE_API_KEY") or os.environ.get("GEMINI_API_KEY")


def _has_own_auth() -> bool:
    """Return whether a client of Vertex AI has no placeholder in the environment, or ignores it."""
    others = ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION")
    return _env_key() != POOL_KEY or any(os.environ.get(name) for name in others)


def _vertex(asked: object) -> bool:
    """Return whether the SDK will use Vertex AI, by its argument and its variables."""
    if asked is not None:
        return bool(asked)
    for name in ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI"):
        if (value := os.environ.get(name)) is not None:
            return value.lower() in ("true", "1")
    return False


# Exceptions -------------------------------------------------------------------------------------


def raise_error(wrapped: Wrapped, api_error: Any, args: Args, kwargs: Kwargs) -> Any:
    """Wrap `APIError.raise_error`: `KeyPoolExhausted`, or the SDK's exception with our notes."""
    given = dict(zip(("status_code", "response_json", "response"), args, strict=False)) | kwargs
    outcome = explanation_of(given.get("response"))
    if outcome is None:
        return wrapped(*args, **kwargs)
    if outcome.no_key is not None:
        from .exhausted import exhausted  # noqa: PLC0415 - it imports the SDK

        raise exhausted(outcome.no_key, _api_error(outcome.last), outcome.notes)
    try:
        wrapped(*args, **kwargs)
    except api_error as error:
        for note in outcome.notes:
            error.add_note(note)
        raise


async def raise_error_async(wrapped: Wrapped, api_error: Any, args: Args, kwargs: Kwargs) -> Any:
    """Wrap the method of that name, which does the same."""
    given = dict(zip(("status_code", "response_json", "response"), args, strict=False)) | kwargs
    given["response"] = response = getattr(given["response"], "__wrapped__", given["response"])
    if explanation_of(response) is None:
        return await wrapped(**given)
    return api_error.raise_error(**given)


def _raise_exhausted(response: object) -> None:
    """Raise `KeyPoolExhausted` if no key could serve an interaction, as one of its exceptions too.

    Raises:
        KeyPoolExhausted: None could.
    """
    outcome = explanation_of(response)
    if outcome is None or outcome.no_key is None:
        return
    from .exhausted import exhausted  # noqa: PLC0415 - it imports the SDK

    def generate(code: int, body: object, response: object) -> Any:
        made = sys.modules[f"{_GAOS}.lib.compat_errors"].APIError
        return made.generate(code, body, f"Error code: {code} - {body}", response)

    last = generate(*outcome.last) if outcome.last is not None else None
    theirs = generate(outcome.no_key.code, outcome.no_key.body, response)
    raise exhausted(outcome.no_key, last, outcome.notes, theirs)


def made_error(wrapped: Wrapped, _owner: object, args: Args, kwargs: Kwargs) -> Any:
    """Wrap what makes the exceptions of Interactions, as `raise_error`."""
    error, inner = wrapped(*args, **kwargs), (*args, *kwargs.values())[0]
    if error is inner:
        return error
    outcome = explanation_of(getattr(error, "response", None))
    if outcome is not None and outcome.no_key is not None:
        from .exhausted import exhausted  # noqa: PLC0415 - it imports the SDK

        last = wrapped(outcome.last[2]) if outcome.last is not None else None
        raise exhausted(outcome.no_key, last, outcome.notes, error)  # `from None` drops a cause
    notes: Any = getattr(inner, "__notes__", ()) if outcome is None else outcome.notes
    for note in notes:
        error.add_note(note)
    return error


def _api_error(refusal: tuple[int, Any, Any] | None) -> BaseException | None:
    """Return the SDK's exception of a refusal."""
    if refusal is None:
        return None
    error_type = sys.modules[_ERRORS].APIError
    code, body, response = refusal
    try:
        error_type.raise_error(code or 500, body, response)
    except error_type as error:
        made: BaseException = error.with_traceback(None)
        return made
    return None
