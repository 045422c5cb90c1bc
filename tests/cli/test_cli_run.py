"""`keyrot run` against `python`: the program must not notice the difference."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from py_compile import compile as compile_file
from typing import Any
from zipfile import ZipFile

import pytest

import keyrot_middleware
from keyrot_middleware.cli.run import MODULES, run
from keyrot_middleware.settings import CLIENTS
from keyrot_middleware.testing import FakeGemini, Reply

Keyrot = Callable[..., Any]

LOOKS_AROUND = """
import sys
me = sys.modules["__main__"]
print(__name__, __file__, __package__, __spec__ and __spec__.name, vars(me) is globals())
print(sys.argv, sys.path[0], type(__loader__).__name__, __cached__)
"""
FAILS = """
def inner():
    raise ValueError("boom")

try:
    inner()
except ValueError as error:
    raise KeyError("outer") from error
"""
INTERRUPTED = """
import atexit, os, signal
atexit.register(print, "cleaned up")
os.kill(os.getpid(), signal.SIGINT)
"""
OWN_HOOK = """
import sys, traceback
sys.excepthook = lambda kind, error, trace: print(kind, traceback.extract_tb(trace)[0].name)
1 / 0
"""
LATE_THREAD = """
import pickle, threading, time
class Mine: pass
def late():
    threading.main_thread().join()
    print(type(pickle.loads(pickle.dumps(Mine()))))
threading.Thread(target=late).start()
"""
PROGRAMS = {
    "looks around": LOOKS_AROUND,
    "fails": FAILS,
    "is interrupted": INTERRUPTED,
    "has a hook of its own": OWN_HOOK,
    "continues in a thread": LATE_THREAD,
    "exits with a text": "raise SystemExit('bye')",
    "exits with a number": "raise SystemExit(7)",
    "exits with nothing": "raise SystemExit",
    "is no python": "x = = 1",
    "is in another encoding": "# coding: latin-1\nprint('\xe9')",
    "has future annotations": "from __future__ import annotations\nx: nothing = 1\nprint(x)",
}


WITHOUT_POOL = f"keyrot: this process had no pool: it imported none of {', '.join(MODULES)}\n"


def same(ran: Any, expected: Any) -> None:
    """Check that two runs have the same output and exit code, but for our own sentence."""
    assert (ran.returncode, ran.stdout, ran.stderr.replace(WITHOUT_POOL, "")) == (
        expected.returncode,
        expected.stdout,
        expected.stderr,
    )


@pytest.mark.parametrize("source", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_script_runs_as_by_python(
    keyrot: Keyrot, python: Keyrot, tmp_path: Path, source: str
) -> None:
    """A script prints, fails and exits as it does under python, traceback included."""
    (tmp_path / "app.py").write_bytes(source.encode("latin-1"))
    given = ("app.py", "one", "--help", "-v")
    same(keyrot("run", *given, GEMINI_API_KEYS="one,two"), python(*given))


@pytest.mark.parametrize("source", [LOOKS_AROUND, INTERRUPTED], ids=["looks around", "interrupted"])
@pytest.mark.parametrize("target", ["package", "package.module", "package.__main__"])
def test_a_module_runs_as_by_python_m(
    keyrot: Keyrot, python: Keyrot, tmp_path: Path, target: str, source: str
) -> None:
    """`-m` finds packages and modules in the working directory, with python's own `__main__`."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name in ("__main__.py", "module.py"):
        (folder / name).write_text(source)
    ran, expected = (
        keyrot("run", "-m", target, "one", "-m", "two", GEMINI_API_KEYS="one"),
        python("-m", target, "one", "-m", "two"),
    )
    assert (ran.returncode, ran.stdout) == (expected.returncode, expected.stdout)


