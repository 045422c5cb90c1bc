"""A Python program as the interpreter finds and runs it: file, directory, zip, module, stdin.

The standard library's runpy takes `__main__` away again when the program's last line was run,
though threads and exit handlers may still go on and look into it. So the program is found and
run here, in a `__main__` that stays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import (
    BuiltinImporter,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

__all__ = ["Program", "ProgramError", "execute", "of_module", "of_path", "only_its_frames"]


_STARTERS = frozenset({__file__, str(Path(__file__).with_name("run.py"))})


class ProgramError(Exception):
    """Say why there is no program; `exit_code` is the one that python itself gives."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is ready to run."""

    code: CodeType
    argv0: str
    attributes: dict[str, Any]
    """What its `__main__` says of itself: `__file__`, `__spec__`, …"""


def of_path(path: str) -> Program:
    """Load a script, or the `__main__.py` in a directory or zip file; set `sys.path[0]`.

    A script may be compiled (`.pyc`); `-` is what comes in on stdin.

    Raises:
        ProgramError: If there is no such file, or no program in it.
        SyntaxError: If the script is none.
    """
    if path == "-":
        return _of_stdin()
    file = os.path.abspath(path)  # python resolves no links in __file__
    inside = PathFinder.find_spec("__main__", [file])
    if inside is not None:
        _lead_path(file)
        return _of_spec(inside, argv0=path)
    if Path(file).is_dir():
        raise ProgramError(f"can't find '__main__' module in {file!r}", 1)
    try:
        source = Path(file).read_bytes()
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        raise ProgramError(f"can't open file {file!r}: {reason}", 2) from None
    _lead_path(str(Path(path).resolve().parent))
    compiled = file.endswith(".pyc")
    loader = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", file)
    code = _compiled(loader) if compiled else _compile(source, file)
    return Program(code, path, _names(file, loader))


def _of_stdin() -> Program:
    _lead_path("")
    file = "<stdin>"
    return Program(_compile(sys.stdin.buffer.read(), file), "-", _names(file, BuiltinImporter))


def _names(file: str, loader: object) -> dict[str, Any]:
    names = {"__file__": file, "__cached__": None, "__loader__": loader}
    return {**names, "__package__": None, "__spec__": None}


def _compile(source: bytes, file: str) -> CodeType:
    """Compile bytes, since a script itself says in its first lines how it is encoded."""
    code: CodeType = compile(source, file, "exec", dont_inherit=True)
    return code


def _compiled(loader: SourceFileLoader | SourcelessFileLoader) -> CodeType:
    try:
        code = loader.get_code("__main__")
    except (ImportError, EOFError) as error:
        raise ProgramError(f"can't run {loader.path!r}: {error}", 1) from None
    assert code is not None  # noqa: S101 - narrows the type
    return code


def of_module(name: str) -> Program:
    """Find a module, or the `__main__` of a package, as `python -m` does; set `sys.path[0]`.

    Raises:
        ProgramError: If there is none, or it has no code of its own.
        Exception: Whatever the packages above it raise when they are imported.
    """
    _lead_path(str(Path.cwd()))
    spec = _spec_of(name)
    if spec is not None and spec.submodule_search_locations is not None:
        inner = _spec_of(f"{name}.__main__")
        if inner is None:
            tail = f"{name!r} is a package and cannot be directly executed"
            raise ProgramError(f"No module named {name}.__main__; {tail}", 1)
        spec = inner
    if spec is None:
        raise ProgramError(f"No module named {name}", 1)
    return _of_spec(spec, argv0=spec.origin or name)


def _spec_of(name: str) -> ModuleSpec | None:
    """Find a module; None where it, or a package above it, does not exist."""
    try:
        return find_spec(name)
    except ModuleNotFoundError as error:
        above = error.name or ""
        if name == above or name.startswith(f"{above}."):
            return None
        raise
    except ValueError as error:  # __main__ itself, or a name such as ".a"
        raise ProgramError(f"No module named {name!r} that can be run: {error}", 1) from None


def _of_spec(spec: ModuleSpec, *, argv0: str) -> Program:
    get_code = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code else None
    if code is None:
        raise ProgramError(f"No code object available for {spec.name}", 1)
    names = {"__file__": spec.origin, "__cached__": spec.cached, "__loader__": spec.loader}
    return Program(code, argv0, {**names, "__package__": spec.parent, "__spec__": spec})


def _lead_path(entry: str) -> None:
    """Put *entry* where python puts the directory of what it runs."""
    if sys.flags.safe_path:  # -P: python itself has put nothing there
        return
    sys.path[0:1] = [entry]


def execute(program: Program, arguments: list[str]) -> None:
    """Run *program* as `__main__`, with `sys.argv` its own; what it raises comes out."""
    module = ModuleType("__main__")
    vars(module).update(program.attributes, __builtins__=sys.modules["builtins"])
    sys.argv[:] = [program.argv0, *arguments]
    sys.modules["__main__"] = module
    exec(program.code, vars(module))  # noqa: S102 - to run a program is what the user asked for


@contextmanager
def only_its_frames() -> Iterator[None]:
    """Let what is raised inside reach the interpreter, and show it without frames of ours.

    The interpreter's own way is kept: a hook that the program set, `sys.last_value`, the exit
    code, and the death by SIGINT that shells expect after Ctrl-C.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        _shorten(error)
        raise


def _shorten(error: BaseException) -> None:
    hook, own = sys.excepthook, _skip_ours(error.__traceback__)

    def shorter(kind: type[BaseException], raised: BaseException, trace: Any) -> None:
        if raised is error:
            # The interpreter's hook reads the traceback from the exception, not its argument.
            raised.__traceback__ = trace = own
        hook(kind, raised, trace)

    sys.excepthook = shorter


def _skip_ours(trace: TracebackType | None) -> TracebackType | None:
    """Drop the frames above the program: those that started it, and the import system's."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file not in _STARTERS and not file.startswith("<frozen importlib"):
            return trace
        trace = trace.tb_next
    return None
