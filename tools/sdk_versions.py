"""Run README's quick start, and the tests of this project that use the SDK, with versions of it.

``python tools/sdk_versions.py [VERSION …]``: needs ``.venv``, which has the newest version; the
packages of each other version go to ``.venv-sdk-VERSION`` and stay there. With the lowest version
only the quick start is run (`make lowest` runs tests with it). Exit code 0: it runs everywhere, and
every test passes, or is skipped with what its SDK version does not have.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from venvs import ROOT, built, pins

from keyrot_middleware.testing import FakeGemini

LOWEST = "1.65.0"
"""What pyproject.toml allows."""
OLDER = ("1.75.0", "2.34.0")
"""Beside the newest, which requirements/demo.txt pins: one of each major version before it."""
TESTS = (*("tests/clients/genai", "tests/testing", "tests/telemetry", "tests/cassettes"),)
"""What meets the SDK; the rest of the tests would say the same with any version."""
SDK = "google-genai=="
LIMIT_S = 120
"""Of the quick start, on a busy machine."""


def main() -> int:
    """Run all with each version, one after the other, and return the exit code."""
    demo, dev = (pins(ROOT / "requirements" / f"{name}.txt") for name in ("demo", "dev"))
    newest = next(line for line in demo if line.startswith(SDK)).removeprefix(SDK)
    others, failed = [line for line in (*demo, *dev) if not line.startswith(SDK)], list[str]()
    for version in sys.argv[1:] or (LOWEST, *OLDER, newest):
        python = ROOT / ".venv" / "bin" / "python"
        if version != newest:
            pinned = [SDK + version, *(() if version == LOWEST else others)]
            python = built(ROOT / f".venv-sdk-{version}", pinned, editable=True)
        print(f"== google-genai {version}", flush=True)
        runs = run_quick_start(python)
        if version != LOWEST:
            pytest = [str(python), "-m", "pytest", "-n", "4", "--dist", "loadfile", "-q", *TESTS]
            runs = not subprocess.run(pytest, cwd=ROOT, check=False).returncode and runs
        if not runs:
            failed.append(version)
    print(f"failed with google-genai {', '.join(failed)}" if failed else "all passed")
    return bool(failed)


def run_quick_start(python: Path) -> bool:
    """Run README's first program as a stranger has it; return whether the model answers.

    Its environment has keys and, as `keyrot fake` prints them, the address of the fake.
    """
    code = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    program = next(text for text in code if "genai.Client()" in text)
    with FakeGemini() as gemini, tempfile.TemporaryDirectory() as folder:
        given = {
            "PATH": os.environ["PATH"],
            "GEMINI_API_KEYS": ",".join(gemini.add_key(f"key_{n}").value for n in (1, 2, 3)),
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
        }
        command = [str(python), "-c", program]
        done = subprocess.run(command, cwd=folder, env=given, check=False, timeout=LIMIT_S)
        path = gemini.log[-1].path if gemini.log else "nothing was sent"
        print(f"quick start: exit code {done.returncode}, {path}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
