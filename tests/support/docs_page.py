"""Run the Python of one page from top to bottom, as a reader would type it.

`python -m support.docs_page PAGE` is a program of its own, so that what a page installs or sets up
is gone afterwards. A block with a file name is written to that file in the working directory, and
run by whatever runs such files.
"""

import os
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from support.docs_blocks import Block, blocks


def run_page(page: Path) -> None:
    """Execute the snippets in one namespace, in order.

    Raises:
        Exception: Whatever a snippet raises; its traceback names the line of the page.
        AssertionError: If a snippet does not print the output on the page.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    os.environ.setdefault("PAGE_TOKEN", "a-token-of-the-tests-0123")
    for block in blocks(page):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.code, "utf-8")
        elif block.language == "python":
            _execute(page, block, names)


def _execute(page: Path, block: Block, names: dict[str, Any]) -> None:
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    printed = StringIO()
    with redirect_stdout(printed):
        exec(code, names)  # noqa: S102 - running the page's code is the purpose
    if block.expected_output is not None:
        pattern = re.escape(block.expected_output).replace("…", ".*?")
        found = printed.getvalue()
        assert re.fullmatch(pattern, found, re.DOTALL), f"line {block.line} printed:\n{found}"


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