def test_directories_and_zip_files_run(keyrot: Keyrot, python: Keyrot, tmp_path: Path) -> None:
    """A directory or a zip file with a `__main__.py` is a program, as it is for python."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__main__.py").write_text(LOOKS_AROUND)
    with ZipFile(tmp_path / "app.pyz", "w") as packed:
        packed.writestr("__main__.py", LOOKS_AROUND)
    for name in ("folder", "app.pyz"):
        same(keyrot("run", name, "one", GEMINI_API_KEYS="one"), python(name, "one"))


def test_a_compiled_script_runs(keyrot: Keyrot, python: Keyrot, tmp_path: Path) -> None:
    """A .pyc runs."""
    (tmp_path / "app.py").write_text(LOOKS_AROUND)
    compile_file(tmp_path / "app.py", cfile="app.pyc")
    same(keyrot("run", "app.pyc", "a", GEMINI_API_KEY="FAKE-home"), python("app.pyc", "a"))


def test_a_script_from_stdin_runs(keyrot: Keyrot, python: Keyrot) -> None:
    """`-` reads the program from stdin."""
    for source in (LOOKS_AROUND, FAILS):
        ran = keyrot("run", "-", "a", stdin=source, GEMINI_API_KEY="FAKE-home")
        same(ran, python("-", "a", stdin=source))


def test_a_script_behind_a_link_imports_its_neighbours(keyrot: Keyrot, tmp_path: Path) -> None:
    """The directory of the script itself, not that of the link, is first in `sys.path`."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "neighbour.py").write_text("value = 42")
    (home / "app.py").write_text("import neighbour; print(neighbour.value)")
    (tmp_path / "link.py").symlink_to(home / "app.py")
    assert keyrot("run", "link.py").stdout == "42\n"


@pytest.mark.parametrize("given", [["nope.py"], ["-m", "nope"], ["empty"], ["--nope", "app.py"]])
def test_a_missing_program_is_python_s_own_error(
    keyrot: Keyrot, python: Keyrot, tmp_path: Path, given: list[str]
) -> None:
    """A missing program fails as it does under python."""
    (tmp_path / "empty").mkdir()
    same(keyrot("run", *given), python(*given))


@pytest.mark.parametrize("given", [[], ["-v"], ["-m"], ["-X", "dev"], ["-Wc"], ["--"]])
def test_no_program_is_an_error_in_one_sentence(keyrot: Keyrot, given: list[str]) -> None:
    """Without a program python would start its prompt; `keyrot run` prints its usage."""
    ran = keyrot("run", *given)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("keyrot run: no program given\nusage: keyrot run")


@pytest.mark.parametrize("option", ["-I", "-E", "-S", "-BI", "-uE"])
def test_options_that_would_keep_the_pool_out_are_refused(keyrot: Keyrot, option: str) -> None:
    """-I, -E and -S keep Python from reading PYTHONPATH or sitecustomize, so they are errors."""
    ran = keyrot("run", option, "app.py")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"python's option -{option[-1]} keeps Python from loading the pool" in ran.stderr


@pytest.mark.parametrize(
    "options",
    [["-X", "dev"], ["-Xdev"], ["-W", "error"], ["-uB"], ["--check-hash-based-pycs", "never"]],
)
def test_python_s_own_options_are_passed_on(
    keyrot: Keyrot, python: Keyrot, tmp_path: Path, options: list[str]
) -> None:
    """Options before the program are for the interpreter."""
    (tmp_path / "app.py").write_text("import sys; print(sys.flags, sys.warnoptions, sys._xoptions)")
    same(keyrot("run", *options, "app.py"), python(*options, "app.py"))


def test_code_on_the_command_line_runs(keyrot: Keyrot, python: Keyrot) -> None:
    """`-c` runs code, with its arguments."""
    code = "import sys; print(sys.argv, sys.path[0]); 1 / 0"
    same(keyrot("run", "-c", code, "one", "-I"), python("-c", code, "one", "-I"))


def test_the_program_s_path_is_as_under_python(keyrot: Keyrot, python: Keyrot) -> None:
    """The folder that loads the pool is not on the program's `sys.path`."""
    code = "import sys; print(*sys.path, sep='\\n')"
    same(keyrot("run", "-c", code), python("-c", code))


