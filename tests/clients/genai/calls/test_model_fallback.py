"""Model fallback: where no key can serve a model, the same request goes to the next one."""

import json
import logging
import warnings
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import types
from support.modes import MODES, ask, calls, run, spread

import keyrot_middleware
from keyrot_middleware import KeyrotWarning
from keyrot_middleware.clients.signatures import Signatures
from keyrot_middleware.testing import Reply

PRO, FLASH, LITE = "gemini-3.1-pro-preview", "gemini-3.1-flash-lite", "gemini-2.5-flash-lite"
CHAIN = f"{PRO}>{FLASH}"


def models(gemini) -> list[str]:
    return [entry.model for entry in gemini.log]


@pytest.fixture
def pro_is_limited(gemini, pool) -> Any:
    def install(**settings: Any) -> None:
        pool("A", "B", **{"fallback_models": CHAIN, "max_wait_s": 0, **settings})
        for label in ("A", "B"):
            gemini.limit(f"project-{label}", PRO, rpd=0)
            gemini.spend(label, PRO)

    return install


@pytest.mark.parametrize("mode", MODES)
def test_a_limited_model_is_replaced(mode, gemini, pro_is_limited, connect, caplog) -> None:
    """Each key is asked once for the first model; the second answers, and the log says so."""
    caplog.set_level(logging.INFO, "keyrot_middleware")
    pro_is_limited()
    texts = calls(mode, connect(), 5, model=PRO)
    assert all(str(text).startswith("ok from ") for text in texts)
    assert models(gemini).count(PRO) == 2
    assert models(gemini).count(FLASH) == 5
    lines = [r.getMessage() for r in caplog.records if "stands in" in r.getMessage()]
    assert [FLASH in line and PRO in line for line in lines] == [True] * 5


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_fails_whatever_the_key_is_asked_once(mode, gemini, pool, connect) -> None:
    """After three overloaded requests in a row, until it answers: an outage costs one request."""
    pool("A", "B", fallback_models=CHAIN)
    client, asked = connect(), []
    for failing in (3, 1, 1, 0, 1):
        gemini.reset_log()
        gemini.script_any(*[Reply.OVERLOADED] * failing)
        assert ask(mode, client, model=PRO).startswith("ok from ")
        asked.append(models(gemini))
    outage = [PRO, FLASH]
    assert asked == [[PRO, PRO, PRO, FLASH], outage, outage, [PRO], [PRO, PRO]]


def test_only_the_path_differs(gemini, pro_is_limited, connect) -> None:
    """The body is the same, the response names the model that served it."""
    pro_is_limited()
    config = types.GenerateContentConfig(
        system_instruction="be brief", temperature=0.5, http_options={"extra_body": {"labels": {}}}
    )
    answer = connect().models.generate_content(model=PRO, contents="hello", config=config)
    assert isinstance(answer, types.GenerateContentResponse)
    assert answer.model_version == FLASH
    bodies = [entry.body for entry in gemini.log]
    assert len(bodies) == 3
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["systemInstruction"]


@pytest.mark.parametrize("mode", MODES)
def test_thought_signatures_stay_with_their_model(mode, gemini, pool, connect) -> None:
    """Another model refuses them; a note says why none was asked."""
    pool("A", fallback_models=CHAIN, max_wait_s=0)
    gemini.script("A", Reply.QUOTA_MINUTE)
    contents = [{"role": "model", "parts": [{"text": "x", "thought_signature": b"signed"}]}]
    contents += [{"role": "user", "parts": [{"text": "y"}]}]
    with pytest.raises(genai.errors.ClientError, match="429") as failed:
        ask(mode, connect(), model=PRO, contents=contents)
    assert models(gemini) == [PRO]
    assert failed.value.__notes__[-1].startswith(f"keyrot: this request stays with {PRO}, since")


def first_model_fails_once(gemini) -> None:
    """Let the first model be limited at its first request, and be well when the tool has run."""
    gemini.script("A", Reply.QUOTA_MINUTE)


def get_weather(city: str) -> str:
    """Return the weather of a city; meanwhile the first model is available again."""
    keyrot_middleware.reset("A")
    return f"sunny in {city}"


def calls_a_tool(body: dict[str, Any]) -> object:
    """Call the tool twice, one after the other, then answer."""
    contents = body["contents"]
    if len(contents) > 4:
        return "it is sunny"
    return {"functionCall": {"name": "get_weather", "args": {"city": f"Rome {len(contents)}"}}}


@pytest.fixture
def signing(gemini, pool) -> Any:
    """A pool over a service whose models sign, and refuse what another one has signed."""

    def install(**settings: Any) -> Any:
        pool("A", **{"fallback_models": CHAIN, "max_wait_s": 0, **settings})
        return gemini

    gemini.sign_thoughts()
    return install


@pytest.mark.parametrize(("mode", "strategy"), spread(MODES, ["spread", "fill", "sticky"]))
def test_a_tool_loop_that_fell_back_stays_with_that_model(mode, strategy, signing, connect) -> None:
    """To its end, whatever the strategy; the first model would refuse the signatures."""
    gemini = signing(strategy=strategy)
    gemini.answer(calls_a_tool)
    first_model_fails_once(gemini)
    config = types.GenerateContentConfig(tools=[get_weather])
    assert ask(mode, connect(), model=PRO, config=config).endswith("it is sunny")
    assert models(gemini) == [PRO, FLASH, FLASH, FLASH]
    assert all(entry.status in (200, 429) for entry in gemini.log)


