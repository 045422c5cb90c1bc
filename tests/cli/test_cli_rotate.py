"""`keyrot rotate`: a new value into the store and into every process, without a failed call."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli.conftest import Ran
from support.servers import wait_for

from keyrot_middleware.cli import main
from keyrot_middleware.cli import rotate as rotate_module
from keyrot_middleware.core.activity import ActivityRows
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.runtime.rotations import rotations
from keyrot_middleware.secrets import Secret
from keyrot_middleware.state import open_shared
from keyrot_middleware.testing import FakeGemini, FakeOpenAI, Reply

WORKER = """
import json, sys, threading, time
from google import genai
import keyrot_middleware
keyrot_middleware.install()
MODEL = "gemini-3.8-flash"
client, stop, failed, ok = genai.Client(), threading.Event(), [], []
def work():
    while not stop.is_set():
        try:
            ok.append(client.models.generate_content(model=MODEL, contents="x").text)
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}")
        time.sleep(0.03)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
print("ready", flush=True)
sys.stdin.read()
stop.set()
for thread in threads: thread.join()
print(json.dumps([len(ok), failed]))
"""


class Pool:
    """A pool of two keys in `.env`, of one host, and its fake service."""

    def __init__(self, folder: Path, gemini: FakeGemini, keyrot: Callable[..., Ran]) -> None:
        self.folder, self.gemini, self.keyrot = folder, gemini, keyrot
        self.values = {name: gemini.add_key(name, tier="paid").value for name in ("a", "b")}
        self.env_file = folder / ".env"
        lines = [f"GEMINI_KEY_{name}={value}\n" for name, value in self.values.items()]
        self.env_file.write_text("".join(lines))
        (folder / "keys.json").write_text(json.dumps([{"key_id": "a"}, {"key_id": "b"}]))
        self.env = {
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
            "KEYROT_STATE_URL": f"sqlite://{folder}/state.sqlite3",
            "KEYROT_POOL": "rotated",
            "NO_PROXY": "127.0.0.1",
        }
        curl = f"{sys.executable} {folder}/curl.py {gemini.url}/fake/keys"
        (folder / "curl.py").write_text(
            "import os, sys, urllib.request as u\n"
            "method = sys.argv[2]\n"
            "data = sys.stdin.buffer.read() if method == 'DELETE' else b''\n"
            "url = sys.argv[1] + ('' if data else '/' + os.environ['ROTATE_KEY_ID'])\n"
            "print(u.urlopen(u.Request(url, data, method=method)).read().decode())\n"
        )
        self.create, self.revoke = f"{curl} POST", f"{curl} DELETE"

    def rotate(self, *arguments: str, stdin: str = "", **env: str) -> Ran:
        """Run the command in this process."""
        return self.keyrot("rotate", *arguments, stdin=stdin, **{**self.env, **env})

    def stored(self, name: str = "a") -> str:
        """Return the value in `.env`."""
        lines = dict(line.split("=") for line in self.env_file.read_text().split())
        return lines[f"GEMINI_KEY_{name}"]

    @contextmanager
    def workers(self, count: int = 2) -> Iterator[list[subprocess.Popen[str]]]:
        """Run processes whose threads call without a pause; at the end no call may have failed."""
        with_pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER],
                cwd=self.folder,
                env={**os.environ, **self.env},
                stderr=subprocess.STDOUT,
                **with_pipes,
            )
            for _ in range(count)
        ]
        try:
            for one in started:
                wait_for_line(one, "ready")
            yield started
            for one in started:
                calls, failed = json.loads(one.communicate(timeout=240)[0].splitlines()[-1])
                assert (failed, calls > 0) == ([], True)
        finally:
            for one in started:
                one.kill()
                one.wait()


@pytest.fixture
def pool(
    tmp_path: Path,
    service: FakeGemini,
    clean_environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Pool]:
    """Make a pool; the command runs in this process, since it imports a lot."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(rotate_module, "UNDER_WAY_S", 0.5)
    monkeypatch.setattr(rotate_module, "SILENT_S", 0.0)

    def keyrot(*arguments: str, stdin: str, **env: str) -> Ran:
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            with pytest.raises(SystemExit) as ended:
                main(list(arguments))
        code = ended.value.code
        return Ran(arguments, code if isinstance(code, int) else 0, *capsys.readouterr())

    yield Pool(tmp_path, service, keyrot)
    signal.signal(signal.SIGTERM, before)


