"""Cassettes of a pool's traffic: recorded and replayed by vcrpy, and no key in them.

    from keyrot_middleware.testing.cassettes import recorder

    with recorder({"key_1": first, "key_2": second}).use_cassette("tests/cassettes/busy.yaml"):
        keyrot_middleware.install(keys=[first, second])
        genai.Client().models.generate_content(…)

In the file a key is the name that it has in this mapping, in a header of its own which requests
are matched by: that is what tells the 429 of one key from the 200 of another. A name and no hash,
because a recording made with real keys is replayed with others. Where an error body echoes a key,
the file has `[key:key_1]`, and in a replay the value that the mapping then has for that name, so
that the pool gets what Google would send it.

Needs vcrpy 9.4 or newer, which no extra brings. It buffers a stream whole: for the timing of
streams and for faults in their middle use `FakeGemini`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from keyrot_middleware.core.text import mask_keys

__all__ = ["KEY_NAME_HEADER", "options", "recorder", "same_key", "same_path"]

KEY_NAME_HEADER = "x-key-name"
"""The header that stands in a cassette in place of the key."""

_KEY_HEADER = "x-goog-api-key"
_GOOGLE = "https://generativelanguage.googleapis.com"
# Whatever is not named here is not recorded: other credentials, dates, versions, cookies.
_REQUEST_HEADERS = ("content-type", KEY_NAME_HEADER)
_RESPONSE_HEADERS = ("content-type", "retry-after")
_LOOPBACK = re.compile(r"https?://(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?(?=/|$)")
_PROJECT_NUMBER = re.compile(r"(?<=projects/)\d{6,}|(?<=project[ =])\d{6,}")
_API_VERSION = re.compile(r"^/v\d+(?:alpha|beta)?\d*/")

Change = Callable[[str], str]


def recorder(keys: Mapping[str, str], **more: Any) -> Any:
    """Make a `vcr.VCR` whose cassettes hold the names of keys instead of keys.

    Args:
        keys: Name -> value of every key that requests may carry. The pool's own ids (`key_1`, …)
            are good names.
        more: Arguments of `vcr.VCR`, as `record_mode="none"`; they beat those of `options()`.

    Raises:
        ImportError: If vcrpy is not installed.
        ValueError: Later, from a call whose request carries a key without a name, or whose
            response is compressed in a way that vcrpy cannot undo.
    """
    import vcr  # noqa: PLC0415 - only who records or replays needs it

    machine = vcr.VCR(**{**options(keys), **more})
    machine.register_matcher(same_key.__name__, same_key)
    machine.register_matcher(same_path.__name__, same_path)
    return machine


def options(keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of `vcr.VCR` that `recorder()` uses, for a set-up of one's own.

    The matchers `same_key` and `same_path` must be registered under these names.
    """
    names = _Names(dict(keys))
    return {
        "before_record_request": names.name,
        "before_record_response": _readable,
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
class _Names:
    """The names of keys; a class, so that no test report shows the values as arguments."""

    keys: Mapping[str, str] = field(repr=False)

    def name(self, request: Any) -> Any:
        """Put the key's name in place of the key; vcrpy does so twice, which changes nothing.

        What differs between httpx and aiohttp is made equal, so that either replays the other's.
        """
        if _KEY_HEADER in request.headers:
            request.headers[KEY_NAME_HEADER] = self._name_in(request)
        request.headers = _only(_REQUEST_HEADERS, request.headers)
        request.method = request.method.upper()
        request.uri = _LOOPBACK.sub(_GOOGLE, request.uri)
        return request

    def _name_in(self, request: Any) -> str:
        for name, value in self.keys.items():
            if request.headers[_KEY_HEADER] == value:
                return name
        raise ValueError(
            "a request carries a key that has no name here, so it cannot be recorded or replayed; "
            f"add it to the mapping that recorder() was given, which names: {', '.join(self.keys)}"
        )

    def hide(self, request: Any, response: Any) -> tuple[Any, Any]:
        """Take every key, known or not, and what says whose they are, out of what is saved."""
        response["headers"] = _only(_RESPONSE_HEADERS, response["headers"])
        return _both(request, response, self._hidden)

    def _hidden(self, text: str) -> str:
        for name, value in self.keys.items():
            text = text.replace(value, f"[key:{name}]")
        return _PROJECT_NUMBER.sub("0", _LOOPBACK.sub(_GOOGLE, mask_keys(text)))

    def restore(self, request: Any, response: Any) -> tuple[Any, Any]:
        """Put the values of the replaying program where the recorded ones were echoed."""
        return _both(request, response, self._restored)

    def _restored(self, text: str) -> str:
        for name, value in self.keys.items():
            text = text.replace(f"[key:{name}]", value)
        return text


def _readable(response: Any) -> Any:
    """Let a response pass that can be searched for keys; vcrpy undid the codings it knows.

    Here and not where it is saved: an error there would leave vcrpy's patches in place.
    """
    coding = _only(("content-encoding",), response["headers"])
    if coding:
        raise ValueError(
            f"cannot look for keys in a response with {coding}, so it cannot be recorded; have the "
            "client send the header accept-encoding: gzip"
        )
    return response


def _only(wanted: Collection[str], headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in headers.items() if name.lower() in wanted}


def _both(request: Any, response: Any, change: Change) -> tuple[Any, Any]:
    request.uri = change(request.uri)
    request.body = _changed(request.body, change)
    return request, _changed(response, change)


def _changed(value: Any, change: Change) -> Any:
    """Change every text in a value of dicts, lists, texts and bytes."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, bytes):  # surrogates carry what is no text through unchanged
        text = change(value.decode("utf-8", "surrogateescape"))
        return text.encode("utf-8", "surrogateescape")
    if isinstance(value, dict):
        return {name: _changed(part, change) for name, part in value.items()}
    if isinstance(value, list):
        return [_changed(part, change) for part in value]
    return value
