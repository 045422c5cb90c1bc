"""litellm's proxy server as `keyrot run litellm` starts it: chats, a stream and embeddings."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from cases import Fault
from upstream import add_key, environment_of
from venvs import python_of

from keyrot_middleware.testing import FakeGemini

START_S = 240
MASTER_KEY = "sk-FAKE-of-the-proxy"
"""Without one it does not start."""
MODELS = {"chat": "gemini-3.1-flash-lite", "embed": "gemini-embedding-001"}
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
CALLS = (
    *[("/v1/chat/completions", CHAT)] * 3,
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/embeddings", {"model": "embed", "input": ["a"]}),
)
EXPECTED: dict[Fault, int] = {"spent": len(MODELS), "invalid": 1, "good": len(CALLS)}
"""Requests with each key: a day's limit is that of a model."""


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return once the server answers.

    Raises:
        TimeoutError: It ended, or did not answer in time.
    """
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            httpx.get(url, timeout=20)
        except httpx.TransportError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(f"it did not start, and ended with {server.poll()}")


def main() -> int:
    """Run it; return 1 where a call failed, or a key got another number of requests."""
    python, port = python_of("litellm-proxy"), free_port()
    url = f"http://127.0.0.1:{port}"
    with FakeGemini() as fake, TemporaryDirectory() as folder:
        values = {str(fault): add_key(fake, fault, fault) for fault in EXPECTED}
        models = [
            {"model_name": name, "litellm_params": {"model": f"gemini/{model}"}}
            for name, model in MODELS.items()
        ]
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"model_list": models}))
        environment = environment_of(fake, values, Path(folder))
        environment["PATH"] = f"{python.parent}:{environment['PATH']}"
        environment["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it fetches another one
        environment["LITELLM_MASTER_KEY"] = MASTER_KEY
        login = {"Authorization": f"Bearer {MASTER_KEY}"}
        keyrot, address = str(python.with_name("keyrot")), ("--host", "127.0.0.1", "--port")
        server = subprocess.Popen(
            [keyrot, "run", "litellm", "--config", str(config), *address, str(port)],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(f"{url}/health/liveliness", server)
            replies = [
                httpx.post(url + path, json=body, headers=login, timeout=120)
                for path, body in CALLS
            ]
        except (httpx.HTTPError, TimeoutError) as error:
            print(f"FAIL litellm's proxy: {error}")
            return 1
        finally:
            server.terminate()
            server.wait(60)
        sent = {fault: fake.sent(fault) for fault in EXPECTED}
    passed = sent == EXPECTED and all(reply.is_success for reply in replies)
    print("ok  " if passed else "FAIL", "litellm's proxy by keyrot run:", sent)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
