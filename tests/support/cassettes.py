"""Record and replay a pool's traffic with vcrpy, without keys in the cassettes.

    with recorder({"key_1": first, "key_2": second}).use_cassette("tests/cassettes/busy.yaml"):
        keyrot_middleware.install(keys=[first, second])
        genai.Client().models.generate_content(…)

The file holds the name of each key in this mapping, in a header that requests are matched by, so
the 429 of one key is not replayed for another. It is a name, not a hash, because a recording made
with real keys is replayed with others. An echo of a key in an error body becomes `[key:key_1]`; a
replay restores it with the value that the mapping has for that name.

Needs vcrpy 9.4 or newer, which no extra installs. vcrpy buffers streams: use `FakeGemini` for the
timing of streams and for failures in mid-stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from keyrot_middleware.adapters.redaction import redact_bytes
from keyrot_middleware.core.text import hide_escaped
from keyrot_middleware.providers.keys import mask_keys
from keyrot_middleware.secrets import Secret

KEY_NAME_HEADER = "x-key-name"
"""The header that replaces the key in a cassette."""

_KEY_HEADER = "x-goog-api-key"
_GOOGLE = "https://generativelanguage.googleapis.com"
# Other headers are not recorded: credentials, dates, versions, cookies.
_REQUEST_HEADERS = ("content-type", KEY_NAME_HEADER)
_RESPONSE_HEADERS = ("content-type", "retry-after")
_LOOPBACK = re.compile(r"https?://(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?(?=/|$)")
_PROJECT_NUMBER = re.compile(r"(?<=projects/)\d{6,}|(?<=project[ =])\d{6,}")
_API_VERSION = re.compile(r"^/v\d+(?:alpha|beta)?\d*/")

TextFilter = Callable[[str], str]


def recorder(keys: Mapping[str, str], **more: Any) -> Any:
    """Return a `vcr.VCR` whose cassettes hold the names of keys instead of keys.

    Args:
        keys: Name -> value of every key that requests may carry. The pool's own ids (`key_1`, …)
            are good names.
        more: Arguments of `vcr.VCR`, such as `record_mode="none"`; they override `options()`.

    Raises:
        ImportError: If vcrpy is not installed.
        ValueError: Later, from a call whose request carries a key without a name, or whose
            response is compressed in a way that vcrpy cannot undo.
    """
    import vcr

    instance = vcr.VCR(**{**options(keys), **more})
    instance.register_matcher(same_key.__name__, same_key)
    instance.register_matcher(same_path.__name__, same_path)
    return instance


def options(keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of `vcr.VCR` that `recorder()` uses, for a custom setup.

    The matchers `same_key` and `same_path` must be registered under these names.
    """
    names = _KeyNames({name: Secret(value) for name, value in keys.items()})
    return {
        "before_record_request": names.name,
        "before_record_response": _check_encoding,
        "before_save_interaction": names.hide,
        "after_load_interaction": names.restore,
        "decode_compressed_response": True,
        "match_on": ("method", "scheme", "host", "same_path", "query", "body", "same_key"),
    }


def same_key(one: Any, other: Any) -> None:
    """Match requests that carry the same key, by its name.

    Raises:
        AssertionError: If they do not.
    """
    names = [request.headers.get(KEY_NAME_HEADER) for request in (one, other)]
    if names[0] != names[1]:
        raise AssertionError(f"the keys differ: {names[0]} here, {names[1]} in the cassette")


def same_path(one: Any, other: Any) -> None:
    """Match paths without the version of the API, which differs between versions of the SDK.

    Raises:
        AssertionError: If they do not match.
    """
    paths = [_API_VERSION.sub("/", request.path) for request in (one, other)]
    if paths[0] != paths[1]:
        raise AssertionError(f"the paths differ: {paths[0]} here, {paths[1]} in the cassette")


@dataclass(frozen=True, slots=True)
class _KeyNames:
    keys: Mapping[str, Secret]

    def name(self, request: Any) -> Any:
        """Replace the key by its name; idempotent, since vcrpy calls it twice.

        It also normalizes what differs between httpx and aiohttp, so each replays the other's.
        """
        if _KEY_HEADER in request.headers:
            request.headers[KEY_NAME_HEADER] = self._name_in(request)
        request.headers = _select_headers(_REQUEST_HEADERS, request.headers)
        request.method = request.method.upper()
        request.uri = _LOOPBACK.sub(_GOOGLE, request.uri)
        return request

    def _name_in(self, request: Any) -> str:
        sent = Secret(request.headers[_KEY_HEADER])
        for name, value in self.keys.items():
            if sent == value:
                return name
        raise ValueError(
            "a request carries a key without a name, so it cannot be recorded or replayed; "
            f"add it to the mapping passed to recorder(), which has: {', '.join(self.keys)}"
        )

    def hide(self, request: Any, response: Any) -> tuple[Any, Any]:
        """Remove every key, known or not, and project numbers from the saved interaction."""
        response["headers"] = _select_headers(_RESPONSE_HEADERS, response["headers"])
        hide = partial(hide_escaped, hide=self._hidden)
        return _filter_interaction(request, response, hide)

    def _hidden(self, text: str) -> str:
        for name, value in self.keys.items():
            text = value.hide_in(text, f"[key:{name}]")
        return _PROJECT_NUMBER.sub("0", _LOOPBACK.sub(_GOOGLE, mask_keys(text)))

    def restore(self, request: Any, response: Any) -> tuple[Any, Any]:
        """Replace recorded names by the values of the replaying program."""
        return _filter_interaction(request, response, self._restored)

    def _restored(self, text: str) -> str:
        for name, value in self.keys.items():
            text = text.replace(f"[key:{name}]", value.reveal())
        return text


def _check_encoding(response: Any) -> Any:
    """Refuse a response that cannot be searched for keys; vcrpy decodes the codings it knows.

    Checked here, not when saving: an error there would leave vcrpy's patches in place.
    """
    coding = _select_headers(("content-encoding",), response["headers"])
    if coding:
        raise ValueError(
            f"cannot look for keys in a response with {coding}, so it cannot be recorded; have the "
            "client send the header accept-encoding: gzip"
        )
    return response


def _select_headers(wanted: Collection[str], headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in headers.items() if name.lower() in wanted}


def _filter_interaction(request: Any, response: Any, change: TextFilter) -> tuple[Any, Any]:
    request.uri = change(request.uri)
    request.body = _filter_value(request.body, change)
    return request, _filter_value(response, change)


def _filter_value(value: Any, change: TextFilter) -> Any:
    """Apply a filter to every text in a value of dicts, lists, texts and bytes."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, bytes):
        return redact_bytes(value, change)
    if isinstance(value, dict):
        return {name: _filter_value(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_filter_value(part, change) for part in value]
    return value
