"""What requests say: model, method, stored resources, whose they are, size and conversation."""

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyrot_middleware.core.model import CallInfo
from keyrot_middleware.providers.base import Route
from keyrot_middleware.providers.gemini import Gemini
from keyrot_middleware.providers.gemini.bodies import read_body
from keyrot_middleware.providers.gemini.replies import find_resource_names
from keyrot_middleware.providers.gemini.requests import (
    conversation,
    count_requests,
    parse_path,
    read_request,
    route_of,
)

HOST = "https://generativelanguage.googleapis.com"
# Method and path | model and verb | b: bound to an owner, i: idempotent, q: counts in a model's
# quota | the stored resources that it names.
PATHS = """
POST models/m:generateContent | m generateContent | iq |
POST models/x:streamGenerateContent?alt=sse | x streamGenerateContent | iq |
POST https://h/v1/models/m:generateContent | m generateContent | iq |
POST tunedModels/x:generateContent | tunedModels/x generateContent | biq | tunedModels/x
GET models?pageSize=3&pageToken=t | list | bi | page:t
GET models/x | x get | i |
GET models/veo/operations/o1 | veo get | bi | models/veo/operations/o1
GET files/abc | get | bi | files/abc
GET files | list | bi |
POST files:register | register | b |
POST upload/{api_version}/files | files | b |
GET download/v1beta/files/abc:download?alt=media | download | bi | files/abc
POST cachedContents | cachedContents | b |
PATCH cachedContents/x?updateMask=ttl | patch | b | cachedContents/x
DELETE fileSearchStores/x?force=True | delete | b | fileSearchStores/x
GET fileSearchStores/x/documents | list | bi | fileSearchStores/x
POST upload/{api_version}/fileSearchStores/x:upload | upload | b | fileSearchStores/x
POST batches/x:cancel | cancel | b | batches/x
POST publishers/google/models/m:generateContent | m generateContent | iq |
POST /v1beta1/publishers/google/models/x:embedContent?alt=sse | x embedContent | iq |
GET publishers/google/models | list | i |
POST models/x | x post | bq |
GET models | list | i |
GET files/abc:download?alt=media | download | bi | files/abc
GET cachedContents/x | get | bi | cachedContents/x
GET tunedModels/x:countTokens | tunedModels/x countTokens | bi | tunedModels/x
GET fileSearchStores/s/documents/d | get | bi | fileSearchStores/s
GET auth_tokens/t | get | bi | auth_tokens/t
GET files?pageSize=3&pageToken=abc%3D%2F%2B | list | bi | page:abc=/+
GET fileSearchStores/s/documents?pageToken=t | list | bi | fileSearchStores/s page:t
POST models/x:batchEmbedContents | x batchEmbedContents | iq |
GET tunedModels | list | bi |
POST models/x:batchGenerateContent | x batchGenerateContent | - |
POST models/x:asyncBatchEmbedContent | x asyncBatchEmbedContent | - |
POST models/veo:predictLongRunning | veo predictLongRunning | bq |
DELETE files/a | delete | b | files/a
POST models/x:somethingNew | x somethingNew | bq |
POST models/x:countTokens | x countTokens | i |
POST publishers/google/models/text-embedding-005:predict | text-embedding-005 predict | iq |
POST endpoints/1:generateContent | generateContent | b |
POST projects/p/locations/global/publishers/google/models/x:generateContent | generateContent | b |
POST publishers/google/models/veo:predictLongRunning | veo predictLongRunning | bq |
POST batchPredictionJobs | batchPredictionJobs | b |
GET projects/1/locations/global/cachedContents/c | get | bi | cachedContents/c
POST /v1beta/openai/chat/completions | generateContent | iq |
POST /v1beta/openai/embeddings | embedContent | iq |
POST /v1beta/openai/images/generations | predict | iq |
GET /v1beta/openai/models | list | i |
GET /v1beta/openai/models/m | m get | i |
GET /v1beta/openai/batches/batches/abc | get | bi | batches/abc
POST /v1beta/openai/batches | batches | b |
GET /v1beta/openai/chat/completions | get | bi |
POST /proxy/gemini/v1beta/models/m:generateContent | m generateContent | iq |
POST https://h/a/v1/b/v1beta/models/m:generateContent?key=x | m generateContent | iq |
POST /upload/v1beta/files?upload_id=AJjja | files | b | upload:AJjja
POST https://host.example/v1beta/interactions | interactions | b |
GET https://host.example/v1beta/interactions/v1_a | get | bi | interactions/v1_a
POST https://host.example/v1beta/interactions/v1_a/cancel | cancel | b | interactions/v1_a
POST https://host.example/v1beta/interactions/v1_a/auth_tokens | auth_tokens | b | interactions/v1_a
POST /v1/agents | agents | b |
GET /v1/environments | list | bi |
POST /v1/triggers/t/executions | executions | b | triggers/t
POST /v1/decisions | decisions | b |
DELETE /v1/agents/a | delete | b | agents/a
DELETE /v1beta/agents/mine | delete | b | agents/mine
GET /v1beta/environments?page_token=t | list | bi | page:t
"""


