"""Which stored resources requests and responses name, and which calls are bound to an owner."""

from __future__ import annotations

from typing import Any

import pytest

from keyrot_middleware.providers.base import Route
from keyrot_middleware.providers.gemini import Gemini
from keyrot_middleware.providers.gemini.bodies import read_body
from keyrot_middleware.providers.gemini.replies import find_resource_names
from keyrot_middleware.providers.gemini.requests import conversation, parse_path

GENERATE = "models/gemini-2.5-flash:generateContent"
HOST = "https://generativelanguage.googleapis.com"


def part(**kind: Any) -> dict[str, Any]:
    """Build a body whose one part is *kind*."""
    return {"contents": [{"parts": [{"text": "look"}, kind], "role": "user"}]}


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("post", GENERATE, ("gemini-2.5-flash", "generateContent")),
        (
            "POST",
            "models/x:streamGenerateContent?alt=sse",
            ("x", "streamGenerateContent"),
        ),
        ("post", f"/v1beta/{GENERATE}", ("gemini-2.5-flash", "generateContent")),
        ("post", f"{HOST}/v1/{GENERATE}", ("gemini-2.5-flash", "generateContent")),
        (
            "post",
            "tunedModels/x:generateContent",
            ("tunedModels/x", "generateContent"),
        ),
        ("get", "models?pageSize=3&pageToken=t", ("", "list")),
        ("get", "models/x", ("x", "get")),
        ("get", "models/veo/operations/o1", ("veo", "get")),
        ("get", "files/abc", ("", "get")),
        ("get", "files", ("", "list")),
        ("post", "files:register", ("", "register")),
        ("post", "upload/{api_version}/files", ("", "files")),
        ("post", "upload/v1beta/files", ("", "files")),
        ("get", "download/v1beta/files/abc:download?alt=media", ("", "download")),
        ("post", "cachedContents", ("", "cachedContents")),
        ("patch", "cachedContents/x?updateMask=ttl", ("", "patch")),
        ("delete", "fileSearchStores/x?force=True", ("", "delete")),
        ("get", "fileSearchStores/x/documents", ("", "list")),
        (
            "post",
            "upload/{api_version}/fileSearchStores/x:uploadToFileSearchStore",
            ("", "uploadToFileSearchStore"),
        ),
        ("post", "batches/x:cancel", ("", "cancel")),
        ("post", "interactions/i/cancel", ("", "cancel")),
        (
            "post",
            f"publishers/google/{GENERATE}",
            ("gemini-2.5-flash", "generateContent"),
        ),
        (
            "post",
            "/v1beta1/publishers/google/models/x:streamGenerateContent?alt=sse",
            ("x", "streamGenerateContent"),
        ),
        ("get", "publishers/google/models", ("", "list")),
        ("post", "models/x", ("x", "post")),
        ("get", "", ("", "get")),
        ("get", "https://host", ("", "get")),
    ],
)
def test_paths_are_read_as_the_sdk_writes_them(
    method: str, path: str, route: tuple[str, str]
) -> None:
    """Model and verb come out of every form of path, in every version of the SDK."""
    found = parse_path(method, path)
    assert (found.model, found.verb) == route


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (GENERATE, ()),
        ("models", ()),
        ("models/x", ()),
        ("files/abc", ("files/abc",)),
        ("files/abc:download?alt=media", ("files/abc",)),
        ("download/v1beta/files/abc:download", ("files/abc",)),
        ("cachedContents/x", ("cachedContents/x",)),
        ("batches/x:cancel", ("batches/x",)),
        ("tunedModels/x:countTokens", ("tunedModels/x",)),
        ("models/veo-3/operations/o1", ("models/veo-3/operations/o1",)),
        ("fileSearchStores/s/documents/d", ("fileSearchStores/s",)),
        ("fileSearchStores/s/upload/operations/o", ("fileSearchStores/s",)),
        ("upload/v1beta/fileSearchStores/s:uploadToFileSearchStore", ("fileSearchStores/s",)),
        ("auth_tokens/t", ("auth_tokens/t",)),
        ("interactions/i/cancel", ("interactions/i",)),
        ("files?pageSize=3&pageToken=abc%3D%2F%2B", ("page:abc=/+",)),
        ("fileSearchStores/s/documents?pageToken=t", ("fileSearchStores/s", "page:t")),
        ("files?filter=x", ()),
    ],
)
def test_a_path_gives_resource_names(path: str, names: tuple[str, ...]) -> None:
    """A resource, its sub-resources and its actions have one name; a page token names its list."""
    assert parse_path("get", path).names == names


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (part(fileData={"fileUri": f"{HOST}/v1beta/files/abc"}), ("files/abc",)),
        (part(fileData={"file_uri": "files/abc", "mime_type": "image/png"}), ("files/abc",)),
        ({"systemInstruction": {"parts": [{"fileData": {"fileUri": "files/s"}}]}}, ("files/s",)),
        (
            part(functionResponse={"name": "f", "parts": [{"file_data": {"file_uri": "files/a"}}]}),
            ("files/a",),
        ),
        ({"requests": [{"content": part(fileData={"fileUri": "files/e"})}]}, ("files/e",)),
        (
            {"instances": [{"video": {"uri": f"{HOST}/v1beta/files/v:download?alt=media"}}]},
            ("files/v",),
        ),
        ({"batch": {"inputConfig": {"file_name": "files/b"}}}, ("files/b",)),
        (
            {"batch": {"inputConfig": {"requests": {"requests": [{"request": part(
                fileData={"file_uri": "files/q"})}]}}}},
            ("files/q",),
        ),
        ({"fileName": "files/i"}, ("files/i",)),
        ({"file": {"name": "files/mine", "mimeType": "text/plain"}}, ("files/mine",)),
        ({"cachedContent": "cachedContents/x"}, ("cachedContents/x",)),
        ({"input": [{"content": [{"uri": "http://127.0.0.1:80/v1/files/u"}]}]}, ("files/u",)),
        (
            {"tools": [{"fileSearch": {"file_search_store_names": ["fileSearchStores/a", 1]}}]},
            ("fileSearchStores/a",),
        ),
        ({"semanticRetriever": {"source": "corpora/c/documents/d"}}, ("corpora/c",)),
        ({"continuationToken": "--_w=="}, ("continuation:--_w",)),
        ({"previous_interaction_id": "v1_x"}, ("interactions/v1_x",)),
        ({"cachedContent": "cachedContents/x", "fileName": "files/i", "name": "files/i"},
         ("cachedContents/x", "files/i")),
    ],
)  # fmt: skip
def test_a_body_names_stored_resources_in_the_known_fields(
    body: dict[str, Any], names: tuple[str, ...]
) -> None:
    """Every field of docs/gemini-api.md#names-in-requests that the four methods see is read."""
    assert read_body(body)[1] == names


