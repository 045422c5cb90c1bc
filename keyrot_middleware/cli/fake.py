"""The fake Gemini API of keyrot_middleware.testing from a shell: `keyrot demo`, `keyrot fake`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast, get_args

from rich.console import Console

from .. import providers
from ..core.wording import did_you_mean, one_line
from ..errors import ConfigError, KeyrotError
from ..providers.gemini import Gemini
from ..providers.gemini.models import CURRENT_MODEL, FREE_LIMITS
from ..providers.keys import display
from ..telemetry.logs import format_time
from ..testing import FakeAnthropic, FakeClock, FakeGemini, FakeOpenAI, LoggedRequest, Reply
from ..testing.fake_openai import Flavor
from ..testing.keys import Tier
from .status import console, escape, table

PROGRAM = Path(__file__).with_name("demo_program.py")
TIMEOUT_S = 180.0
FREE_RPM = FREE_LIMITS[CURRENT_MODEL].rpm
KEYS = (
    {"key_id": "revoked_1", "tier": "free", "project": "first-project"},
    {"key_id": "exhausted_1", "tier": "free", "project": "second-project"},
    {"key_id": "free_1", "tier": "free", "project": "third-project"},
    {"key_id": "paid_1", "tier": "tier1", "project": "company", "priority": 1},
)
"""Without limits: the pool learns them from the answers."""
LABELS = [str(key["key_id"]) for key in KEYS]
_OWN = ("GEMINI_", "GOOGLE_", "KEYROT_", "OTEL_", "ENABLE_KEY_ROTATION", "SECRET_STORE", "REDIS_")
"""How the names of the user's settings begin."""
Ran = subprocess.CompletedProcess[str]


def demo() -> int:
    """Run the demo; return the exit code of the program with the pool."""
    out = console()
    out.print("[bold]keyrot demo[/]: the same program twice, without and with a pool of keys.")
    out.print(
        "A fake Gemini API answers on this machine: no key and no network needed.\n"
        f"Two keys of the pool are bad, and the free one has {FREE_RPM} requests a minute.\n",
        style="dim",
    )
    command = [sys.executable, "-m", "keyrot_middleware", "run", str(PROGRAM)]
    with Console(stderr=True).status("Running the program…"), _server() as (gemini, folder):
        alone = _run_alone()
        values = {f"GEMINI_KEY_{label}": gemini.key(label).value for label in LABELS}
        keys = {"KEYROT_KEYS_FILE": str(folder / "keys.json"), "KEYROT_STRATEGY": "fill"}
        pooled = _run(command, gemini, folder, **keys, **values)
        log = gemini.log
    calls: list[list[tuple[str, str]]] = [[]]
    for request in log:
        result = "ok" if request.reply == "OK" else request.reply.lower()
        calls[-1].append((str(request.key), result))
        if request.reply == "OK":
            calls.append([])
    _print_both(out, alone, pooled, calls)
    if pooled.returncode:
        out.print(escape(pooled.stderr[-1000:]), style="red")
    out.print("[bold]Next[/]  keyrot init                 writes keys.json and .env for your keys")
    out.print("      keyrot run your_program.py  runs it with them; no line of it changes")
    return pooled.returncode


def _print_both(
    out: Console, alone: Ran, pooled: Ran, calls: Sequence[Sequence[tuple[str, str]]]
) -> None:
    """Print what each run answered, side by side; the program's last line is of two calls."""
    rows = table("", "", "python program.py\none key: free_1", "keyrot run program.py\nfour keys")
    lines, answered = pooled.stdout.splitlines(), len(alone.stdout.splitlines())
    error = re.search(r": (\d{3} [A-Z_]+)", alone.stderr)
    for number, line in enumerate(lines):
        without = "[green]ok[/]" if number < answered else "[dim]not reached[/]"
        if number == answered:
            without = f"[red]{escape(error[1] if error else 'failed')}[/]"
        own = filter(None, calls[number : None if number == len(lines) - 1 else number + 1])
        rows.add_row(escape(line.partition(":")[0]), without, ", ".join(map(_attempts, own)))
    all_of = f"{len(lines)} of {len(lines)}"
    counts = f"[bold red]{answered} of {len(lines)}[/]", f"[bold green]{all_of}[/]"
    rows.add_row("[bold]answered[/]", *counts)
    out.print(rows, "")