@pytest.mark.parametrize("row", PATHS.strip().splitlines())
def test_a_path_is_read_in_every_form(row: str) -> None:
    """As the SDK's versions, Vertex AI, Interactions, OpenAI's protocol and gateways write it.

    Only stateless inference and new batches may use any key; unknown verbs and generation count.
    """
    asked, target, flags, names = (part.strip() for part in row.split("|"))
    route = parse_path(*asked.split())
    assert f"{route.model} {route.verb}".strip() == target
    assert (route.bound_to_owner, route.idempotent, route.counts_in_quota) == tuple(
        flag in flags for flag in "biq"
    )
    assert route.names == tuple(names.split())
    assert route.protocol == ("openai" if "/openai/" in asked else route.protocol)


def test_the_api_begins_at_its_version() -> None:
    """Wherever that is; what has no version and collection of Google's is none of it."""
    assert parse_path("get", "").verb == "get"
    for path in ("/", "/v1/chat/completions", "/models/x", "/v1beta/modelsx"):
        assert route_of("post", f"{HOST}{path}") is None
    assert route_of("post", "/proxy/gemini/v1beta/models/m:generateContent") is not None


@pytest.mark.parametrize(
    ("method", "path", "collection"),
    [
        ("POST", "/v1/interactions", "interactions"),
        ("GET", "/v1/interactions/v1_a", "interactions"),
        ("POST", "/v1/interactions/v1_a/cancel", "interactions"),
        ("POST", "/v1/interactions/v1_a/auth_tokens", ""),
        ("POST", "/v1/agents", "agents"),
        ("GET", "/v1/environments", "environments"),
        ("POST", "/v1/triggers/t/executions", ""),
        ("POST", "/v1/decisions", ""),
        ("DELETE", "/v1/agents/a", ""),
    ],
)
def test_the_collection_of_an_id(method: str, path: str, collection: str) -> None:
    """The `id` of a response belongs to what was created or read."""
    assert parse_path(method, path).collection == collection


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
    found = Gemini().with_model(Route("generateContent"), path, b"{}", ("a", "b"))
    assert found == (None if expected is None else (expected, b"{}"))


# Bodies ----------------------------------------------------------------------------------------


def part(**kind: Any) -> dict[str, Any]:
    return {"contents": [{"parts": [{"text": "look"}, kind], "role": "user"}]}


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
    body: dict[str, Any] = {"name": "files/a", "text": "word"}
    body["again"] = [body]
    body["systemInstruction"] = body
    tokens, names = read_body(body)
    assert tokens > 0
    assert names == ("files/a",)
    assert len(conversation({"contents": [body["again"]]})) == 16


def test_a_long_token_becomes_a_stable_digest() -> None:
    """A token in a response is recognized in the request that sends it back."""
    token = "a+/b" * 1_000
    (learned,) = find_resource_names({"candidates": [{"continuationToken": token + "="}]})
    sent = token.replace("+", "-").replace("/", "_")
    assert read_body({"continuationToken": sent})[1] == (learned,)
    assert len(learned) < 64


def test_vertex_ai_writes_names_in_full() -> None:
    """A cache and an operation are recognized with and without their project."""
    name = "projects/1/locations/global/cachedContents/c"
    assert find_resource_names({"name": name}) == ("cachedContents/c",)
    assert read_body({"cachedContent": name})[1] == ("cachedContents/c",)
    operation = "projects/1/locations/l/publishers/google/models/veo/operations/o"
    assert read_body({"operationName": operation})[1] == ("models/veo/operations/o",)


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
    brief, user = {"role": "system", "content": "brief"}, {"role": "user", "content": "hello"}
    openai = conversation({"messages": [brief, user]})
    assert conversation({"messages": [brief, user, {"role": "assistant"}, user]}) == openai
    others: list[dict[str, Any]] = [
        {"contents": [answer]},
        {"contents": "hello"},
        {"systemInstruction": "hello"},
        {"messages": [brief, {"role": "user", "content": "bye"}]},
        {"messages": ["odd", user]},
    ]
    assert len({first, spoken, openai, *map(conversation, others)}) == 8
    assert {conversation(body) for body in ({}, {"contents": []}, {"messages": []})} == {""}


