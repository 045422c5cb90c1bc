"""Record and replay a pool's traffic with vcrpy, without keys in the cassettes.

    with recorder({"key_1": first, "key_2": second}).use_cassette("tests/cassettes/busy.yaml"):
        keyrot_middleware.install(keys=[first, second])
        genai.Client().models.generate_content(…)

The file holds the name of each key in this mapping, in a header that requests are matched by, so
the 429 of one key is not replayed for another, and a recording made with real keys is replayed with
others. An echo of a key in an error body becomes `[key:key_1]`; a replay restores it.
Needs vcrpy 9.4 or newer. It buffers streams: use `FakeGemini` for their timing. Of aiohttp it sees
what the program sends, and not the pool's requests.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from keyrot_middleware.clients.redaction import redact_bytes
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


def recorder(keys: Mapping[str, str], **more: Any) -> Any:
    """Return a `vcr.VCR` whose cassettes hold the names of keys instead of keys.

    Args:
        keys: Name -> value of every key that requests may carry.
        more: Arguments of `vcr.VCR`, such as `record_mode="none"`.

    Raises:
        ValueError: Later, from a call whose request carries a key without a name, or whose
            response is compressed in a way that vcrpy cannot undo.
    """
    import vcr

    secrets = {name: Secret(value) for name, value in keys.items()}
    options = {
        "before_record_request": partial(_name, secrets),
        "before_record_response": _check_encoding,
        "before_save_interaction": partial(_hide, secrets),
        "after_load_interaction": partial(_restore, secrets),
        "decode_compressed_response": True,
        "match_on": ("method", "scheme", "host", "_same_path", "query", "body", "_same_key"),
    }
    made = vcr.VCR(**{**options, **more})
    for matcher in (_same_key, _same_path):
        made.register_matcher(matcher.__name__, matcher)
    return made


def _same_key(one: Any, other: Any) -> None:
    here, there = (request.headers.get(KEY_NAME_HEADER) for request in (one, other))
    assert here == there, f"the keys differ: {here} here, {there} in the cassette"


def _same_path(one: Any, other: Any) -> None:
    """Match without the version of the API, which differs between versions of the SDK."""
    here, there = (_API_VERSION.sub("/", request.path) for request in (one, other))
    assert here == there, f"the paths differ: {here} here, {there} in the cassette"


def _name(keys: Mapping[str, Secret], request: Any) -> Any:
    """Replace the key by its name; idempotent, since vcrpy calls it twice.

    It also normalizes what differs between libraries, so each replays the other's.
    """
    if _KEY_HEADER in request.headers:
        sent = Secret(request.headers[_KEY_HEADER])
        name = next((name for name, value in keys.items() if value == sent), None)
        if name is None:
            raise ValueError(
                "a request carries a key without a name, so it cannot be recorded or replayed; add "
                f"it to the mapping passed to recorder(), which has: {', '.join(keys)}"
            )
        request.headers[KEY_NAME_HEADER] = name
    request.headers = _select(_REQUEST_HEADERS, request.headers)
    request.method = request.method.upper()
    request.uri = _LOOPBACK.sub(_GOOGLE, request.uri)
    return request


def _hide(keys: Mapping[str, Secret], request: Any, response: Any) -> tuple[Any, Any]:
    """Remove every key, known or not, and project numbers from the saved interaction."""

    def hidden(text: str) -> str:
        for name, value in keys.items():
            text = value.hide_in(text, f"[key:{name}]")
        return _PROJECT_NUMBER.sub("0", _LOOPBACK.sub(_GOOGLE, mask_keys(text)))

    response["headers"] = _select(_RESPONSE_HEADERS, response["headers"])
    return _changed(request, response, partial(hide_escaped, hide=hidden))


def _restore(keys: Mapping[str, Secret], request: Any, response: Any) -> tuple[Any, Any]:
    """Replace recorded names by the values of the replaying program."""

    def restored(text: str) -> str:
        for name, value in keys.items():
            text = text.replace(f"[key:{name}]", value.reveal())
        return text

    return _changed(request, response, restored)


def _check_encoding(response: Any) -> Any:
    """Refuse a response that cannot be searched for keys; vcrpy decodes the codings it knows."""
    if coding := _select(("content-encoding",), response["headers"]):
        raise ValueError(f"cannot look for keys in a response with {coding}")
    return response


def _select(wanted: Collection[str], headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in headers.items() if name.lower() in wanted}


def _changed(request: Any, response: Any, change: Callable[[str], str]) -> tuple[Any, Any]:
    request.uri = change(request.uri)
    request.body = _change(request.body, change)
    return request, _change(response, change)


def _change(value: Any, change: Callable[[str], str]) -> Any:
    """Apply a filter to every text in a value of dicts, lists, texts and bytes."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, bytes):
        return redact_bytes(value, change)
    if isinstance(value, dict):
        return {name: _change(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_change(part, change) for part in value]
    return value
