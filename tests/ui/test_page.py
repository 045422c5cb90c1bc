"""The page in a real Chromium, over a source that the tests change."""

from __future__ import annotations

import json
import re
import webbrowser
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from fake_source import FakeSource, call, iso, key, many, sample, window
from page_parts import HOSTILE, TOKEN, details, press_until, row, wait_for_rows
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from keyrot_middleware import ui
from keyrot_middleware.cli.ui import _open_browser

MODEL = "gemini-2.5-flash"
TRACE = "0af7651916cd43dd8448eb211c80319c"

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
    expect(page.get_by_role("heading", level=1)).to_have_text("2 of 7 keys are available.")
    expect(row(page, "free_1")).to_contain_text("cooling down")
    expect(row(page, "free_1")).to_contain_text(re.compile(r"in 0:\d\d"))
    expect(row(page, "free_1")).to_contain_text("Google refused with 429 (quota_minute)")
    expect(row(page, "free_1").locator(".most-text")).to_have_text("RPM 5 / 5")
    expect(row(page, "paid_1")).to_contain_text("my-app")
    expect(row(page, "paid_1")).to_contain_text("$1.84")
    expect(details(page, "free_1").locator(".window").first).to_have_text("RPM 5 / 5learned")
    expect(details(page, "paid_1").locator(".model")).to_have_count(2)
    expect(details(page, "paid_1")).to_contain_text("of project my-app: $3.54 of $5.00")
    image = row(page, "paid_1").get_by_role("img")
    expect(image).to_have_accessible_name(re.compile(r"Last 60 minutes: [\d,]+ requests, 9 failed"))
    states = page.locator("tr.key .state").all_inner_texts()
    expected = ["cooling down", "limited", "available", "available", "rejected", "unresolved"]
    assert states == [*expected, "disabled"]
    expect(page.locator("#hour-failed")).to_have_text("2")
    expect(page.get_by_role("button", name="Reset")).to_have_count(0)
    assert tab.hosts == {server.url.removeprefix("http://")}


def test_a_browser_gets_the_token_by_a_file(
    serve: Serve, open_tab: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of a host can read the command line of a browser, so it has no token."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    _open_browser(serve(ui.app(token=TOKEN, source=sample())).login, tmp_path)
    tab = open_tab(opened[0])
    wait_for_rows(tab.page, 7)
    assert TOKEN not in opened[0] + tab.page.url
    tab.hosts.discard("")


def test_a_wrong_token_opens_nothing(serve: Serve, open_tab: Open) -> None:
    """Without the token the browser gets a message with what to do, and no data."""
    server = serve(ui.app(token=TOKEN, source=sample()))
    for path in ("/", "/?token=wrong-wrong-wrong-wrong"):
        tab = open_tab(server.url + path)
        expect(tab.page.get_by_role("heading")).to_have_text("This page is not open to you")
        expect(tab.page.locator("p")).to_contain_text("Open the address that `keyrot ui` printed")
        assert "free_1" not in tab.page.content()


def test_a_row_changes_without_a_reload(serve: Serve, open_tab: Open) -> None:
    """A change is shown in the same row, and is announced once."""
    source = FakeSource([key("free_1"), key("free_2")])
    page = open_tab(serve(ui.app(local=True, source=source)).url).page
    wait_for_rows(page, 2)
    page.evaluate("window.sameRow = document.querySelector('tr.key')")
    for state in ("limited", "rejected", "cooling_down"):
        source.keys[0].update(state=state, available=False, sentence=f"Google refused: {state}.")
        expect(row(page, "free_1").locator(".state")).to_have_text(state.replace("_", " "))
        expect(row(page, "free_1")).to_contain_text(f"Google refused: {state}.")
    expect(page.locator("#announcer")).to_have_text("free_1 is cooling down.")
    assert page.evaluate("window.sameRow === document.querySelector('tr.key')")


def test_a_key_is_reset_by_keyboard_alone(serve: Serve, open_tab: Open) -> None:
    """Tab, Enter and Escape are enough; the dialog asks first, and returns the focus."""
    source = sample()
    page = open_tab(serve(ui.app(actions=True, token=TOKEN, source=source)).login).page
    wait_for_rows(page, 7)
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the keys")
    page.keyboard.press("Enter")
    press_until(page, "Details of free_1")
    page.keyboard.press("Enter")
    press_until(page, "Reset free_1")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_have_accessible_name("Reset free_1?")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.locator(":focus")).to_have_accessible_name("Reset free_1")
    assert source.changed == []
    page.keyboard.press("Enter")
    expect(page.locator(":focus")).to_have_text("Cancel")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#toast")).to_have_text("Key free_1 is available again.")
    expect(page.locator(":focus")).to_have_accessible_name("Reset free_1")
    expect(row(page, "free_1").locator(".state")).to_have_text("available")
    assert source.changed == [("reset", "free_1")]