def test_a_key_is_rotated_under_load_without_a_failed_call(pool: Pool) -> None:
    """Two processes call all the time: both take the new value before the old one is deleted."""
    with pool.workers():
        ran = pool.rotate("a", "--create", pool.create, "--revoke", pool.revoke)
        assert (ran.returncode, ran.stderr.strip()) == (0, "")
        new = pool.stored()
        sent = pool.gemini.sent("a.3")
        wait_for(lambda: pool.gemini.sent("a.3") > sent)
    assert new == "FAKE-a-3"
    assert "2 of 2 processes of the pool send with the new value" in ran.stdout
    assert "key a is rotated" in ran.stdout
    assert pool.gemini.count("a", reply="KEY_INVALID") == 0
    for value in (*pool.values.values(), new):
        assert value not in ran.stdout + ran.stderr


@pytest.mark.parametrize("text", ["{}", "{}\r\n", "\ufeff{}\n", " '{}' \n", '"{}"'])
def test_a_value_may_be_pasted_in_many_ways(text: str, pool: Pool) -> None:
    """Line ends of Windows, a byte order mark, quotes and blanks are no part of it."""
    new = pool.gemini.add_key("new").value
    ran = pool.rotate("a", stdin=text.format(new))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert pool.stored() == new
    assert "Revoke the old value #" in ran.stdout


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "empty"),
        ("FAKE-a FAKE-b", "blank"),
        ("FAKE-unknown", "key_invalid"),
        ("$a", "key a has that value"),
        ("$b", "key b has that value"),
        ("keyrot-pool", "placeholder"),
    ],
)
def test_a_wrong_value_changes_nothing(value: str, why: str, pool: Pool) -> None:
    """It is checked before it is written; the error shows no value."""
    if value == "$b":
        with pool.workers(1):
            pass  # the state knows the values that processes have
    before = pool.env_file.read_text()
    given = pool.values.get(value[1:], value)
    ran = pool.rotate("a", stdin=given)
    assert (ran.returncode, pool.env_file.read_text()) == (1, before)
    assert why in ran.stderr
    assert "nothing was changed" in ran.stderr
    assert not given.startswith("FAKE-u") or given not in ran.stdout + ran.stderr


def expires_of(pool: Pool) -> object:
    entries = json.loads((pool.folder / "keys.json").read_text())
    return next(one for one in entries if one["key_id"] == "a").get("expires")


def with_date(pool: Pool) -> None:
    text = '[\n  {"key_id": "b"},\n  {"key_id": "a", "expires": "2026-12-31", "rpm": 900}\n]\n'
    (pool.folder / "keys.json").write_text(text)


def test_the_new_date_of_a_key_is_written(pool: Pool) -> None:
    """With --expires into the entry of the key; nothing else of the file changes."""
    with_date(pool)
    new = pool.gemini.add_key("new").value
    ran = pool.rotate("a", "--expires", "2027-06-30", stdin=new)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert 'keys.json says "expires": "2027-06-30" of key a' in ran.stdout
    assert (pool.folder / "keys.json").read_text() == (
        '[\n  {"key_id": "b"},\n  {"key_id": "a", "rpm": 900, "expires": "2027-06-30"}\n]\n'
    )


def test_the_ends_of_lines_of_the_file_stay(pool: Pool) -> None:
    """Those of Windows too, and a byte order mark."""
    text = b'\xef\xbb\xbf[\r\n  {"key_id": "a"},\r\n  {"key_id": "b"}\r\n]\r\n'
    (pool.folder / "keys.json").write_bytes(text)
    new = pool.gemini.add_key("new").value
    assert pool.rotate("a", "--expires", "2027-06-30", stdin=new).returncode == 0
    after = text.replace(b'"a"', b'"a", "expires": "2027-06-30"')
    assert (pool.folder / "keys.json").read_bytes().rstrip() == after.rstrip()


def test_the_date_of_the_old_value_does_not_stay(pool: Pool) -> None:
    """Where nothing says when the new one ends: it would warn of a value that is not there."""
    with_date(pool)
    ran = pool.rotate("a", stdin=pool.gemini.add_key("new").value)
    assert 'keys.json says no "expires" of key a' in ran.stdout
    assert expires_of(pool) is None


