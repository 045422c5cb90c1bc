"""Each example does what its docstring promises."""

from collections.abc import Callable
from typing import Any

import pytest

from keyrot_middleware.testing import FakeGemini

Example = Callable[..., Any]
KEYROT_RUN = ("-m", "keyrot_middleware", "run")
STRATEGY = "def generate_signals(prices):\n    return (prices.close < 30).astype(int)"
BROKEN = "def generate_signals(prices:\n    return 1"


@pytest.mark.parametrize("name", ["plain_program.py", "plain_program_async.py"])
def test_plain_programs_run_with_a_pool(example, service, pool, name) -> None:
    """Under `keyrot run` all their calls are answered despite an exhausted and a dead key."""
    ran = example(name, settings=pool, by=KEYROT_RUN)
    assert ran.returncode == 0, ran.stderr
    assert "stream: ok from good" in ran.stdout
    assert ran.stdout.count("ok from good") == (3 if name == "plain_program.py" else 6)
    assert all(request.key == "good" for request in service.log if request.status == 200)
    # Once each; more only where several were in flight before the first answer arrived.
    most = 1 if name == "plain_program.py" else 4
    assert 1 <= service.sent("exhausted") <= most
    assert 1 <= service.sent("dead") <= most


@pytest.mark.parametrize("name", ["plain_program.py", "plain_program_async.py"])
def test_plain_programs_run_without_us(example: Example, service: FakeGemini, name: str) -> None:
    """Under plain python they run with one key: they contain no line of ours."""
    ran = example(name, settings={"GEMINI_API_KEY": service.key("good").value})
    assert ran.returncode == 0, ran.stderr
    assert "chat:" in ran.stdout


def test_the_trace_is_printed(example: Example, pool: dict[str, str]) -> None:
    """The spans of the call show both failed attempts and the good one."""
    ran = example("install_with_trace.py", settings=pool)
    assert ran.returncode == 0, ran.stderr
    assert "keyrot.attempt.count=3" in ran.stdout
    attempts = [line.split()[1] for line in ran.stdout.splitlines() if " attempt " in line]
    assert attempts == ["key_1", "key_2", "key_3"]


def test_keys_are_selected_by_hand(example, service, pool) -> None:
    """The manual program reports failures and does not lease the failed keys again."""
    ran = example("manual_key_manager.py", settings=pool)
    assert ran.returncode == 0, ran.stderr
    reported = [line for line in ran.stderr.splitlines() if line.startswith("key_")]
    assert reported == ["key_1: quota_day", "key_2: key_invalid"]
    assert "KeyrotWarning: pool default, gemini-3.8-flash: key key_2 is rejected" in ran.stderr
    assert ran.stdout.splitlines()[:2] == ["key_3: ok from good"] * 2
    assert "key_2: 0 ok, 1 failed, key_invalid" in ran.stdout
    assert [service.sent(label) for label in ("exhausted", "dead", "good")] == [1, 1, 2]


@pytest.mark.parametrize("answer", [STRATEGY, f"Here it is:\n```python\n{STRATEGY}\n```\nBye."])
def test_a_strategy_is_generated_from_a_pool(example, service, pool, answer) -> None:
    """Code is returned, with or without Markdown around it."""
    service.answer(answer)
    ran = example("gemini_strategy_generator.py", "Buy on RSI < 30", settings=pool)
    assert (ran.returncode, ran.stdout) == (0, f"{STRATEGY}\n"), ran.stderr
    assert "Buy on RSI < 30" in str(service.log[-1].body["contents"])