def test_a_key_is_disabled_enabled_and_checked(serve: Serve, open_tab: Open) -> None:
    """Each action asks, does one thing, and shows its result; a failure too."""
    source = FakeSource([key("free_1")])
    page = open_tab(serve(ui.app(actions=True, token=TOKEN, source=source)).login).page
    details(page, "free_1")
    for name, result in (
        ("Disable", "is disabled"),
        ("Enable", "is enabled"),
        ("Check", "answers"),
    ):
        page.get_by_role("button", name=f"{name} free_1").click()
        page.get_by_role("dialog").get_by_role("button", name=name).click()
        expect(page.locator("#toast")).to_contain_text(result)
    assert [action for action, _ in source.changed] == ["disable", "enable", "check"]
    page.get_by_role("button", name="Reset free_1").click()
    source.keys.clear()
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    expect(page.locator("#toast")).to_have_text("This pool has no key 'free_1'.")
    expect(page.locator("#no-keys")).to_have_text("This pool has no key.")


def test_a_key_offers_what_is_allowed(serve: Serve, open_tab: Open) -> None:
    """A key that keys.json switches off has no Enable: the server would refuse it."""
    page = open_tab(serve(ui.app(actions=True, token=TOKEN, source=sample())).login).page
    wait_for_rows(page, 7)
    offered = {
        "old_1": ["Show calls", "Check"],
        "tenant_8": ["Show calls", "Reset"],
        "paid_1": ["Show calls", "Reset", "Disable", "Check"],
    }
    for key_id, names in offered.items():
        buttons = details(page, key_id).get_by_role("button")
        expect(buttons).to_have_text(names)


def test_all_keys_that_are_shown_are_reset_at_once(serve: Serve, open_tab: Open) -> None:
    """After one question; what came of each key is listed, and a failure ends nothing."""
    source = FakeSource([key("a", state="rejected"), key("b", state="rejected"), key("c")])
    page = open_tab(serve(ui.app(actions=True, token=TOKEN, source=source)).login).page
    wait_for_rows(page, 3)
    page.get_by_role("link", name="2 rejected").click()
    wait_for_rows(page, 2)
    page.get_by_role("button", name="Reset all shown").click()
    expect(page.get_by_role("dialog")).to_have_accessible_name("Reset all 2 keys?")
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    expect(page.locator("#results-list li")).to_have_text(
        ["aKey a is available again.", "bKey b is available again."]
    )
    page.keyboard.press("Escape")
    assert source.changed == [("reset", "a"), ("reset", "b")]
    expect(page.locator("#no-keys")).to_have_text("No key matches this filter.")


