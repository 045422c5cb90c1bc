"""FakeGemini: answers, scripted replies, streams, quotas, stored things; and FakeClock."""

import asyncio
from typing import Any

import httpx
import pytest
from google.genai import errors, types
from pydantic import BaseModel

from keyrot_middleware.testing import FakeClock, Reply

MODEL = "gemini-3.1-flash-lite"


def test_an_answer_has_usage_and_names(gemini, connect) -> None:
    """Tokens add up, and the model and the response have their ids."""
    client = connect(gemini.add_key("a"))
    response = client.models.generate_content(model=MODEL, contents="twelve chars")
    usage = response.usage_metadata
    assert response.text == "ok from a"
    assert (usage.prompt_token_count, usage.thoughts_token_count) == (3, 5)
    spoken = usage.candidates_token_count
    assert usage.total_token_count == 3 + 5 + spoken
    assert (response.model_version, bool(response.response_id)) == (MODEL, True)
    assert response.candidates[0].finish_reason == types.FinishReason.STOP


def test_a_test_sets_the_answers(gemini, connect) -> None:
    """A text, a function of the body, a part, and a whole response."""
    client = connect(gemini.add_key("a"))

    def call() -> types.GenerateContentResponse:
        return client.models.generate_content(model=MODEL, contents="hello")

    gemini.answer("forty-two")
    assert call().text == "forty-two"
    gemini.answer(lambda body: body["contents"][0]["parts"][0]["text"].upper())
    assert call().text == "HELLO"
    gemini.answer({"functionCall": {"name": "f", "args": {"x": 1}}})
    assert call().function_calls[0].args == {"x": 1}
    gemini.answer({"candidates": [{"finishReason": "SAFETY"}]})
    assert call().candidates[0].finish_reason == types.FinishReason.SAFETY
    gemini.answer(None)
    assert call().text == "ok from a"


def test_a_declared_function_is_called_and_its_response_answered(gemini, connect) -> None:
    """The SDK runs the tool once, sends its response, and gets a text: two requests."""
    client = connect(gemini.add_key("a"))
    calls: list[tuple[str, int]] = []

    def weather(city: str, days: int) -> str:
        calls.append((city, days))
        return "sunny"

    chat = client.chats.create(model=MODEL, config=types.GenerateContentConfig(tools=[weather]))
    assert chat.send_message("hello").text == "ok from a"
    gemini.function_args({"city": "Oslo", "days": 3})
    assert chat.send_message("again").text == "ok from a"
    assert calls == [("text", 1), ("Oslo", 3)]
    assert gemini.sent("a") == 4


def test_a_response_schema_is_satisfied(gemini, connect) -> None:
    """Structured output parses into the caller's own class."""

    class Recipe(BaseModel):
        name: str
        minutes: int
        steps: list[str]

    client = connect(gemini.add_key("a"))
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_schema=Recipe
    )
    response = client.models.generate_content(model=MODEL, contents="cake", config=config)
    assert response.parsed == Recipe(name="text", minutes=1, steps=["text"])


ERRORS = {name: reply for name, reply in Reply.all().items() if reply.status >= 400}


def call(client: Any) -> str:
    text: str = client.models.generate_content(model=MODEL, contents="hello").text
    return text


def fails(client: Any) -> errors.APIError:
    with pytest.raises(errors.APIError) as caught:
        call(client)
    return caught.value


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_reaches_the_sdk_as_its_own_class(name, gemini, connect) -> None:
    """4xx is a ClientError and 5xx a ServerError, with the code and the log's name for it."""
    key = gemini.add_key("a")
    gemini.script("a", ERRORS[name])
    error = fails(connect(key))
    wanted = errors.ClientError if ERRORS[name].status < 500 else errors.ServerError
    assert type(error) is wanted
    assert error.code == ERRORS[name].status
    assert (gemini.log[0].reply, gemini.log[0].status) == (name, error.code)


