"""Parses responses: tokens, model, id, finish reasons, names of stored resources.

Input tokens are those of the prompt (cached ones included) and of tool results; output tokens
include thoughts, as in OpenTelemetry's GenAI conventions. In a stream each chunk repeats the usage
so far, so the last chunk with usage counts.

Most of a large body (an image, a thousand embeddings) is not needed here, so only its end is parsed
if possible.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ...core.affinity import CONTINUATION, INTERACTION, PAGE, TYPED
from ...core.failures import objects
from ...core.model import NO_USAGE, Usage, service_tier
from .. import openai_protocol
from ..base import Events, Route
from ..openai_protocol import as_count, as_text, parse_object
from .bodies import add_name, read_body

_NONE: Mapping[str, Any] = {}
_META = '"usageMetadata"'
_INPUT_DETAILS = {
    "AUDIO": "input_audio_tokens",
    "DOCUMENT": "input_image_tokens",
    "IMAGE": "input_image_tokens",
    "VIDEO": "input_video_tokens",
}
_OUTPUT_DETAILS = {
    "AUDIO": "output_audio_tokens",
    "IMAGE": "output_image_tokens",
    "VIDEO": "output_video_tokens",
}
_DETAILS = {
    "promptTokensDetails": _INPUT_DETAILS,
    "toolUsePromptTokensDetails": _INPUT_DETAILS,
    "cacheTokensDetails": {"AUDIO": "cache_audio_read_tokens"},
    "candidatesTokensDetails": _OUTPUT_DETAILS,
    "responseTokensDetails": _OUTPUT_DETAILS,
}
"""How `Usage.details` names the modalities in each list of details."""


_REPORTS = re.compile(rb'"(?:finishReason|error|continuationToken|args|response)"').search
"""What a chunk has that reports more than its usage, or, as the last two, may hold any keys."""
_COUNTS = re.compile(rb'TokenCount"\s*:\s*"?\d').search
"""What a chunk with usage has; a text cannot, since its quotes are escaped."""
_META_OF = re.compile(r'"usageMetadata"\s*:\s*').search
_decoder = json.JSONDecoder()


class StreamEvents(Events):
    """Collects the usage of one stream from its chunks."""

    __slots__ = ("_latest", "_meta", "_model", "_names", "_reasons", "_response_id")

    def __init__(self) -> None:
        self._latest = b""
        """The last event with usage that was not parsed, if it is newer than `_meta`."""
        self._meta: Mapping[str, Any] = _NONE
        self._model: str | None = None
        self._response_id: str | None = None
        self._reasons: dict[int, str] = {}
        self._names: dict[str, None] = {}

    def skim(self, line: bytes) -> bool:
        """Keep the line of a chunk that reports only its usage, in place of the one before it."""
        if self._model is None or _REPORTS(line):
            return False
        if _COUNTS(line):
            self._latest = line
            return True
        return b'"candidates"' in line

    def feed(self, body: Mapping[str, Any]) -> bool:
        """Add a chunk; return whether it is the last one."""
        self._add_meta(body.get("usageMetadata"))
        self._model = as_text(body.get("modelVersion")) or self._model
        self._response_id = as_text(body.get("responseId")) or self._response_id
        reasons = _reasons(body.get("candidates"))
        self._reasons.update(reasons)
        self._names.update(dict.fromkeys(find_resource_names(body)))
        return bool(reasons)

    def _add_meta(self, meta: object) -> None:
        if isinstance(meta, Mapping) and _has_numbers(meta):
            self._meta, self._latest = meta, b""

    @property
    def usage(self) -> Usage:
        """Return the usage so far."""
        text = self._latest.decode("utf-8", "replace")
        if found := _META_OF(text):
            with suppress(ValueError, RecursionError):
                self._add_meta(_decoder.raw_decode(text, found.end())[0])
        reasons = tuple(reason for _, reason in sorted(self._reasons.items()))
        return _usage(self._meta, self._model, self._response_id, reasons)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the stored resources named so far, mostly continuation tokens."""
        return tuple(self._names)