def test_a_pool_without_a_key_says_when_the_next_is_available(serve: Serve, open_tab: Open) -> None:
    """The headline counts down to the first key; a model without a key has its own line."""
    until = iso(datetime.now(UTC) + timedelta(seconds=42))
    used = {"available": False, "available_at": until, "reason": "rpm"}
    used |= {"rpm": window(5, 5), "tpm": window(1, None), "rpd": window(1, None)}
    blocked = key("paid_1", state="limited", available_at=until, used={MODEL: used})
    source = FakeSource([blocked])
    page = open_tab(serve(ui.app(local=True, source=source)).url).page
    headline = page.get_by_role("heading", level=1)
    expect(headline).to_have_text(re.compile(r"^No key is available\. paid_1 in 0:\d\d\.$"))
    source.keys.append(key("free_2"))
    expect(headline).to_have_text("1 of 2 keys is available.")
    expect(page.locator("#without-key li")).to_have_text(
        re.compile(rf"^No key is available for {MODEL}\. paid_1 in 0:\d\d\.$")
    )


def test_what_is_shown_is_in_the_address(serve: Serve, open_tab: Open) -> None:
    """A state's count is a link to its keys; a reload shows the same, and Back what was before."""
    page = open_tab(serve(ui.app(local=True, source=sample())).url).page
    wait_for_rows(page, 7)
    page.get_by_role("link", name="1 rejected").click()
    wait_for_rows(page, 1)
    assert page.url.endswith("/?state=rejected")
    page.get_by_role("button", name="24 h").click()
    expect(page.locator("#chart-text")).to_contain_text("Last 24 hours")
    page.reload()
    wait_for_rows(page, 1)
    expect(row(page, "tenant_7")).to_be_visible()
    expect(page.get_by_role("combobox", name="State")).to_have_value("rejected")
    expect(page.get_by_role("button", name="24 h")).to_have_attribute("aria-pressed", "true")
    page.go_back()
    page.go_back()
    wait_for_rows(page, 7)


def test_the_use_of_the_pool_is_drawn(serve: Serve, open_tab: Open) -> None:
    """Over an hour or a day, of all calls or of one workload, which a click on its name chooses."""
    page = open_tab(serve(ui.app(local=True, source=sample())).url).page
    chart = page.locator("#chart").get_by_role("img")
    expect(chart).to_have_accessible_name(
        re.compile(r"^Last hour: [\d,]+ requests, \d+ 429s, 1 failed call, \d+ waits$")
    )
    page.get_by_role("button", name="nightly-batch").click()
    expect(chart).to_have_accessible_name(re.compile("^Workload nightly-batch, last hour"))
    assert "by=workload&name=nightly-batch" in page.url
    page.get_by_role("combobox", name="Count by").select_option("key")
    page.get_by_role("combobox", name="Name").fill("free_1")
    expect(chart).to_have_accessible_name(re.compile(r"^Key free_1, last hour.* \d+ failed$"))


def test_many_keys_need_few_screens(serve: Serve, open_tab: Open) -> None:
    """Fifty keys are two screens of a desktop, ten are three of a phone."""
    source = sample()
    source.keys += many(43).keys
    url = serve(ui.app(actions=True, token=TOKEN, source=source)).login
    desktop = open_tab(url, viewport={"width": 1440, "height": 900}).page
    wait_for_rows(desktop, 50)
    assert bottom_of_keys(desktop) <= 2 * 900
    del source.keys[10:]
    phone = open_tab(url, viewport={"width": 390, "height": 844}).page
    wait_for_rows(phone, 10)
    assert bottom_of_keys(phone) <= 3 * 844


def bottom_of_keys(page: Page) -> float:
    """Return where the last key ends."""
    found: float = page.evaluate(
        "document.getElementById('key-table').getBoundingClientRect().bottom + scrollY"
    )
    return found


def test_a_server_that_is_down_is_shown(serve: Serve, open_tab: Open) -> None:
    """The page shows since when its values are old, and continues when the server is back."""
    app = ui.app(local=True, source=sample())
    server = serve(app)
    page = open_tab(server.url).page
    wait_for_rows(page, 7)
    server.stop()
    banner = page.locator("#problem")
    expect(banner).to_have_text(
        re.compile(r"^No answer since \d\d:\d\d:\d\d UTC; shown values are old\.")
    )
    expect(page.locator("#live-text")).to_have_text(re.compile(r"^Old, of \d\d:\d\d:\d\d UTC$"))
    wait_for_rows(page, 7)
    serve(app, server.port)
    expect(banner).to_be_hidden()
    expect(page.locator("#live-text")).to_have_text(re.compile(r"^Live, "))


