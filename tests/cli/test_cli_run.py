"""`keyrot run` against `python`: the program must not notice the difference."""

import os
import sys
from zipfile import ZipFile

import pytest

from keyrot_middleware import POOL_KEY
from keyrot_middleware.cli.run import run
from keyrot_middleware.libraries import MODULES
from keyrot_middleware.testing import Reply

LOOKS_AROUND = """
import sys
me = sys.modules["__main__"]
print(__name__, __file__, __package__, __spec__ and __spec__.name, vars(me) is globals())
print(sys.argv, *sys.path, type(__loader__).__name__, sys.flags, sys._xoptions, sys.warnoptions)
"""
PROGRAMS = {
    "app.py": LOOKS_AROUND,
    "folder/__main__.py": LOOKS_AROUND,
    "package/__init__.py": "",
    "package/__main__.py": LOOKS_AROUND,
    "package/module.py": LOOKS_AROUND,
    "empty/nothing": "",
    "exits.py": "raise SystemExit('bye')",
    "fails.py": """
try:
    raise ValueError("boom")
except ValueError as error:
    raise KeyError("outer") from error
""",
    "interrupted.py": """
import atexit, os, signal
atexit.register(print, "cleaned up")
os.kill(os.getpid(), signal.SIGINT)
""",
    "late.py": """
import pickle, threading
class Mine: pass
def late():
    threading.main_thread().join()
    print(type(pickle.loads(pickle.dumps(Mine()))))
threading.Thread(target=late).start()
""",
}
COMMANDS = [
    *("app.py one --help -v", "exits.py", "fails.py", "interrupted.py", "late.py", "folder one"),
    *("app.pyz one", "-m package one -m two", "-m package.module", "- a", "-c print(__name__) -I"),
    *("-X dev app.py", "-uBWerror app.py", "--check-hash-based-pycs never app.py"),
    *("nope.py", "-m nope", "empty", "--nope app.py"),
]
WITHOUT_POOL = (
    f"keyrot: this process had no pool: it imported none of {', '.join(MODULES.values())}\n"
)


