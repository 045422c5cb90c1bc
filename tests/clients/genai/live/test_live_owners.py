"""Live: sessions, files, tokens and interactions go with the key of the project that owns them."""

import asyncio
import io
from typing import Any

import pytest
from google.genai import types
from support.interactions import SDK
from support.live import converse, opened, say
from support.modes import MODEL

import keyrot_middleware
from keyrot_middleware.testing import Reply

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore:.*experimental"
)


async def newest_handle(client: Any) -> str:
    """Talk in a session; return the handle with which it can be resumed."""
    async with opened(client, session_resumption={}) as session:
        await session._receive()
        await say(session)
        update = (await session._receive()).session_resumption_update
        return str(update.new_handle)


def test_a_session_is_resumed_with_a_key_of_its_project(gemini, pool, connect) -> None:
    """The handle was issued to B's project: its keys resume it, and no other."""
    pool("A", {"key_id": "B", "project": "p"}, {"key_id": "B2", "project": "p"}, strategy="fill")
    gemini.script("A", Reply.EXHAUSTED.as_close(1011))
    client = connect(gemini.key("A").value)
    handle = asyncio.run(newest_handle(client))
    assert [entry.key for entry in gemini.log] == ["A", "B"]
    assert len(handle) > 64
    gemini.reset_log()

    async def resume() -> None:
        for config in ({"handle": handle}, types.SessionResumptionConfig(handle=handle)):
            async with opened(client, session_resumption=config):
                pass

    asyncio.run(resume())
    assert {entry.key for entry in gemini.log} <= {"B", "B2"}
    gemini.always("B", Reply.EXHAUSTED)
    asyncio.run(resume())
    assert gemini.log[-1].key == "B2"


def test_a_setup_that_names_a_file_goes_with_its_owner(gemini, pool, connect) -> None:
    """In a content, in a dict or as the SDK's own object."""
    pool("A", "B", strategy="fill")
    client = connect(gemini.key("B").value)
    file = client.files.upload(file=io.BytesIO(b"hello"), config={"mime_type": "text/plain"})
    part = types.Part.from_uri(file_uri=file.uri, mime_type="text/plain")
    gemini.reset_log()
    for content in (types.Content(parts=[part]), {"parts": [part.model_dump(exclude_none=True)]}):
        assert asyncio.run(converse(client, system_instruction=content)) == "ok from B"
    assert asyncio.run(converse(client)) == "ok from A"


def test_a_token_is_made_by_the_home_key_and_used_untouched(gemini, pool, connect) -> None:
    """One for a session to resume is made by the session's owner."""
    pool("A", "B", strategy="fill")
    handle = asyncio.run(newest_handle(connect()))
    gemini.reset_log()
    client = connect(gemini.key("B").value, api_version="v1alpha")
    plain = client.auth_tokens.create(config={"uses": 1})
    config = {"session_resumption": {"handle": handle}}
    bound = client.auth_tokens.create(
        config={"uses": 1, "live_connect_constraints": {"model": MODEL, "config": config}}
    )
    assert [entry.key for entry in gemini.log] == ["B", "A"]
    leases = len(pool.ledger.kinds)
    for token in (plain, bound):
        asyncio.run(converse(connect(token.name, api_version="v1alpha")))
    sent = [entry.header_values("x-goog-api-key") for entry in gemini.log[2:]]
    assert sent == [[plain.name], [bound.name]]
    assert len(pool.ledger.kinds) == leases


@pytest.mark.skipif(SDK < (3, 6), reason="this SDK has no live interactions")
def test_a_live_interaction_goes_with_its_owner(gemini, pool, connect) -> None:
    """As a context manager and awaited; its lease ends with its websocket."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.EXHAUSTED)
    client = connect(gemini.key("A").value)
    made = client.interactions.create(model=MODEL, input="hello")
    leases = len(pool.ledger.kinds)
    gemini.reset_log()

    async def talk() -> list[str]:
        async with client.aio.interactions.connect(made.id) as live:
            await live.complete()
            kinds = [event.event_type async for event in live.receive()]
            assert pool.ledger.under_way == {}
        detached = await client.aio.interactions.connect(made.id)
        assert pool.ledger.under_way == {"B": 1}
        await detached.detach()
        assert pool.ledger.under_way == {}
        return kinds

    assert asyncio.run(talk())[-1] == "interaction.completed"
    assert [entry.key for entry in gemini.log] == ["B", "B"]
    assert len(pool.ledger.kinds) == leases + 2
    gemini.always("B", Reply.KEY_SUSPENDED)

    async def refused() -> None:
        async with client.aio.interactions.connect(made.id):
            pass

    with pytest.raises(Exception) as caught:
        asyncio.run(refused())
    assert isinstance(caught.value, keyrot_middleware.KeyPoolExhausted)
    assert type(caught.value.__cause__).__name__ == "APIWebSocketError"
    assert (caught.value.code, caught.value.__cause__.http_status) == (403, 403)
    assert [entry.key for entry in gemini.log] == ["B"] * 3
