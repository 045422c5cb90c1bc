"""Live sessions of tests: open one, say something, read the turn."""

from typing import Any

from support.modes import MODEL


def opened(client: Any, **config: Any) -> Any:
    return client.aio.live.connect(model=MODEL, config=config or None)


async def say(live: Any, text: str = "hello") -> str:
    """Say something in a session; return what the model says in its turn."""
    await live.send_client_content(turns={"role": "user", "parts": [{"text": text}]})
    return "".join([message.text or "" async for message in live.receive()])


async def converse(client: Any, **config: Any) -> str:
    async with opened(client, **config) as live:
        return await say(live)