def test_a_sitecustomize_of_the_user_still_runs(keyrot: Keyrot, tmp_path: Path) -> None:
    """Another sitecustomize on the path is imported as without us, under its own name."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sitecustomize.py").write_text("print('mine')")
    code = "import sys; print(sys.modules['sitecustomize'].__file__)"
    path = os.pathsep.join(filter(None, (str(tmp_path / "mine"), os.environ.get("PYTHONPATH"))))
    ran = keyrot("run", "-c", code, PYTHONPATH=path)
    of_the_command, of_the_program, name = ran.stdout.splitlines()
    assert (of_the_command, of_the_program, name) == (
        "mine",
        "mine",
        str(tmp_path / "mine" / "sitecustomize.py"),
    )
    assert ran.stderr == WITHOUT_POOL


def test_an_interpreter_without_the_package_is_unchanged(keyrot: Keyrot, tmp_path: Path) -> None:
    """A Python that the program starts and that lacks this package starts silently."""
    (tmp_path / "hides").mkdir()
    (tmp_path / "hides" / "keyrot_middleware.py").write_text("raise ImportError('not here')")
    (tmp_path / "app.py").write_text(
        "import os, subprocess, sys\n"
        "path = os.environ['PYTHONPATH'].split(os.pathsep)\n"
        "path = os.pathsep.join([path[0], 'hides', *path[1:]])\n"
        "child = [sys.executable, '-c', 'print(1)']\n"
        "subprocess.run(child, env={**os.environ, 'PYTHONPATH': path}, check=True)\n"
    )
    ran = keyrot("run", "app.py")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "1\n", WITHOUT_POOL)


def test_a_wrong_setting_stops_before_the_program(keyrot: Keyrot, tmp_path: Path) -> None:
    """The error names the variable, its value and what is allowed; exit code 2."""
    (tmp_path / "app.py").write_text("print('ran')")
    ran = keyrot("run", "app.py", KEYROT_STRATEGY="fastest", GEMINI_API_KEYS="one")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert (
        ran.stderr == 'keyrot: KEYROT_STRATEGY: found "fastest". '
        "Input should be 'spread', 'fill' or 'sticky'.\n"
    )


def test_no_key_warns_and_runs(keyrot: Keyrot, tmp_path: Path) -> None:
    """Without any key the program runs unchanged, and stderr reports that there is no pool."""
    (tmp_path / "app.py").write_text("import google.genai; print('ran')")
    ran = keyrot("run", "app.py")
    assert (ran.returncode, ran.stdout) == (0, "ran\n")
    assert "no Gemini API key found" in ran.stderr


def test_switched_off_is_silent(keyrot: Keyrot, tmp_path: Path) -> None:
    """With ENABLE_KEY_ROTATION=false nothing is read and nothing printed."""
    (tmp_path / "app.py").write_text("import sys; print('google.genai' in sys.modules)")
    ran = keyrot("run", "app.py", ENABLE_KEY_ROTATION="false", KEYROT_STRATEGY="fastest")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "False\n", "")


def test_help_is_ours_before_the_program_and_its_own_after(keyrot: Keyrot, tmp_path: Path) -> None:
    """`keyrot run --help` explains itself; `keyrot run app.py --help` is the program's help."""
    (tmp_path / "app.py").write_text("import sys; print(sys.argv[1:])")
    assert "keyrot run [-v] [PYTHON OPTIONS] -m MODULE" in keyrot("run", "--help").stdout
    assert keyrot("run", "app.py", "--help").stdout == "['--help']\n"


