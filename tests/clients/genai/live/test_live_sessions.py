"""Live: which key opens a session, what a refusal means, and what its end books."""

import asyncio
import inspect
import logging

import pytest
from google.genai import errors, live
from support.interactions import keys_of
from support.json_server import JsonServer, Response
from support.live import converse, opened, say
from support.modes import MODEL
from websockets.exceptions import ConnectionClosedError

import keyrot_middleware
from keyrot_middleware.clients import websocket
from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore:.*experimental"
)
SUCCESS, FAILURE, ABANDONED = LeaseOutcome.SUCCESS, LeaseOutcome.FAILURE, LeaseOutcome.ABANDONED


def states() -> dict[str, str]:
    return {key_id: key["state"] for key_id, key in keyrot_middleware.status()["keys"].items()}


SPENT = [
    Reply.EXHAUSTED,
    Reply.QUOTA_DAY,
    Reply.EXHAUSTED.as_close(1011),
    Reply.PREPAY.as_close(1011),
    Reply.PROJECT_DENIED.as_close(1008),
]
INVALID = [
    Reply.KEY_INVALID,
    Reply.TOKEN_UNSUPPORTED,
    Reply.KEY_INVALID.as_close(1007),
    Reply.KEY_NOT_FOUND.as_close(1008),
    Reply.IP_BLOCKED.as_close(1008),
]


@pytest.mark.parametrize(("spent", "invalid"), list(zip(SPENT, INVALID, strict=True)))
def test_bad_keys_are_asked_once(spent, invalid, gemini, pool, connect) -> None:
    """A = refused at the handshake or before the setup, B = invalid, C = good: A 1, B 1, C all."""
    pool("A", "B", "C", strategy="fill")
    gemini.always("A", spent)
    gemini.always("B", invalid)
    client = connect()

    async def talk() -> list[str]:
        return [await converse(client) for _ in range(5)]

    assert asyncio.run(talk()) == ["ok from C"] * 5
    assert keys_of(gemini) == ["A", "B", *["C"] * 5]
    assert states() == {"A": "cooling_down", "B": "rejected", "C": "available"}
    assert pool.ledger.kinds == [FAILURE, FAILURE, *[SUCCESS] * 5]


@pytest.mark.parametrize("name", ["x-goog-user-project", "X-Goog-User-Project"])
def test_no_project_of_the_program_goes_out_with_a_key_of_the_pool(
    name, gemini, pool, connect
) -> None:
    """With the client's own key it does."""
    pool("A")
    headers = {name: "theirs", "x-custom": "kept"}
    assert asyncio.run(converse(connect(headers=headers))) == "ok from A"
    with keyrot_middleware.bypass():
        asyncio.run(converse(connect(gemini.key("A").value, headers=headers)))
    sent = [request.header_values("x-goog-user-project") for request in gemini.log]
    assert sent == [[], ["theirs"]]
    assert gemini.log[0].header_values("x-custom") == ["kept"]


def test_an_internal_error_before_the_setup_is_retried(gemini, pool, connect) -> None:
    """1011 without a word about a quota is the server's own trouble; so is a lost connection."""
    pool("A", max_retries=2)
    gemini.script_any(Reply.INTERNAL.as_close(1011), Reply.RESET)
    assert asyncio.run(converse(connect())) == "ok from A"
    assert gemini.count() == 3
    assert states() == {"A": "available"}


def test_all_keys_refused(gemini, pool, connect) -> None:
    pool("A", "B", max_wait_s=0)
    gemini.always_any(Reply.EXHAUSTED.as_close(1011))
    with pytest.raises(keyrot_middleware.KeyPoolExhausted) as refused:
        asyncio.run(converse(connect()))
    assert isinstance(refused.value.__cause__, errors.APIError)
    assert (refused.value.code, refused.value.__cause__.code) == (429, 1011)
    assert len(refused.value.__notes__) == 2
    with pytest.raises(keyrot_middleware.KeyPoolExhausted):
        asyncio.run(converse(connect()))
    assert gemini.count() == 2


@pytest.mark.parametrize(
    ("reply", "code", "state", "outcome"),
    [
        (Reply.EXHAUSTED.as_close(1011, after=1), 1011, "cooling_down", FAILURE),
        (Reply.KEY_LEAKED.as_close(1008, after=1), 1008, "rejected", FAILURE),
        (Reply.DEADLINE.as_close(1011, after=1), 1011, "available", FAILURE),
        (Reply.BAD_REQUEST.as_close(1007, after=1), 1007, "available", FAILURE),
        (Reply.BAD_REQUEST.as_close(1000, after=1), 1000, "available", SUCCESS),
        (Reply.dropped(1), 1006, "available", FAILURE),
    ],
)
def test_what_ends_a_session_is_booked(reply, code, state, outcome, gemini, pool, connect) -> None:
    """The program has the SDK's own error, without notes; the next session has another key."""
    pool("A", "B", strategy="fill")
    gemini.script("A", reply)

    async def talk() -> None:
        async with opened(connect()) as session:
            with pytest.raises(errors.APIError) as closed:
                await say(session)
            assert closed.value.code == code
            assert not getattr(closed.value, "__notes__", [])
            assert not getattr(closed.value.__context__, "__notes__", [])
            assert pool.ledger.kinds == [outcome]  # before the program closes it
            assert pool.ledger.under_way == {}

    asyncio.run(talk())
    assert keys_of(gemini) == ["A"]
    assert states()["A"] == state
    asyncio.run(converse(connect()))
    assert keys_of(gemini)[1:] == ["A" if state == "available" else "B"]


