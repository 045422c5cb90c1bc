"""A real Chromium, and servers for the pages that it opens; all are stopped by the tests."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from served import CHROMIUM, Server, chromium

PATIENCE_MS = 90_000
"""A test that waits in vain fails after this."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(app: Any, port: int = 0) -> Server:
        running.append(Server(app, port))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here (tools/ci_packages.sh)")
    expect.set_options(timeout=PATIENCE_MS)
    with chromium() as started:
        yield started


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
