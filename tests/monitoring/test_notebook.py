"""What `status()` returns, as a notebook shows it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import keyrot_middleware
from keyrot_middleware.monitoring.notebook import NotebookDict

STATUS = {"installed": True, "pool": "p", "degraded": False, "headline": [], "keys": {}}
HOSTILE = "<script>alert(1)</script>\n\x1b[31m"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> _Tags:
    tags = _Tags()
    tags.feed(html)
    return tags


def key(**values: Any) -> dict[str, Any]:
    learned = {"rpm": 5, "rpd": 50}
    usage = {"requests_minute": 3, "tokens_minute": 1200, "requests_day": 7, "learned": learned}
    return {
        "state": "available",
        "available": True,
        "available_at": None,
        "reason": None,
        "limits": {"rpm": 9, "tpm": None, "rpd": 20},
        "used": {"gemini-2.5-flash": usage},
        **values,
    }


def test_the_status_is_still_a_dict(pool: Any) -> None:
    """The value is a dict: equal, printable, and JSON as before."""
    assert keyrot_middleware.status() == {"installed": False, "keys": {}}
    pool("A")
    status = keyrot_middleware.status()
    assert isinstance(status, dict)
    assert repr(status) == repr(dict(status))
    assert json.loads(json.dumps(status)) == status


def test_a_notebook_shows_a_row_for_each_key(pool: Any) -> None:
    """The table has each key with its state."""
    pool("A", "B")
    html = keyrot_middleware.status()._repr_html_()  # type: ignore[attr-defined]
    text = " ".join(parsed(html).text)
    assert "2 of 2 keys are available." in text
    assert "Last hour: No call was made." in text
    assert {"A", "B", "available", "now"} <= set(text.split())


def test_used_of_limit_and_the_time_are_shown() -> None:
    """Of a learned and a configured limit the smaller is shown, and an unknown one is omitted."""
    at = "2026-11-26T12:31:00Z"
    limited = key(state="limited", available=False, available_at=at, reason="rpm")
    html = NotebookDict(STATUS, keys={"A": limited})._repr_html_()
    assert "gemini-2.5-flash: 3/5 rpm, 1,200 tpm, 7/20 rpd" in html
    cells = [text for text in parsed(html).text if text != "key"]
    assert cells[cells.index("limited") :][1:3] == ["rpm", "2026-11-26 12:31Z"]


def test_names_are_escaped() -> None:
    """Names of keys, models, pools and states add no tag and no control character."""
    used = {HOSTILE: key()["used"]["gemini-2.5-flash"]}
    keys = {HOSTILE: key(used=used, state=HOSTILE)}
    html = NotebookDict(STATUS, pool=HOSTILE, headline=[HOSTILE], keys=keys)._repr_html_()
    tags = {"table", "caption", "br", "thead", "tbody", "tr", "th", "td", "span"}
    assert parsed(html).tags == tags
    assert "\x1b" not in html


def test_without_a_pool_the_status_is_a_sentence() -> None:
    """Before install() there is no table."""
    assert NotebookDict(installed=False, keys={})._repr_html_() == (
        "<p>keyrot: no pool is installed.</p>"
    )


def test_an_unreachable_state_is_shown() -> None:
    """The caption states that this process counts for itself."""
    html = NotebookDict(STATUS, degraded=True)._repr_html_()
    assert "The shared state cannot be reached." in html