@pytest.mark.parametrize(
    "body",
    [
        {"contents": [{"parts": [{"text": "files/abc"}]}]},
        {"contents": "files/abc"},
        {"contents": ["files/abc"]},
        part(fileData={"fileUri": "https://example.com/files/report.pdf"}),
        part(fileData={"fileUri": "gs://bucket/files/a"}),
        part(fileData={"fileUri": "https://www.youtube.com/watch?v=files/a"}),
        part(functionCall={"name": "open", "args": {"uri": "files/a", "name": "batches/b"}}),
        part(functionResponse={"name": "f", "response": {"name": "files/a"}}),
        part(inlineData={"data": "files/a", "name": "files/a"}),
        {"tools": [{"functionDeclarations": [{"name": "f", "parameters": {"name": "files/a"}}]}]},
        {"requests": [{"model": "models/gemini-embedding-001"}]},
        {"labels": {"name": "files/a"}, "name": "", "uri": 3, "fileName": "files/a b"},
        {"name": "files/", "uri": "profiles/x"},
    ],
)
def test_text_that_only_looks_like_a_name_is_none(body: dict[str, Any]) -> None:
    """Prompts, other hosts' URLs, and the data of tools name no stored resource."""
    assert read_body(body)[1] == ()


def test_a_cyclic_body_is_read_without_error() -> None:
    """A body that contains itself raises nothing; the SDK refuses it."""
    body: dict[str, Any] = {"name": "files/a"}
    body["again"] = [body]
    assert read_body(body)[1] == ("files/a",)
    body["systemInstruction"] = body
    assert read_body(body)[1] == ("files/a",)
    assert len(conversation({"contents": [body["again"]]})) == 16


