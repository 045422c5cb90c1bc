"""Files, caches and batches belong to the project that created them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from google.genai import errors, types

from keyrot_middleware.testing import FakeGemini

MODEL = "gemini-2.5-flash"
FILE_TEXT = "You do not have permission to access the File {} or it may not exist."
CACHE_TEXT = "CachedContent not found (or permission denied)"


def denied(call: Any, *args: Any, **kwargs: Any) -> str:
    """Return the message of a call that must get a 403."""
    with pytest.raises(errors.ClientError) as caught:
        call(*args, **kwargs)
    assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")
    return str(caught.value.message)


@pytest.fixture
def two(gemini: FakeGemini, connect):
    """Make clients of two projects."""
    owner = connect(gemini.add_key("owner", project="p", tier="paid"))
    return owner, connect(gemini.add_key("other", project="q", tier="paid"))


def upload(client: Any, data: bytes = b"hello") -> types.File:
    """Upload a text file."""
    config = types.UploadFileConfig(mime_type="text/plain", display_name="greeting")
    file: types.File = client.files.upload(file=io.BytesIO(data), config=config)
    return file


def test_a_file_belongs_to_its_project(gemini, connect, two) -> None:
    """Another key of the project may use it; another project gets the 403 that penalizes no key."""
    owner, other = two
    sibling = connect(gemini.add_key("sibling", project="p"))
    file = upload(owner)
    assert sibling.models.generate_content(model=MODEL, contents=["look", file]).text
    text = FILE_TEXT.format(file.name.removeprefix("files/"))
    generate = other.models.generate_content
    assert denied(generate, model=MODEL, contents=["look", file]) == text
    assert denied(other.files.get, name=file.name) == text
    assert denied(other.files.delete, name=file.name) == text
    assert [f.name for f in owner.files.list()] == [file.name]
    assert list(other.files.list()) == []


def test_a_cache_belongs_to_its_project(two) -> None:
    """Create, get, list and use it with the owner; the other project gets the 403."""
    owner, other = two
    config = types.CreateCachedContentConfig(contents="long text " * 40, ttl="300s")
    cache = owner.caches.create(model=MODEL, config=config)
    assert cache.usage_metadata.total_token_count == 100
    use = types.GenerateContentConfig(cached_content=cache.name)
    assert owner.models.generate_content(model=MODEL, contents="hello", config=use).text
    generate = other.models.generate_content
    assert denied(generate, model=MODEL, contents="hello", config=use) == CACHE_TEXT
    assert denied(other.caches.get, name=cache.name) == CACHE_TEXT
    assert [c.name for c in owner.caches.list()] == [cache.name]
    owner.caches.delete(name=cache.name)
    assert denied(owner.caches.get, name=cache.name) == CACHE_TEXT