def same(ran, expected) -> None:
    found = (ran.returncode, ran.stdout, ran.stderr.replace(WITHOUT_POOL, ""))
    assert found == (expected.returncode, expected.stdout, expected.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_program_runs_as_by_python(started, python, here, command) -> None:
    """It prints, fails and exits as it does under python, traceback included."""
    for name, source in PROGRAMS.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(source)
    with ZipFile(here / "app.pyz", "w") as packed:
        packed.writestr("__main__.py", LOOKS_AROUND)
    given = command.split()
    ran = started("run", *given, stdin=LOOKS_AROUND, GEMINI_API_KEYS="one,two")
    same(ran, python(*given, stdin=LOOKS_AROUND))


@pytest.mark.parametrize("given", [[], ["-v"], ["-m"], ["-X", "dev"], ["-Wc"], ["--"]])
def test_no_program_is_an_error_in_one_sentence(given, capsys) -> None:
    """Without a program python would start its prompt; `keyrot run` prints its usage."""
    assert run(given) == 2
    assert capsys.readouterr().err.startswith("keyrot run: no program given\nusage: keyrot run")


@pytest.mark.parametrize("option", ["-I", "-E", "-S", "-BI", "-uE"])
def test_options_that_would_keep_the_pool_out_are_refused(option, capsys) -> None:
    """-I, -E and -S keep Python from reading PYTHONPATH or sitecustomize, so they are errors."""
    assert run([option, "app.py"]) == 2
    problem = f"python's option -{option[-1]} keeps Python from loading the pool"
    assert problem in capsys.readouterr().err


def test_a_sitecustomize_of_the_user_still_runs(started, tmp_path) -> None:
    """Another sitecustomize on the path is imported as without us, under its own name."""
    mine = tmp_path / "mine" / "sitecustomize.py"
    mine.parent.mkdir()
    mine.write_text("print('mine')")
    code = "import sys; print(sys.modules['sitecustomize'].__file__)"
    path = os.pathsep.join(filter(None, (str(mine.parent), os.environ.get("PYTHONPATH"))))
    ran = started("run", "-c", code, PYTHONPATH=path)
    assert ran.stdout.splitlines() == ["mine", "mine", str(mine)]  # the command's, the program's
    assert ran.stderr == WITHOUT_POOL


def test_a_wrong_setting_stops_before_the_program(monkeypatch, here, capsys) -> None:
    """The error names the variable, its value and what is allowed; exit code 2."""
    monkeypatch.setenv("KEYROT_STRATEGY", "fastest")
    assert run(["app.py"]) == 2
    text = "KEYROT_STRATEGY: found \"fastest\". Input should be 'spread', 'fill' or 'sticky'."
    assert capsys.readouterr().err == f"keyrot: {text}\n"


def test_a_program_without_a_pool_runs(started, tmp_path) -> None:
    """Without any key stderr says so; with ENABLE_KEY_ROTATION=false nothing is read or said."""
    (tmp_path / "app.py").write_text("import google.genai; print('ran')")
    ran = started("run", "app.py")
    assert (ran.returncode, ran.stdout) == (0, "ran\n")
    assert "no Gemini API key found" in ran.stderr
    ran = started("run", "app.py", ENABLE_KEY_ROTATION="false", KEYROT_STRATEGY="fastest")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ran\n", "")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_run_needs_no_extra(started, hide, tmp_path, package) -> None:
    """The other commands, the help and the version name the extra that they need."""
    (tmp_path / "app.py").write_text("print('ran')")
    hidden, pip = hide(package), "pip install '.[cli]'"
    assert started("run", "app.py", **hidden).stdout == "ran\n"
    ran = started("--help", **hidden)
    assert (ran.returncode, f"needs the package '{package}'" in ran.stderr) == (2, True)
    assert pip in ran.stderr


CALLS = """
from google import genai
client = genai.Client()
print(client.models.generate_content(model="gemini-3.8-flash", contents="hi").text)
"""
PROGRAMS_OF_LIBRARIES = {
    "google-genai": CALLS,
    "a process that it starts": """
import subprocess, sys
subprocess.run([sys.executable, "calls.py"], check=True)
""",
}


@pytest.mark.parametrize("command", [*PROGRAMS_OF_LIBRARIES, "google-genai -v"])
def test_calls_go_through_the_pool(started, service, here, command) -> None:
    """Without a line of ours; a warning points at the program's line, or the log has it."""
    name, *options = command.split(" -v") if command.endswith("v") else [command]
    keys = [service.add_key(label) for label in ("dead", "good")]
    service.always("dead", Reply.KEY_INVALID)
    (here / "calls.py").write_text(CALLS)
    (here / "app.py").write_text(PROGRAMS_OF_LIBRARIES[name])
    ran = started(
        *("run", *("-v" for _ in options), "app.py"),
        GEMINI_API_KEYS=",".join(key.value for key in keys),
        KEYROT_STRATEGY="fill",
        GOOGLE_GEMINI_BASE_URL=service.url,
        KEYROT_ALLOWED_HOSTS=service.host,
    )
    assert (ran.returncode, ran.stdout) == (0, "ok from good\n"), ran.stderr
    assert [request.key for request in service.log] == ["dead", "good"]
    assert not any(key.value in ran.stderr for key in keys)
    assert "key key_1 is rejected: key_invalid (400)" in ran.stderr
    warnings = [line for line in ran.stderr.splitlines() if "KeyrotWarning" in line]
    assert len(warnings) == (not options)
    if "process" not in name:
        assert all(line.startswith(f"{here}/app.py:") for line in warnings)


VERTEX = {"GOOGLE_GENAI_USE_VERTEXAI": "True"}
GEMINI_KEYS = {"GEMINI_API_KEYS": "FAKE-a,FAKE-b"}
OPENAI_KEYS = {"OPENAI_API_KEYS": "FAKE-c,FAKE-d"}
PLACEHOLDERS = [
    (GEMINI_KEYS, "", {"GEMINI_API_KEY"}),
    (GEMINI_KEYS | {"GOOGLE_GENAI_USE_VERTEXAI": "0"}, "GEMINI_API_KEY=", {"GEMINI_API_KEY"}),
    ({}, "GEMINI_API_KEYS=FAKE-a,FAKE-b", {"GEMINI_API_KEY"}),
    (GEMINI_KEYS | OPENAI_KEYS, "", {"GEMINI_API_KEY", "OPENAI_API_KEY"}),
    (GEMINI_KEYS | OPENAI_KEYS, "OPENAI_API_KEY=FAKE-own", {"GEMINI_API_KEY"}),
    (GEMINI_KEYS | {"GEMINI_API_KEY": "FAKE-own"}, "", set()),
    (GEMINI_KEYS | {"GOOGLE_API_KEY": "FAKE-own"}, "", set()),
    (GEMINI_KEYS | {"GEMINI_API_KEY": ""}, "", set()),
    (GEMINI_KEYS, "GEMINI_API_KEY=FAKE-own", set()),
    (GEMINI_KEYS, "GOOGLE_API_KEY=FAKE-own", set()),
    (GEMINI_KEYS | VERTEX, "", set()),
    (GEMINI_KEYS, "GOOGLE_GENAI_USE_ENTERPRISE=1", set()),
    (GEMINI_KEYS | {"ENABLE_KEY_ROTATION": "false"}, "", set()),
    ({"GEMINI_API_KEY": "FAKE-own"}, "", set()),
    ({}, "", set()),
]


@pytest.mark.parametrize(("given", "in_file", "placed"), PLACEHOLDERS)
def test_the_placeholder_stands_for_a_key_that_is_not_set(
    given, in_file, placed, here, monkeypatch
) -> None:
    """In a variable of each provider with keys; the program's own key, in .env too, is not hidden.

    Nor is Vertex AI's login: there a key in the environment means express mode.
    """
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda _file, _args, env: environments.append(env))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    (here / ".env").write_text(f"{in_file}\n")
    run(["app.py"])
    [env] = environments
    assert {name for name, value in env.items() if value == POOL_KEY} == placed
    assert env.items() >= given.items()


