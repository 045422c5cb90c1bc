"""Check docs, comments, requirements, workflows, names, and locks. `make lint` runs it."""

from __future__ import annotations

import ast
import re
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/*/README.md")]
FOLDERS = ("keyrot_middleware", "tests", "tools", "benchmarks", "examples")
CODE = [
    path
    for folder in FOLDERS
    for kind in ("*.py", "*.js", "*.lua")
    for path in (ROOT / folder).rglob(kind)
]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = [ROOT / "Makefile", ROOT / ".ci" / "run", *ROOT.glob("tools/*.sh"), *WORKFLOWS]
PIN = re.compile(r'[a-z0-9-]+(\[[a-z0-9,]+\])?==[0-9][0-9a-z.]*(; python_version < "[0-9.]+")?')
HASHED = re.compile(r"[a-z0-9-]+==.* \\|    --hash=sha256:\w{64}( \\)?")
LOCK = re.compile(r"(?<![a-z])lock$")
COMMENT = re.compile(r"(?:^|\s)(?:#|//|--|/?\*+) .*$", re.MULTILINE)
"""In a language other than Python."""
FILE = re.compile(
    r"(?<![\w./:#*${<>}~-])(?:\w[\w.-]*/)*\w[\w.-]*\."
    r"(?:py|js|lua|md|html|css|svg|png|sh|in|txt|toml|jsonl?|ya?ml)\b(?!\()"
)
FOLDER = re.compile(r"(?<![\w./:#*${<>}~-])(?:\w[\w.-]*/)+(?![\w*<{$…])")
ACTION = re.compile(r" [\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+")

FOR_CONTRIBUTORS = {"gemini-api.md", "style.md"}
"""Pages that CONTRIBUTING.md leads to, beside the decisions in adr/."""

ELSEWHERE = {
    *("keys.json", "your_program.py", "config.yaml"),
    *("site/llms.txt", "tests/live_api/conftest.py"),
    *("api/", "data/", "files/", "models/", "openai/", "secret/"),
}
"""What comments and pages name and is not ours: a user's files, one that `make docs` writes, one of
Google's, and parts of addresses."""


def metadata() -> dict[str, Any]:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    bare = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", bare, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def links() -> Iterator[str]:
    """Yield links to files or headings that are not there, from pages and from code."""
    repository = re.compile(
        re.escape(metadata()["project"]["urls"]["Repository"]) + "/(?:blob|raw|tree)/main/"
    )
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if repository.match(path):
                target = ROOT / repository.sub("", path)
            elif path.startswith(("https://", "http://")):
                continue
            if not target.exists() or (anchor and anchor not in anchors(target)):
                yield f"{page}: no {link}"
    for path in (*CODE, *SCRIPTS):
        text = path.read_text("utf-8")
        for name, anchor in re.findall(r"\b(docs/[\w/-]+\.md)(?:#([\w-]+))?", text):
            there = (ROOT / name).is_file()
            if not there or (anchor and anchor not in anchors(ROOT / name)):
                yield f"{path}: no {name}#{anchor}"


def comments(path: Path) -> Iterator[str]:
    """Yield the comments and docstrings of a file."""
    if path.suffix != ".py":
        yield from COMMENT.findall(path.read_text("utf-8"))
        return
    with path.open("rb") as file:
        tokens = tokenize.tokenize(file.readline)
        yield from (token.string for token in tokens if token.type == tokenize.COMMENT)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def gone() -> Iterator[str]:
    """Yield files and folders that comments and pages name and that are not there.

    The first folders may be left out: `state/redis.py` is any file whose path ends so.
    """
    folders = (*FOLDERS, "docs", "cassettes", "requirements", ".github", ".ci")
    paths = [*ROOT.glob("*"), *(path for one in folders for path in (ROOT / one).rglob("*"))]
    ends = {
        "/".join(parts[at:]) + "/" * path.is_dir()
        for path in paths
        for parts in [path.relative_to(ROOT).parts]
        for at in range(len(parts))
    }
    texts = [(path, text) for path in (*CODE, *SCRIPTS) for text in comments(path)]
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        texts.append((page, prose))
    for path, text in texts:
        named = {*FILE.findall(text), *FOLDER.findall(text)} - ends - ELSEWHERE
        yield from (f"{path}: it names {name}" for name in sorted(named))