def parse_usage(body: Mapping[str, Any]) -> Usage:
    """Return the usage of a complete response.

    Without `usageMetadata` there is none: the `totalTokens` of countTokens were not used.
    """
    meta = body.get("usageMetadata")
    return _usage(
        meta if isinstance(meta, Mapping) else _NONE,
        as_text(body.get("modelVersion")),
        as_text(body.get("responseId")),
        tuple(_reasons(body.get("candidates")).values()),
    )


def add_usage(one: Usage, other: Usage) -> Usage:
    """Return the tokens of two turns of a session; the rest is of the later one."""
    details = dict(one.details)
    for kind, count in other.details:
        details[kind] = details.get(kind, 0) + count
    return other._replace(
        input_tokens=_sum(one.input_tokens, other.input_tokens),
        output_tokens=_sum(one.output_tokens, other.output_tokens),
        cached_tokens=_sum(one.cached_tokens, other.cached_tokens),
        thought_tokens=_sum(one.thought_tokens, other.thought_tokens),
        details=tuple(details.items()),
    )


def parse_usage_text(text: object, *, in_full: bool = True) -> tuple[Usage, tuple[str, ...]]:
    """Return usage and names of stored resources of a response; none if it is no JSON text.

    Args:
        text: The body.
        in_full: More than its tokens and model. Else only the end of the body is parsed, if that
            will do.
    """
    if not isinstance(text, str):
        return NO_USAGE, ()
    begin = text.rfind(_META)
    # Keys of what is stored; model output cannot look like them, for its quotes are escaped.
    names = '"name"' in text or 'ationToken"' in text or 'PageToken"' in text
    whole = names or (in_full and '"finishReason"' in text)
    if not whole and begin < 0:
        return NO_USAGE, ()
    # The rest after a key of the outermost object is an object; after others, brackets are left.
    body = _NONE if whole else parse_object("{" + text[begin:])
    if "modelVersion" not in body:
        body = parse_object(text)
    usage = parse_usage(body)
    counted = usage.input_tokens is not None or usage.output_tokens is not None
    return usage if counted or in_full else NO_USAGE, find_resource_names(body) if names else ()


def _usage(
    meta: Mapping[str, Any], model: str | None, response_id: str | None, reasons: tuple[str, ...]
) -> Usage:
    counts: dict[str, int | None] = {}
    details: dict[str, int] = {}
    for name, value in meta.items():
        if name in _DETAILS:
            _add_details(details, _DETAILS[name], value)
        else:
            counts[name] = as_count(value)
    thoughts = counts.get("thoughtsTokenCount")
    candidates = counts.get("candidatesTokenCount", counts.get("responseTokenCount"))
    return Usage(
        _sum(counts.get("promptTokenCount"), counts.get("toolUsePromptTokenCount")),
        _sum(candidates, thoughts),
        counts.get("cachedContentTokenCount"),
        thoughts,
        model,
        response_id,
        reasons,
        None,
        tuple(details.items()),
        service_tier(meta.get("serviceTier")),
    )


def _add_details(found: dict[str, int], kinds: Mapping[str, str], parts: Any) -> None:
    """Add how many tokens are no text, by their kind."""
    for part in objects(parts):
        modality = part.get("modality")
        kind = kinds.get(modality) if isinstance(modality, str) else None
        count = as_count(part.get("tokenCount")) if kind is not None else None
        if kind is not None and count:
            found[kind] = found.get(kind, 0) + count


def _has_numbers(meta: Mapping[str, Any]) -> bool:
    return any(as_count(value) is not None for value in meta.values())


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)


def _reasons(candidates: object) -> dict[int, str]:
    """Return the finish reason of each candidate by its index, in lower case."""
    if not isinstance(candidates, list):
        return {}
    found: dict[int, str] = {}
    for place, candidate in enumerate(candidates):
        reason = candidate.get("finishReason") if isinstance(candidate, dict) else None
        if isinstance(reason, str):
            index = candidate.get("index")
            found[index if isinstance(index, int) else place] = reason.lower()
    return found


_LISTS = (
    *("files", "cachedContents", "batches", "operations", "fileSearchStores", "tunedModels"),
    "data",  # OpenAI's
)