def test_a_wrong_date_changes_nothing(pool: Pool) -> None:
    """It is found before a value is asked for."""
    before = pool.env_file.read_text()
    ran = pool.rotate("a", "--expires", "soon", stdin="FAKE-new")
    assert (ran.returncode, pool.env_file.read_text()) == (1, before)
    assert 'found "soon"; allowed: a date, 2027-03-01' in ran.stderr


def test_the_date_is_asked_for_where_the_key_had_one(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a terminal, again after a wrong one; an empty answer takes the date away."""
    answers = iter(["tomorrow", "2027-01-31"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    monkeypatch.setattr(rotate_module._Rotating, "_take", lambda _: new)
    monkeypatch.setattr(rotate_module, "is_asked", lambda: True)
    with_date(pool)
    new = Secret(pool.gemini.add_key("new").value)
    ran = pool.rotate("a")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert 'found "tomorrow"; allowed' in ran.stdout
    assert expires_of(pool) == "2027-01-31"


def test_a_file_of_another_form_is_left_as_it_is(pool: Pool) -> None:
    """The command says what to write there; the value is rotated all the same."""
    path = pool.folder / "keys.json"
    path.write_text('[{"key_id": "a", "expir\\u0065s": "2026-12-31"}]')
    before = path.read_text()
    new = pool.gemini.add_key("new").value
    ran = pool.rotate("a", "--expires", "2027-06-30", stdin=new)
    assert (ran.returncode, path.read_text(), pool.stored()) == (0, before, new)
    assert 'give key a "expires": "2027-06-30" there' in ran.stdout


def test_a_quota_that_is_exhausted_is_nothing_against_a_value(pool: Pool) -> None:
    """Its value works, at another time."""
    new = pool.gemini.add_key("new").value
    pool.gemini.always("new", Reply.QUOTA_DAY)
    assert pool.rotate("a", stdin=new).returncode == 0
    assert pool.stored() == new


def test_a_process_that_keeps_the_old_value_keeps_it_valid(pool: Pool) -> None:
    """It has the value in its environment: the command waits, and ends without a revocation."""
    pool.env["GEMINI_KEY_a"] = pool.values["a"]
    with pool.workers(1):
        del pool.env["GEMINI_KEY_a"]
        process = start(pool, "a", "--create", pool.create, "--revoke", pool.revoke)
        line = wait_for_line(process, "0 of 1 processes of the pool send with the new value")
        assert "waiting for" in line
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=240)[0]
    assert process.returncode != 0
    assert "cut off: the old value" in rest
    assert pool.gemini.key("a").value == pool.values["a"]


def test_a_rotation_that_was_cut_off_goes_on(pool: Pool) -> None:
    """Cut off while it waits: the next command takes no new value, and revokes the old one."""
    state = open_shared(pool.env["KEYROT_STATE_URL"], RetryPolicy(), time.time, pool="rotated")
    minutes = [f"processes:{int(time.time() // 60) + ahead}" for ahead in range(2)]
    state.add_activity(ActivityRows({name: {"another": 1} for name in minutes}, {}))
    process = start(pool, "a", "--create", pool.create, "--revoke", pool.revoke)
    assert "waiting for another" in wait_for_line(process, "0 of 1 processes")
    second = pool.rotate("a", stdin="FAKE-b-3")
    assert (second.returncode, "is under way since" in second.stderr) == (1, True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    (waiting,) = (one for one in rotations(state) if one.step == "cut off")
    value = {f"values:{waiting.name}": {f"another\n{waiting.new}": 1}}
    state.add_activity(ActivityRows(value, {}))
    with pool.workers(1):
        ran = pool.rotate("a", "--create", pool.create, "--revoke", pool.revoke)
    assert (ran.returncode, ran.stderr.strip()) == (0, "")
    assert "going on with the rotation of" in ran.stdout
    assert pool.stored() == "FAKE-a-3"
    with pytest.raises(KeyError):
        pool.gemini.key("a")
    state.close()


def test_a_rotation_waits_until_processes_can_have_said_that_they_run(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their records are lost with a state that was down; each says once a minute that it runs."""
    state = open_shared(pool.env["KEYROT_STATE_URL"], RetryPolicy(), time.time, pool="rotated")
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        rotation = rotations(state)[0]
        found = {f"processes:{int(time.time() // 60)}": {"late": 1}}
        if looks:
            found[f"values:{rotation.name}"] = {f"late\n{rotation.new}": 1}
        state.add_activity(ActivityRows(found, {}))
        looks.append(seconds)

    clock = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=sleep)
    monkeypatch.setattr(rotate_module, "time", clock)
    monkeypatch.setattr(rotate_module, "SILENT_S", 600.0)
    ran = pool.rotate("a", "--create", pool.create)
    state.close()
    assert ran.returncode == 0
    assert "0 of 1 processes of the pool send with the new value; waiting for late" in ran.stdout
    assert "1 of 1 processes" in ran.stdout.splitlines()[-2]


