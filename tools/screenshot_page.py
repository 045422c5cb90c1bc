"""Draw docs/images/page.png: the page over the sample of its tests, in Chromium."""

from __future__ import annotations

from pathlib import Path

from fake_source import sample
from served import Server, chromium

from keyrot_middleware import ui

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "page.png"
SIZE = {"width": 1320, "height": 1000}


def main() -> None:
    """Serve the page, and write the picture."""
    server = Server(ui.app(source=sample()))
    IMAGE.parent.mkdir(exist_ok=True)
    with chromium() as browser:
        page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        page.goto(server.url)
        page.wait_for_selector("tr.key")
        page.screenshot(path=IMAGE)
    server.stop()
    print(f"{IMAGE.name}: {IMAGE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
