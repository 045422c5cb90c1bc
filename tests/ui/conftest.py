"""A real Chromium, and servers for the pages that it opens; all are stopped by the tests."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE_MS = 20_000
"""A test that waits in vain fails after this."""


class Server:
    """An ASGI app on a port of loopback."""

    def __init__(self, app: Any, port: int = 0) -> None:
        listener = socket.create_server(("127.0.0.1", port))
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)

    def stop(self) -> None:
        """Close all connections, and stop."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Serve apps until the test ends."""
    running: list[Server] = []

    def start(app: Any, port: int = 0) -> Server:
        running.append(Server(app, port))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Debian's Chromium, once for a module."""
    path = shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(path).exists():
        pytest.skip("no chromium here (tools/ci_packages.sh)")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


class Tab:
    """A page under observation: every effect of a hostile text is in `incidents`."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.incidents: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("dialog", self._on_dialog)
        self.page.on("pageerror", lambda error: self.incidents.append(f"error: {error}"))
        self.page.on("console", self._on_console)
        self.page.on("request", lambda sent: self.hosts.add(sent.url.split("/")[2]))

    def _on_dialog(self, dialog: Any) -> None:
        self.incidents.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_console(self, message: Any) -> None:
        # A failed request is no incident: tests check what the page shows about it.
        if message.type in ("error", "warning") and "Failed to load" not in message.text:
            self.incidents.append(f"console: {message.text}")


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Open pages in fresh profiles, and check at the end that there were no incidents."""
    tabs: list[Tab] = []

    def start(url: str, **options: Any) -> Tab:
        tabs.append(Tab(browser, **options))
        tabs[-1].page.goto(url)
        return tabs[-1]

    yield start
    for tab in tabs:
        tab.context.close()
    for tab in tabs:
        assert tab.incidents == []
        assert len(tab.hosts) <= 1
