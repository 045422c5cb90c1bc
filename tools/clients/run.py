"""Real programs of other languages through `keyrot serve`, set up as docs/serve.md says.

``python run.py`` runs them all; ``python run.py gemini-cli openai`` those of the name; ``--check``
only compares their table with the page, without a network.

Of three keys A is exhausted, B is refused, C is good. A program makes CALLS calls: A and B get one
request each, C the calls, and none fails. An upload has a door of its own, since it has no model
and so no cooldown of one. The exit code is the number of programs that failed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fakes import Anthropic, Gemini, OpenAI, Tool
from installs import CACHE, install
from page import ADDRESS, Page

from keyrot_middleware.testing import Reply, Scripted

CALLS = 20
LIMIT_S = 1_800.0
"""Of a program's calls; 20 processes of aider take nine minutes on a busy machine."""
LIMITED = {"message": "Too many", "type": "rate_limit_error", "code": "rate_limit_exceeded"}
SPENT = Scripted(429, lambda _: {"error": LIMITED}, headers=(("retry-after", "3600"),))
FAKES: dict[str, Any] = {
    "gemini": Gemini,
    "openai": OpenAI,
    "anthropic": Anthropic,
    "mistral": lambda tool: OpenAI(tool, "mistral"),
}
COMMANDS = {
    "node": ("node", "client.mjs"),
    "go": ("./client",),
    "java": ("java", "-cp", "jars/*", "Client.java"),
}
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "JAVA_HOME")
"""Of this shell's environment; a user's key must not leak in."""


class Client(NamedTuple):
    """A program, how it is installed, and what it calls."""

    kind: str
    provider: str
    ways: tuple[str, ...] = ("plain", "stream", "tools", "upload")
    tool: Tool = Tool()
    is_agent: bool = False
    """Whether it sends what its function has found, so that C gets more requests than CALLS."""


_CALLS_ONLY = ("plain", "stream", "tools")
CLIENTS = {
    "curl": Client("sh", "gemini", ("plain",)),
    "@google/genai": Client("node", "gemini"),
    "@ai-sdk/google": Client("node", "gemini", _CALLS_ONLY),
    "@langchain/google-genai": Client("node", "gemini", _CALLS_ONLY),
    "google.golang.org/genai": Client("go", "gemini"),
    "com.google.genai:google-genai": Client("java", "gemini"),
    "gemini-cli": Client(
        "gemini-cli", "gemini", _CALLS_ONLY, Tool("list_directory", '{"dir_path": "."}'), True
    ),
    "openai": Client("node", "openai"),
    "@ai-sdk/openai": Client("node", "openai", _CALLS_ONLY),
    "@langchain/openai": Client("node", "openai", _CALLS_ONLY),
    "github.com/openai/openai-go": Client("go", "openai"),
    "com.openai:openai-java": Client("java", "openai"),
    "llm": Client("llm", "openai", _CALLS_ONLY, Tool("llm_version", "{}"), True),
    "aider": Client("aider", "openai", ("plain", "stream")),
    "@anthropic-ai/sdk": Client("node", "anthropic"),
    "@ai-sdk/anthropic": Client("node", "anthropic", _CALLS_ONLY),
    "@langchain/anthropic": Client("node", "anthropic", _CALLS_ONLY),
    "github.com/anthropics/anthropic-sdk-go": Client("go", "anthropic"),
    "claude-code": Client(
        "claude-code", "anthropic", _CALLS_ONLY, Tool("Glob", '{"pattern": "*"}'), True
    ),
    "@mistralai/mistralai": Client("node", "mistral"),
}


