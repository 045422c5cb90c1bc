"""What stored things are called, and where a request or a response may name them.

Typed names (`files/abc`) are known by their value, but only under keys that can hold a name: a
prompt that says "files/abc" names nothing, nor do the arguments and results of a user's tools.
Untyped ones are known by their key.

Canonical forms: `files/abc` (also for its URL, its `:download` and what lies below it),
`models/m/operations/o`, `page:<token>`, `continuation:<token>`, `interactions/<id>`.
"""

from __future__ import annotations

import re
from hashlib import blake2b

__all__ = ["CONTINUATION", "KINDS", "OPAQUE", "PAGE", "TYPED", "note"]

_COLLECTIONS = (
    "agents|auth_tokens|batches|cachedContents|corpora|credentials|environments|files"
    "|fileSearchStores|interactions|operations|triggers|tunedModels|voices|webhooks"
)
_NAME = re.compile(
    # A URL names a file only below an API version: the web has `files/` directories too.
    r"(?:https?://[^/\s]+/(?:(?:up|down)load/)?v\d[^/\s]*/)?"
    rf"((?:models/[^/:?#\s]+/operations|{_COLLECTIONS})/[^/:?#\s]+)(?=[/:?#]|\Z)"
)

PAGE = "page:"
CONTINUATION = "continuation:"
_INTERACTION = "interactions/"
TYPED = ""

KINDS = {
    **dict.fromkeys(("name", "fileUri", "file_uri", "uri", "fileName", "file_name"), TYPED),
    **dict.fromkeys(("cachedContent", "cached_content", "model", "baseModel"), TYPED),
    **dict.fromkeys(("tunedModel", "source", "documentName", "responsesFile"), TYPED),
    **dict.fromkeys(("fileSearchStoreNames", "file_search_store_names"), TYPED),
    **dict.fromkeys(("continuationToken", "continuation_token"), CONTINUATION),
    **dict.fromkeys(("previousInteractionId", "previous_interaction_id"), _INTERACTION),
}
"""The keys that can hold a name, and what an untyped one is called."""

OPAQUE = frozenset(
    {
        *("_url", "_query", "args", "arguments", "response", "metadata", "labels"),
        *("customMetadata", "custom_metadata", "safetySettings", "inlineData", "inline_data"),
        *("functionDeclarations", "function_declarations", "parameters", "parametersJsonSchema"),
        *("parameters_json_schema", "responseSchema", "response_schema", "responseJsonSchema"),
        *("response_json_schema", "inlinedResponses", "inlinedEmbedContentResponses"),
    }
)
"""Keys whose content is the user's or the model's own data, or can hold no name."""

_MAX_TOKEN = 64
"""Characters of a token that are kept as they are; longer ones are digested."""


def note(found: dict[str, None], kind: str, value: object) -> None:
    """Add the name that *value* is, if it is one."""
    if not isinstance(value, str) or not value:
        return
    if kind == TYPED:
        if (match := _NAME.match(value)) is not None:
            found[match[1]] = None
    elif kind == _INTERACTION:
        found[kind + value] = None
    else:
        found[kind + _token(kind, value)] = None


def _token(kind: str, value: str) -> str:
    """Give a token its one form, short enough to be kept."""
    if kind == CONTINUATION:
        # Bytes, which the server writes in one base64 alphabet and the SDK in the other.
        value = value.rstrip("=").replace("+", "-").replace("/", "_")
    if len(value) <= _MAX_TOKEN:
        return value
    return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
