"""Parts of the page, and texts that try to break it."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

__all__ = ["HOSTILE", "TOKEN", "details", "press_until", "row", "wait_for_rows"]

TOKEN = "a-token-of-the-tests-0123"

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)</script>',
    "javascript:alert(3)//",
    "'-alert(4)-'",
    "</td></tr></table><iframe srcdoc='<script>parent.alert(5)</script>'>",
    "<svg onload=alert(6)>",
    "{{constructor.constructor('alert(7)')()}}",
    "__proto__",
    "constructor",
    "\u202e\u2066<b>\u0000\n",
    "<style>*{display:none}</style>",
]


def row(page: Page, key_id: str) -> Locator:
    """Find the row of a key."""
    return page.locator("tr.key").filter(has=page.locator("th .key-id", has_text=key_id))


def details(page: Page, key_id: str) -> Locator:
    """Open the details of a key, and return them."""
    button = page.get_by_role("button", name=f"Details of {key_id}", exact=True)
    if button.get_attribute("aria-expanded") == "false":
        button.click()
    return page.locator(f"#{button.get_attribute('aria-controls')}")


def wait_for_rows(page: Page, count: int) -> None:
    """Wait until the table has that many keys."""
    expect(page.locator("tr.key")).to_have_count(count)


def press_until(page: Page, label: str, keys: str = "Tab", most: int = 80) -> None:
    """Press a key until the focus is on what has that accessible name."""
    name = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
    for _ in range(most):
        page.keyboard.press(keys)
        if page.evaluate(name) == label:
            return
    raise AssertionError(f"the focus never came to {label!r}")