def test_a_state_that_is_down_is_shown(serve: Serve, open_tab: Open) -> None:
    """An error of the server is shown with its own message; degraded is a banner."""
    source = sample()
    page = open_tab(serve(ui.app(local=True, source=source)).url).page
    wait_for_rows(page, 7)
    source.broken = "The shared state does not answer."
    expect(page.locator("#problem")).to_contain_text(
        "The shared state does not answer. Services go on with in-process limits. Shown values are"
    )
    source.broken, source.more = None, {"degraded": True}
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#degraded")).to_contain_text("Services go on with in-process limits")


def test_an_available_key_shows_for_which_models_it_is_not(serve: Serve, open_tab: Open) -> None:
    """Available means for some model; the others are named, with the reason."""
    used = {"available": True, "available_at": None, "reason": None, "rpm": window(1, 5)}
    used |= {"tpm": window(1, None), "rpd": window(1, None)}
    blocked = used | {"available": False, "reason": "quota_minute"}
    source = FakeSource([key("free_1", used={MODEL: blocked, "gemini-2.5-pro": used})])
    source.more = {"has_records": False}
    page = open_tab(serve(ui.app(local=True, source=source)).url).page
    expect(row(page, "free_1").locator(".state")).to_have_text("available")
    expect(row(page, "free_1").locator(".reason")).to_have_text(f"Not for {MODEL} (quota_minute)")
    expect(page.locator("#unused")).to_contain_text("No call has used this pool yet.")


def test_a_hidden_page_pauses(serve: Serve, open_tab: Open) -> None:
    """A hidden page sends no request, and sends one at once when it is shown again."""
    requests: list[int] = []
    source = FakeSource([key("free_1")])
    source.before = lambda: requests.append(1)
    page = open_tab(serve(ui.app(local=True, source=source)).url).page
    wait_for_rows(page, 1)
    switch = """hidden => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(switch, True)
    expect(page.locator("#live-text")).to_have_text("Paused")
    page.wait_for_timeout(1_000)  # for requests that were in flight
    before = len(requests)
    page.wait_for_timeout(2_300)
    assert len(requests) == before
    source.keys[0].update(state="limited", available=False)
    page.evaluate(switch, False)  # at once, and not after the next 2 s
    expect(row(page, "free_1").locator(".state")).to_have_text("limited")


def test_ten_thousand_keys_are_paged_and_filtered(serve: Serve, open_tab: Open) -> None:
    """The page has 50 of 10,000 keys at a time, and finds one by its id or its state."""
    source = many(10_000)
    source.keys[7_776].update(state="rejected", available=False)
    page = open_tab(serve(ui.app(local=True, source=source)).url).page
    wait_for_rows(page, 50)
    expect(page.locator("#range")).to_have_text("1 to 50 of 10,000 keys")
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#range")).to_have_text("51 to 100 of 10,000 keys")
    expect(page.get_by_role("heading", name="Keys").last).to_be_focused()
    expect(page.get_by_role("heading", name="Keys").last).to_be_in_viewport()
    page.get_by_role("searchbox", name="Key, project or model").fill("key_777")
    expect(page.locator("#range")).to_have_text("11 matching keys")
    page.get_by_role("combobox", name="State").select_option("rejected")
    wait_for_rows(page, 1)
    expect(row(page, "key_7777")).to_contain_text("rejected")
    page.get_by_role("searchbox", name="Key, project or model").fill("nothing like it")
    expect(page.locator("#no-keys")).to_have_text("No key matches this filter.")


def test_the_explanation_is_shown_for_a_model(serve: Serve, open_tab: Open) -> None:
    """The explanation names the key that a call would get, and why the others are not used."""
    page = open_tab(serve(ui.app(local=True, source=sample())).url).page
    page.get_by_role("button", name=f"Why: which key would a call of {MODEL} get now?").click()
    expect(page.locator("#why-sentence")).to_contain_text("with 0 input tokens gets paid_1.")
    expect(page.locator("#why-keys li")).to_have_count(7)
    expect(page.locator("#why-keys li.chosen")).to_contain_text("paid_1")
    page.get_by_label("Input tokens").fill("1200")
    page.get_by_label("Input tokens").press("Enter")
    expect(page.locator("#why-sentence")).to_contain_text("with 1200 input tokens")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_recent_calls_can_be_filtered_by_key(serve: Serve, open_tab: Open) -> None:
    """A call shows each key that it tried, in order; a key's button filters by it."""
    page = open_tab(serve(ui.app(local=True, source=sample())).url).page
    calls = page.locator("#calls tr")
    expect(calls).to_have_count(9)
    expect(calls.nth(5)).to_contain_text("waited, 12.7 s")
    expect(calls.nth(1).locator("li")).to_have_text(["free_1 429 quota_minute", "paid_1 ok"])
    link = calls.first.get_by_role("link")
    expect(link).to_have_attribute("href", f"https://jaeger.example/trace/{TRACE}")
    expect(calls.first).to_contain_text("chat")
    details(page, "tenant_7").get_by_role("button", name="Show calls").click()
    expect(calls).to_have_count(1)
    details(page, "old_1").get_by_role("button", name="Show calls").click()
    expect(page.locator("#no-calls")).to_have_text("No recent call tried old_1.")


