"""OpenAI's protocol, as Google serves it: paths, estimates, usage, names and conversations."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from keyrot_middleware.core.model import NO_USAGE, Usage
from keyrot_middleware.providers.gemini.bodies import read_body
from keyrot_middleware.providers.gemini.replies import find_resource_names
from keyrot_middleware.providers.gemini.requests import (
    conversation,
    count_requests,
    parse_path,
    route_of,
)
from keyrot_middleware.providers.openai_protocol import parse_text, parse_usage

HOST = "https://generativelanguage.googleapis.com"
GENERATE = "/v1beta/models/gemini-2.5-flash:generateContent"


@pytest.mark.parametrize(
    ("method", "path", "verb", "bound", "counts"),
    [
        ("post", "chat/completions", "generateContent", False, True),
        ("post", "embeddings", "embedContent", False, True),
        ("post", "images/generations", "predict", False, True),
        ("get", "models", "list", False, False),
        ("get", "models/gemini-2.5-flash", "get", False, False),
        ("get", "batches/batches/abc", "get", True, False),
        ("post", "batches", "batches", True, False),
        ("get", "chat/completions", "get", True, False),
    ],
)
def test_paths(method: str, path: str, verb: str, bound: bool, counts: bool) -> None:
    """A path of OpenAI's has Google's own verb, and the body names the model."""
    route = parse_path(method, f"{HOST}/v1beta/openai/{path}")
    assert (route.verb, route.bound_to_owner, route.counts_in_quota) == (verb, bound, counts)
    assert route.protocol == "openai"


def test_a_batch_is_a_stored_thing() -> None:
    """Its id has the name of the collection in it, so its path has that twice."""
    assert parse_path("get", "/v1beta/openai/batches/batches/abc").names == ("batches/abc",)


@pytest.mark.parametrize(
    "path", [GENERATE, f"/proxy/gemini{GENERATE}", f"{HOST}/a/v1/b{GENERATE}?key=x"]
)
def test_a_gateway_may_stand_in_front(path: str) -> None:
    """The path of the API begins at its version, wherever that is."""
    assert route_of("post", path) is not None
    route = parse_path("post", path)
    assert (route.model, route.verb) == ("gemini-2.5-flash", "generateContent")
    assert route.protocol == ""


@pytest.mark.parametrize("path", ["/", "/v1/chat/completions", "/models/x", "/v1beta/modelsx"])
def test_other_paths_are_none_of_the_api(path: str) -> None:
    """What has no version and collection of Google's is not its API."""
    assert route_of("post", f"{HOST}{path}") is None


def test_an_upload_in_several_requests_has_a_name() -> None:
    """Its later requests go where the first one went."""
    path = "/upload/v1beta/files?upload_id=AJjja"
    assert parse_path("post", path).names == ("upload:AJjja",)


def messages(*parts: dict[str, Any]) -> dict[str, Any]:
    """Build the body of a chat completion."""
    return {"model": "gemini-2.5-flash", "messages": [{"role": "user", "content": list(parts)}]}


DATA = base64.b64encode(bytes(750_000)).decode()


@pytest.mark.parametrize(
    ("part", "least", "most"),
    [
        ({"image_url": {"url": f"data:image/png;base64,{DATA}"}}, 1_120, 1_140),
        ({"image_url": {"url": f"data:,{DATA}"}}, 1_120, 1_140),
        ({"image_url": {"url": "https://example.com/an/image.png"}}, 5, 30),
        ({"input_audio": {"data": DATA, "format": "wav"}}, 740, 780),
        ({"input_audio": {"data": DATA, "format": "mp3"}}, 2_990, 3_030),
        ({"file": {"file_data": f"data:application/pdf;base64,{DATA}"}}, 8_390, 8_430),
    ],
)
def test_media_cost_what_google_counts(part: dict[str, Any], least: int, most: int) -> None:
    """Images, sound and documents are counted by kind and size, never as base64."""
    assert least <= read_body(messages(part))[0] <= most


def test_files_in_a_body_are_named() -> None:
    """A file that a batch or a message names belongs to a project."""
    assert read_body({"input_file_id": "files/abc"})[1] == ("files/abc",)
    assert read_body(messages({"file": {"file_id": "files/abc"}}))[1] == ("files/abc",)


@pytest.mark.parametrize(
    ("body", "requests"),
    [({"input": "one"}, 1), ({"input": ["one", "two"]}, 2), ({"input": []}, 1), ({}, 1)],
)
def test_each_text_of_embeddings_is_a_request(body: dict[str, Any], requests: int) -> None:
    """Google counts each as a request of its own."""
    assert count_requests("embedContent", body) == requests


USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 40,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 25},
}
BODY = {
    "choices": [{"finish_reason": "stop"}, {"finish_reason": None}, "odd"],
    "id": "r1",
    "model": "gemini-2.5-flash",
    "usage": USAGE,
}
FULL = Usage(10, 30, 4, 25, "gemini-2.5-flash", "r1", ("stop",))


def test_usage_has_the_thoughts_that_only_the_total_has() -> None:
    """Output is what is in the total beside the prompt."""
    assert parse_usage(BODY) == FULL
    assert parse_usage({"usage": {"prompt_tokens": 3}}) == Usage(3)


@pytest.mark.parametrize("body", [{}, {"usage": None}, {"usage": {"prompt_tokens_details": 1}}])
def test_without_usage_there_is_none(body: dict[str, Any]) -> None:
    """Odd bodies report nothing, and raise nothing."""
    assert parse_usage(body) == NO_USAGE


@pytest.mark.parametrize("padding", [0, 5_000])
def test_text_is_read_like_the_body_in_it(padding: int) -> None:
    """Of a large body only the end is parsed where tokens are enough."""
    import json

    text = json.dumps({"data": ["x" * padding], **BODY})
    assert parse_text(text, in_full=True)[0] == FULL
    usage, _ = parse_text(text, in_full=False)
    assert (usage.input_tokens, usage.output_tokens) == (10, 30)
    assert parse_text("no JSON", in_full=False) == (NO_USAGE, {})
    nested = json.dumps({"usage": USAGE, "data": ["x" * padding, {"usage": 1}]})
    assert parse_text(nested, in_full=False)[0].input_tokens == 10


def test_what_a_response_names_is_owned() -> None:
    """Ids of files and batches, of one or of a list, and the results of a batch."""
    body = {"id": "batches/b", "output_file_id": "files/f", "data": [{"id": "files/g"}]}
    assert find_resource_names(body) == ("batches/b", "files/f", "files/g")


def test_a_conversation_is_its_system_message_and_first_one() -> None:
    """All turns of one share them; another first message is another conversation."""
    system, first = {"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}
    once = conversation({"messages": [system, first]})
    again = [system, first, {"role": "assistant", "content": "hi"}, first]
    assert conversation({"messages": again}) == once
    assert conversation({"messages": [system, {"role": "user", "content": "bye"}]}) != once
    assert conversation({"messages": ["odd", first]}) not in ("", once)
    assert conversation({"messages": []}) == ""
