"""Draw docs/images/page.png: the page over the sample of its tests, in Chromium."""

from __future__ import annotations

import shutil
import socket
import threading
from pathlib import Path

import uvicorn
from fake_source import sample
from playwright.sync_api import sync_playwright

from keyrot_middleware import ui

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "page.png"
SIZE = {"width": 1320, "height": 1000}


def main() -> None:
    """Serve the page, and write the picture."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(ui.app(source=sample()), lifespan="off", log_level="error")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    IMAGE.parent.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        page.wait_for_selector("tr.key")
        page.screenshot(path=IMAGE)
        browser.close()
    server.should_exit = server.force_exit = True
    thread.join()
    print(f"{IMAGE.name}: {IMAGE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