# Interactions ----------------------------------------------------------------------------------


def new(path: str = "/v1beta/interactions", **body: Any) -> CallInfo:
    return read_request(parse_path("POST", path), {"input": "hello", **body})


def test_a_new_interaction_may_use_any_key() -> None:
    """It counts in its model's quota, and is not repeated; an agent counts in none."""
    info = new(model="models/m")
    assert info == CallInfo("m", "interactions", 2, 2, 1, idempotent=False, bound_to_owner=False)
    agent = new(agent="deep-research-preview")
    assert (agent.model, agent.counts_in_quota, agent.requests) == ("", False, 0)
    assert (agent.bound_to_owner, agent.resources) == (False, ("agents/deep-research-preview",))
    decision = new("/v1/decisions", model="models/m")
    assert (decision.verb, decision.model, decision.bound_to_owner) == ("decisions", "m", False)
    assert [new(model="m", service_tier=t).service_tier for t in ("standard", "flex")] == [
        "",
        "flex",
    ]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"previous_interaction_id": "v1_a"}, ("interactions/v1_a",)),
        ({"continuation_token": "abc"}, ("continuation:abc",)),
        ({"input": [{"type": "image", "uri": "https://x.example/v1beta/files/f"}]}, ("files/f",)),
        ({"cached_content": "cachedContents/c"}, ("cachedContents/c",)),
        ({"previous_interaction_id": "i", "agent": "a"}, ("interactions/i", "agents/a")),
    ],
)
def test_what_names_a_stored_thing_is_bound_to_its_owner(body: Any, names: Any) -> None:
    info = new(model="m", **body)
    assert (info.bound_to_owner, info.resources) == (True, names)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"environment": "e"}, "environments/e"),
        ({"environment": {"environment_id": "e"}}, "environments/e"),
        ({"environment": {"env": {"TOKEN": {"credential": "c"}}}}, "credentials/c"),
        ({"environment": {"network": {"allowlist": [{"credential": "c"}]}}}, "credentials/c"),
        ({"generation_config": {"speech_config": [{"voice": "v"}]}}, "voices/v"),
        ({"interaction": {"agent": "a"}}, "agents/a"),
        ({"base_agent": "a"}, "agents/a"),
        ({"base_environment": {"environment_id": "e"}}, "environments/e"),
        ({"from_environment": "e"}, "environments/e"),
        ({"voice": {"prompted": {"base_voice": "v"}}}, "voices/v"),
    ],
)
def test_ids_are_recognized_by_their_key(body: Any, name: str) -> None:
    assert new(**body).resources == (name,)
    assert not new(**body).bound_to_owner


@pytest.mark.parametrize(
    "body",
    [
        {"input": [{"type": "function_result", "result": {"agent": "a", "voice": ["v"]}}]},
        {"tools": [{"parameters": {"environment": "e"}}]},
        {"environment": {"env": {"credential": "a text"}, "sources": [{"agent": "x"}]}},
        {"labels": {"agent": "a"}, "agent": "", "environment": None},
    ],
)
def test_the_data_of_programs_names_nothing(body: Any) -> None:
    """The same keys in arguments, results, schemas and variables mean nothing."""
    assert new(**body).resources in ((), ("voices/v",))


# Tokens ----------------------------------------------------------------------------------------

DATA = base64.b64encode(bytes(750_000)).decode()


def estimate(body: dict[str, Any]) -> int:
    return read_body(body)[0]


def body_of(*parts: Any) -> dict[str, Any]:
    return {"contents": [{"parts": list(parts), "role": "user"}]}


def messages(*parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": "gemini-3.1-flash-lite",
        "messages": [{"role": "user", "content": list(parts)}],
    }


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("The quick brown fox jumps over the lazy dog. " * 20, 200, 250),
        ("素早い茶色の狐がのろまな犬を飛び越える。" * 20, 220, 320),
        ("Съешь же ещё этих мягких французских булок. " * 20, 300, 420),
        ("Ça été élevé près de la forêt, à l'orée. " * 20, 200, 260),
        ("", 0, 3),
        ("\ud800 a lone surrogate", 3, 10),
    ],
)
def test_text_costs_by_its_script(text: str, least: int, most: int) -> None:
    """Latin text costs a token for four characters, wide scripts one for less than two."""
    assert least <= estimate(body_of({"text": text})) <= most


