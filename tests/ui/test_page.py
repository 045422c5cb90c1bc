"""The page in a real Chromium, over a source that the tests change."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from fake_source import FakeSource, call, key, sample, used, window
from playwright.sync_api import Page, expect
from served import HOSTILE, TOKEN, details, row, wait_for_rows
from starlette.applications import Starlette
from starlette.routing import Mount

from keyrot_middleware import ui

MODEL = "gemini-3.1-flash-lite"

Open = Callable[..., Any]
Serve = Callable[..., Any]


def test_the_printed_address_opens_the_page(serve: Serve, open_tab: Open) -> None:
    """The token is removed from the address at once, and the page shows each key with its state."""
    server = serve(Starlette(routes=[Mount("/keyrot", ui.app(token=TOKEN, source=sample()))]))
    tab = open_tab(f"{server.url}/keyrot/?token={TOKEN}")
    page = tab.page
    wait_for_rows(page, 7)
    assert page.url == f"{server.url}/keyrot/"
    expect(page).to_have_title("2/7 available · keyrot default")
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "All calls are served. 2 of 7 keys are available."
    )
    expect(page.locator("#verdict")).to_have_class("verdict some")  # not green
    expect(row(page, "free_1")).to_contain_text("cooling down")
    expect(row(page, "free_1")).to_contain_text(re.compile(r"available in 0:\d\d Google refused"))
    expect(row(page, "tenant_7")).to_contain_text(re.compile(r"tried again in 1[34]:\d\d"))
    expect(row(page, "free_1").locator(".most")).to_have_text("RPM 5 / 5")
    expect(row(page, "paid_1").locator("td").first).to_have_text("my-app")
    expect(row(page, "paid_1")).to_contain_text("$1.84")
    image = row(page, "paid_1").get_by_role("img")
    expect(image).to_have_accessible_name("Last 60 minutes: 1,200 requests, 9 failed")
    states = page.locator("tr.key .state").all_inner_texts()
    expected = ["cooling down", "limited", "available", "available", "rejected", "unresolved"]
    assert states == [*expected, "disabled"]
    expect(page.locator("#hour dd")).to_have_text(["2", "331", "3"])
    expect(page.locator("#hour .note")).to_contain_text("p50 1.20 s, p95 12.7 s of the last 4 good")
    expect(page.get_by_role("button", name="Reset")).to_have_count(0)
    chart, keys = (page.locator(name).bounding_box() for name in ("#chart", "#key-table"))
    assert chart is not None
    assert keys is not None
    assert chart["y"] < keys["y"]
    assert tab.hosts == {server.url.removeprefix("http://")}


def test_a_row_changes_without_a_reload(serve: Serve, open_tab: Open) -> None:
    """A change is shown in the same row, and is announced once."""
    source = FakeSource([key("free_1"), key("free_2")])
    page = open_tab(serve(ui.app(token=TOKEN, source=source)).login).page
    wait_for_rows(page, 2)
    expect(page.locator("#verdict")).to_have_class("verdict all")
    page.evaluate("window.sameRow = document.querySelector('tr.key')")
    for state in ("limited", "rejected", "cooling_down"):
        source.keys[0].update(state=state, available=False, sentence=f"Google refused: {state}.")
        expect(row(page, "free_1").locator(".state")).to_have_text(state.replace("_", " "))
        expect(row(page, "free_1")).to_contain_text(f"Google refused: {state}.")
    expect(page.locator("#announcer")).to_have_text("free_1 is cooling down.")
    source.keys.reverse()
    expect(page.locator("tr.key").last).to_contain_text("free_1")
    assert page.evaluate("window.sameRow === document.querySelector('tr.key:last-child')")


def test_a_key_is_reset_by_keyboard_alone(serve: Serve, open_tab: Open) -> None:
    """Tab, Enter and Escape are enough; the dialog asks first, and returns the focus."""
    source = sample()
    page = open_tab(serve(ui.app(actions=True, token=TOKEN, source=source)).login).page
    wait_for_rows(page, 7)
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the keys")
    page.get_by_role("button", name="Details of free_1").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Reset free_1").focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#confirm")
    expect(dialog).to_have_accessible_name("Reset free_1?")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator(":focus")).to_have_accessible_name("Reset free_1")
    assert source.changed == []
    page.keyboard.press("Enter")
    expect(page.locator(":focus")).to_have_text("Cancel")
    page.keyboard.press("Tab")
    expect(page.locator("#confirm-yes")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_have_text("Key free_1 is available again")
    expect(page.locator(":focus")).to_have_accessible_name("Reset free_1")
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    expect(row(page, "free_1").locator(".state")).to_have_text("available")
    assert source.changed == [("reset", "free_1")]


def test_a_no_stays_a_no_whatever_is_asked_next(serve: Serve, open_tab: Open) -> None:
    """A browser reports that a dialog was closed with its next frame, which may come late."""
    source = FakeSource([key("free_1")])
    page = open_tab(serve(ui.app(actions=True, token=TOKEN, source=source)).login).page
    expect(details(page, "free_1").get_by_role("button", name="Reset free_1")).to_be_visible()
    page.evaluate("""() => {
        const press = (action) => document.querySelector(`[data-action=${action}]`).click();
        press("disable");
        document.getElementById("confirm").close();
        press("reset");
    }""")
    page.locator("#confirm-yes").click()
    expect(page.locator("#toast")).to_have_text("Key free_1 is available again")
    page.evaluate("""() => {
        const press = (action) => document.querySelector(`[data-action=${action}]`).click();
        press("reset");
        document.getElementById("confirm").close();
        press("disable");
        document.getElementById("confirm-yes").click();
    }""")
    expect(page.locator("#toast")).to_contain_text("disabled")
    assert [action for action, _ in source.changed] == ["reset", "disable"]


def test_a_key_is_disabled_and_enabled(serve: Serve, open_tab: Open) -> None:
    """Each action asks, does one thing, and shows its result; a failure too."""
    source = FakeSource([key("free_1")])
    page = open_tab(serve(ui.app(actions=True, token=TOKEN, source=source)).login).page
    buttons = details(page, "free_1").locator(".buttons button")
    expect(buttons).to_have_text(["Reset", "Disable"])  # what the server allows
    for name, result in (("Disable", "disabled"), ("Enable", "enabled")):
        page.get_by_role("button", name=f"{name} free_1").click()
        expect(page.locator("#confirm-seconds")).to_be_visible(visible=name == "Disable")
        if name == "Disable":
            page.get_by_label("For").select_option("6 hours")
        page.locator("#confirm-yes").click()
        expect(page.locator("#toast")).to_contain_text(result)
    assert [action for action, _ in source.changed] == ["disable", "enable"]
    assert source.disabled_for_s == 21_600
    page.get_by_role("button", name="Reset free_1").click()
    source.keys.clear()
    page.locator("#confirm-yes").click()
    expect(page.locator("#toast")).to_have_text("This pool has no key 'free_1'.")
    expect(page.locator("#details-body")).to_have_text("This pool has no such key.")
    page.keyboard.press("Escape")
    expect(page.locator("#no-keys")).to_have_text("This pool has no key.")


def test_what_is_shown_is_in_the_address(serve: Serve, open_tab: Open) -> None:
    """Filters, the order, a key and a call; a reload shows the same, and Back what was before."""
    page = open_tab(serve(ui.app(token=TOKEN, source=sample())).login).page
    wait_for_rows(page, 7)
    page.get_by_role("button", name="1 rejected").click()
    wait_for_rows(page, 1)
    page.locator(".panel").get_by_role("button", name="24 h").click()
    expect(page.locator("#chart-text")).to_contain_text("Last 24 hours")
    details(page, "tenant_7")
    page.reload()
    expect(page.locator("#details-title")).to_have_text("tenant_7")
    expect(page.locator("#key-chart").get_by_role("img")).to_have_accessible_name(
        re.compile(r"^Last 24 hours: \d+ requests, \d+ 429s, \d+ failed$")
    )
    page.locator("#key-calls button").click()
    expect(page.locator("#details-title")).to_have_text("Call")
    assert re.search(r"\?state=rejected&hours=24&key=tenant_7&call=\d+$", page.url)
    page.keyboard.press("Escape")
    expect(page.locator("#details-title")).to_have_text("tenant_7")
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    expect(page.get_by_role("combobox", name="State")).to_have_value("rejected")
    page.goto(page.url.partition("?")[0])
    wait_for_rows(page, 7)
    for _ in range(2):
        page.get_by_role("columnheader", name="Key", exact=True).get_by_role("button").click()
    expect(page.locator("tr.key").first).to_contain_text("tenant_8")
    header = page.get_by_role("columnheader", name="Key", exact=True)
    expect(header).to_have_attribute("aria-sort", "descending")
    page.go_back()
    expect(page.locator("tr.key").first).to_contain_text("free_1")


def test_a_call_shows_its_attempts_tokens_cost_and_trace(serve: Serve, open_tab: Open) -> None:
    """And what the service wrote about each key."""
    source = sample()
    source.calls.append(source.calls[-1])  # of the same microsecond
    page = open_tab(serve(ui.app(token=TOKEN, source=source)).login).page
    calls = page.locator("#calls tr")
    expect(calls).to_have_count(6)
    page.wait_for_timeout(1_100)  # it is drawn again
    expect(calls).to_have_count(6)
    expect(calls.nth(3)).to_contain_text("waited, 12.7 s")
    expect(calls.nth(1).locator("li")).to_have_text(["free_1 429 quota_minute", "paid_1 ok"])
    calls.nth(1).get_by_role("button").first.click()
    body = page.locator("#details-body")
    expect(body).to_contain_text("Tokens1,200 in, 340 outCost$0.0012")
    expect(body.locator("li").first).to_have_text(
        "free_1 429 quota_minute after 0.40 sGoogle about quota_minute"
    )
    body.get_by_role("button", name="Details of free_1").click()
    expect(page.locator("#details-title")).to_have_text("free_1")
    page.keyboard.press("Escape")
    calls.first.get_by_role("button").first.click()
    link = body.get_by_role("link")
    expect(link).to_have_attribute("href", re.compile(r"^https://jaeger\.example/trace/0af7"))


def test_a_server_that_is_down_is_shown(serve: Serve, open_tab: Open) -> None:
    """The page shows since when its values are old, and continues when the server is back."""
    app = ui.app(token=TOKEN, source=sample())
    server = serve(app)
    page = open_tab(server.login).page
    wait_for_rows(page, 7)
    server.stop()
    banner = page.locator("#problem")
    expect(banner).to_have_text(re.compile(r"^No answer since [\d:]+ UTC; shown values are old\."))
    expect(page.locator("#live-text")).to_have_text(re.compile(r"^Old, of [\d:]+ UTC$"))
    wait_for_rows(page, 7)
    serve(app, server.port)
    expect(banner).to_be_hidden()
    expect(page.locator("#live-text")).to_have_text(re.compile(r"^Live, "))


def hostile_source() -> FakeSource:
    usage = {text: used(window(1, 2, "<i>"), text, "<b>") for text in HOSTILE}
    keys = [
        key(text, text, "limited", sentence=text, last_error=text, used=usage) for text in HOSTILE
    ]
    keys[0].update(tier=HOSTILE[0], model=HOSTILE[1], available_at=HOSTILE[0], last_used=HOSTILE[5])
    calls = [
        call((text, 429, text), ("b", None, None), model=text, workload=text, trace_id=text)
        for text in HOSTILE
    ]
    for text, one in zip(HOSTILE, calls, strict=True):
        one.update(trace_url=text, id=text)
    calls[0].update(at=HOSTILE[0], outcome=HOSTILE[1], seconds=HOSTILE[2])
    source = FakeSource(keys, calls)
    source.workloads = HOSTILE
    source.more = {"pool": HOSTILE[0], "state_url": HOSTILE[1]}
    return source


@pytest.mark.promise(number=7)
def test_hostile_texts_have_no_effect(serve: Serve, open_tab: Open) -> None:
    """HTML in key ids, projects, models, messages and errors is shown as text, all of it."""
    source = hostile_source()
    page = open_tab(serve(ui.app(actions=True, token=TOKEN, source=source)).login).page
    page.evaluate(
        "window.violations = []; document.addEventListener('securitypolicyviolation',"
        " event => window.violations.push(event.violatedDirective))"
    )
    wait_for_rows(page, len(HOSTILE))
    expect(page.locator("#shares")).to_contain_text(HOSTILE[0])
    assert page.locator("th .key-id").all_inner_texts()[0] == HOSTILE[0]
    page.locator("#calls button").first.click()
    expect(page.locator("#details-body")).to_contain_text(f"Google about {HOSTILE[0]}")
    expect(page.locator("#details-body a")).to_have_count(0)
    page.keyboard.press("Escape")
    details(page, HOSTILE[0]).get_by_role("button", name=f"Reset {HOSTILE[0]}").click()
    expect(page.locator("#confirm")).to_have_accessible_name(f"Reset {HOSTILE[0]}?")
    page.locator("#confirm-yes").click()
    expect(page.locator("#toast")).to_contain_text(HOSTILE[0])
    page.keyboard.press("Escape")
    page.locator("#models button").first.click()
    expect(page.locator("#why-keys li")).to_have_count(len(HOSTILE))
    page.keyboard.press("Escape")
    source.broken = HOSTILE[0]
    expect(page.locator("#problem")).to_contain_text(HOSTILE[0])
    elements = page.evaluate("[...document.querySelectorAll('*')].map(node => node.localName)")
    assert {"iframe", "style", "b", "i"} & set(elements) == set()
    assert elements.count("script") == elements.count("img") == 1
    assert page.evaluate("window.violations") == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1440), ("light", 390)])
def test_axe_finds_nothing_serious(serve: Serve, open_tab: Open, scheme: str, width: int) -> None:
    """No serious or critical violation, on the page, in its dialogs, and while it is stale."""
    source = sample()
    source.more = {"degraded": True}
    page = open_tab(
        serve(ui.app(actions=True, token=TOKEN, source=source)).login,
        color_scheme=scheme,
        viewport={"width": width, "height": 844},
        reduced_motion="reduce",
        bypass_csp=True,  # axe writes styles into the page
    ).page
    wait_for_rows(page, 7)
    check_accessible(page)
    page.locator("#models button").first.click()
    expect(page.locator("#why-keys li")).to_have_count(7)
    check_accessible(page, "#why")
    page.keyboard.press("Escape")
    details(page, "free_1")
    check_accessible(page, "#details")
    page.get_by_role("button", name="Reset free_1").click()
    check_accessible(page, "#confirm")
    page.locator("#confirm-yes").click()
    expect(page.locator("#toast")).to_be_visible()
    page.keyboard.press("Escape")
    source.broken = "The shared state does not answer."
    expect(page.locator("#problem")).to_be_visible()
    check_accessible(page)


def check_accessible(page: Page, part: str = "html") -> None:
    found = Axe().run(page, part).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [n["html"] for n in one["nodes"]]) for one in serious] == []