def find_resource_names(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the stored resources that a response names; its key's project owns them."""
    found: dict[str, None] = {}
    if isinstance(candidates := body.get("candidates"), list):
        for candidate in objects(candidates):
            add_name(found, CONTINUATION, candidate.get("continuationToken"))
        return tuple(found)
    for key in ("name", "id", "output_file_id"):  # the last two are OpenAI's
        add_name(found, TYPED, body.get(key))
    add_name(found, PAGE, body.get("nextPageToken"))
    if isinstance(file := body.get("file"), dict):
        add_name(found, TYPED, file.get("name"))
        add_name(found, TYPED, file.get("uri"))
    for part in ("response", "metadata"):
        # An operation or a batch: the document, the tuned model, the file of results.
        if isinstance(value := body.get(part), dict):
            found.update(dict.fromkeys(read_body(value)[1]))
    for items in _LISTS:
        for item in objects(body.get(items)):
            add_name(found, TYPED, item.get("name") or item.get("id"))
    return tuple(found)


# Interactions -----------------------------------------------------------------------------------


class InteractionEvents(Events):
    """What a response, or its events, report: names of what is stored, and tokens."""

    __slots__ = ("_collection", "_names", "usage")

    marks = (b'"interaction', b'_token"', b'"error"')
    """Only events with one of these can report something; most carry text or media."""

    def __init__(self, collection: str) -> None:
        """Start empty.

        Args:
            collection: What an `id` in the response belongs to; see `Route.collection`.
        """
        self._collection = collection
        self._names: dict[str, None] = {}
        self.usage: Usage = NO_USAGE

    @property
    def names(self) -> tuple[str, ...]:
        """Return the stored resources named so far."""
        return tuple(self._names)

    def read(self, body: object) -> None:
        """Read a whole body, parsed."""
        if not isinstance(body, Mapping):
            return
        self._add_names(body, self._collection)
        for item in objects(body.get(self._collection)):
            self._add_names(item, self._collection)
        self._read_usage(body)

    def feed(self, event: Mapping[str, Any]) -> bool:
        """Add an event of a stream; return whether it is the last one."""
        interaction = event.get("interaction")
        if isinstance(interaction, Mapping):
            self._add_names(interaction, "interactions")
            self._read_usage(interaction)
        self._add_names(event, "")
        return event.get("event_type") in _LAST

    def _add_names(self, body: Mapping[str, Any], collection: str) -> None:
        if collection and isinstance(name := body.get("id"), str) and name:
            self._names[f"{collection}/{name}"] = None
        add_name(self._names, INTERACTION, body.get("interaction_id"))
        add_name(self._names, CONTINUATION, body.get("continuation_token"))
        add_name(self._names, PAGE, body.get("next_page_token"))
        add_name(self._names, TYPED, body.get("name"))
        if isinstance(name := body.get("environment_id"), str) and name:
            self._names[f"environments/{name}"] = None

    def _read_usage(self, body: Mapping[str, Any]) -> None:
        counts = body.get("usage")
        if not isinstance(counts, Mapping):
            return
        number = {kind: as_count(counts.get(f"total_{kind}_tokens")) for kind in _KINDS}
        model = as_text(body.get("model"))
        self.usage = Usage(
            _sum(number["input"], number["tool_use"]),
            _sum(number["output"], number["thought"]),
            number["cached"],
            number["thought"],
            model and model.removeprefix("models/"),
            as_text(body.get("id")),
            service_tier=service_tier(body.get("service_tier")),
        )


_KINDS = ("input", "tool_use", "output", "thought", "cached")
_LAST = ("interaction.completed", "interaction.complete")


# All protocols ----------------------------------------------------------------------------------


def read_reply(route: Route, text: str, *, in_full: bool) -> tuple[Usage, tuple[str, ...]]:
    """Return the usage of a whole response, and the stored things that it names."""
    if route.collection:
        events = InteractionEvents(route.collection)
        events.read(parse_object(text))
        return events.usage, events.names
    if route.protocol == "openai":
        usage, body = openai_protocol.parse_text(text, in_full=in_full)
        return usage, () if route.counts_in_quota else find_resource_names(body)
    return parse_usage_text(text, in_full=in_full)


def events_of(route: Route) -> Events:
    """Return what reads the stream of a response."""
    if route.collection:
        return InteractionEvents(route.collection)
    return openai_protocol.ChatEvents() if route.protocol == "openai" else StreamEvents()
