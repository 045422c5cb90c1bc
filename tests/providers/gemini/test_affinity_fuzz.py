"""Reading the resource names of any body or path never raises."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from keyrot_middleware.providers.gemini.bodies import read_body
from keyrot_middleware.providers.gemini.replies import find_resource_names
from keyrot_middleware.providers.gemini.requests import conversation, parse_path

TEXTS = st.text(max_size=30) | st.sampled_from(["files/a", "https://h/v1/files/a", "corpora/", ""])
KEYS = (
    st.text(max_size=8)
    | st.sampled_from(
        ["name", "uri", "parts", "candidates", "continuationToken", "file", "files", "metadata"]
    )
    | st.sampled_from(
        ["contents", "response", "fileSearchStoreNames", "nextPageToken", "systemInstruction"]
    )
)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
BODIES = st.dictionaries(KEYS, JSON_LIKE, max_size=6)


@settings(deadline=None)
@given(BODIES)
def test_no_body_makes_it_raise(body: dict[str, Any]) -> None:
    """Any body of a program or a server is read."""
    tokens, names = read_body(body)
    assert tokens >= 0
    assert all(names)
    assert all(find_resource_names(body))
    assert len(conversation(body)) in (0, 16)


@settings(deadline=None)
@given(st.sampled_from(["get", "post", "patch", ""]), TEXTS | st.text("/:?v1{}files", max_size=30))
def test_no_path_makes_it_raise(method: str, path: str) -> None:
    """Any path is read."""
    assert isinstance(parse_path(method, path).bound_to_owner, bool)
