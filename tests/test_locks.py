"""A lock is never left taken by an interrupt: no loop stands directly under one.

CPython checks for signals where a loop jumps back, and leaves that jump out of what a `with` block
covers: a Ctrl-C there skips the release. A function that is called under the lock is covered.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import keyrot_middleware

PACKAGE = Path(keyrot_middleware.__file__).parent
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.GeneratorExp)


def loops_under_locks(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of loops in a block of `with …lock:`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith) and any(
            re.search(r"(?<![a-z])lock$", ast.unparse(item.context_expr)) for item in node.items
        ):
            yield from _loops(node)


def _loops(node: ast.AST) -> Iterator[int]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, LOOPS):
            yield child.lineno  # type: ignore[attr-defined]
        if not isinstance(child, FUNCTIONS):
            yield from _loops(child)


def test_no_loop_is_directly_under_a_lock() -> None:
    """In no module of the package but the fakes of tests."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if "testing" not in path.parts
        for line in loops_under_locks(ast.parse(path.read_text("utf-8")))
    ]
    assert found == []


def test_such_a_loop_is_found() -> None:
    """Also a comprehension, which is part of the function from Python 3.12 on."""
    code = "with self._lock:\n    if x:\n        [a for a in b]\n    sum(a for a in b)\n"
    assert list(loops_under_locks(ast.parse(code))) == [3]