def hostile_source() -> FakeSource:
    """Put hostile texts wherever a text may have a foreign source."""
    used = {"available": False, "available_at": "<b>", "rpm": window(1, 2, "<i>")}
    usage = {text: {**used, "tpm": window(0, None), "rpd": window(0, 5)} for text in HOSTILE}
    more = {"reason": None, "tier": None, "priority": 0}
    keys = [
        key(text, text, "limited", **(more | {"sentence": text, "last_error": text, "used": usage}))
        for text in HOSTILE
    ]
    keys[0].update(tier=HOSTILE[0], model=HOSTILE[1], available_at=HOSTILE[0], last_used=HOSTILE[5])
    calls = [call((text, 429, text), ("b", None, None), model=text) for text in HOSTILE]
    calls[0].update(at=HOSTILE[0], outcome=HOSTILE[1], seconds=HOSTILE[2])
    for text, one in zip(HOSTILE, calls, strict=True):
        one.update(workload=text, trace_id=text, trace_url=text)
    source = FakeSource(keys, calls)
    source.workloads = HOSTILE
    source.more = {"pool": HOSTILE[0], "state_url": HOSTILE[1]}
    return source


def test_hostile_texts_have_no_effect(serve: Serve, open_tab: Open) -> None:
    """HTML in key ids, projects, models, messages and errors is shown as text, all of it."""
    source = hostile_source()
    tab = open_tab(serve(ui.app(actions=True, token=TOKEN, source=source)).login)
    page = tab.page
    page.evaluate(
        "window.violations = []; document.addEventListener('securitypolicyviolation',"
        " event => window.violations.push(event.violatedDirective))"
    )
    wait_for_rows(page, len(HOSTILE))
    elements = page.evaluate("[...document.querySelectorAll('*')].map(node => node.localName)")
    assert {"iframe", "style", "b", "i"} & set(elements) == set()
    assert elements.count("script") == elements.count("img") == 1
    assert page.locator("th .key-id").all_inner_texts()[0] == HOSTILE[0]
    assert page.evaluate(
        "[...document.querySelectorAll('*')].some(n => n.onerror || n.onload)"
    ) is (False)
    expect(page.locator("#calls a")).to_have_count(0)
    expect(page.locator("#shares")).to_contain_text(HOSTILE[0])
    details(page, HOSTILE[0]).get_by_role("button", name=f"Reset {HOSTILE[0]}").click()
    expect(page.get_by_role("dialog")).to_have_accessible_name(f"Reset {HOSTILE[0]}?")
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    expect(page.locator("#toast")).to_contain_text(HOSTILE[0])
    page.locator("#models button").first.click()
    expect(page.locator("#why-keys li")).to_have_count(len(HOSTILE))
    page.keyboard.press("Escape")
    source.broken = HOSTILE[0]
    expect(page.locator("#problem")).to_contain_text(HOSTILE[0])
    assert page.evaluate("window.violations") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(serve: Serve, open_tab: Open, scheme: str) -> None:
    """No serious or critical violation, on the page, in its dialogs, and while it is stale."""
    source = sample()
    source.more = {"degraded": True}
    tab = open_tab(
        serve(ui.app(actions=True, token=TOKEN, source=source)).login,
        color_scheme=scheme,
        reduced_motion="reduce",
        bypass_csp=True,  # axe writes styles into the page
    )
    page = tab.page
    wait_for_rows(page, 7)
    page.locator("#models button").first.click()
    expect(page.locator("#why-keys li")).to_have_count(7)
    check_accessible(page, "#why")
    page.keyboard.press("Escape")
    details(page, "paid_1")
    details(page, "free_1").get_by_role("button", name="Reset free_1").click()
    check_accessible(page, "#confirm")
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    expect(page.locator("#toast")).to_be_visible()
    source.broken = "The shared state does not answer."
    expect(page.locator("#problem")).to_be_visible()
    check_accessible(page)