def test_a_command_that_fails_says_what_is_left(pool: Pool) -> None:
    """Of --create nothing is stored; of --revoke both values stay valid, and it goes on later."""
    ran = pool.rotate("a", "--create", "echo FAKE-broken; exit 3")
    assert (ran.returncode, "exit code 3" in ran.stderr) == (1, True)
    assert "FAKE-broken" not in ran.stdout + ran.stderr
    ran = pool.rotate("a", "--create", "echo FAKE-broken")
    assert (ran.returncode, "delete what --create made, #" in ran.stdout) == (1, True)
    assert pool.stored() == pool.values["a"]
    with pool.workers(1):
        ran = pool.rotate("a", "--create", pool.create, "--revoke", "cat; exit 4")
        assert (ran.returncode, "exit code 4" in ran.stderr) == (1, True)
        assert pool.values["a"] not in ran.stdout + ran.stderr
        assert "cut off" in ran.stdout
        ran = pool.rotate("a", "--revoke", pool.revoke)
        assert (ran.returncode, "going on" in ran.stdout) == (0, True)


def test_commands_get_no_value_in_their_environment(pool: Pool) -> None:
    """They get the key's id; the old value is on stdin of --revoke."""
    new = pool.gemini.add_key("odd", value="FAKE.new=value").value  # without a shape, in quotes
    env = {"GEMINI_KEY_b": pool.values["b"], "GEMINI_API_KEY": "FAKE-home", "MINE": "kept"}
    env["OTHER"] = pool.values["b"]
    keys = [{"key_id": "a"}, {"key_id": "b"}, {"key_id": "c", "secret": "env://OTHER"}]
    (pool.folder / "keys.json").write_text(json.dumps(keys))
    create = f"env > {pool.folder}/create.txt; echo made {new} >&2; echo '\"{new}\"'"
    revoke = f"env > {pool.folder}/revoke.txt; cat > {pool.folder}/stdin.txt; ps -eo args > all.txt"
    with pool.workers(1):
        ran = pool.rotate("a", "--create", create, "--revoke", revoke, **env)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ("made [redacted]" in ran.stderr, new in ran.stderr) == (True, False)
    assert (pool.folder / "stdin.txt").read_text() == pool.values["a"] + "\n"
    assert pool.values["a"] not in (pool.folder / "all.txt").read_text()
    for name in ("create.txt", "revoke.txt"):
        text = (pool.folder / name).read_text()
        assert "ROTATE_KEY_ID=a" in text
        assert "MINE=kept" in text
        assert "FAKE-home" not in text
        assert not any(value in text for value in (*pool.values.values(), new))


def test_a_pool_that_nobody_has_used_is_the_wrong_one(pool: Pool) -> None:
    """Its processes may be in another state: nothing is revoked."""
    new = pool.gemini.add_key("new").value
    ran = pool.rotate("a", "--revoke", pool.revoke, stdin=new, KEYROT_POOL="another")
    assert (ran.returncode, "no process has used this pool" in ran.stderr) == (1, True)
    assert pool.gemini.key("a").value == pool.values["a"]


def test_without_a_shared_state_nothing_is_revoked(pool: Pool) -> None:
    """The value is written, and it is said when the old one may be revoked."""
    new = pool.gemini.add_key("new").value
    ran = pool.rotate("a", "--revoke", "true", stdin=new, KEYROT_STATE_URL="memory://")
    assert (ran.returncode, "set KEYROT_STATE_URL" in ran.stderr) == (1, True)
    assert pool.stored() == pool.values["a"]
    ran = pool.rotate("a", stdin=new, KEYROT_STATE_URL="memory://")
    assert (ran.returncode, "in 360 s" in ran.stdout) == (0, True)
    assert pool.stored() == new


