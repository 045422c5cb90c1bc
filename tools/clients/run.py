"""Real clients of other languages through `keyrot serve`: curl, Node's SDKs, Google's SDK for Go.

Of three keys A is exhausted, B is refused, C is good: A and B get one request each, and no call
fails. It installs the newest SDKs into .venv-clients/, so it needs npm, go and their registries.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from keyrot_middleware.testing import FakeAnthropic, FakeGemini, FakeOpenAI, Reply, Scripted

HERE = Path(__file__).parent
CACHE = Path(".venv-clients").resolve()
CALLS = 20
LIMITED = {"message": "Too many", "type": "rate_limit_error", "code": "rate_limit_exceeded"}
FAKES = {"gemini": FakeGemini, "openai": FakeOpenAI, "anthropic": FakeAnthropic}
CURL = (
    "for n in $(seq {calls}); do curl -sS {door}/gemini/v1beta/models/gemini-3.8-flash:"
    'generateContent -d \'{{"contents":[{{"parts":[{{"text":"Hi"}}]}}]}}\'; echo; done'
)


def set_up() -> None:
    """Install the SDKs once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in ("client.mjs", "client.go"):
        shutil.copy(HERE / name, CACHE)
    if not (CACHE / "node_modules").is_dir():
        packages = ("@google/genai", "openai", "@anthropic-ai/sdk")
        command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *packages]
        subprocess.run(command, cwd=CACHE, check=True)
    if not (CACHE / "go.mod").is_file():
        subprocess.run(["go", "mod", "init", "clients"], cwd=CACHE, check=True)
        subprocess.run(["go", "get", "google.golang.org/genai"], cwd=CACHE, check=True)
    subprocess.run(["go", "build", "-o", "client", "client.go"], cwd=CACHE, check=True)


def run(name: str, provider: str, command: list[str]) -> bool:
    """Run a client over a fresh door; print what each key got, and return whether it is right."""
    with FAKES[provider]() as server, tempfile.TemporaryDirectory() as folder:
        values = {f"KEYROT_KEY_{one}": server.add_key(one).value for one in "ABC"}
        entries = [{"key_id": one, "provider": provider} for one in "ABC"]
        (Path(folder) / "keys.json").write_text(json.dumps(entries))
        is_gemini = provider == "gemini"
        reply = Reply.QUOTA_MINUTE if is_gemini else Scripted(429, lambda _: {"error": LIMITED})
        server.always("A", reply)
        if is_gemini:
            server.always("B", Reply.KEY_INVALID)
        else:
            server.remove_key("B")
        host = server.host if is_gemini else f"{provider}={server.url}"
        env = {**os.environ, **values, "KEYROT_ALLOWED_HOSTS": host, "KEYROT_STRATEGY": "fill"}
        env |= {"KEYROT_STATE_URL": "memory://", "NO_PROXY": "127.0.0.1"}
        door = subprocess.Popen(
            [sys.executable, "-m", "keyrot_middleware", "serve", "--port", "0"],
            env=env,
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            said = ""
            while "Ctrl-C" not in said:
                said += (door.stdout and door.stdout.readline()) or sys.exit("it did not start")
            found = re.findall(r"http://127\.0\.0\.1:\d+", said)[0]
            full = [part.format(door=found, calls=CALLS) for part in command]
            ran = subprocess.run(
                full, cwd=CACHE, capture_output=True, text=True, timeout=600, check=False
            )
        finally:
            door.send_signal(signal.SIGTERM)
            door.wait(60)
        failed = [line for line in ran.stdout.splitlines() if "failed" in line or '"error"' in line]
        sent = [server.sent(one) for one in ("A", "B" if is_gemini else None, "C")]
        print(f"{name:22} A {sent[0]}, B {sent[1]}, C {sent[2]}, failed {len(failed)}")
        for line in (*failed[:3], *ran.stderr.splitlines()[:5]):
            print(f"    {line}")
        # An upload has no model, so the cooldown of one does not hold for it.
        of_uploads = "upload" in ran.stdout
        at_most = [1 + of_uploads, 1, CALLS + 3]
        is_right = all(map(int.__le__, sent, at_most)) and sent[2] >= CALLS
        return not failed and ran.returncode == 0 and is_right


CLIENTS = (
    ("curl", "gemini", ["sh", "-c", CURL]),
    ("Node, @google/genai", "gemini", ["node", "client.mjs", "gemini", "{door}", "{calls}"]),
    ("Node, openai", "openai", ["node", "client.mjs", "openai", "{door}", "{calls}"]),
    ("Node, anthropic", "anthropic", ["node", "client.mjs", "anthropic", "{door}", "{calls}"]),
    ("Go, genai", "gemini", ["./client", "{door}", "{calls}"]),
)

if __name__ == "__main__":
    set_up()
    sys.exit(not all([run(*client) for client in CLIENTS]))
