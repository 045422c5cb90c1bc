"""Thought signatures of a model that stood in, as replies and requests have them."""

import base64
import json
import random

import pytest

from keyrot_middleware.clients.large import text_of
from keyrot_middleware.clients.signatures import Signatures

MARKS = (b"thoughtSignature", b"thought_signature")


@pytest.mark.parametrize("mark", [mark.decode() for mark in MARKS])
@pytest.mark.parametrize("size", [9, 90, 9_000, 200_000])
@pytest.mark.parametrize("text", ["short", "long " * 20_000])
def test_a_signature_is_known_again(text: str, size: int, mark: str) -> None:
    """In the other alphabet of base64, and where a large reply has only its beginning."""
    signed = random.randbytes(size)
    parts = [{"text": text}, {"thoughtSignature": base64.b64encode(signed).decode()}]
    reply = json.dumps({"candidates": [{"content": {"parts": parts}}]}, indent=2)
    known = Signatures()
    assert not known
    known.note("first", "second", text_of(reply.encode())[0], MARKS)
    assert known
    sent = base64.urlsafe_b64encode(signed).decode()
    request = json.dumps({"contents": [{"parts": [{"text": text}, {mark: sent}]}]}).encode()
    assert known.model_of("first", request, MARKS) == "second"
    assert known.model_of("another", request, MARKS) == ""
    assert known.model_of("first", request.replace(sent[:9].encode(), b"other"), MARKS) == ""


def test_the_last_signature_of_a_request_counts() -> None:
    """The models of a chain may have stood in one after the other."""
    known = Signatures()
    for model in ("second", "third"):
        known.note("first", model, json.dumps({"thoughtSignature": f"FAKE{model}"}), MARKS)
    parts = [{"thoughtSignature": f"FAKE{model}"} for model in ("second", "third", "unknown")]
    assert known.model_of("first", json.dumps(parts).encode(), MARKS) == "third"