@pytest.mark.parametrize("mode", MODES)
def test_loops_that_begin_alike_stay_where_each_is(mode, signing, connect) -> None:
    """One of them fell back and the other did not: the first message does not distinguish them."""
    gemini = signing()
    gemini.answer(calls_a_tool)
    inner: list[str] = []

    def get_weather(city: str) -> str:
        """Run another loop of the same words, whose first model is available again."""
        keyrot_middleware.reset("A")
        if not inner:
            inner.append("")
            inner[0] = ask("sync", connect(), model=PRO, config={"tools": [get_weather]})
        return f"sunny in {city}"

    first_model_fails_once(gemini)
    config = {"tools": [get_weather]}
    assert ask(mode, connect(), model=PRO, config=config).endswith("it is sunny")
    assert inner[0].endswith("it is sunny")
    assert models(gemini) == [PRO, FLASH, PRO, PRO, PRO, FLASH, FLASH]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_chat_that_fell_back_stays_for_good(is_async, signing, connect, clock) -> None:
    """As long as its history carries the signatures; a new chat begins with the first model."""
    gemini = signing()
    client = connect()
    first_model_fails_once(gemini)

    async def say(chat: Any, text: str) -> str:
        reply = chat.send_message(text)
        return str((await reply if is_async else reply).text)

    async def talk() -> None:
        make = (client.aio if is_async else client).chats.create
        chat = make(model=PRO)
        for _ in range(3):
            assert await say(chat, "hello") == "ok from A"
            keyrot_middleware.reset("A")
            clock.sleep(7_200)
        assert models(gemini) == [PRO, FLASH, FLASH, FLASH]
        for _ in range(2):
            assert await say(make(model=PRO), "hello") == "ok from A"
        assert models(gemini)[4:] == [PRO, PRO]

    run(client, talk)


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_in_openais_protocol_that_fell_back_stays(stream, signing, gemini) -> None:
    """Its tool calls carry the signatures in a place of their own."""
    signing()
    gemini.answer(lambda body: calls_a_tool({"contents": body["contents"] * 2}))
    first_model_fails_once(gemini)
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    url = f"{gemini.url}/v1beta/openai/chat/completions"
    headers = {"Authorization": "Bearer keyrot-pool"}
    for _ in range(2):
        body = {"model": PRO, "messages": messages, "tools": [tool], "stream": stream}
        reply = httpx.post(url, json=body, headers=headers)
        assert reply.status_code == 200
        if stream:
            events = (line[5:] for line in reply.text.splitlines() if line.startswith("data: {"))
            found = [json.loads(event)["choices"][0]["delta"] for event in events]
            message = next(delta for delta in found if delta.get("tool_calls"))
        else:
            message = reply.json()["choices"][0]["message"]
        assert "thought_signature" in json.dumps(message)
        call = message["tool_calls"][0]
        messages += [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "sunny"},
        ]
        keyrot_middleware.reset("A")
        gemini.answer(calls_a_tool)
    assert models(gemini) == [PRO, FLASH, FLASH]


def test_nothing_is_read_of_calls_that_did_not_fall_back(signing, connect, monkeypatch) -> None:
    """Neither without a chain, nor before the first fallback."""
    for name in ("note", "model_of"):
        monkeypatch.setattr(Signatures, name, lambda *_: 1 / 0)
    for chain in (CHAIN, None):
        gemini = signing(fallback_models=chain)
        gemini.answer(calls_a_tool)
        config = types.GenerateContentConfig(tools=[get_weather])
        assert ask("sync", connect(), model=PRO, config=config) == "it is sunny"
        keyrot_middleware.uninstall()


def test_a_model_that_the_program_chooses_itself_is_not_replaced(signing, connect) -> None:
    """What one model stood in for is known by that other one too."""
    gemini = signing(fallback_models=f"{PRO}>{FLASH}, {LITE}>{FLASH}")
    first_model_fails_once(gemini)
    client = connect()
    reply = client.models.generate_content(model=PRO, contents="hello")
    content = reply.candidates[0].content
    contents = [types.UserContent("hello"), content, types.UserContent("go on")]
    with pytest.raises(genai.errors.ClientError, match="Corrupted thought signature"):
        client.models.generate_content(model=LITE, contents=contents)
    assert models(gemini) == [PRO, FLASH, LITE]


# Models that Google does not have ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "missing", "then", "asked"),
    spread(
        MODES,
        [
            (PRO, f"requests go on to {FLASH}", (PRO, FLASH)),
            (FLASH, f"requests go on to {LITE}", (PRO, FLASH, LITE)),
        ],
    ),
)
def test_a_missing_model_is_named_once(missing, then, asked, mode, gemini, pool, connect) -> None:
    """Misspelt or retired: the warning quotes Gemini, and the next model answers."""
    pool("A", fallback_models=f"{PRO}>{FLASH}>{LITE}", max_wait_s=0)
    gemini.remove_model(missing)
    client = connect()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            if missing == FLASH:
                gemini.script("A", Reply.CAPACITY)
            assert ask(mode, client, model=PRO) == "ok from A"
            keyrot_middleware.reset("A")
    assert models(gemini) == [*asked] * 2
    (text,) = [str(one.message) for one in found if one.category is KeyrotWarning]
    assert text.startswith(
        f"KEYROT_FALLBACK_MODELS: the API has no model {missing}, and {then}; Gemini "
        f"answers 404: models/{missing} is not found for API version "
    )
