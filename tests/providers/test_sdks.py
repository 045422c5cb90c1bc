"""Unchanged programs over the SDKs of other providers use the pool."""

import asyncio
import contextlib
import gc
import inspect
import json
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from genai_prices import Usage as GenaiUsage
from genai_prices import calc_price

import keyrot_middleware
from keyrot_middleware import providers
from keyrot_middleware.clients.events import EventReader
from keyrot_middleware.clients.key_check import check_key
from keyrot_middleware.core.activity import POOL, ActivityLog
from keyrot_middleware.core.model import Usage
from keyrot_middleware.prices import PriceList
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.secrets.stores import open_secret_cache
from keyrot_middleware.settings import load
from keyrot_middleware.testing import FakeAnthropic, FakeOpenAI
from keyrot_middleware.testing.replies import Scripted

pytestmark = [
    pytest.mark.filterwarnings("ignore::keyrot_middleware.KeyrotWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # programs that close no client
]
CALLS = 12
HI: list[Any] = [{"role": "user", "content": "hi"}]
SPENT = Scripted(
    429,
    lambda _: {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "code": "rate_limit_exceeded",
            "message": "This request would exceed your organization's rate limit of 1 requests per "
            "minute.",
        },
    },
    headers=(("retry-after", "3600"),),
)
Fake = FakeOpenAI | FakeAnthropic
Ask = Callable[[str], str]


PROGRAMS = runpy.run_path(str(Path(__file__).parents[2] / "tools/frameworks/sdk_programs.py"))


def _of(program: str, way: int = 0) -> Ask:
    """Return a program of an SDK's user: sync, as a stream, or the same async."""

    def ask(url: str) -> str:
        found = PROGRAMS[program](url)[way]()
        return str(asyncio.run(found) if inspect.isawaitable(found) else found)

    return ask


_openai, _anthropic, _openrouter = _of("openai"), _of("anthropic"), _of("openrouter")


def _responses(url: str) -> str:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1") as client:
            return (await client.responses.create(model="m", input="hi")).output_text

    return asyncio.run(ask())


def _responses_stream(url: str) -> str:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1") as client:
            events = await client.responses.create(model="m", input="hi", stream=True)
            return "".join(
                [
                    event.delta
                    async for event in events
                    if event.type == "response.output_text.delta"
                ]
            )

    return asyncio.run(ask())


SDKS: list[tuple[str, Ask]] = [
    ("openai", _openai),
    ("openai", _of("openai", 1)),
    ("anthropic", _anthropic),
    ("anthropic", _of("anthropic", 1)),
    ("openai", _responses),
    ("openai", _responses_stream),
    ("anthropic", _of("anthropic", 2)),
    *(("groq", _of("groq", way)) for way in (0, 1)),
    *(("mistral", _of("mistral", way)) for way in (0, 1, 3)),
    *(("openrouter", _of("openrouter", way)) for way in (0, 1)),
    ("azure-openai", _of("azure_v1")),
]


@pytest.fixture(autouse=True)
def _programs_collected() -> Iterator[None]:
    """Collect what the programs left open, as users' do, before another test meets it."""
    yield
    gc.collect()


@pytest.fixture
def fake() -> Iterator[Callable[[str], Fake]]:
    """Return what starts the fake of a provider."""
    started: list[Fake] = []

    def start(name: Any) -> Fake:
        made: Fake = FakeAnthropic() if name == "anthropic" else FakeOpenAI(name)
        started.append(made.start())
        return made

    yield start
    keyrot_middleware.uninstall()
    for made in started:
        made.stop()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what installs a pool of these keys of a fake."""

    def install(name: str, fake: Fake, *labels: str) -> None:
        variable = f"{name.upper().replace('-', '_')}_API_KEY"
        monkeypatch.setenv(variable, keyrot_middleware.POOL_KEY)
        monkeypatch.setenv(f"{variable}S", ",".join(fake.add_key(one).value for one in labels))
        keyrot_middleware.install(allowed_hosts=f"{name}={fake.url}")

    return install


@pytest.mark.parametrize(("name", "ask"), SDKS)
def test_a_failing_key_is_excluded_and_another_one_tried(
    name: str, ask: Ask, fake: Callable[[str], Fake], pool: Callable[..., None]
) -> None:
    """A 429, B invalid, C good: A and B get one request, and C answers each call."""
    server = fake(name)
    pool(name, server, "A", "B", "C")
    server.always("A", SPENT)
    server.remove_key("B")
    assert {ask(server.url) for _ in range(CALLS)} == {"ok from C"}
    assert (server.sent("A"), server.sent(None), server.sent("C")) == (1, 1, CALLS)


@pytest.mark.parametrize(("name", "ask"), SDKS[:4])
def test_no_limit_that_the_headers_name_is_run_into(
    name: str, ask: Ask, fake: Callable[[str], Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first answer on: what does not fit is not sent."""
    server = fake(name)
    monkeypatch.setenv(f"{name.upper()}_API_KEY", keyrot_middleware.POOL_KEY)
    value = server.add_key("A", rpm=5).value
    monkeypatch.setenv(f"{name.upper()}_API_KEYS", value)
    keyrot_middleware.install(allowed_hosts=f"{name}={server.url}", max_wait_s=0)
    answers, begin = [ask(server.url)], time.monotonic()
    for _ in range(8):
        with contextlib.suppress(openai.RateLimitError, anthropic.RateLimitError):
            answers.append(ask(server.url))
    refilled = (time.monotonic() - begin) * 5 / 60
    assert 4 <= len(answers) <= 6 + refilled
    assert server.count() == len(answers)  # none was refused