def test_a_session_that_is_lost_unread_frees_its_lease(gemini, pool, connect, monkeypatch) -> None:
    """A program may keep an idle session open for longer than the server or the network does."""
    monkeypatch.setattr(websocket, "UNREAD_S", 0.05)
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.EXHAUSTED.as_close(1011, after=0))

    async def talk() -> None:
        async with opened(connect()) as session:
            for _ in range(3_000):
                if not pool.ledger.under_way:
                    break
                await asyncio.sleep(0.01)
            assert states()["A"] == "cooling_down"
            with pytest.raises(ConnectionClosedError):
                await say(session)

    asyncio.run(talk())
    assert pool.ledger.kinds == [FAILURE]


def test_the_tokens_of_all_turns_are_booked(gemini, pool, connect) -> None:
    """Each turn reads the conversation again: the pool has the same sum as the service."""
    pool("A")

    async def talk() -> None:
        async with opened(connect()) as session:
            for text in ("hello there", "and again", "and a third time"):
                await say(session, text)

    asyncio.run(talk())
    [(_, outcome)] = pool.ledger.outcomes
    assert outcome.usage.input_tokens == gemini.used("A", MODEL).tokens > 3
    assert outcome.usage.output_tokens > 3
    used = keyrot_middleware.status()["keys"]["A"]["used"][MODEL]
    assert (used["requests_minute"], used["tokens_minute"]) == (1, outcome.usage.input_tokens)


@pytest.mark.parametrize("where", ["reading", "waiting", "opening"])
def test_a_cancelled_task_frees_its_lease(where, gemini, pool, connect) -> None:
    """While it reads, while it does something else, and while the session is being opened."""
    pool("A")
    if where == "opening":
        gemini.script("A", Reply.OK.delayed(60))
    ready = asyncio.Event()

    async def talk() -> None:
        async with opened(connect()) as session:
            ready.set()
            await (session._receive() if where == "reading" else asyncio.sleep(60))

    async def cancelled() -> None:
        task = asyncio.create_task(talk())
        if where == "opening":
            assert await asyncio.to_thread(gemini.wait_for, 1)
        else:
            await ready.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.ledger.under_way == {}

    asyncio.run(cancelled())
    assert gemini.wait_idle()


def test_a_session_outlives_uninstall(gemini, pool, connect) -> None:
    pool("A")
    original = inspect.unwrap(live.AsyncLive.connect)
    client = connect(gemini.add_key("own").value)

    async def talk() -> str:
        async with opened(client) as session:
            keyrot_middleware.uninstall()
            assert inspect.unwrap(live.AsyncLive.connect) is original
            assert not hasattr(live.ws_connect, "_self_wrapper")
            return await say(session)

    assert asyncio.run(talk()) == "ok from A"
    assert pool.ledger.kinds == [SUCCESS]
    assert asyncio.run(converse(client)) == "ok from own"


def test_sessions_that_are_not_the_pools(gemini, pool, connect) -> None:
    pool("A")
    own = gemini.add_key("own").value
    with keyrot_middleware.bypass():
        assert asyncio.run(converse(connect(own))) == "ok from own"
    client = connect(own, headers={"x-goog-api-key": gemini.add_key("header").value})
    assert asyncio.run(converse(client)) == "ok from header"
    assert not pool.ledger.kinds


def test_music_goes_through_the_pool(gemini, pool, connect) -> None:
    """A = refused, B = invalid, C plays; the address names no key (SDK 1.x puts it there)."""
    pool("A", "B", "C", strategy="fill")
    gemini.always("A", Reply.EXHAUSTED.as_close(1011))
    gemini.always("B", Reply.KEY_INVALID)
    client = connect(gemini.add_key("own").value, api_version="v1alpha")

    async def listen() -> bytes:
        async with client.aio.live.music.connect(model="models/learnlm-music") as music:
            await music.play()
            message = await anext(music.receive())
            return bytes(message.server_content.audio_chunks[0].data)

    assert [bool(asyncio.run(listen())) for _ in range(2)] == [True, True]
    assert keys_of(gemini) == ["A", "B", "C", "C"]
    assert not any("key=" in entry.path for entry in gemini.log)
    assert pool.ledger.kinds == [FAILURE, FAILURE, SUCCESS, SUCCESS]


def test_no_key_is_shown(gemini, pool, connect, caplog) -> None:
    """Neither in the log of websockets at DEBUG nor in what the session holds."""
    pool("A")
    shown: list[str] = []

    async def talk() -> None:
        async with opened(connect()) as session:
            await say(session)
            shown.append(repr(list(session._ws.request.headers.raw_items())))
            shown.append(repr(vars(session._ws)))

    with caplog.at_level(logging.DEBUG):
        asyncio.run(talk())
    assert "websocket" in caplog.text.lower()
    assert gemini.key("A").value not in "".join(shown) + caplog.text


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy"])
def test_no_proxy_gets_a_key_in_clear(variable, gemini, pool, connect, monkeypatch) -> None:
    """Without TLS a session of this machine goes there; websockets asks the proxies of both."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    pool("A")
    client = connect()
    with JsonServer(lambda _: Response(200, {})) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        assert asyncio.run(converse(client)) == "ok from A"
        assert proxy.requests == []
