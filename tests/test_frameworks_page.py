"""docs/frameworks.md says what `make frameworks` runs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_is_that_of_the_pins() -> None:
    """Versions, what a user sets, and errors are those that the harness requires."""
    script = ROOT / "tools" / "frameworks" / "table.py"
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert made.stdout in (ROOT / "docs" / "frameworks.md").read_text("utf-8")