def test_closed_outputs_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was started with `>&-` has no stdout; its exit code reports the error."""
    monkeypatch.setattr(sys, "stdout", None)
    assert run(["--help"]) == 0
    monkeypatch.setattr(sys, "stderr", None)
    assert run([]) == 2
    monkeypatch.setenv("KEYROT_STRATEGY", "fastest")
    assert run(["app.py"]) == 2


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_run_needs_no_extra(
    keyrot: Keyrot, hide: Callable[[str], dict[str, str]], tmp_path: Path, package: str
) -> None:
    """`keyrot run` works without typer and rich; the other commands name what to install."""
    (tmp_path / "app.py").write_text("print('ran')")
    assert keyrot("run", "app.py", **hide(package)).stdout == "ran\n"
    ran = keyrot("check", **hide(package))
    assert ran.returncode == 2
    assert f"needs the package '{package}'" in ran.stderr
    assert "pip install 'keyrot-middleware[cli]'" in ran.stderr


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_version_and_help_need_no_extra(
    keyrot: Keyrot, hide: Callable[[str], dict[str, str]], package: str
) -> None:
    """The version is printed, and help has the arguments of `run` and the extra of the others."""
    ran = keyrot("--version", **hide(package))
    assert (ran.returncode, ran.stdout) == (0, f"keyrot {keyrot_middleware.__version__}\n")
    for given in (("--help",), ("-h",), ()):
        ran = keyrot(*given, **hide(package))
        assert (ran.returncode, ran.stderr) == (0, "")
        assert "usage: keyrot run" in ran.stdout
        assert "check, status, explain, ui, reset, disable, enable, demo" in ran.stdout
        assert "pip install 'keyrot-middleware[cli]'" in ran.stdout


def test_ctrl_c_ends_it_as_shells_expect(keyrot: Keyrot, tmp_path: Path) -> None:
    """An interrupted program dies of SIGINT (130 in a shell), after its exit handlers."""
    (tmp_path / "app.py").write_text(INTERRUPTED)
    ran = keyrot("run", "app.py", GEMINI_API_KEYS="one")
    assert (ran.returncode, ran.stdout) == (-signal.SIGINT, "cleaned up\n")


CALLS = """
from google import genai
client = genai.Client()
print(client.models.generate_content(model="gemini-flash-latest", contents="hi").text)
"""


def test_calls_go_through_the_pool(keyrot: Keyrot, service: FakeGemini, tmp_path: Path) -> None:
    """A program without any key or line of ours is served despite a dead and an exhausted key."""
    keys = [service.add_key(label) for label in ("dead", "exhausted", "good")]
    service.always("dead", Reply.KEY_INVALID)
    service.always("exhausted", Reply.QUOTA_MINUTE)
    (tmp_path / "app.py").write_text(CALLS)
    ran = keyrot(
        *("run", "-v", "app.py"),
        GEMINI_API_KEYS=",".join(key.value for key in keys),
        KEYROT_STRATEGY="fill",
        GOOGLE_GEMINI_BASE_URL=service.url,
        KEYROT_ALLOWED_HOSTS=service.host,
    )
    assert (ran.returncode, ran.stdout) == (0, "ok from good\n"), ran.stderr
    assert [request.key for request in service.log] == ["dead", "exhausted", "good"]
    assert "key key_1 is rejected: key_invalid (400)" in ran.stderr
    assert "quota_minute (429)" in ran.stderr
    assert not any(key.value in ran.stderr for key in keys)


URL = "BASE/v1beta/models/gemini-flash-latest:generateContent"
BODY = {"contents": [{"parts": [{"text": "hi"}]}]}
POST = f"""
response = LIBRARY.post("{URL}", json={BODY}, headers={{"x-goog-api-key": "keyrot-pool"}})
print(response.json()["candidates"][0]["content"]["parts"][0]["text"])
"""
HTTP_PROGRAMS = {
    "httpx": "import httpx" + POST.replace("LIBRARY", "httpx"),
    "requests": "import requests" + POST.replace("LIBRARY", "requests"),
    "openai": """
import openai
client = openai.OpenAI(api_key="keyrot-pool", base_url="BASE/v1beta/openai/")
messages = [dict(role="user", content="hi")]
chat = client.chat.completions.create(model="gemini-flash-latest", messages=messages)
print(chat.choices[0].message.content)
""",
}


@pytest.mark.parametrize("source", HTTP_PROGRAMS.values(), ids=HTTP_PROGRAMS.keys())
def test_programs_without_google_genai_have_the_pool(
    keyrot: Keyrot, service: FakeGemini, tmp_path: Path, source: str
) -> None:
    """The pool is there once any library is imported; a warning points at the program's line."""
    keys = [service.add_key(label) for label in ("dead", "good")]
    service.always("dead", Reply.KEY_INVALID)
    (tmp_path / "app.py").write_text(source.replace("BASE", service.url))
    ran = keyrot(
        *("run", "app.py"),
        GEMINI_API_KEYS=",".join(key.value for key in keys),
        KEYROT_STRATEGY="fill",
        KEYROT_ALLOWED_HOSTS=service.host,
    )
    assert (ran.returncode, ran.stdout) == (0, "ok from good\n"), ran.stderr
    assert [request.key for request in service.log] == ["dead", "good"]
    (warning,) = [line for line in ran.stderr.splitlines() if "KeyrotWarning" in line]
    assert f"{tmp_path}/app.py:" in warning
    assert "key_invalid" in warning


