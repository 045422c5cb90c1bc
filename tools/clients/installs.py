"""Install the programs into .venv-clients/, a folder for each kind, by npm, go, maven and pip.

npm takes the newest versions that its Node runs. Those of Java are in tools/clients/pom.xml.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(".venv-clients").resolve()
LIMIT_S = 1_800.0
NPM = ("npm", "install", "--no-audit", "--no-fund", "--loglevel=error")
NODE = (
    *("@google/genai", "openai", "@anthropic-ai/sdk", "@mistralai/mistralai"),
    *("ai", "@ai-sdk/google", "@ai-sdk/openai", "@ai-sdk/anthropic"),
    *("@langchain/core", "@langchain/google-genai", "@langchain/openai", "@langchain/anthropic"),
)
GO = (
    *("google.golang.org/genai", "github.com/openai/openai-go/v3"),
    "github.com/anthropics/anthropic-sdk-go",
)
VENV = (sys.executable, "-m", "venv", ".")
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sh": (),
    "node": ((*NPM, *NODE),),
    "go": (
        ("sh", "-c", "[ -f go.mod ] || go mod init clients"),
        ("go", "get", *GO),
        ("go", "build", "-o", "client", "client.go"),
    ),
    "java": (("mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars"),),
    "gemini-cli": ((*NPM, "@google/gemini-cli"),),
    "claude-code": ((*NPM, "@anthropic-ai/claude-code"),),
    "llm": (VENV, ("bin/python", "-m", "pip", "install", "--quiet", "llm")),
    "aider": (VENV, ("bin/python", "-m", "pip", "install", "--quiet", "aider-chat")),
}
SOURCES = ("client.mjs", "client.go", "Client.java", "pom.xml", "cli.sh")


def install(kind: str) -> str:
    """Install a kind once; return why it cannot be, or nothing."""
    folder = CACHE / kind
    folder.mkdir(parents=True, exist_ok=True)
    ready, built = folder / "ready", folder / "client.go"
    is_built = built.is_file() and built.read_bytes() == (HERE / built.name).read_bytes()
    for name in SOURCES:
        shutil.copy(HERE / name, folder)
    commands = COMMANDS[kind]
    if ready.is_file():  # only Go's program has to be compiled anew
        commands = commands[-1:] if kind == "go" and not is_built else ()
    for command in commands:
        if failed := _run(command, folder):
            return failed
    ready.touch()
    return ""


def _run(command: tuple[str, ...], folder: Path) -> str:
    print(f"== {folder.name}: {' '.join(command)}", flush=True)
    if shutil.which(command[0]) is None and not (folder / command[0]).is_file():
        return f"there is no {command[0]}"
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} took more than {LIMIT_S:.0f} s"
    last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    return f"{command[0]}: {' '.join(last)}" if done.returncode else ""