def test_a_script_for_any_key_applies_to_the_next_requests(gemini, connect) -> None:
    """script_any() and always_any() apply to every key; a key's own script comes first."""
    first, second = connect(gemini.add_key("a")), connect(gemini.add_key("b"))
    gemini.script_any(Reply.INTERNAL)
    gemini.script("a", Reply.DEADLINE)
    assert (fails(first).code, fails(second).code) == (504, 500)
    gemini.always_any(Reply.OVERLOADED)
    assert (fails(first).code, fails(second).code) == (503, 503)
    gemini.clear_scripts()
    assert call(first) == "ok from a"


def test_an_invalid_key_has_its_reason(gemini, connect) -> None:
    """Unknown, expired and deleted keys have one reason; the list-wrapped form is unwrapped."""
    client = connect(gemini.add_key("a"))
    gemini.script("a", Reply.KEY_INVALID, Reply.KEY_EXPIRED, Reply.KEY_NOT_FOUND)
    for _ in range(3):
        detail = fails(client).details["error"]["details"][0]
        assert detail["reason"] == "API_KEY_INVALID"
    gemini.script("a", Reply.KEY_INVALID.list_wrapped())
    assert fails(client).message == "API key not valid. Please pass a valid API key."


def test_a_custom_reply(gemini, connect) -> None:
    """custom() takes JSON, text, bytes or a function, and headers."""
    client = connect(gemini.add_key("a"))
    body = {"error": {"code": 418, "message": "teapot", "status": "TEAPOT"}}
    gemini.script(
        "a",
        Reply.custom(418, body, headers={"Retry-After": "7"}),
        Reply.custom(429, lambda request: {"error": {"code": 429, "message": request.label}}),
        Reply.custom(502, "not JSON", content_type="text/plain"),
    )
    teapot = fails(client)
    assert (teapot.status, teapot.response.headers["retry-after"]) == ("TEAPOT", "7")
    assert fails(client).message == "a"
    assert fails(client).message == "not JSON"


def test_a_stream_comes_in_chunks_with_usage_so_far(gemini, connect) -> None:
    """Usage grows with the chunks; the last one has the true usage and the finish reason."""
    client = connect(gemini.add_key("a"))
    stream = client.models.generate_content_stream(model=MODEL, contents="hello")
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == "ok from a"
    spoken = [chunk.usage_metadata.candidates_token_count for chunk in chunks]
    assert len(chunks) == 3
    assert spoken == sorted(spoken)
    assert [bool(chunk.candidates[0].finish_reason) for chunk in chunks] == [False, False, True]
    assert chunks[-1].usage_metadata.prompt_token_count == 2
    assert gemini.log[0].stream


def refused(client: Any, model: str = MODEL, contents: str = "hello") -> dict[str, Any]:
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=model, contents=contents)
    assert caught.value.code == 429
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    error: dict[str, Any] = caught.value.details["error"]
    return error


