"""`keyrot demo` succeeds, and shows what the server received."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        r"question 6 +429 RESOURCE_EXHAUSTED +free_1 quota → paid_1 ok",
        r"question 7 +not reached +paid_1 ok",
        r"chat +not reached +paid_1 ok, paid_1 ok",
        r"answered +5 of 9 +9 of 9",
        r"revoked_1 +1 +key_invalid",
        r"exhausted_1 +1 +quota_day",
        r"free_1 +6 +quota",
        r"paid_1 +5 +ok",
    ):
        assert re.search(rf"^{line} *$", ran.stdout, re.MULTILINE), line
    lines = ran.stdout.splitlines()
    assert len(lines) <= 30
    assert "gen_ai." not in ran.stdout
    assert "keyrot init" in lines[-2]
    name, rest = lines[-1].split(maxsplit=1)
    assert Path(name).exists()  # not on this PATH, as in an environment that is not active
    assert rest.startswith("run your_program.py")


def test_the_picture_shows_this_run_and_loads_nothing() -> None:
    """docs/images/demo.svg has the rows of the demo, and no font or image of another host."""
    text = (ROOT / "docs" / "images" / "demo.svg").read_text("utf-8")
    assert len(text) < 50_000
    for phrase in ("429 RESOURCE_EXHAUSTED", "not reached", "9 of 9", "key_invalid"):
        assert phrase.replace(" ", "&#160;") in text
    assert "@font-face" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    addresses = {"http://www.w3.org/2000/svg", "https://www.textualize.io"}  # names, not loaded
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= addresses