ASKS_FOR_A_KEY = """
import contextlib, os, subprocess, sys
from google import genai
import keyrot_middleware

client = genai.Client(api_key=os.environ["GEMINI_API_KEY"])
print(client.models.generate_content(model="gemini-3.8-flash", contents="hi").text)
print(*keyrot_middleware.status()["keys"])
with contextlib.suppress(genai.errors.APIError):
    client.files.get(name="files/abc-123")
if sys.argv[1:]:
    subprocess.run([sys.executable, __file__], check=True)
"""


def test_the_placeholder_is_not_sent_and_is_no_key(started, service, here) -> None:
    """A framework that asks for a key gets the pool, in a process that the program starts too."""
    key = service.add_key("one").value
    (here / "app.py").write_text(ASKS_FOR_A_KEY)
    ran = started(
        *("run", "app.py", "again"),
        GEMINI_API_KEYS=key,
        GOOGLE_GEMINI_BASE_URL=service.url,
        KEYROT_ALLOWED_HOSTS=service.host,
    )
    assert (ran.returncode, ran.stdout) == (0, "ok from one\nkey_1\n" * 2), ran.stderr
    assert len(service.log) == 4
    assert {(*request.header_values("x-goog-api-key"),) for request in service.log} == {(key,)}
    assert POOL_KEY not in repr([(request.headers, request.path) for request in service.log])


def test_a_process_without_a_pool_says_so(started, tmp_path) -> None:
    """The program that ends without a pool prints one sentence; one that it starts does not."""
    (tmp_path / "app.py").write_text(
        "import os, subprocess, sys\n"
        "if pid := os.fork(): os.waitpid(pid, 0)\n"
        "else: sys.exit()\n"
        "subprocess.run([sys.executable, '-c', 'print(1)'], check=True)\n"
    )
    ran = started("run", "app.py", GEMINI_API_KEYS="one")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "1\n", WITHOUT_POOL)


@pytest.mark.parametrize("options", [[], ["-X", "dev"]], ids=" ".join)
def test_a_script_of_path_runs(started, tmp_path, options) -> None:
    """`keyrot run gunicorn app:app` finds gunicorn as a shell does."""
    script = tmp_path / "bin" / "serve-it"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport httpx, sys; print(sys.argv)\n")
    script.chmod(0o755)
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    ran = started("run", *options, "serve-it", "app:app", PATH=path, GEMINI_API_KEYS="one")
    assert (ran.returncode, ran.stdout) == (0, f"['{script}', 'app:app']\n"), ran.stderr
    assert WITHOUT_POOL not in ran.stderr