def test_an_unknown_key_is_named(pool: Pool) -> None:
    """With those that there are."""
    ran = pool.rotate("c", stdin="FAKE-x")
    assert (ran.returncode, "no key 'c'; keys: a, b." in ran.stderr) == (1, True)


LISTS = {
    "key_1": ("GEMINI_API_KEYS", "GEMINI_KEY_key_1", {"key_id": "key_1"}),
    "openai_1": (
        "OPENAI_API_KEYS",
        "KEYROT_KEY_openai_1",
        {"key_id": "openai_1", "provider": "openai"},
    ),
}


@pytest.mark.parametrize("key_id", LISTS)
def test_of_a_key_in_a_list_it_says_where_the_value_is(key_id: str, pool: Pool) -> None:
    """And how the key gets a place that can be written: done so, it is rotated."""
    listed, variable, entry = LISTS[key_id]
    with FakeOpenAI() as openai:
        fake = openai if "provider" in entry else pool.gemini
        old, new = fake.add_key("old").value, fake.add_key("new").value
        pool.env["KEYROT_ALLOWED_HOSTS"] = f"{pool.gemini.host},openai={openai.url}"
        pool.env["OPENAI_BASE_URL"] = openai.base_url
        ran = pool.rotate(key_id, "--create", "touch made", **{listed: old})
        assert ran.returncode == 1
        assert f"the value of {key_id} stands in {listed} (environment or .env)" in ran.stderr
        assert json.dumps(entry) in ran.stderr
        assert f"its value as {variable} in .env" in ran.stderr
        assert ("inline" in ran.stderr, Path("made").exists()) == (False, False)
        (pool.folder / "keys.json").write_text(json.dumps([entry]))
        pool.env_file.write_text(f"{variable}={old}\n")
        ran = pool.rotate(key_id, stdin=new)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert pool.env_file.read_text().startswith(f"{variable}={new}\n")


def test_a_variable_of_the_environment_is_refused_before_a_value_is_made(pool: Pool) -> None:
    """It would hide what is written into `.env`."""
    env = {"GEMINI_KEY_a": pool.values["a"]}
    ran = pool.rotate("a", "--create", "touch made", **env)
    assert (ran.returncode, "set it in .env instead" in ran.stderr) == (1, True)
    assert not Path("made").exists()


class ReadOnlyStore:
    """A store of a plugin, without the two methods that `keyrot rotate` needs."""

    scheme = "readonly"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret]:
        """Return one value for all."""
        return {key_id: Secret("FAKE-a") for key_id in refs}


def test_a_store_that_cannot_be_written_is_named(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when the old value may be revoked after it was replaced there."""
    entry_point = SimpleNamespace(load=lambda: lambda _environ: ReadOnlyStore())
    plugins = {"readonly": entry_point}
    for name in ("keyrot_middleware.keys_file", "keyrot_middleware.secrets.stores"):
        monkeypatch.setattr(f"{name}.entry_point_stores", lambda: plugins)
    (pool.folder / "keys.json").write_text('[{"key_id": "a", "secret": "readonly://a"}]')
    ran = pool.rotate("a", stdin="FAKE-x")
    assert ran.returncode == 1
    assert "the secret store readonly lacks replace() and previous()" in ran.stderr
    assert "revoke the old one in 360 s, when all processes have looked" in ran.stderr


def start(pool: Pool, *arguments: str) -> subprocess.Popen[str]:
    """Start the command in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "keyrot_middleware", "rotate", *arguments],
        env={**os.environ, **pool.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """Return the first line with a text."""
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"it ended without {text!r}")


def test_a_value_of_another_provider_is_checked_there(pool: Pool) -> None:
    """It is sent to its own API, and never to Google."""
    with FakeOpenAI() as openai:
        old, new = openai.add_key("old").value, openai.add_key("new").value
        (pool.folder / "keys.json").write_text('[{"key_id": "o", "provider": "openai"}]')
        pool.env_file.write_text(f"KEYROT_KEY_o={old}\n")
        hosts = f"{pool.gemini.host},openai={openai.url}"
        env = {"OPENAI_BASE_URL": openai.base_url, "KEYROT_ALLOWED_HOSTS": hosts}
        ran = pool.rotate("o", stdin=new, **env)
        assert (ran.returncode, openai.count()) == (0, 1), ran.stderr
        assert pool.gemini.count() == 0