def test_structure_costs_little() -> None:
    """An empty body costs nothing, and roles, urls and safety settings are no input."""
    body = {
        "_url": {"model": "models/gemini-3.1-flash-lite"},
        "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}] * 5,
        **body_of({"text": "hi", "thoughtSignature": "s" * 9_000}),
        "generationConfig": {"temperature": 0.5, "logprobs": True, "stopSequences": None},
    }
    assert estimate({}) == 0
    assert estimate(body) <= 8


def test_every_place_of_text_counts() -> None:
    """System instruction, declarations of tools, nested requests and lists of text all count."""
    text = "word " * 80
    part = {"parts": [{"text": text}]}
    for body in (
        {"systemInstruction": part},
        {"tools": [{"functionDeclarations": [{"name": "f", "description": text}]}]},
        {"requests": [{"content": part, "model": "models/m"}]},
        {"contents": [text]},
        {"contents": text},
        {"contents": [{"parts": [{"functionCall": {"name": "f", "args": {"data": text}}}]}]},
    ):
        assert 100 <= estimate(body) <= 110


@pytest.mark.parametrize(
    ("mime", "least", "most"),
    [
        ("image/png", 1_000, 1_300),
        ("IMAGE/JPEG", 1_000, 1_300),
        ("audio/wav", 900, 1_100),
        ("audio/L16;rate=16000", 900, 1_100),
        ("audio/mp3", 3_900, 4_100),
        ("video/mp4", 2_000, 2_200),
        ("application/pdf", 11_000, 11_500),
        ("text/plain", 250_000, 250_100),
    ],
)
def test_media_cost_by_kind_and_size_and_never_as_base64(mime: str, least: int, most: int) -> None:
    """A megabyte of media costs what its kind costs, in either spelling of the mime type."""
    data = "A" * 1_333_336
    for key in ("mimeType", "mime_type"):
        assert least <= estimate(body_of({"inlineData": {"data": data, key: mime}})) <= most
    raw = {"inlineData": {"data": b"A" * 1_000_002, "mimeType": mime}}
    assert least <= estimate(body_of(raw)) <= most


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


def test_stored_resources_have_a_fixed_cost() -> None:
    """A file's size is unknown, so it costs ten pages; an image file an image."""
    image = {"fileData": {"fileUri": "files/a", "mimeType": "image/png"}}
    paper = {"fileData": {"file_uri": "files/a", "mime_type": "application/pdf"}}
    assert 1_000 <= estimate(body_of(image)) <= 1_300
    assert 2_500 <= estimate(body_of(paper)) <= 2_700
    assert 2_500 <= estimate({"input": [{"uri": "files/a", "mime_type": "audio/mp3"}]}) <= 2_700
    assert 1_000 <= estimate({"cachedContent": "cachedContents/x"}) <= 1_100
    bytes_of = {"prompt": "hi", "image": {"bytesBase64Encoded": "A" * 9_000_000}}
    assert 1_000 <= estimate({"instances": [bytes_of]}) <= 1_300
    assert read_body(messages({"file": {"file_id": "files/abc"}}))[1] == ("files/abc",)
    assert read_body({"input_file_id": "files/abc"})[1] == ("files/abc",)
    call = {"functionCall": {"name": "open", "args": {"uri": "https://example.com/a"}}}
    assert estimate(body_of(call)) <= 20


@pytest.mark.parametrize(
    ("verb", "body", "requests"),
    [
        ("batchEmbedContents", {"requests": [{}, {}, {}]}, 3),
        ("batchEmbedContents", {"requests": []}, 1),
        ("batchEmbedContents", {"requests": "?"}, 1),
        ("generateContent", {"requests": [{}, {}]}, 1),
        ("embedContent", {"input": "one"}, 1),
        ("embedContent", {"input": ["one", "two"]}, 2),
        ("embedContent", {"input": []}, 1),
        ("embedContent", {}, 1),
    ],
)
def test_requests_are_counted_per_item_of_a_batch(verb: str, body: Any, requests: int) -> None:
    """Google counts each item as a request (docs/gemini-api.md#what-counts)."""
    assert count_requests(verb, body) == requests


# Anything --------------------------------------------------------------------------------------

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
    tokens, names = read_body(body)
    assert tokens >= 0
    assert all(names)
    assert all(find_resource_names(body))
    assert len(conversation(body)) in (0, 16)


@settings(deadline=None)
@given(st.sampled_from(["get", "post", "patch", ""]), TEXTS | st.text("/:?v1{}files", max_size=30))
def test_no_path_makes_it_raise(method: str, path: str) -> None:
    assert isinstance(parse_path(method, path).bound_to_owner, bool)
