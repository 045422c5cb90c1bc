"""Print the lines of code of the package, per folder: no blank line, comment or docstring counts.

`make lint` prints the total, which is no bar. `--folders` prints each folder.
Of tests and tools all lines count.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "keyrot_middleware"
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def count_python(text: str) -> int:
    """Return the number of lines of code in a Python module."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A docstring, or the sentence below a field.
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def count_lua(text: str) -> int:
    """Return the number of lines of a Lua script that are neither blank nor a comment."""
    stripped = (line.strip() for line in text.splitlines())
    return sum(1 for line in stripped if line and not line.startswith("--"))


def lines_in(folder: str) -> int:
    """Return the number of all lines of the programs in a folder of the repository."""
    paths = (PACKAGE.parent / folder).rglob("*")
    return sum(
        len(path.read_text("utf-8").splitlines()) for path in paths if path.suffix in (".py", ".sh")
    )


def main(arguments: list[str]) -> None:
    """Print the counts."""
    folders: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE).parts
        folders[inside[0] if len(inside) > 1 else "(top level)"] += count_python(path.read_text())
    if "--folders" in arguments:
        for name, lines in sorted(folders.items()):
            print(f"{lines:7,} {name}")
    files = sum(1 for _ in PACKAGE.rglob("*.py"))
    lua = sum(count_lua(path.read_text()) for path in PACKAGE.rglob("*.lua"))
    total = folders.total() - folders["testing"]
    print(f"{total:,} lines of code without testing/, {lua} of Lua, {files} files")
    tests, tools = lines_in("tests"), lines_in("tools") + lines_in("benchmarks")
    print(f"{tests:,} lines of tests, {tools:,} of tools and benchmarks")


if __name__ == "__main__":
    main(sys.argv[1:])
