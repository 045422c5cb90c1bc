"""An ordinary google-genai program: questions, a stream, a chat with a tool.

It is written for one key, in GEMINI_API_KEY, without a pool.
"""

from __future__ import annotations

from google import genai
from google.genai import types

MODEL = "gemini-3.8-flash"
TERMS = ("RSI", "MACD", "drawdown", "slippage", "leverage", "stop-loss", "backtest")


def main() -> None:
    """Ask seven questions, stream one answer, and chat."""
    client = genai.Client()
    for number, term in enumerate(TERMS, 1):
        ask(client, number, term)
    stream(client)
    chat(client)


def ask(client: genai.Client, number: int, term: str) -> None:
    """Ask for one sentence."""
    prompt = f"Explain {term} to a trader, in one short sentence."
    print_answer(
        f"question {number}", client.models.generate_content(model=MODEL, contents=prompt).text
    )


def stream(client: genai.Client) -> None:
    """Stream one answer."""
    chunks = client.models.generate_content_stream(model=MODEL, contents="Count from 1 to 5.")
    print_answer("stream", "|".join(chunk.text or "" for chunk in chunks))


def price(symbol: str) -> float:
    """Return the last price of a symbol in dollars."""
    return {"ACME": 41.5}.get(symbol, 100.0)


def chat(client: genai.Client) -> None:
    """Let the model call a function of this program."""
    config = types.GenerateContentConfig(tools=[price])
    session = client.chats.create(model=MODEL, config=config)
    print_answer("chat", session.send_message("What does ACME cost?").text)


def print_answer(title: str, answer: str | None) -> None:
    """Print the beginning of an answer."""
    print(f"{title}: {' '.join((answer or '').split())[:70]}")


if __name__ == "__main__":
    main()
