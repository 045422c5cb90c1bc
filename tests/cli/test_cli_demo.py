"""`keyrot demo` succeeds, and shows what the server received."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keyrot_middleware.testing import FakeGemini, Reply

Keyrot = Callable[..., Any]
ROOT = Path(__file__).parents[2]


def test_the_demo_runs_a_program_without_and_with_the_pool(keyrot: Keyrot, tmp_path: Path) -> None:
    """One key fails at question 6, a pool answers all; short, no spans, and what to do next."""
    (tmp_path / "keys.json").write_text("not even JSON: the demo must not look at it")
    ran = keyrot("demo", GEMINI_API_KEYS="mine", KEYROT_STRATEGY="nonsense", PATH="")
    assert ran.returncode == 0, ran.stderr
    for line in (
        r"question 1 +ok +revoked_1 key_invalid → exhausted_1 quota_day → free_1 ok",
        r"question 5 +ok +free_1 ok",
        r"question 6 +429 RESOURCE_EXHAUSTED +free_1 quota_minute → paid_1 ok",
        r"question 7 +not reached +paid_1 ok",
        r"chat +not reached +paid_1 ok, paid_1 ok",
        r"answered +5 of 9 +9 of 9",
        r"revoked_1 +rejected +key_invalid +in 1[45] min +1",
        r"exhausted_1 +cooling_down +quota_day +in .* +1",
        r"free_1 +cooling_down +quota_minute +in \d+ s +6",
        r"paid_1 +available +now +5",
    ):
        assert re.search(rf"^{line} *$", ran.stdout, re.MULTILINE), line
    lines = ran.stdout.splitlines()
    assert len(lines) <= 30
    assert "gen_ai." not in ran.stdout
    assert "keyrot init" in lines[-2]
    name, rest = lines[-1].split(maxsplit=1)
    assert Path(name).exists()  # not on this PATH, as in an environment that is not active
    assert rest.startswith("run your_program.py")


def test_verbose_shows_the_spans_of_one_call(keyrot: Keyrot) -> None:
    """`--verbose` adds the spans of the call with the most attempts."""
    ran = keyrot("demo", "--verbose")
    assert ran.returncode == 0, ran.stderr
    assert "attempt exhausted_1  INTERNAL  ERROR 429 quota_day" in ran.stdout


def test_without_the_tracing_sdk_only_the_spans_are_missing(
    keyrot: Keyrot, hide: Callable[[str], dict[str, str]]
) -> None:
    """The extra `cli` alone shows everything else, and --verbose names the extra for spans."""
    ran = keyrot("demo", "--verbose", **hide("opentelemetry.sdk"))
    assert ran.returncode == 0, ran.stderr
    assert "9 of 9" in ran.stdout
    assert "pip install 'keyrot-middleware[otlp]'" in ran.stdout


def test_the_picture_shows_this_run_and_loads_nothing() -> None:
    """docs/images/demo.svg has the rows of the demo, and no font or image of another host."""
    text = (ROOT / "docs" / "images" / "demo.svg").read_text("utf-8")
    assert len(text) < 50_000
    for phrase in ("429 RESOURCE_EXHAUSTED", "not reached", "9 of 9", "cooling_down"):
        assert phrase.replace(" ", "&#160;") in text
    assert "@font-face" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    addresses = {"http://www.w3.org/2000/svg", "https://www.textualize.io"}  # names, not loaded
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= addresses


def test_live_uses_the_settings_of_the_user(keyrot: Keyrot, service: FakeGemini) -> None:
    """`--live` takes keys and hosts from the settings, and shows the attempts."""
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
    assert "key_1 key_invalid → key_2 ok" in ran.stdout
    assert (service.sent("dead"), service.sent("good")) == (1, 10)


def test_live_shows_a_program_that_fails(keyrot: Keyrot, service: FakeGemini) -> None:
    """If no key is available, the program's own error and exit code are shown."""
    key = service.add_key("dead")
    service.always("dead", Reply.KEY_INVALID)
    ran = keyrot(
        *("demo", "--live"),
        GEMINI_API_KEYS=key.value,
        GOOGLE_GEMINI_BASE_URL=service.url,
        KEYROT_ALLOWED_HOSTS=service.host,
    )
    assert ran.returncode == 1
    assert "KeyPoolExhausted: 400 INVALID_ARGUMENT" in ran.stdout
    assert key.value not in ran.stdout + ran.stderr


def test_live_without_a_key_names_what_to_set(keyrot: Keyrot) -> None:
    """No key, or a wrong setting, is one line on stderr and exit code 2."""
    ran = keyrot("demo", "--live")
    assert ran.returncode == 2
    assert "set GEMINI_API_KEYS" in ran.stderr
    ran = keyrot("demo", "--live", KEYROT_POOL="a b")
    assert ran.returncode == 2
    assert "KEYROT_POOL" in ran.stderr
