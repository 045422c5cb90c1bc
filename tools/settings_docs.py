"""Write the tables of docs/quick-reference.md and .env.example from the tables of the code.

`--check` writes nothing, and fails where a file differs: `make lint` runs it.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

from keyrot_middleware.keys_file import KeySpec
from keyrot_middleware.settings import ARGUMENTS, ENV_NAMES, Settings

ROOT = Path(__file__).parent.parent
QUICK, EXAMPLE = ROOT / "docs" / "quick-reference.md", ROOT / ".env.example"
HEAD = """\
# Copy this file to .env and fill it in. Commented lines show defaults and examples.
# An argument of install() overrides the environment, which overrides this file.

# The value of the key whose key_id in keys.json is flash_01, flash_02, …
GEMINI_KEY_flash_01=
GEMINI_KEY_flash_02=
# keys_example.json has "secret": "env://TEAM_PRO_KEY" for pro_01.
TEAM_PRO_KEY=
"""
TAIL = """
# What configures a secret store itself (VAULT_ADDR, AWS_REGION, AZURE_KEY_VAULT_URL, …) belongs in
# the environment and is not read from this file; docs/stores/ explains each. These are ours:
#KEYROT_VAULT_PLACE=secret/keyrot
#KEYROT_VAULT_ALLOW_HTTP=false
#KEYROT_AWS_SECRET=keyrot
#KEYROT_GCP_SECRET=keyrot
"""


def written(default: Any) -> str:
    """Return a default as it is written in a file."""
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, int | float) else str(default)


def meanings(table: type) -> dict[str, str]:
    """Return what the docstring below each field says."""
    (found,) = ast.parse(inspect.getsource(table)).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(found.body)  # type: ignore[attr-defined]  # it is a class
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def settings_table() -> str:
    """Return the table of settings."""
    rows = ["| Variable | Argument | Default | Meaning |", "|---|---|---|---|"]
    for name, meaning in meanings(Settings).items():
        default = written(Settings.model_fields[name].default)
        cells = (ENV_NAMES[name], name if name in ARGUMENTS else "", default)
        rows.append(f"| {' | '.join(f'`{cell}`' if cell else '-' for cell in cells)} | {meaning} |")
    return "\n".join(rows)


def keys_table() -> str:
    """Return the table of fields of keys.json."""
    rows = ["| Field | Default | Meaning |", "|---|---|---|"]
    for name, meaning in meanings(KeySpec).items():
        field = KeySpec.model_fields[name]
        default = "required" if field.is_required() else written(field.default) or "-"
        rows.append(f"| `{name}` | {default} | {meaning} |")
    return "\n".join(rows)


def example() -> str:
    """Return .env.example."""
    parts = [HEAD]
    for name, meaning in meanings(Settings).items():
        plain = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", meaning).replace("`", "")
        text = "\n# ".join(textwrap.wrap(plain, 100, break_on_hyphens=False))
        default = written(Settings.model_fields[name].default)
        value = "keys.json" if name == "keys_file" else default
        parts.append(f"\n# {text}\n#{ENV_NAMES[name]}={value}\n")
    return "".join([*parts, TAIL])


def with_table(page: str, heading: str, table: str) -> str:
    """Return a page with another table below a heading."""
    return re.sub(
        rf"(?ms)^(## {re.escape(heading)}\n.*?)^\|.*?(?=\n\n|\n\Z)",
        lambda found: found[1] + table,
        page,
        count=1,
    )


def main() -> int:
    """Write or compare the files."""
    page = with_table(QUICK.read_text("utf-8"), "Settings", settings_table())
    made = {QUICK: with_table(page, "keys.json", keys_table()), EXAMPLE: example()}
    differing = [path for path, text in made.items() if path.read_text("utf-8") != text]
    if "--check" in sys.argv:
        for path in differing:
            print(f"{path.relative_to(ROOT)} differs: run tools/settings_docs.py")
        return bool(differing)
    for path in differing:
        path.write_text(made[path], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
