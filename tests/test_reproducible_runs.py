"""A test run can be repeated: the same examples and order each time, another seed on demand."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]

_BREAKS_ON_LARGE = """
from hypothesis import given, strategies as st

@given(st.integers(0, 2**32))
def test_small(number):
    assert number < 1000
"""


def _examples() -> list[int]:
    found: list[int] = []

    @given(st.integers())
    def look(number: int) -> None:
        found.append(number)

    look()
    return found


def test_hypothesis_tries_the_same_examples_each_time(request: pytest.FixtureRequest) -> None:
    """By default no example is random, kept from another run, or timed."""
    if request.config.getoption("--hypothesis-profile"):
        pytest.skip("another profile was requested")
    random.seed()
    assert _examples() == _examples()
    now = settings.default
    assert now is not None
    assert (now.derandomize, now.deadline, now.database) == (True, None, None)


def _run(where: Path, *args: str, **variables: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *args],
        cwd=where,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(where), **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_order_is_the_same_each_time(tmp_path: Path) -> None:
    """Two runs without a seed order the tests, and seed `random`, alike."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text("utf-8"))
    lines = [f"def test_{n}(): print('drew', {n}, random.random())" for n in range(30)]
    (tmp_path / "test_it.py").write_text("\n".join(["import random", *lines]))
    path = os.pathsep.join((str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    command = ("-m", "pytest", "-qs", "-p", "no:cacheprovider")
    runs = [_run(tmp_path, *command, PYTHONPATH=path) for _ in range(2)]
    drawn = [re.findall(r"drew .*", output) for _, output in runs]
    assert [code for code, _ in runs] == [0, 0], runs
    assert len(drawn[0]) == 30
    assert drawn[0] == drawn[1]


def test_fuzzing_prints_how_to_repeat_a_failure(tmp_path: Path) -> None:
    """The seed in the output of a failure finds the same failure again."""
    profile = "from hypothesis import settings\nsettings.register_profile('fuzz', database=None)\n"
    (tmp_path / "conftest.py").write_text(profile)
    (tmp_path / "test_it.py").write_text(_BREAKS_ON_LARGE)
    fuzz = str(ROOT / "tools" / "fuzz.py")
    code, output = _run(tmp_path, fuzz, "-p", "no:cacheprovider", FUZZ_S="60")
    found = re.search(r"make fuzz SEED=(\d+)", output)
    assert code == 1, output
    assert found is not None
    again, repeated = _run(tmp_path, fuzz, "-p", "no:cacheprovider", SEED=found[1])
    assert again == 1
    assert f"== seed {found[1]}" in repeated
    assert "number=1000" in repeated


def test_fuzzing_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """With a used-up budget no other round begins."""
    profile = "from hypothesis import settings\nsettings.register_profile('fuzz', database=None)\n"
    (tmp_path / "conftest.py").write_text(profile)
    (tmp_path / "test_it.py").write_text(_BREAKS_ON_LARGE.replace("1000", "2**33"))
    code, output = _run(tmp_path, str(ROOT / "tools" / "fuzz.py"), FUZZ_S="0.001")
    assert code == 0, output
    assert "== 1 rounds, no failure" in output