def test_a_long_token_becomes_a_stable_digest() -> None:
    """A token in a response is recognized in the request that sends it back."""
    token = "a+/b" * 1_000
    (learned,) = find_resource_names({"candidates": [{"continuationToken": token + "="}]})
    sent = token.replace("+", "-").replace("/", "_")
    assert read_body({"continuationToken": sent})[1] == (learned,)
    assert len(learned) < 64
    assert find_resource_names({"nextPageToken": "a+/="}) == ("page:a+/=",)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"candidates": [{"content": {}, "finishReason": "STOP"}], "name": "files/a"}, ()),
        ({"candidates": ["?", {"continuationToken": "t"}]}, ("continuation:t",)),
        ({"file": {"name": "files/a", "uri": f"{HOST}/v1beta/files/a"}}, ("files/a",)),
        ({"file": "files/a"}, ()),
        ({"name": "cachedContents/x", "usageMetadata": {"totalTokenCount": 3}},
         ("cachedContents/x",)),
        ({"name": "models/veo/operations/o"}, ("models/veo/operations/o",)),
        ({"name": "models/gemini-2.5-flash"}, ()),
        ({"files": [{"name": "files/a"}, {"name": "files/b"}, None], "nextPageToken": "t"},
         ("page:t", "files/a", "files/b")),
        ({"files": "?", "response": [], "metadata": 1}, ()),
        ({"operations": [{"name": "batches/a"}]}, ("batches/a",)),
        ({"models": [{"name": "models/a"}]}, ()),
        (
            {"name": "batches/b", "metadata": {"output": {"responsesFile": "files/r"}},
             "response": {"responsesFile": "files/r", "inlinedResponses": {"name": "files/no"}}},
            ("batches/b", "files/r"),
        ),
        (
            {"name": "models/veo/operations/o", "done": True, "response": {
                "generateVideoResponse": {"generatedSamples": [{"video": {
                    "uri": f"{HOST}/v1beta/files/v:download?alt=media"}}]}}},
            ("models/veo/operations/o", "files/v"),
        ),
        ({"name": "tunedModels/t/operations/o", "metadata": {"tunedModel": "tunedModels/t"}},
         ("tunedModels/t",)),
        ({"embedding": {"values": [0.1]}}, ()),
        ({}, ()),
    ],
)  # fmt: skip
def test_a_response_gives_the_names_it_contains(
    body: dict[str, Any], names: tuple[str, ...]
) -> None:
    """Creates, uploads, pages, operations and batches contain names, so their owner is known."""
    assert find_resource_names(body) == names


@pytest.mark.parametrize(
    ("method", "path", "bound_to_owner", "idempotent"),
    [
        ("post", GENERATE, False, True),
        ("post", "models/x:batchEmbedContents", False, True),
        ("post", "models/imagen:predict", False, True),
        ("get", "models/x", False, True),
        ("GET", "models", False, True),
        ("get", "models?pageToken=t", True, True),
        ("get", "tunedModels", True, True),
        ("get", "files", True, True),
        ("get", "files/a", True, True),
        ("post", "tunedModels/x:generateContent", True, True),
        ("post", "models/x:batchGenerateContent", False, False),
        ("post", "models/x:asyncBatchEmbedContent", False, False),
        ("post", "models/veo:predictLongRunning", True, False),
        ("get", "models/veo/operations/o", True, True),
        ("post", "cachedContents", True, False),
        ("post", "upload/{api_version}/files", True, False),
        ("delete", "files/a", True, False),
        ("post", "models/x:somethingNew", True, False),
    ],
)
def test_only_stateless_inference_and_new_batches_may_use_any_key(
    method: str, path: str, bound_to_owner: bool, idempotent: bool
) -> None:
    """A call that stores anything else, or names a stored resource, stays with its owner."""
    route = parse_path(method, path)
    assert (route.bound_to_owner, route.idempotent) == (bound_to_owner, idempotent)


