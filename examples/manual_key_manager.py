"""Select keys by hand and report the results, without install().

For programs that send their own requests. The rules and the state are those of install().
"""

from __future__ import annotations

import sys

from google import genai
from google.genai import errors

from keyrot_middleware import ConfigError, KeyManager, KeyPoolExhausted

MODEL = "gemini-3.8-flash"


def ask(manager: KeyManager, question: str) -> str:
    """Try one key after the other until one gets a response.

    Raises:
        KeyPoolExhausted: No key is available.
        google.genai.errors.APIError: The request failed, and another key would not help.
    """
    while True:
        key = manager.select_key(MODEL, tokens_needed=len(question) // 4)
        client = genai.Client(api_key=key.api_key)
        try:
            response = client.models.generate_content(model=MODEL, contents=question)
        except errors.APIError as error:
            report = manager.report_error(key.key_id, error)
            print(f"{key.key_id}: {report.failure}", file=sys.stderr)
            if not report.try_another_key:
                raise
            # The key is cooling down or rejected: select_key() returns another one.
        else:
            manager.report_success(key.key_id, response=response)
            return f"{key.key_id}: {response.text}"
        finally:
            client.close()


def main() -> int:
    try:
        manager = KeyManager()
        for question in ("What is the RSI?", "What is the MACD?"):
            print(ask(manager, question))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyPoolExhausted as error:
        print(f"no key is available until {error.retry_at}: {error.reasons}", file=sys.stderr)
        return 1
    for key_id, health in manager.get_health_status().items():
        counts = f"{health['success_count']} ok, {health['error_count']} failed"
        until = health["disabled_reason"] or health["cooldown_until"] or "ready"
        print(f"{key_id}: {counts}, {until}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