def test_axe_finds_nothing_serious_on_a_phone(serve: Serve, open_tab: Open) -> None:
    """Nor where the tables are drawn as cards."""
    viewport = {"width": 390, "height": 844}
    page = open_tab(
        serve(ui.app(local=True, source=sample())).url, viewport=viewport, bypass_csp=True
    ).page
    wait_for_rows(page, 7)
    details(page, "paid_1")
    check_accessible(page)


def check_accessible(page: Page, part: str = "html") -> None:
    """Let axe check a part of the page as it is."""
    found = Axe().run(page, part).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [n["html"] for n in one["nodes"]]) for one in serious] == []


def test_nothing_is_cut_off_at_any_width(serve: Serve, open_tab: Open) -> None:
    """The page never scrolls sideways, with long names too, and its tables stay tables."""
    source = sample()
    source.keys[0].update(key_id="a" * 120, project="p" * 200, sentence="s" * 300)
    page = open_tab(serve(ui.app(actions=True, token=TOKEN, source=source)).login).page
    wait_for_rows(page, 7)
    for width in (320, 390, 620, 700, 1080, 1100, 1360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        table = page.get_by_role("table", name="Keys, problems first")
        expect(table.get_by_role("columnheader")).to_have_count(7)
        expect(table.get_by_role("rowheader")).to_have_count(7)


def test_all_responses_are_json_without_values(serve: Serve, open_tab: Open) -> None:
    """The responses have the documented fields, and no field for a value or a text."""
    tab = open_tab("about:blank")
    with (
        tab.page.expect_response(re.compile("/api/status")) as status,
        tab.page.expect_response(re.compile("/api/attempts")) as attempts,
    ):
        tab.page.goto(serve(ui.app(local=True, source=sample())).url)
    wait_for_rows(tab.page, 7)
    tab.hosts.discard("about:blank")
    bodies = [status.value.text(), attempts.value.text()]
    fields = set(re.findall(r'"(\w+)": ', "".join(bodies)))
    assert {"keys", "calls", "key_id"} <= fields
    assert fields.isdisjoint({"api_key", "secret", "value", "prompt", "contents", "text"})
    assert all(isinstance(json.loads(body), dict) for body in bodies)
