"""Generate the Python code of a trading strategy from a sentence.

python examples/gemini_strategy_generator.py "Buy on RSI < 30"

The class below does not depend on the pool: it works with one key or with several. The generated
code is compiled, but not run. Read it before you run it.
"""

from __future__ import annotations

import re
import sys

from google import genai
from google.genai import errors, types

import keyrot_middleware

MODEL = "gemini-3.8-flash"

RULES = """\
You write trading strategies in Python. Answer with one Python module and nothing else: no prose
and no Markdown. It defines `generate_signals(prices)`, which takes a pandas DataFrame with the
columns open, high, low, close and volume, and returns a pandas Series of 1 (buy), -1 (sell) and
0 (hold) with the same index. Use pandas and numpy only. Read no files and open no connections."""

_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


class StrategyError(Exception):
    """The model returned no usable strategy."""


class GeminiStrategyGenerator:
    """Turns descriptions into code with a google-genai client."""

    def __init__(self, client: genai.Client | None = None, model: str = MODEL) -> None:
        self._client = client or genai.Client()
        self._model = model
        self._config = types.GenerateContentConfig(system_instruction=RULES, temperature=0)

    def generate_strategy(self, text: str) -> str:
        """Return the strategy that *text* describes. Code that does not compile is corrected once.

        Returns:
            Python code that compiles.

        Raises:
            StrategyError: The text is empty, or the code does not compile.
            google.genai.errors.APIError: The API failed, with a pool for every key.
        """
        if not text.strip():
            raise StrategyError('describe a strategy, such as "Buy on RSI < 30"')
        code = self._ask(f"Strategy: {text.strip()}")
        problem = compile_error(code)
        if problem:
            code = self._ask(
                f"Strategy: {text.strip()}\n\nThis code does not compile: {problem}\n\n{code}\n\n"
                "Write the whole module again, corrected."
            )
            problem = compile_error(code)
        if problem:
            raise StrategyError(f"the model twice wrote code that does not compile: {problem}")
        return code

    def _ask(self, prompt: str) -> str:
        response = self._client.models.generate_content(
            model=self._model, contents=prompt, config=self._config
        )
        return extract_code(response.text or "")


def extract_code(answer: str) -> str:
    """Return the code between Markdown fences, or the whole answer."""
    blocks = _FENCE.findall(answer)
    return "\n\n".join(block.strip("\n") for block in blocks) if blocks else answer.strip()


def compile_error(code: str) -> str | None:
    """Return why *code* does not compile, or None if it does."""
    if not code.strip():
        return "the answer is empty"
    try:
        compile(code, "<strategy>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return None


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print('usage: gemini_strategy_generator.py "Buy on RSI < 30"', file=sys.stderr)
        return 2
    try:
        keyrot_middleware.install()
        generator = GeminiStrategyGenerator()
    except ValueError as error:  # a wrong setting, or no key
        print(f"Check GEMINI_API_KEYS or GEMINI_API_KEY: {error}", file=sys.stderr)
        return 2
    try:
        print(generator.generate_strategy(arguments[0]))
    except StrategyError as error:
        print(f"No strategy: {error}", file=sys.stderr)
        return 1
    except errors.APIError as error:
        print(f"Gemini: {error.code} {error.status}: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
