"""Record the cassettes of secret stores: ``python tools/record_secret_cassettes.py [STORE…]``.

Each store has a module among the tests with a function ``record()``: it starts the server of the
store and returns the text of each cassette by name, with made-up secrets in place of real ones. A
recording with text that looks like a key is refused, and the old file stays.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from keyrot_middleware.core.text import holds_key

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "cassettes" / "secrets"
CASSETTES = {"vault": "support.vault_cassettes"}
"""The module of each store; under tests/."""

sys.path.insert(0, str(ROOT / "tests"))


def main(stores: list[str]) -> int:
    """Record the named stores, or all; return the exit code."""
    refused = 0
    for store in stores or CASSETTES:
        folder = FOLDER / store
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in import_module(CASSETTES[store]).record().items():
            if holds_key(text):
                print(f"{store}/{name}: a key is in the recording; left as it was", file=sys.stderr)
                refused += 1
                continue
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
            print(f"{store}/{name}: recorded")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
