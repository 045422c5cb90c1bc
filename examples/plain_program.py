"""An ordinary google-genai program: a question, a stream, a chat with a tool.

python examples/plain_program.py              one key, from GEMINI_API_KEY
keyrot run examples/plain_program.py          the pool of your settings
"""

from __future__ import annotations

from google import genai
from google.genai import types

MODEL = "gemini-3.8-flash"


def last_price(symbol: str) -> float:
    """Return the last price of a symbol, in dollars."""
    return {"ACME": 41.5}.get(symbol, 100.0)


def main() -> None:
    client = genai.Client()

    answer = client.models.generate_content(model=MODEL, contents="What is the RSI, in one line?")
    print("answer:", answer.text)

    print("stream: ", end="")
    for chunk in client.models.generate_content_stream(model=MODEL, contents="Count to five."):
        print(chunk.text or "", end="", flush=True)
    print()

    chat = client.chats.create(model=MODEL, config=types.GenerateContentConfig(tools=[last_price]))
    print("chat:  ", chat.send_message("What does ACME cost?").text)
    print("turns: ", [content.role for content in chat.get_history()])


if __name__ == "__main__":
    main()
