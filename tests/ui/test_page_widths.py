"""Nothing of the page is cut at any width, in a real Chromium, with long names and sentences."""

from collections.abc import Callable
from typing import Any

import pytest
from fake_source import FakeSource, later, sample, used, window
from playwright.sync_api import expect
from served import TOKEN, wait_for_rows

from keyrot_middleware import ui

LONG = "projects/acme/publishers/google/models/gemini-3.1-flash-lite-preview-09-2026-experimental"
MODELS = ("gemini-3.8-flash", "gemini-4-argon", "gemini-3.1-pro-preview-customtools", LONG)
WORKLOADS = (None, "chat", "nightly-batch-of-the-department-for-research-and-development")
SENTENCE = (
    f"{LONG}: every call fails since 10:02:00 UTC: 404 not found (the model is gone): "
    f'"models/{"x" * 90} is not found for API version v1beta, or is not supported."'
)

CUT = """() => [...document.querySelectorAll("main *")].filter((node) => {
    const style = getComputedStyle(node);
    if (style.display === "inline" || node.closest("thead")?.clientWidth < 2) return false;
    if (node.scrollWidth <= node.clientWidth) return false;
    const name = node.textContent.replace(/ \\+\\d+$/, "");
    return style.textOverflow !== "ellipsis" || !node.title.includes(name);
}).map((node) => node.outerHTML.slice(0, 200))"""
"""What is wider than its place, but for names on one line with an ellipsis and a title."""

ROWS_CUT = """() => {
    const list = document.querySelector("#models").getBoundingClientRect();
    return [...document.querySelectorAll("#models li")].filter((row) => {
        const { top, bottom } = row.getBoundingClientRect();
        const isCut = top < list.bottom - 1 && bottom > list.bottom + 1;
        return isCut || row.scrollHeight > row.clientHeight;
    }).map((row) => row.textContent);
}"""


def crowded() -> FakeSource:
    """Return a pool with long names, large numbers, and money that is not all known."""
    source = sample()
    for one in source.keys[:4]:
        one["used"] = {name: used(window(312, 1000)) for name in MODELS}
    busy = source.keys[2]
    busy.update(success_count=1_284_120, error_count=48_811, unpriced_calls_today=3)
    for one in source.calls:
        one.update(model=LONG, workload=WORKLOADS[2])
    source.workloads = [name for name in WORKLOADS if name]
    summary: dict[str, Any] = source.status()["summary"]
    of = {"keys": 12, "available": 12, "answer": "served", "is_trouble": False, "ends_by": "time"}
    of |= {"sentence": SENTENCE, "available_at": None, "runs_out_at": later(1_800)}
    out = of | {"available": 0, "answer": "no", "is_trouble": True, "available_at": later(600)}
    summary["calls"] = [
        (out if model == LONG else of) | {"model": model, "workload": name}
        for model in reversed(MODELS)
        for name in WORKLOADS
    ]
    summary["headline"]["sentences"] = [SENTENCE, SENTENCE]
    summary["today"].update(unpriced_calls=3, unpriced_models=[LONG])
    summary["workloads"]["nightly"]["unpriced_calls_today"] = 3
    source.more = {"summary": summary}
    return source


@pytest.mark.parametrize("width", [1440, 1280, 1200, 1024, 390])
def test_no_text_is_cut(
    serve: Callable[..., Any], open_tab: Callable[..., Any], width: int
) -> None:
    """Sentences wrap, names are on one line, and a title has all of one that ends in dots."""
    server = serve(ui.app(actions=True, token=TOKEN, source=crowded()))
    page = open_tab(server.login, viewport={"width": width, "height": 900}).page
    wait_for_rows(page, 7)
    for shares in ("Models", "Workloads"):
        page.get_by_role("button", name=shares, exact=True).click()
        expect(page.locator("#shares-name")).to_have_text(shares.removesuffix("s"))
        assert page.evaluate(CUT) == []
    assert page.evaluate(ROWS_CUT) == []
    name = page.locator("#models .name").first
    expect(name).to_have_attribute("title", f"{LONG}: {SENTENCE}")
    assert name.evaluate("node => node.getClientRects().length") == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_money_without_a_price_is_no_zero(
    serve: Callable[..., Any], open_tab: Callable[..., Any]
) -> None:
    """Today, in the row and the details of a key, beside its budget, by model, and of a call."""
    source = crowded()
    today = source.more["summary"]["today"]
    source.calls[0].update(cost_usd=None)
    page = open_tab(serve(ui.app(token=TOKEN, source=source)).login).page
    expect(page.locator("#today")).to_contain_text("Cost$0.1234 + no price")
    expect(page.locator("#today")).to_contain_text(f"3 calls without a price: {LONG}")
    counted = "$1.23 of $5.00; 3 calls without a price of today not counted"
    expect(page.locator("#today")).to_contain_text(f"Budget of nightly, the day: {counted}")
    expect(page.locator("#shares tr td").last).to_contain_text(" + no price")
    busy = page.locator("tr.key").nth(2)
    expect(busy.locator("td").last).to_contain_text("$1.84 + no price")
    today.update(cost_usd=None)
    source.keys[2].update(usd_today=None)
    expect(page.locator("#today")).to_contain_text("Costno price")
    expect(busy.locator("td").last).to_contain_text("no price2.74M tok")
    busy.get_by_role("button").first.click()
    details = page.locator("#details-body")
    expect(details).to_contain_text("331,400 out, no price")
    expect(details).to_contain_text("$3.54 of $5.00; 3 calls without a price of today not counted")
    page.keyboard.press("Escape")
    page.locator("#calls button").first.click()
    expect(details).to_contain_text("Costno price")
