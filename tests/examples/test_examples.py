"""Each example does what its docstring promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from keyrot_middleware.testing import FakeGemini, Reply

Example = Callable[..., Any]
KEYROT_RUN = ("-m", "keyrot_middleware", "run")
STRATEGY = "def generate_signals(prices):\n    return (prices.close < 30).astype(int)"
BROKEN = "def generate_signals(prices:\n    return 1"


@pytest.mark.parametrize("name", ["plain_program.py", "plain_program_async.py"])
def test_plain_programs_run_with_a_pool(
    example: Example, service: FakeGemini, pool: dict[str, str], name: str
) -> None:
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


def test_keys_are_selected_by_hand(
    example: Example, service: FakeGemini, pool: dict[str, str]
) -> None:
    """The manual program reports failures and does not lease the failed keys again."""
    ran = example("manual_key_manager.py", settings=pool)
    assert ran.returncode == 0, ran.stderr
    reported = [line for line in ran.stderr.splitlines() if line.startswith("key_")]
    assert reported == ["key_1: quota_minute", "key_2: key_invalid"]
    assert "KeyrotWarning: pool default, gemini-flash-latest: key key_2 is rejected" in ran.stderr
    assert ran.stdout.splitlines()[:2] == ["key_3: ok from good"] * 2
    assert "key_2: 0 ok, 1 failed, key_invalid" in ran.stdout
    assert [service.sent(label) for label in ("exhausted", "dead", "good")] == [1, 1, 2]


def test_a_bad_request_is_not_tried_with_every_key(
    example: Example, service: FakeGemini, pool: dict[str, str]
) -> None:
    """The manual program raises a failure that penalizes no key after one request."""
    service.clear_scripts()
    service.always_any(Reply.BAD_REQUEST)
    ran = example("manual_key_manager.py", settings=pool)
    assert ran.returncode == 1
    assert "400 INVALID_ARGUMENT" in ran.stderr
    assert service.count() == 1


def test_no_key_left_is_reported(
    example: Example, service: FakeGemini, pool: dict[str, str]
) -> None:
    """The manual program prints until when no key is available, and why."""
    service.always("good", Reply.QUOTA_DAY)
    ran = example("manual_key_manager.py", settings=pool)
    assert ran.returncode == 1
    assert "no key is available until 20" in ran.stderr
    assert "quota_day" in ran.stderr
    assert example("manual_key_manager.py", settings={}).returncode == 2
    ran = example("manual_key_manager.py", settings={**pool, "ENABLE_KEY_ROTATION": "false"})
    assert ran.returncode == 2
    assert "switched off by ENABLE_KEY_ROTATION" in ran.stderr


@pytest.mark.parametrize("answer", [STRATEGY, f"Here it is:\n```python\n{STRATEGY}\n```\nBye."])
def test_a_strategy_is_generated_from_a_pool(
    example: Example, service: FakeGemini, pool: dict[str, str], answer: str
) -> None:
    """Code is returned, with or without Markdown around it."""
    service.answer(answer)
    ran = example("gemini_strategy_generator.py", "Buy on RSI < 30", settings=pool)
    assert (ran.returncode, ran.stdout) == (0, f"{STRATEGY}\n"), ran.stderr
    assert "Buy on RSI < 30" in str(service.log[-1].body["contents"])


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_a_strategy_is_generated_with_one_key(
    example: Example, service: FakeGemini, enabled: str
) -> None:
    """One key does the same, with rotation and with rotation switched off."""
    service.answer(STRATEGY)
    one = {"GEMINI_API_KEY": service.key("good").value, "ENABLE_KEY_ROTATION": enabled}
    ran = example("gemini_strategy_generator.py", "Buy on RSI < 30", settings=one)
    assert (ran.returncode, ran.stdout) == (0, f"{STRATEGY}\n"), ran.stderr
    assert service.count() == 1


def test_code_that_does_not_compile_is_corrected_once(
    example: Example, service: FakeGemini, pool: dict[str, str]
) -> None:
    """The second request contains the code and the error."""
    service.answer(lambda body: STRATEGY if "does not compile" in str(body) else BROKEN)
    ran = example("gemini_strategy_generator.py", "Buy on RSI < 30", settings=pool)
    assert (ran.returncode, ran.stdout) == (0, f"{STRATEGY}\n"), ran.stderr
    prompts = [str(r.body["contents"]) for r in service.log if r.status == 200]
    assert len(prompts) == 2
    assert "line 1: '(' was never closed" in prompts[1]
    assert "def generate_signals(prices:" in prompts[1]


def test_failures_are_reported_in_one_line(
    example: Example, service: FakeGemini, pool: dict[str, str]
) -> None:
    """No code twice, no text, no key, no available key: a message and an exit code each."""
    name = "gemini_strategy_generator.py"
    service.answer("I cannot do that.")
    runs = [
        example(name, "Buy", settings=pool),
        example(name, " ", settings=pool),
        example(name, settings=pool),
        example(name, "Buy", settings={}),
    ]
    service.always("good", Reply.KEY_LEAKED)
    runs.append(example(name, "Buy", settings={**pool, "KEYROT_MAX_WAIT_S": "0"}))
    assert [ran.returncode for ran in runs] == [1, 1, 2, 2, 1]
    assert [ran.stdout for ran in runs] == [""] * 5
    assert not any("Traceback" in ran.stderr for ran in runs)
    assert "twice wrote code that does not compile: line 1: " in runs[0].stderr
    assert "Buy on RSI < 30" in runs[1].stderr
    assert "GEMINI_API_KEYS" in runs[3].stderr
    warned, message = runs[4].stderr.partition("\nGemini: 4")[::2]
    assert message  # after the warning of a program without logging
    assert "KeyrotWarning" in warned
    assert "is rejected" in warned
