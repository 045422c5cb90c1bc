"""`keyrot demo`: it comes to a good end, and what it shows is what the server saw."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keyrot_middleware.testing import FakeGemini, Reply

Keyrot = Callable[..., Any]


def test_it_shows_the_attempts_of_each_call(keyrot: Keyrot, tmp_path: Path) -> None:
    """One key alone fails; with the pool all calls are answered; two runs tell the same story."""
    (tmp_path / "keys.json").write_text("not even JSON: the demo must not look at it")
    for _ in range(2):
        ran = keyrot("demo", GEMINI_API_KEYS="mine", KEYROT_STRATEGY="nonsense")
        assert ran.returncode == 0, ran.stderr
        alone, _, pooled = ran.stdout.partition("keyrot run program.py")
        assert "429 RESOURCE_EXHAUSTED" in alone
        assert "question 7   ok from paid_1" in pooled
        assert "chat         ok from paid_1" in pooled
        first = "revoked_1 key_invalid (400) → exhausted_1 quota_day (429) → free_1 ok"
        assert first in pooled
        assert "free_1 quota_minute (429) → paid_1 ok" in pooled
        assert re.search(r"revoked_1 +rejected: key_invalid", pooled)
        assert re.search(r"exhausted_1 +cooling_down for .*20 rpd", pooled)
        assert re.search(r"paid_1 +available", pooled)
        assert "attempt exhausted_1  INTERNAL  ERROR 429 quota_day" in pooled
        assert "revoked_1 1, exhausted_1 1, free_1 6, paid_1 5." in pooled


def test_it_goes_on_without_the_tracing_sdk(
    keyrot: Keyrot, hide: Callable[[str], dict[str, str]]
) -> None:
    """Where the OpenTelemetry SDK is missing it says so and shows the rest."""
    ran = keyrot("demo", **hide("opentelemetry.sdk"))
    assert ran.returncode == 0, ran.stderr
    assert "pip install 'keyrot-middleware[otlp]'" in ran.stdout


def test_live_uses_the_settings_of_the_user(keyrot: Keyrot, service: FakeGemini) -> None:
    """`--live` takes keys and hosts from the settings, and shows their way."""
    keys = [service.add_key(label) for label in ("dead", "good")]
    service.always("dead", Reply.KEY_INVALID)
    ran = keyrot(
        *("demo", "--live"),
        GEMINI_API_KEYS=",".join(key.value for key in keys),
        KEYROT_STRATEGY="fill",
        GOOGLE_GEMINI_BASE_URL=service.url,
        KEYROT_ALLOWED_HOSTS=service.host,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "key_1 key_invalid (400) → key_2 ok" in ran.stdout
    assert (service.sent("dead"), service.sent("good")) == (1, 10)


def test_live_shows_a_program_that_fails(keyrot: Keyrot, service: FakeGemini) -> None:
    """Where no key serves, the program's own error and exit code come out."""
    key = service.add_key("dead")
    service.always("dead", Reply.KEY_INVALID)
    ran = keyrot(
        *("demo", "--live"),
        GEMINI_API_KEYS=key.value,
        GOOGLE_GEMINI_BASE_URL=service.url,
        KEYROT_ALLOWED_HOSTS=service.host,
    )
    assert ran.returncode == 1
    assert "ClientError: 400 INVALID_ARGUMENT" in ran.stdout
    assert key.value not in ran.stdout + ran.stderr


def test_live_without_a_key_says_what_to_set(keyrot: Keyrot) -> None:
    """No key, or a wrong setting, is one line on stderr and exit code 2."""
    ran = keyrot("demo", "--live")
    assert ran.returncode == 2
    assert "set GEMINI_API_KEYS" in ran.stderr
    ran = keyrot("demo", "--live", KEYROT_POOL="a b")
    assert ran.returncode == 2
    assert "KEYROT_POOL" in ran.stderr
