"""A server for the page, a real Chromium that opens it, and parts of the page."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from asgi import TOKEN
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

__all__ = ["CHROMIUM", "HOSTILE", "TOKEN", "Server", "chromium", "details", "row", "wait_for_rows"]

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)</script>',
    "javascript:alert(3)//",
    "</td></tr></table><iframe srcdoc='<script>parent.alert(5)</script>'>",
    "{{constructor.constructor('alert(7)')()}}",
    "__proto__",
    "\u202e\u2066<b>\u0000\n",
    "<style>*{display:none}</style>",
]


class Server:
    """An ASGI app on a port of loopback."""

    def __init__(self, app: Any, port: int = 0) -> None:
        listener = socket.create_server(("127.0.0.1", port))
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.login = f"{self.url}/?token={TOKEN}"
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


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


def row(page: Page, key_id: str) -> Locator:
    return page.locator("tr.key").filter(has=page.locator("th .key-id", has_text=key_id))


def details(page: Page, key_id: str) -> Locator:
    dialog = page.locator("#details")
    if not dialog.is_visible():
        page.get_by_role("button", name=f"Details of {key_id}", exact=True).first.click()
    expect(page.locator("#details-title")).to_have_text(key_id)
    return dialog


def wait_for_rows(page: Page, count: int) -> None:
    expect(page.locator("tr.key")).to_have_count(count)
