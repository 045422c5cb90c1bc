"""The Interactions API and what belongs to it: what requests name, what responses report.

Interactions, agents, environments, credentials, voices, triggers and webhooks belong to one project
and have ids without a collection, such as `v1_abc`. The key under which an id stands tells what
it names. A program's agent and Google's own (`deep-research-…`) look the same, and so do
environments and voices. So such an id counts only if its owner is known: `is_certain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .affinity import parse_path
from .model import NO_USAGE, CallInfo, Usage
from .request_body import (
    CONTINUATION,
    INTERACTION,
    PAGE,
    TYPED,
    add_name,
    is_certain,
    read_body,
    requested_tier,
)
from .spending import service_tier
from .text import mask_keys

_NEW = frozenset({"interactions", "decisions"})
"""Creates that any key may send: they run a model or an agent, as a generate does."""
_SAME = frozenset({"get", "list", "patch", "cancel"})

_AGENT, _ENVIRONMENT, _CREDENTIAL, _VOICE = "agents/", "environments/", "credentials/", "voices/"
_IDS = {
    "agent": _AGENT,
    "base_agent": _AGENT,
    "environment": _ENVIRONMENT,
    "environment_id": _ENVIRONMENT,
    "base_environment": _ENVIRONMENT,
    "from_environment": _ENVIRONMENT,
    "credential": _CREDENTIAL,
    "voice": _VOICE,
    "base_voice": _VOICE,
}
"""The keys of a request that hold an id, and the collection that it belongs to."""
_PARTS = frozenset(
    {
        *("allowlist", "base_environment", "env", "environment", "generation_config"),
        *("interaction", "network", "prompted", "speech_config", "voice"),
    }
)
"""The keys below which such a key can stand. All else is the user's or the model's data."""


def call_info(method: str, path: str, body: Mapping[str, Any]) -> CallInfo:
    """Read a request; none of its content is kept.

    Args:
        method: The HTTP method.
        path: Its path or URL, with the query.
        body: Its JSON body; empty if it has none.
    """
    route = parse_path(method, path)
    is_create = method.lower() == "post" and route.verb in _NEW and not route.names
    tokens, names = read_body(body)
    ids: dict[str, None] = dict.fromkeys((*route.names, *names))
    _find_ids(body, ids)
    model = body.get("model") if is_create else None
    model = mask_keys(model.removeprefix("models/")) if isinstance(model, str) else ""
    return CallInfo(
        model=model,
        verb=route.verb,
        tokens=tokens if model else 0,
        estimate=tokens if model else 0,
        requests=1 if model else 0,
        bound_to_owner=not is_create or any(map(is_certain, ids)),
        idempotent=route.idempotent,
        resources=tuple(sorted(ids, key=is_certain, reverse=True)),
        counts_in_quota=bool(model),
        service_tier=requested_tier(body),
    )


def collection_of(method: str, path: str) -> str:
    """Return the collection to which the `id` of a response belongs; empty if to none."""
    route = parse_path(method, path)
    own = route.verb in _SAME or route.verb == route.collection
    return route.collection if own and route.collection != "decisions" else ""


def _find_ids(part: object, found: dict[str, None]) -> None:
    for key, value in part.items() if isinstance(part, Mapping) else ():
        if isinstance(value, str):
            if key in _IDS and value:
                found[_IDS[key] + value] = None
        elif key == "env" and isinstance(value, Mapping):
            for variable in value.values():
                _find_ids(variable, found)
        elif key in _PARTS:
            for item in value if isinstance(value, list) else (value,):
                _find_ids(item, found)


# Responses --------------------------------------------------------------------------------------


class InteractionLedger:
    """What a response, or its events, report: names of what is stored, and tokens."""

    __slots__ = ("_collection", "_names", "usage")

    marks = (b'"interaction', b'_token"', b'"error"')
    """Only events with one of these can report something; most carry text or media."""

    def __init__(self, collection: str) -> None:
        """Start empty.

        Args:
            collection: What an `id` in the response belongs to; see `collection_of`.
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
        items = body.get(self._collection)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, Mapping):
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
            self._names[_ENVIRONMENT + name] = None

    def _read_usage(self, body: Mapping[str, Any]) -> None:
        counts = body.get("usage")
        if not isinstance(counts, Mapping):
            return
        thoughts = _count(counts, "total_thought_tokens")
        model = body.get("model")
        name = body.get("id")
        self.usage = Usage(
            _sum(_count(counts, "total_input_tokens"), _count(counts, "total_tool_use_tokens")),
            _sum(_count(counts, "total_output_tokens"), thoughts),
            _count(counts, "total_cached_tokens"),
            thoughts,
            model.removeprefix("models/") if isinstance(model, str) and model else None,
            name if isinstance(name, str) and name else None,
            service_tier=service_tier(body.get("service_tier")),
        )


_LAST = ("interaction.completed", "interaction.complete")


def _count(counts: Mapping[str, Any], name: str) -> int | None:
    value = counts.get(name)
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None


_MAX_COUNT = 10**18


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
