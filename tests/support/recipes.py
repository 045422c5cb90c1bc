"""Run a recipe of docs/recipes as a reader would: files in a directory, a real server, a client."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keyrot_middleware.testing import FakeGemini
from support.docs_blocks import ROOT, blocks
from support.servers import server

WAIT_S = 120.0
"""Seconds that a server may take to begin; it takes one or two."""


class Recipe:
    """The files of a recipe in a directory, and an environment that leads to the fake service."""

    def __init__(self, folder: Path, gemini: FakeGemini) -> None:
        self.folder = folder
        self.gemini = gemini
        self.env = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "HOME": str(folder),
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
            "KEYROT_STRATEGY": "fill",
            "NO_PROXY": "127.0.0.1",
        }

    def keys(self, *labels: str) -> None:
        """Use keys with these labels, in this order; those that are missing are made."""
        values = []
        for label in labels:
            try:
                values.append(self.gemini.key(label).value)
            except KeyError:
                values.append(self.gemini.add_key(label, tier="paid").value)
        self.env["GEMINI_API_KEYS"] = ",".join(values)

    def share(self) -> str:
        url = server("valkey").strict_url
        self.env |= {"KEYROT_STATE_URL": url, "KEYROT_POOL": self.folder.name.replace("_", "-")}
        return url

    def write(self, page: str) -> None:
        for block in blocks(ROOT / "docs" / "recipes" / page):
            if block.file:
                path = self.folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.code, "utf-8")

    def python(self, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, *args],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(self, *args: str) -> Iterator[Path]:
        """Run Python in the background, in a process group of its own; yield its log."""
        log = self.folder / "log.txt"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, *args],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield log
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(15)
                finally:
                    _kill_group(process.pid)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def get(url: str) -> tuple[int, str, dict[str, str]]:
    """Return status, text and headers; waits for a server that begins to listen."""
    end = time.monotonic() + WAIT_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(url, timeout=60) as reply:
                return reply.status, reply.read().decode(), dict(reply.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