def pages() -> Iterator[str]:
    """Yield tables without a head, decisions without a date, and pages that are not in the site."""
    site = (ROOT / "zensical.toml").read_text("utf-8")
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for table in re.findall(r"(?:^ *\|.*\n)+", text, re.MULTILINE):
            if not re.match(r".*\n *\|[ :|-]+\|\n", table):
                yield f"{page}: a table without a head: {table[:60]}"
        if page.name.startswith("0") and not re.match(r"# \d{4} .*\n\n20\d\d-\d\d-\d\d\n", text):
            yield f"{page}: no number in the title, or no date below it"
        name = page.relative_to(DOCS).as_posix() if page.is_relative_to(DOCS) else ""
        inside = name.startswith("adr/") or name in FOR_CONTRIBUTORS
        if name and not inside and f'"{name}"' not in site:
            yield f"{page} is not in zensical.toml"
    words = len((ROOT / "README.md").read_text("utf-8").split())
    if words > 1_150:
        yield f"README.md has {words} words; allowed: 1,150"


def requirements() -> Iterator[str]:
    """Yield lines of requirements/ that are no pin, and dependencies without an upper bound."""
    for path in sorted((ROOT / "requirements").iterdir()):
        pattern = HASHED if path.name == "dist.txt" else PIN
        lines = path.read_text("utf-8").splitlines()
        yield from (f"{path}: {line}" for line in lines if not pattern.fullmatch(line))
    project = metadata()["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *(text for extra in extras for text in extra)]
    for text in needed:
        if "<" not in text and not text.startswith(("keyrot-middleware", "tzdata")):
            yield f"pyproject.toml: {text} has no upper bound"


def workflows() -> Iterator[str]:
    """Yield actions that are not pinned by commit, and make targets that do not exist."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))
    for path in (*WORKFLOWS, ROOT / ".ci" / "run", ROOT / "CONTRIBUTING.md"):
        text = path.read_text("utf-8")
        for used in re.findall(r"uses:(.*)", text):
            if not ACTION.fullmatch(used):
                yield f"{path}: {used} is not pinned by commit"
        for words in re.findall(r"(?:^|`|: )make ([a-z -]+)", text, re.MULTILINE):
            yield from (f"{path}: no make {word}" for word in words.split() if word not in targets)


def loops_under_locks() -> Iterator[str]:
    """Yield loops that stand directly under `with …lock:`, where a Ctrl-C would skip the release.

    CPython checks for signals where a loop jumps back, and leaves that jump out of what a `with`
    block covers. A function that is called under the lock is covered.
    """
    loops = (ast.For, ast.AsyncFor, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.GeneratorExp)

    def below(node: ast.AST) -> Iterator[int]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, loops):
                yield child.lineno
            if not isinstance(child, functions):
                yield from below(child)

    for path in CODE:
        if path.suffix == ".py" and path.is_relative_to(ROOT / "keyrot_middleware"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                held = node.items if isinstance(node, ast.With | ast.AsyncWith) else []
                names = [ast.unparse(item.context_expr) for item in held]
                if "testing" not in path.parts and any(LOCK.search(name) for name in names):
                    yield from (f"{path}:{line}: a loop under a lock" for line in below(node))


def names_of_tests() -> Iterator[str]:
    """Yield names that two files of tests have: pytest collects only one of them."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    for name, times in names.items():
        if times > 1:
            yield f"tests: {times} files have the name {name}"


def providers() -> Iterator[str]:
    """Yield lines of core/ and state/ that name a provider: those folders are for all of them."""
    name = re.compile(r"gemini|google|vertex|openai|anthropic|pacific", re.IGNORECASE)
    for path in CODE:
        if path.parent.name in ("core", "state") and path.parts[-3] == "keyrot_middleware":
            for line in path.read_text("utf-8").splitlines():
                known = "docs/gemini-api.md" in line or line.startswith("DEFAULT_PLATFORM")
                if name.search(line) and not known:
                    yield f"{path} names a provider: {line.strip()}"


def main() -> int:
    """Print what is wrong; return whether anything is."""
    of_files = (links, gone, pages, requirements, workflows, names_of_tests)
    found = [text for check in (*of_files, loops_under_locks, providers) for text in check()]
    print(*(text.replace(f"{ROOT}/", "") for text in found), sep="\n", end="\n" * bool(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