@pytest.mark.parametrize(
    ("method", "path", "counts_in_quota"),
    [
        ("post", "models/x:generateContent", True),
        ("post", "models/x:batchEmbedContents", True),
        ("post", "models/veo:predictLongRunning", True),
        ("post", "tunedModels/x:generateContent", True),
        ("post", "models/x:somethingNew", True),
        ("post", "models/x:countTokens", False),
        ("post", "models/x:batchGenerateContent", False),
        ("get", "models/x", False),
        ("get", "files/a", False),
        ("post", "cachedContents", False),
    ],
)
def test_which_calls_count_in_a_models_quota(method: str, path: str, counts_in_quota: bool) -> None:
    """Generation and unknown verbs count; countTokens, batches and stored resources do not."""
    assert parse_path(method, path).counts_in_quota is counts_in_quota


def test_a_conversation_keeps_its_digest() -> None:
    """Later turns do not change it; another system instruction or first content does."""
    hello = {"parts": [{"text": "hello"}], "role": "user"}
    answer = {"parts": [{"text": "hi"}], "role": "model"}
    first = conversation({"contents": [hello]})
    assert len(first) == 16
    assert conversation({"contents": [hello, answer, hello], "tools": []}) == first
    system = {"parts": [{"text": "be brief"}]}
    spoken = conversation({"contents": [hello], "systemInstruction": system})
    assert spoken == conversation({"contents": [hello, answer], "system_instruction": system})
    others: list[dict[str, Any]] = [
        {"contents": [answer]},
        {"contents": "hello"},
        {"systemInstruction": "hello"},
    ]
    assert len({first, spoken, *map(conversation, others)}) == 5
    assert conversation({}) == conversation({"contents": []}) == ""


@pytest.mark.parametrize(
    ("path", "bound"),
    [
        ("publishers/google/models/x:generateContent", False),
        ("publishers/google/models/text-embedding-005:predict", False),
        ("endpoints/1:generateContent", True),
        ("projects/p/locations/global/endpoints/1:streamGenerateContent", True),
        ("projects/p/locations/global/publishers/google/models/x:generateContent", True),
        ("publishers/google/models/veo:predictLongRunning", True),
        ("batchPredictionJobs", True),
    ],
)
def test_what_names_a_project_of_vertex_ai_is_bound_to_it(path: str, bound: bool) -> None:
    """A published model may be asked with any key, an endpoint or a project's model may not."""
    assert parse_path("post", path).bound_to_owner is bound


def test_vertex_ai_writes_names_in_full() -> None:
    """A cache and an operation are recognized with and without their project."""
    name = "projects/1/locations/global/cachedContents/c"
    assert find_resource_names({"name": name}) == ("cachedContents/c",)
    assert read_body({"cachedContent": name})[1] == ("cachedContents/c",)
    assert parse_path("get", name).names == ("cachedContents/c",)
    operation = "projects/1/locations/l/publishers/google/models/veo/operations/o"
    assert read_body({"operationName": operation})[1] == ("models/veo/operations/o",)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models/a:generateContent", "models/b:generateContent"),
        ("models/a:streamGenerateContent?alt=sse", "models/b:streamGenerateContent?alt=sse"),
        (
            "publishers/google/models/a:generateContent",
            "publishers/google/models/b:generateContent",
        ),
        ("{api_version}/models/a:generateContent", "{api_version}/models/b:generateContent"),
        ("models/ab:generateContent", None),
    ],
)
def test_the_model_in_a_path(path: str, expected: str | None) -> None:
    """Only the model changes."""
    found = Gemini().with_model(Route("generateContent"), path, b"{}", ("a", "b"))
    assert found == (None if expected is None else (expected, b"{}"))
