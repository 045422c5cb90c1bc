"""What a span says of a request and its usage, from the values of the core."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from opentelemetry.util.types import AttributeValue

from ..core.model import Usage
from . import names

__all__ = ["opening", "operation_of", "request_attributes", "usage_attributes"]

_OPERATIONS = {
    "generateContent": "generate_content",
    "streamGenerateContent": "generate_content",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
}
"""The conventions' names; other methods go by their own, in snake case."""

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@lru_cache(maxsize=256)
def operation_of(verb: str) -> str:
    """Name the operation of a method: `countTokens` is `count_tokens`."""
    return _OPERATIONS.get(verb) or _HUMP.sub("_", verb).lower()


@lru_cache(maxsize=256)
def _server(host: str) -> dict[str, AttributeValue]:
    """Read `host`, `host:port` or `[v6]:port`; a port that is not written is not told."""
    address, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and (":" not in address or address.endswith("]")):
        return {names.SERVER_ADDRESS: address.strip("[]"), names.SERVER_PORT: int(port)}
    return {names.SERVER_ADDRESS: host.strip("[]")} if host else {}


def request_attributes(operation: str, model: str, host: str) -> dict[str, AttributeValue]:
    """Give what is known before anything is sent."""
    attributes: dict[str, AttributeValue] = {
        names.GEN_AI_OPERATION: operation,
        names.GEN_AI_PROVIDER: names.PROVIDER,
        **_server(host),
    }
    if model:
        attributes[names.GEN_AI_REQUEST_MODEL] = model
    return attributes


@lru_cache(maxsize=1024)
def opening(
    verb: str, model: str, host: str, stream: bool, pool: str
) -> tuple[str, Mapping[str, AttributeValue]]:
    """Give name and first attributes of a call's span: made once for all calls that are alike."""
    operation = operation_of(verb)
    told = {**request_attributes(operation, model, host), names.POOL: pool}
    if stream:
        told[names.GEN_AI_REQUEST_STREAM] = True
    return (f"{operation} {model}" if model else operation), MappingProxyType(told)


def usage_attributes(usage: Usage) -> dict[str, AttributeValue]:
    """Give what the response told of itself; nothing for what it did not tell."""
    told: dict[str, AttributeValue] = {}
    for name, value in zip(_OF_USAGE, usage, strict=True):
        if value is not None and value != ():
            told[name] = value
    return told


_OF_USAGE = (
    names.GEN_AI_INPUT_TOKENS,
    names.GEN_AI_OUTPUT_TOKENS,
    names.GEN_AI_CACHED_TOKENS,
    names.GEN_AI_THOUGHT_TOKENS,
    names.GEN_AI_RESPONSE_MODEL,
    names.GEN_AI_RESPONSE_ID,
    names.GEN_AI_FINISH_REASONS,
)
"""In the order of the fields of `Usage`."""
