"""The pages of the clouds' stores quote real errors, and name the variables that are read."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.docs_blocks import blocks
from support.stores import resolve_all

from keyrot_middleware.secrets import SecretStore
from keyrot_middleware.secrets.aws import AwsStore
from keyrot_middleware.secrets.azure import AzureStore
from keyrot_middleware.secrets.gcp import GcpStore

ROOT = Path(__file__).parents[2]
PAGES = {"aws": "aws.md", "azure": "azure.md", "gcp": "google.md"}
SHARED = ("cloud",)
ELSEWHERE = {
    # Read by the libraries; boto3's are tested in test_aws_reading.py.
    *("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"),
    *("AZURE_TOKEN_CREDENTIALS", "AZURE_AUTHORITY_HOST", "REQUESTS_CA_BUNDLE", "NO_GCE_CHECK"),
    "SECRET_STORE_TYPE",
}


class RefusedLogin:
    """A login that is always refused, so that nothing is sent."""

    client_id = project = None
    identity = "nobody"

    def client(self, *_: object) -> None:
        """Refuse."""
        raise PermissionError

    get = find_project = client

    def forget(self) -> None:
        """Do nothing."""


STORES: Mapping[str, Callable[[Any], SecretStore]] = {
    "aws": AwsStore,
    "azure": lambda login: AzureStore(login, None),
    "gcp": GcpStore,
}


def texts_of(scheme: str) -> str:
    """Join every text in the modules of a store."""
    folder = ROOT / "keyrot_middleware" / "secrets"
    files = [*folder.glob(f"{scheme}*.py"), *(folder / f"{name}.py" for name in SHARED)]
    trees = [ast.parse(file.read_text("utf-8")) for file in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return "\n".join(text for text in texts if isinstance(text, str))


def page_of(scheme: str) -> str:
    """Read a page."""
    return (ROOT / "docs" / "stores" / PAGES[scheme]).read_text("utf-8")


@pytest.mark.parametrize("scheme", PAGES)
def test_the_errors_on_the_page_are_those_of_the_code(scheme: str) -> None:
    """Each piece of a quoted error between `…` is a text of the store."""
    below = page_of(scheme).partition("## What the errors mean")[2]
    rows = [line.split("|")[1] for line in below.splitlines() if line.startswith("| `")]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    pieces = {piece.strip("(): #") for text in quoted for piece in text.split("…")} - {""}
    texts = texts_of(scheme)
    assert len(rows) >= 10
    assert [piece for piece in pieces if piece not in texts] == []


@pytest.mark.parametrize("scheme", PAGES)
def test_the_variables_on_the_page_are_read(scheme: str) -> None:
    """By the store, or, each by name, by the library under it."""
    names = set(re.findall(r"`([A-Z][A-Z]+(?:_[A-Z]+)+)[`=]", page_of(scheme)))
    texts = texts_of(scheme)
    assert names
    assert {name for name in names if name not in texts} - ELSEWHERE == set()


@pytest.mark.parametrize("scheme", PAGES)
def test_the_references_on_the_page_are_valid(scheme: str) -> None:
    """Each is read as a secret's name, and refused only because there is no login."""
    file = ROOT / "docs" / "stores" / PAGES[scheme]
    (entries,) = (json.loads(block.code) for block in blocks(file) if block.language == "json")
    places = {entry["key_id"]: entry["secret"] for entry in entries if "secret" in entry}
    found = resolve_all(STORES[scheme](RefusedLogin()), **places)
    assert len(places) >= 2
    for key_id, place in places.items():
        assert found[key_id] == f"key {key_id}: {place}: reading it failed with PermissionError"
