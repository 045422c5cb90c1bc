"""The same program with asyncio: concurrent questions, a stream, a chat with a tool.

python examples/plain_program_async.py        one key, from GEMINI_API_KEY
keyrot run examples/plain_program_async.py    the pool of your settings
"""

from __future__ import annotations

import asyncio

from google import genai
from google.genai import types

MODEL = "gemini-3.8-flash"
WORDS = ("RSI", "MACD", "drawdown", "slippage")


async def last_price(symbol: str) -> float:
    """Return the last price of a symbol, in dollars."""
    return {"ACME": 41.5}.get(symbol, 100.0)


async def main() -> None:
    async with genai.Client().aio as client:
        questions = (
            client.models.generate_content(model=MODEL, contents=f"What is {word}, in one line?")
            for word in WORDS
        )
        for word, answer in zip(WORDS, await asyncio.gather(*questions), strict=True):
            print(f"{word}: {answer.text}")

        print("stream: ", end="")
        stream = await client.models.generate_content_stream(model=MODEL, contents="Count to five.")
        async for chunk in stream:
            print(chunk.text or "", end="", flush=True)
        print()

        config = types.GenerateContentConfig(tools=[last_price])
        chat = client.chats.create(model=MODEL, config=config)
        print("chat:", (await chat.send_message("What does ACME cost?")).text)


if __name__ == "__main__":
    asyncio.run(main())