def violations(error: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = [detail["@type"].rpartition(".")[2] for detail in error["details"]]
    assert kinds == ["Help", "QuotaFailure", "RetryInfo"]
    found: list[dict[str, Any]] = error["details"][1]["violations"]
    return found


def test_requests_over_the_minute_are_refused_until_the_next_one(gemini, clock, connect) -> None:
    """The window is the wall-clock minute: it opens at :00."""
    client = connect(gemini.add_key("free", rpm=2))
    for _ in range(2):
        client.models.generate_content(model=MODEL, contents="hello")
    clock.advance(4.91746578)
    error = refused(client)
    assert violations(error) == [
        {
            "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
            "quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
            "quotaDimensions": {"location": "global", "model": MODEL},
            "quotaValue": "2",
        }
    ]
    assert error["details"][2]["retryDelay"] == "25s"
    assert "\n* Quota exceeded for metric: " in error["message"]
    assert f"limit: 2, model: {MODEL}\nPlease retry in 25.08" in error["message"]
    clock.advance(25.08253422 - 0.001)
    refused(client)
    clock.advance(0.002)
    assert client.models.generate_content(model=MODEL, contents="hello").text == "ok from free"


def test_an_exhausted_paid_day_names_the_true_delay(gemini, clock, connect) -> None:
    """From 12:30:30 UTC it is 19 h 29 min 30 s to midnight in a Californian winter."""
    client = connect(gemini.add_key("paid", tier="paid", rpd=1))
    client.models.generate_content(model=MODEL, contents="hello")
    error = refused(client)
    violation = violations(error)[0]
    assert violation["quotaMetric"].endswith("/generate_requests_per_model_per_day")
    assert error["details"][2]["retryDelay"] == "70170s"
    assert error["message"].endswith("Please retry in 19h29m30s.")
    clock.advance(70_169)
    refused(client)
    clock.advance(1)
    client.models.generate_content(model=MODEL, contents="hello")


VERBS = {
    "generateContent": {"contents": [{"parts": [{"text": "hello"}]}]},
    "streamGenerateContent?alt=sse": {"contents": [{"parts": [{"text": "hello"}]}]},
    "countTokens": {"contents": [{"parts": [{"text": "hello"}]}]},
    "embedContent": {"content": {"parts": [{"text": "hello"}]}},
    "batchGenerateContent": {"batch": {}},
    "": None,
}


@pytest.mark.parametrize("verb", VERBS)
def test_v1_has_no_alias(verb, gemini) -> None:
    """Nor a model that was removed from it; v1beta has both, and both have the others."""
    http = httpx.Client(base_url=gemini.url, headers={"x-goog-api-key": gemini.add_key("a").value})
    gemini.remove_model("gemini-new-preview", "v1")
    found = {}
    for version in ("v1", "v1beta"):
        for model in ("gemini-flash-latest", "gemini-new-preview", "gemini-3.8-flash"):
            path = f"/{version}/models/{model}{':' if verb else ''}{verb}"
            reply = http.request("POST" if verb else "GET", path, json=VERBS[verb])
            found[version, model] = reply.status_code
            if reply.status_code == 404:
                said = f"models/{model} is not found for API version v1, or is not supported for "
                assert reply.json()["error"]["message"].startswith(said)
        listed = [model["name"] for model in http.get(f"/{version}/models").json()["models"]]
        assert ("models/gemini-flash-latest" in listed) == (version == "v1beta")
    http.close()
    assert list(found.values()) == [404, 404, 200, 200, 200, 200]


@pytest.mark.parametrize("collection", ["cachedContents", "auth_tokens", "interactions"])
def test_what_v1_does_not_serve_is_a_wrong_path(collection, gemini) -> None:
    """Google has caches and tokens elsewhere; see test_fake_live for Live."""
    headers = {"x-goog-api-key": gemini.add_key("a", tier="paid").value}
    body = {"model": "gemini-3.8-flash", "input": "hello", "contents": []}
    replies = [
        httpx.post(f"{gemini.url}/{version}/{collection}", json=body, headers=headers)
        for version in ("v1", "v1beta")
    ]
    lacks_it = collection != "interactions"
    assert [reply.status_code for reply in replies] == [404 if lacks_it else 200, 200]


def test_every_way_of_waiting_moves_the_clock() -> None:
    """advance, sleep and asleep move it by their seconds, and monotonic counts from the start."""
    clock = FakeClock(100.0)
    clock.advance(1)
    clock.sleep(2)
    clock.sleep(-5)
    asyncio.run(clock.asleep(3))
    assert (clock.time(), clock.monotonic()) == (106.0, 6.0)


def test_values_of_a_key_are_made_and_deleted_over_http(gemini) -> None:
    """As a provider's console does, again and again: a new value is none that was deleted."""

    def manage(method: str, path: str = "", body: str = "") -> str:
        return httpx.request(method, f"{gemini.url}/fake/keys{path}", content=body).text

    first = gemini.add_key("a", project="p").value
    values = [first]
    for _ in range(3):
        values.append(manage("POST", "/a"))
        manage("DELETE", body=values[-2])
    assert len(set(values)) == 4
    assert (manage("POST", "/b"), gemini.count()) == ("", 0)