@pytest.mark.parametrize("others", [0, 5])
def test_the_part_of_a_limit_that_is_the_pools_is_no_smaller_for_what_others_use(
    others: int, fake: Callable[[str], Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers say what all programs have left; half of the limit is theirs."""
    server = fake("openai")
    monkeypatch.setenv("OPENAI_API_KEY", keyrot_middleware.POOL_KEY)
    value = server.add_key("A", rpm=10).value
    monkeypatch.setenv("OPENAI_API_KEYS", value)
    for _ in range(others):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=value) as client:
            client.models.list()
    keyrot_middleware.install(allowed_hosts=f"openai={server.url}", max_wait_s=0, use=0.5)
    begin, sent = time.monotonic(), 0
    with contextlib.suppress(openai.RateLimitError):
        while sent < 20:
            SDKS[0][1](server.url)
            sent += 1
    refilled = (time.monotonic() - begin) * 5 / 60
    assert 5 <= sent <= 6 + refilled
    assert server.count() == sent + others


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_keys_of_a_provider_serve_its_hosts_alone(
    name: str, fake: Callable[[str], Fake], pool: Callable[..., None], gemini: Any
) -> None:
    """No request to another host, of the same machine too, has a key of the pool."""
    server, other = fake(name), fake("groq")
    pool(name, server, "A")
    key = gemini.add_key("own").value
    own: dict[str, Any] = {"api_key": "own-FAKE-key", "max_retries": 0}
    with (
        openai.OpenAI(base_url=f"{other.url}/v1", **own) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model="m", messages=HI)
    with openai.OpenAI(base_url=f"{gemini.url}/v1beta/openai", api_key=key) as client:
        client.models.list()
    sent = [*other.log[0].headers, *gemini.log[0].headers]
    assert [text for header, text in sent if header.lower() == "authorization"] == [
        "Bearer own-FAKE-key",
        f"Bearer {key}",
    ]


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_stored_things_go_with_their_owners_key(
    name: str, fake: Callable[[str], Fake], pool: Callable[..., None]
) -> None:
    """A file, a batch, a response and a chat of one project are asked for with its key again."""
    server = fake(name)
    pool(name, server, "A", "B")
    if name == "openai":
        with openai.OpenAI(base_url=f"{server.url}/v1") as client:
            for _ in range(4):
                _use_stored_things(client)
    else:
        with anthropic.Anthropic(base_url=server.url) as other:
            made = other.messages.batches.create(requests=[])
            assert other.messages.batches.retrieve(made.id).id == made.id
    assert not [request for request in server.log if request.status != 200]


def _use_stored_things(client: openai.OpenAI) -> None:
    first = client.responses.create(model="m", input="hi")
    again = client.responses.create(model="m", input="x", previous_response_id=first.id)
    assert again.output_text == first.output_text
    chat = client.chat.completions.create(model="m", messages=HI, store=True)
    assert client.chat.completions.retrieve(chat.id).id == chat.id
    file = client.files.create(file=b"{}", purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    assert client.batches.retrieve(batch.id).input_file_id == file.id


@pytest.mark.parametrize(
    ("name", "error", "ask"),
    [
        ("openai", openai.AuthenticationError, _openai),
        ("anthropic", anthropic.AuthenticationError, _anthropic),
    ],
)
def test_the_sdks_own_exception_is_raised_without_a_key(
    name: str, error: type[Exception], ask: Ask, fake: Callable[[str], Fake], pool: Any
) -> None:
    """All keys are rejected: the error of the SDK, once for each key, shows none of them."""
    server = fake(name)
    pool(name, server, "A", "B")
    values = [key.value for key in map(server.key, ("A", "B"))]
    server.remove_key("A")
    server.remove_key("B")
    with pytest.raises(error) as raised:
        ask(server.url)
    assert server.sent(None) == 2
    assert not [value for value in values if value[-12:] in f"{raised.value} {vars(raised.value)}"]


@pytest.mark.parametrize(("name", "ask"), [("openai", _openai), ("anthropic", _anthropic)])
def test_a_bad_request_and_an_overload_blame_no_key(
    name: str, ask: Ask, fake: Callable[[str], Fake], pool: Callable[..., None]
) -> None:
    """A 400 is raised after one attempt; a 503 or 529 is sent again."""
    server = fake(name)
    pool(name, server, "A")
    kind, code = ("overloaded_error", 529) if name == "anthropic" else ("server_error", 503)
    bad = {"type": "error", "error": {"type": "invalid_request_error", "message": "No such field"}}
    server.script("A", Scripted(400, lambda _: bad))
    with pytest.raises((openai.BadRequestError, anthropic.BadRequestError)):
        ask(server.url)
    assert server.sent("A") == 1
    busy = {"type": "error", "error": {"type": kind, "message": "Overloaded"}}
    server.script("A", Scripted(code, lambda _: busy))
    assert ask(server.url) == "ok from A"
    assert [key["state"] for key in keyrot_middleware.status()["keys"].values()] == ["available"]


@pytest.mark.parametrize(
    ("path", "headers", "sent"),
    [
        ("chat/completions", {}, 3),
        ("batches", {}, 1),
        ("chat/completions", {"X-Stainless-Retry-Count": "0"}, 1),
        ("chat/completions", {"X-Fern-Language": "Python"}, 1),
        ("chat/completions", {"User-Agent": "speakeasy-sdk/python 1 1 1 openrouter"}, 1),
    ],
)
def test_a_5xx_is_repeated_as_often_as_an_sdk_does(
    path: str, headers: dict[str, str], sent: int, fake: Callable[[str], Fake], pool: Any
) -> None:
    """Three times in all, in place of an SDK that repeats nothing; what stores a thing, once."""
    name = "openrouter" if "User-Agent" in headers else "openai"
    server = fake(name)
    pool(name, server, "A")
    server.always("A", Scripted(500, lambda _: {"error": {"message": "x", "type": "server_error"}}))
    headers = {"Authorization": f"Bearer {keyrot_middleware.POOL_KEY}", **headers}
    url, body = f"{server.url}/v1/{path}", {"model": "m", "messages": HI}
    assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == 500
    assert server.sent("A") == sent


@pytest.mark.parametrize(("headers", "named"), [({}, True), ({"X-Fern-Language": "x"}, False)])
def test_an_sdk_that_would_sleep_for_a_429_does_not_see_how_long(
    headers: dict[str, str], named: bool, fake: Callable[[str], Fake], pool: Any
) -> None:
    """It asks again by itself, however long nobody can answer; the text still says when."""
    server = fake("openai")
    pool("openai", server, "A")
    server.always("A", SPENT)
    headers |= {"Authorization": f"Bearer {keyrot_middleware.POOL_KEY}"}
    url, body = f"{server.url}/v1/chat/completions", {"model": "m", "messages": HI}
    reply = httpx.post(url, json=body, headers=headers, timeout=60)
    assert (reply.status_code, "retry-after" in reply.headers) == (429, named)
    assert "No OpenAI API key" in reply.json()["error"]["message"]


CHUNKS = [{"choices": [{"delta": {"content": "four"}}]}] * 3
COUNTED = {"usage": {"prompt_tokens": 7, "completion_tokens": 5}}
BILLED = {"billed_units": {"input_tokens": 7, "output_tokens": 5}}
V2 = {"type": "content-delta", "delta": {"message": {"content": {"text": "four"}}}}


@pytest.mark.parametrize(
    ("name", "events", "usage"),
    [
        ("openai", CHUNKS, (9, 6, True)),
        ("openai", [*CHUNKS, {"choices": [], **COUNTED}], (7, 5, False)),
        ("openai", [{**CHUNKS[0], **COUNTED}, *CHUNKS], (7, 5, False)),
        ("openai", [{"choices": [{"delta": {"role": "assistant"}}]}], (None, None, False)),
        ("groq", [*CHUNKS, {"choices": [], "x_groq": COUNTED}], (7, 5, False)),
        ("cohere", [V2, V2], (9, 4, True)),
        ("cohere", [V2, {"type": "message-end", "delta": {"usage": BILLED}}], (7, 5, False)),
        ("cohere", [{"event_type": "text-generation", "text": "four"}], (9, 2, True)),
        (
            "cohere",
            [{"text": "four"}, {"event_type": "stream-end", "response": {"meta": BILLED}}],
            (7, 5, False),
        ),
    ],
)
def test_a_stream_counts_or_is_estimated(name: str, events: list[Any], usage: Any) -> None:
    """Where the server counts nothing: the input as estimated, and half of the bytes that came."""
    provider = providers.of(name)
    route = provider.route("POST", "https://localhost/v1/chat/completions")
    route = route or provider.route("POST", "https://localhost/v2/chat")
    assert route is not None
    reader = EventReader(provider.events(route), estimate=9)
    for event in events:
        reader.feed(f"data: {json.dumps(event)}\n\n".encode())
    found = reader.usage
    assert (found.input_tokens, found.output_tokens, found.estimated) == usage


def test_a_stream_without_a_count_is_spent_and_shown_as_estimated(
    fake: Callable[[str], Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget holds for it within one call."""
    server = fake("openai")
    monkeypatch.setenv("OPENAI_API_KEYS", server.add_key("A").value)
    monkeypatch.setenv("OPENAI_API_KEY", keyrot_middleware.POOL_KEY)
    budget = {"usd": {"day": 0.00001}}
    keyrot_middleware.install(
        allowed_hosts=f"openai={server.url}", workloads={"w": budget}, max_wait_s=0
    )
    sent = 0
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", max_retries=0) as client,
        pytest.raises(openai.RateLimitError),
        keyrot_middleware.workload("w"),
    ):
        while sent < 20:
            list(client.chat.completions.create(model="gpt-5-mini", messages=HI, stream=True))
            sent += 1
    assert sent == 1
    pool = current_pool()
    assert pool is not None
    pool.activity.send()
    log = ActivityLog(pool.state.activity, pool.state.activity_log, pool.activity.zone)
    today = log.view((), time.time()).today[POOL]
    assert today.estimated_tokens == today.input_tokens + today.output_tokens > 0
    assert today.cost_usd > 0.00001


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_key_is_checked_by_a_free_request(
    name: str, fake: Callable[[str], Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`keyrot check --live` says which keys work, and how the others are refused."""
    server = fake(name)
    good, bad = server.add_key("good").value, server.add_key("bad").value
    server.remove_key("bad")
    monkeypatch.setenv(f"{name.upper()}_API_KEYS", f"{good},{bad}")
    monkeypatch.setenv(f"{name.upper()}_BASE_URL", server.base_url)
    monkeypatch.setenv("KEYROT_ALLOWED_HOSTS", f"{name}={server.url}")
    secrets = open_secret_cache(load())
    secrets.refresh_all()
    ids, allowed = (f"{name}_1", f"{name}_2"), load().allowed
    works, fails = (check_key(secrets, key_id, None, name, allowed) for key_id in ids)
    assert works.ok
    assert (fails.ok, fails.code) == (False, 401)
    assert bad not in fails.describe("bad")


def test_calls_have_the_prices_of_their_provider() -> None:
    """A model is looked up in the list of the provider whose key sent the call."""
    prices, usage = PriceList(), Usage(1_000_000, 0)
    assert prices.cost(usage, "gpt-4o-mini", time.time(), provider="openai") == 0.15
    assert prices.cost(usage, "claude-haiku-4-5", time.time(), provider="anthropic") == 1.0
    assert prices.cost(usage, "gpt-4o-mini", time.time()) is None
    for tokens in (1, 1_000):  # with a fee for each request
        true = calc_price(GenaiUsage(input_tokens=tokens), "sonar", provider_id="perplexity")
        cost = prices.cost(Usage(tokens, 0), "sonar", time.time(), provider="perplexity")
        assert cost == pytest.approx(float(true.total_price))


def test_keyrot_run_sets_the_placeholder_of_a_provider_with_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its SDK wants some key; no variable of a provider without keys is set."""
    monkeypatch.setenv("OPENAI_API_KEYS", "sk-FAKE-a,sk-FAKE-b")
    program = "import os; print(os.environ.get('OPENAI_API_KEY'), 'GROQ_API_KEY' in os.environ)"
    command = [sys.executable, "-m", "keyrot_middleware", "run", "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert ran.stdout.split() == [keyrot_middleware.POOL_KEY, "False"]