def test_each_library_that_is_served_installs_the_pool() -> None:
    """The hooks are those of `KEYROT_CLIENTS`."""
    assert {name.replace(".", "-") for name in MODULES} == set(CLIENTS)


def test_a_process_without_a_pool_says_so(keyrot: Keyrot, tmp_path: Path) -> None:
    """The program that ends without a pool prints one sentence; one that it starts does not."""
    (tmp_path / "app.py").write_text(
        "import os, subprocess, sys\n"
        "if pid := os.fork(): os.waitpid(pid, 0)\n"
        "else: sys.exit()\n"
        "subprocess.run([sys.executable, '-c', 'print(1)'], check=True)\n"
    )
    ran = keyrot("run", "app.py", GEMINI_API_KEYS="one")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "1\n", WITHOUT_POOL)


@pytest.mark.parametrize("options", [[], ["-v"], ["-X", "dev"]], ids=" ".join)
def test_a_script_of_path_runs(keyrot: Keyrot, tmp_path: Path, options: list[str]) -> None:
    """`keyrot run gunicorn app:app` finds gunicorn as a shell does."""
    script = tmp_path / "bin" / "serve-it"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport httpx, sys; print(sys.argv)\n")
    script.chmod(0o755)
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    ran = keyrot("run", *options, "serve-it", "app:app", PATH=path, GEMINI_API_KEYS="one")
    assert (ran.returncode, ran.stdout) == (0, f"['{script}', 'app:app']\n"), ran.stderr
    assert WITHOUT_POOL not in ran.stderr


CHILD = """
import subprocess, sys
subprocess.run([sys.executable, "calls.py"], check=True)
"""
SPAWNED = """
import multiprocessing, runpy
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=runpy.run_path, args=("calls.py",))
    child.start()
    child.join()
"""


@pytest.mark.parametrize("source", [CHILD, SPAWNED], ids=["subprocess", "multiprocessing"])
def test_processes_that_the_program_starts_have_the_pool(
    keyrot: Keyrot, service: FakeGemini, tmp_path: Path, source: str
) -> None:
    """A Python process that the program starts sends its calls through the pool as well."""
    keys = [service.add_key(label) for label in ("dead", "good")]
    service.always("dead", Reply.KEY_INVALID)
    (tmp_path / "calls.py").write_text(CALLS)
    (tmp_path / "app.py").write_text(source)
    ran = keyrot(
        *("run", "app.py"),
        GEMINI_API_KEYS=",".join(key.value for key in keys),
        KEYROT_STRATEGY="fill",
        GOOGLE_GEMINI_BASE_URL=service.url,
        KEYROT_ALLOWED_HOSTS=service.host,
    )
    assert (ran.returncode, ran.stdout) == (0, "ok from good\n"), ran.stderr
    assert [request.key for request in service.log] == ["dead", "good"]


def test_a_wrong_setting_in_a_child_is_printed_and_it_runs(keyrot: Keyrot, tmp_path: Path) -> None:
    """A child process with a wrong setting of its own prints it and runs without the pool."""
    (tmp_path / "app.py").write_text(
        "import os, subprocess, sys\n"
        "child = [sys.executable, '-c', 'import google.genai; print(1)']\n"
        "subprocess.run(child, env={**os.environ, 'KEYROT_STRATEGY': 'fastest'}, check=True)\n"
    )
    ran = keyrot("run", "app.py", GEMINI_API_KEYS="one")
    assert (ran.returncode, ran.stdout) == (0, "1\n")
    assert "keyrot: this process runs without the pool: KEYROT_STRATEGY" in ran.stderr


def test_the_installed_command_is_the_same(python: Keyrot, tmp_path: Path) -> None:
    """The script `keyrot` beside the interpreter does what `python -m keyrot_middleware` does."""
    script = Path(sys.executable).with_name("keyrot")
    if not script.exists():
        pytest.skip("the package is not installed, only importable")
    (tmp_path / "app.py").write_text(FAILS)
    same(python(str(script), "run", "app.py", GEMINI_API_KEYS="one"), python("app.py"))
