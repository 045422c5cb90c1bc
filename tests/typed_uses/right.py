"""Correct uses: type checkers accept them, and know these types."""

from typing import assert_type

from google.genai.errors import ClientError

import keyrot_middleware
from keyrot_middleware import (
    HealthStatus,
    KeyManager,
    KeyPoolExhausted,
    KeyrotWarning,
    ModelUsage,
    PoolStatus,
)


class Busy(KeyPoolExhausted):
    """A program's own kind of exhaustion."""


def start() -> None:
    """Every setting is a typed keyword."""
    keyrot_middleware.install()
    keyrot_middleware.install(
        keys=["one", "two"],
        strategy="fill",
        max_wait_s=3,
        allowed_hosts=("127.0.0.1:8080",),
        keys_file=None,
    )
    keyrot_middleware.reset("free_1")
    with keyrot_middleware.bypass(), keyrot_middleware.workload("batch"):
        keyrot_middleware.uninstall()
    with keyrot_middleware.project("batch-jobs"):
        pass
    KeyManager(pool="by-hand", max_retries=0).select_key("gemini-3.1-flash-lite", exclude=("a",))


def ask(error: KeyPoolExhausted) -> ClientError:
    """Annotate, catch, subclass."""
    try:
        raise error
    except KeyPoolExhausted as caught:
        assert_type(caught.reasons, dict[str, str])
        assert_type(caught.retry_in, int | None)
        assert_type(caught.code, int)
        return caught


def look() -> bool:
    """The fields of status() and health are typed."""
    status = keyrot_middleware.status()
    assert_type(status, PoolStatus)
    health = keyrot_middleware.get_key_manager().get_health_status()
    assert_type(health, dict[str, HealthStatus])
    key = status["keys"]["free_1"]
    assert_type(key["available_at"], str | None)
    assert_type(key["used"]["gemini-3.1-flash-lite"], ModelUsage)
    return key["state"] == "cooling_down" and issubclass(KeyrotWarning, UserWarning)