def _attempts(call: Sequence[tuple[str, str]]) -> str:
    colors = {True: "green", False: "red"}
    return " → ".join(f"[{colors[result == 'ok']}]{key} {result}[/]" for key, result in call)


def _run_alone() -> Ran:
    """Run the program with the free key, at a server of its own, since it exhausts the quota."""
    with _server() as (gemini, folder):
        key = gemini.key("free_1").value
        return _run([sys.executable, str(PROGRAM)], gemini, folder, GEMINI_API_KEY=key)


def _run(command: list[str], gemini: FakeGemini, folder: Path, **env: str) -> Ran:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
    local = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    hosts = {"GOOGLE_GEMINI_BASE_URL": gemini.url, "KEYROT_ALLOWED_HOSTS": gemini.host}
    return subprocess.run(  # noqa: S603 - this interpreter, this package's own file
        command,
        env={**kept, **local, **hosts, **env},
        cwd=folder,
        timeout=TIMEOUT_S,
        text=True,
        capture_output=True,
        check=False,
    )


@contextmanager
def _server() -> Iterator[tuple[FakeGemini, Path]]:
    """Serve with a revoked key, one with an exhausted day, a free one of 5 RPM, and a paid one.

    Its clock stands still at the beginning of this minute, so that all calls are in one minute.
    """
    clock = FakeClock(time.time() // 60 * 60 + 1)
    with FakeGemini(clock) as gemini, TemporaryDirectory(prefix="keyrot-demo-") as folder:
        for key in KEYS:
            label, project = str(key["key_id"]), str(key["project"])
            gemini.add_key(label, project=project, tier="free" if key["tier"] == "free" else "paid")
        gemini.always("revoked_1", Reply.KEY_INVALID)
        gemini.always("exhausted_1", Reply.QUOTA_DAY)
        gemini.limit("third-project", rpm=FREE_RPM)
        (Path(folder) / "keys.json").write_text(json.dumps(KEYS), "utf-8")
        yield gemini, Path(folder)


DEFAULT_KEYS = (f"key_1={FREE_RPM}", f"key_2={FREE_RPM}", "key_3")
_NUMBER = "([1-9][0-9]{0,8})"
_KEY = re.compile(
    rf"([A-Za-z_][A-Za-z0-9_]*)(?:=(?:{_NUMBER}(?:/{_NUMBER})?|([A-Za-z][A-Za-z0-9_]*)))?"
)
_REPLIES = {"REVOKED": "KEY_INVALID", "EXPIRED": "KEY_EXPIRED", "LEAKED": "KEY_LEAKED"}
"""What a key may be called, and the reply that it then gets."""
_KEPT = 1_000
"""Requests that are kept to be printed; the rest of a burst is counted."""


Server = FakeGemini | FakeOpenAI | FakeAnthropic


class Key(NamedTuple):
    """A key of the command line."""

    key_id: str
    rpm: int | None
    rpd: int | None
    reply: str | None
    """The name of the reply to all of its requests, if not the usual one."""


def fake(port: int, keys: Iterable[str], *, provider: str = Gemini.name) -> int:
    """Serve until Ctrl-C, and print a line for each request.

    Args:
        port: Of 127.0.0.1; 0: any free one.
        keys: `ID`, `ID=RPM`, `ID=RPM/RPD` or `ID=REPLY`, in any case, or `ID=revoked`; none: three
            keys, two of them with 5 requests a minute. RPD is of Gemini alone.
        provider: Whose API it is.

    Raises:
        ConfigError: A key is not written so, or there is no fake of the provider.
        KeyrotError: The port cannot be used.
    """
    parsed = parse(list(keys) or DEFAULT_KEYS)
    server, values = make_server(provider, parsed)
    try:
        server.start(port)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()  # that of the error has the address, too
        raise KeyrotError(
            f"port {port} of 127.0.0.1 cannot be used: {reason}; "
            "choose another with --port, or --port 0 for any that is free"
        ) from None
    try:
        _print_start(provider, server, parsed, values)
        _serve(server)
    except KeyboardInterrupt:
        print(flush=True)
    finally:
        server.stop()
    return 0


def make_server(provider: str, keys: list[Key]) -> tuple[Server, list[str]]:
    """Return the fake of a provider, and the values of its keys."""
    if provider == Gemini.name:
        gemini = FakeGemini(keep_log=_KEPT)
        for key_id, rpm, rpd, reply in keys:
            project = f"project-{key_id}".replace("_", "-")  # as Google allows
            tier: Tier = "paid" if rpm is None else "free"
            value = f"FAKE-{key_id}"
            gemini.add_key(key_id, project=project, tier=tier, rpm=rpm, rpd=rpd, value=value)
            if reply is not None:
                gemini.always(key_id, Reply.all()[reply])
        return gemini, [gemini.key(key.key_id).value for key in keys]
    known = (Gemini.name, FakeAnthropic.flavor, *get_args(Flavor))
    if provider not in known:
        hint = did_you_mean(provider, known)
        text = f"--provider: found {display(provider)}; allowed: {', '.join(known)}.{hint}"
        raise ConfigError(text)
    other: FakeOpenAI | FakeAnthropic = FakeAnthropic(keep_log=_KEPT)
    if provider != FakeAnthropic.flavor:
        other = FakeOpenAI(cast("Flavor", provider), keep_log=_KEPT)
    values = [other.add_key(key.key_id, rpm=key.rpm).value for key in keys]
    for key in keys:
        if key.reply is not None:
            other.remove_key(key.key_id)
    return other, values


def parse(keys: Iterable[str]) -> list[Key]:
    """Return the keys of the command line.

    Raises:
        ConfigError: One is wrong.
    """
    parsed: dict[str, Key] = {}
    for text in keys:
        match = _KEY.fullmatch(text)
        if match is None:
            allowed = (
                "ID, ID=RPM, ID=RPM/RPD or ID=REPLY, such as free_1, free_1=5 or bad_1=revoked"
            )
            raise ConfigError(f"--key: found {display(text)}; allowed: {allowed}")
        name, rpm, rpd, reply = match.groups()
        if reply is not None:
            replies = Reply.all()
            known = _REPLIES.get(reply.upper(), reply.upper())
            if known not in replies:
                hint = did_you_mean(reply, (*replies, *_REPLIES))
                raise ConfigError(f"--key: no reply {reply}; docs/testing.md has them.{hint}")
            reply = known
        a_minute, a_day = (int(number) if number else None for number in (rpm, rpd))
        parsed[name] = Key(name, a_minute, a_day, reply)
    return list(parsed.values())


def _print_start(provider: str, server: Server, keys: list[Key], values: list[str]) -> None:
    is_gemini = provider == Gemini.name
    of = providers.of(Gemini.platform if is_gemini else provider)
    print(
        f"Fake {of.title} API on {server.url}. It needs no real key and no network. Ctrl-C ends it."
    )
    print()
    width = max(len(key.key_id) for key in keys)
    for key_id, rpm, rpd, reply in keys:
        a_day = "" if rpd is None else f" and {rpd} a day"
        limit = "no limit" if rpm is None else f"limit of {rpm} a minute{a_day}, then a 429"
        always = f"always {reply}" if is_gemini else "always refused"
        print(f"  {key_id:{width}}  {limit if reply is None else always}")
    if is_gemini:
        print(f"\nModel: {CURRENT_MODEL}, or any other of Google's.")
        print(f"OpenAI's protocol: {server.url}/v1beta/openai/")
    print("\nIn the terminal of your program:\n")
    if of.base_url_variable:
        print(f"export {of.base_url_variable}={server.base_url}")
    print(f"export KEYROT_ALLOWED_HOSTS={server.host if is_gemini else f'{provider}={server.url}'}")
    print(f"export {of.variables[-1]}S={','.join(values)}")
    print("keyrot run app.py\n")
    if is_gemini and [one.key_id for one in keys] != [f"key_{n + 1}" for n in range(len(keys))]:
        print("In your pool they are called key_1, key_2, … in this order.\n")
    sys.stdout.flush()


def _serve(gemini: Server) -> None:
    printed = 0
    while True:
        if gemini.wait_for(printed + 1, timeout=0.5):
            total, log = gemini.count(), gemini.log
            for request in log[printed - total :]:
                print(_line(request), flush=True)
            printed = total


def _line(request: LoggedRequest) -> str:
    key, model = request.key or "unknown key", request.model or request.path
    status = "no response" if request.status == 0 else str(request.status)
    reply = "" if request.reply == "OK" else f" {request.reply}"
    return one_line(f"{format_time(request.at)}  {key}  {model} {request.verb}  {status}{reply}")
