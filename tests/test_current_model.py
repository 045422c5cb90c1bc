"""README, docs, examples and the fake service name models and limits that a new user has."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google import genai
from support.docs_blocks import PAGES, ROOT, blocks

from keyrot_middleware.cli import fake as keyrot_fake
from keyrot_middleware.core.model_names import CURRENT_MODEL, FREE_LIMITS
from keyrot_middleware.prices import PriceList
from keyrot_middleware.testing import FakeGemini, Reply

_MODEL = re.compile(r"\bgemini-(?:\d[\w.]*(?:-[a-z0-9]+)*|[a-z-]+-latest)\b")
EXAMPLES = sorted(
    path for path in (ROOT / "examples").rglob("*") if path.suffix in (".py", ".md", ".yml")
)
KEYS_EXAMPLE = ROOT / "keys_example.json"
FILES = (*PAGES, *EXAMPLES, KEYS_EXAMPLE, ROOT / ".env.example")


@pytest.fixture(scope="module")
def listed() -> frozenset[str]:
    """List the models that the fake service offers."""
    with FakeGemini() as gemini:
        options: Any = gemini.http_options
        client = genai.Client(api_key=gemini.add_key("a").value, http_options=options)
        names = frozenset(
            (model.name or "").removeprefix("models/") for model in client.models.list()
        )
        client.close()
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_model_that_is_named_is_current(path: Path, listed: frozenset[str]) -> None:
    """A model that Google has closed to new projects fails a new user's first program."""
    assert set(_MODEL.findall(path.read_text("utf-8"))) <= listed


def test_the_first_programs_ask_for_the_same_model(listed: frozenset[str]) -> None:
    """That of README, of the pages to begin with, of each example, and of keyrot fake."""
    assert CURRENT_MODEL in listed
    for page in ("README.md", "docs/index.md", "docs/tutorial.md", "docs/migrate.md"):
        code = " ".join(b.code for b in blocks(ROOT / page) if b.language == "python")
        assert set(re.findall(r'model="([^"]+)"', code)) == {CURRENT_MODEL}, page
    programs = [path.read_text("utf-8") for path in EXAMPLES if path.suffix == ".py"]
    named = [set(re.findall(r'(?:MODEL = |model=)"([^"]+)"', text)) for text in programs]
    assert all(CURRENT_MODEL in models for models in named if models)
    assert any(named)
    first = json.loads(KEYS_EXAMPLE.read_text())[0]
    assert first["model"] == CURRENT_MODEL


def test_the_current_model_has_a_price() -> None:
    """Else a budget would not count its calls."""
    assert PriceList().estimate(CURRENT_MODEL, 1_000, time.time())[1] > 0


def _free_keys() -> Iterator[dict[str, Any]]:
    texts = [block.code for page in PAGES for block in blocks(page) if block.language == "json"]
    for text in (*texts, KEYS_EXAMPLE.read_text("utf-8")):
        yield from (key for key in json.loads(text) if key.get("tier") == "free")


def test_free_keys_have_the_limits_of_a_free_project() -> None:
    """In README, docs and keys_example.json no free key has more, and the example has all."""
    keys = list(_free_keys())
    assert len(keys) > 1
    for key in keys:
        want = FREE_LIMITS[key.get("model", CURRENT_MODEL)]._asdict()
        assert all(key[name] <= want[name] for name in want if name in key), key
    (shown,) = (key for key in json.loads(KEYS_EXAMPLE.read_text()) if key["tier"] == "free")
    assert {name: shown[name] for name in ("rpm", "tpm", "rpd")}.items() <= want.items()


def test_the_fake_service_names_them_too(gemini: FakeGemini, connect: Any) -> None:
    """In its 429s, and as the limit of the keys that `keyrot fake` makes."""
    limits = FREE_LIMITS[CURRENT_MODEL]
    assert keyrot_fake.DEFAULT_KEYS[0] == f"key_1={limits.rpm}"
    client = connect(gemini.add_key("a").value)
    for reply, limit in ((Reply.QUOTA_MINUTE, limits.rpm), (Reply.QUOTA_DAY, limits.rpd)):
        gemini.script("a", reply)
        with pytest.raises(genai.errors.ClientError, match=f"limit: {limit}, "):
            client.models.generate_content(model=CURRENT_MODEL, contents="hi")
