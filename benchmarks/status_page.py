"""The page: what a request costs with many keys, and how soon an open page shows a change."""

from __future__ import annotations

import statistics
import time
from urllib.request import Request, urlopen

from fake_source import FakeSource
from fake_source import key as fake_key
from served import CHROMIUM, TOKEN, Server, chromium

import keyrot_middleware
from keyrot_middleware import ui
from keyrot_middleware.testing.keys import make_value

__all__ = ["KEYS", "SHOWN", "request_ms", "shown_s"]

KEYS, SHOWN = 10_000, 100


def request_ms(times: int = 6) -> float:
    """Measure the CPU time of a request for some of many keys; milliseconds, p50."""
    value, taken = make_value(), []
    keyrot_middleware.install(keys=[f"{value[:-5]}{number:05}" for number in range(KEYS)])
    try:
        for number in range(times):
            server = Server(ui.app(token=TOKEN))  # one that has read nothing yet
            begun = time.process_time()
            address = f"{server.url}/api/status?offset={number * SHOWN}&limit={SHOWN}"
            asked = Request(address, headers={"Authorization": f"Bearer {TOKEN}"})  # noqa: S310 - loopback
            with urlopen(asked) as reply:  # noqa: S310 - loopback
                reply.read()
            taken.append((time.process_time() - begun) * 1e3)
            server.stop()
    finally:
        keyrot_middleware.uninstall()
    return statistics.median(taken)


def shown_s(times: int = 5) -> float | None:
    """Measure until an open page shows that a key's state has changed; seconds, p50.

    None without Chromium.
    """
    if CHROMIUM is None:
        return None
    source, taken = FakeSource([fake_key("key_1")]), []
    server = Server(ui.app(token=TOKEN, source=source))
    with chromium() as browser:
        page = browser.new_page()
        page.goto(server.login)
        page.wait_for_selector("tr.key")
        for number in range(times):
            state = ("limited", "cooling down")[number % 2]
            begun = time.monotonic()
            source.keys[0].update(state=state.replace(" ", "_"), available=False)
            page.wait_for_selector(f"tr.key .state:has-text('{state}')")
            taken.append(time.monotonic() - begun)
    server.stop()
    return statistics.median(taken)