@contextmanager
def serve(provider: str, server: Any) -> Iterator[str]:
    """Run the door over three keys of *server*; yield its address."""
    values = {f"KEYROT_KEY_{one}": server.add_key(one).value for one in "ABC"}
    is_gemini = provider == "gemini"
    server.always("A", Reply.QUOTA_DAY if is_gemini else SPENT)
    if is_gemini:
        server.always("B", Reply.KEY_INVALID)
    else:
        server.remove_key("B")
    env = {name: os.environ[name] for name in (*KEPT, "PYTHONPATH") if name in os.environ} | values
    env["KEYROT_ALLOWED_HOSTS"] = server.host if is_gemini else f"{provider}={server.url}"
    env |= {"KEYROT_STRATEGY": "fill", "KEYROT_STATE_URL": "memory://", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-W", "ignore", "-m", "keyrot_middleware", "serve", "--port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        entries = [{"key_id": one, "provider": provider} for one in "ABC"]
        (Path(folder) / "keys.json").write_text(json.dumps(entries))
        door = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            said = ""
            while "Ctrl-C" not in said:
                said += (door.stdout and door.stdout.readline()) or sys.exit("it did not start")
            yield re.findall(r"http://127\.0\.0\.1:\d+", said)[0]
        finally:
            door.send_signal(signal.SIGTERM)
            door.wait(60)


def ask(name: str, ways: tuple[str, ...]) -> tuple[set[str], int, list[str], list[int]]:
    """Run a program over a fresh door.

    Returns:
        The ways that failed, how many calls failed, what the program says about them, and the
        requests of each key.
    """
    client, page = CLIENTS[name], Page()
    folder = CACHE / client.kind
    with FAKES[client.provider](client.tool) as server, ExitStack() as stack:
        address = stack.enter_context(serve(client.provider, server))
        page.write(name, address, folder)
        env = {one: os.environ[one] for one in KEPT if one in os.environ}
        env |= {"HOME": str(folder), "NO_PROXY": "127.0.0.1", "GEMINI_CLI_TRUST_WORKSPACE": "true"}
        env["PATH"] = f"{folder / 'bin'}:{folder / 'node_modules' / '.bin'}:{env['PATH']}"
        env |= page.environment(name, address)
        command = [*COMMANDS.get(client.kind, ("sh", "cli.sh")), name, *ways]
        lines = _lines(command, folder, env)
        # Of a key that is unknown to the service, no name is in the log.
        sent = [server.sent(one) for one in ("A", "B" if client.provider == "gemini" else None)]
        sent.append(server.sent("C"))
    good = re.compile(rf"(plain|stream): ok\b|tools: (ok\b|{client.tool.name}$)|upload: \S+$")
    served = Counter(line.partition(":")[0] for line in lines if good.match(line))
    missing = Counter(ways) - served
    said = [line for line in lines if not good.match(line)]
    return {*missing}, missing.total(), said, sent


def _lines(command: list[str], folder: Path, env: dict[str, str]) -> list[str]:
    """Run a program; return its output, and its errors if it failed."""
    ran = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = ran.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(ran.pid, signal.SIGKILL)  # it and what it has started
        output, errors = ran.communicate()
        errors += f"\nended after {LIMIT_S:.0f} s"
    return [*output.splitlines(), *(errors.splitlines()[-3:] if ran.returncode else ())]


def run(name: str) -> bool:
    """Run a program, print its row, and return whether it is right."""
    client = CLIENTS[name]
    if reason := install(client.kind):
        print(f"{name:40} not installed: {reason}", flush=True)
        return True
    ways = tuple(way for way in client.ways if way != "upload")
    bad, failed, said, (a, b, c) = ask(name, tuple(ways[n % len(ways)] for n in range(CALLS)))
    is_right = a == b == 1 and (c > CALLS if client.is_agent else c == CALLS)
    if "upload" in client.ways:
        bad_too, failed_too, said_too, _ = ask(name, ("upload",))
        bad, failed, said = bad | bad_too, failed + failed_too, said + said_too
    done = ", ".join(way for way in client.ways if way not in bad)
    print(f"{name:39} {done:28} A {a}, B {b}, C {c}, failed {failed}", flush=True)
    if not is_right or failed:
        print(*(f"    {line[:400]}" for line in said[:3]), sep="\n")
    return is_right and not failed


def differences() -> Iterator[str]:
    """Yield what the page has and nobody runs, and what is run and not on the page."""
    page = Page()
    named = {*page.needs, "curl"}
    yield from (f"docs/serve.md does not name {name}" for name in sorted(CLIENTS.keys() - named))
    yield from (f"nobody runs {name}" for name in sorted(named - CLIENTS.keys()))
    used = {need.partition(",")[0] for need in page.needs.values()} | CLIENTS.keys()
    used |= {".gemini/settings.json"}
    yield from (f"nobody runs the block {name}" for name in sorted(page.blocks.keys() - used))
    for name, client in CLIENTS.items():
        is_set_up = bool(page.environment(name, ADDRESS)) or ADDRESS in page.blocks.get(name, "")
        if not is_set_up:
            yield f"docs/serve.md does not say how to set up {name}"
        if client.kind not in COMMANDS and name not in page.blocks:
            yield f"docs/serve.md has no command of {name}"


def main(arguments: list[str]) -> int:
    """Return how many programs failed."""
    if arguments == ["--check"]:
        found = list(differences())
        print(*found, sep="\n", end="\n" * bool(found))
        return len(found)
    if unknown := set(arguments) - CLIENTS.keys():
        print(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(CLIENTS)}")
        return 1
    return sum(not run(name) for name in CLIENTS if not arguments or name in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
