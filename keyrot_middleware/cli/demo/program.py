"""An ordinary google-genai program: questions, a stream, a chat that uses a tool.

It knows of one key, in GEMINI_API_KEY, and nothing of any pool.
"""

from __future__ import annotations

from google import genai
from google.genai import types

MODEL = "gemini-flash-latest"
WORDS = ("RSI", "MACD", "drawdown", "slippage", "leverage", "stop-loss", "backtest")


def main() -> None:
    """Ask seven questions, stream one answer, and chat."""
    client = genai.Client()
    for number, word in enumerate(WORDS, 1):
        ask(client, number, word)
    stream(client)
    chat(client)


def ask(client: genai.Client, number: int, word: str) -> None:
    """Ask for one sentence."""
    prompt = f"Explain {word} to a trader, in one short sentence."
    show(f"question {number}", client.models.generate_content(model=MODEL, contents=prompt).text)


def stream(client: genai.Client) -> None:
    """Ask for an answer in pieces."""
    chunks = client.models.generate_content_stream(model=MODEL, contents="Count from 1 to 5.")
    show("stream", "|".join(chunk.text or "" for chunk in chunks))


def price(symbol: str) -> float:
    """Give the last price of a symbol in dollars."""
    return {"ACME": 41.5}.get(symbol, 100.0)


def chat(client: genai.Client) -> None:
    """Let the model call a function of this program."""
    config = types.GenerateContentConfig(tools=[price])
    session = client.chats.create(model=MODEL, config=config)
    show("chat", session.send_message("What does ACME cost?").text)


def show(what: str, answer: str | None) -> None:
    """Print the beginning of an answer."""
    print(f"{what:<12} {' '.join((answer or '').split())[:70]}")


if __name__ == "__main__":
    main()
