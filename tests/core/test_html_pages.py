"""HTML pages in place of an answer."""

import pytest

from keyrot_middleware.core.html_pages import is_page, text_of_page

PAGE = (
    "<!-- x --> <!DOCTYPE html>\n<html><head><title>Guest&nbsp;WiFi</title>"
    "<style>p > a {color: red}</style><script>if (a < b) go()</script></head>"
    "<body><!-- hidden <b> --><p class='a'>Accept\nterms &amp; go<br"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (PAGE, "Guest WiFi Accept terms & go"),
        ("\ufeff<?xml version='1.0'?><!DOCTYPE html PUBLIC><html>A</html>", "A"),
        ("<h1>Bad gateway</h1>", "Bad gateway"),
        ("Requests from referer <empty> are blocked.", None),
        ("<empty> is no page", None),
        ('{"html": "<html>"}', None),
        ("", None),
    ],
)
def test_a_page_is_shown_by_its_text(text: str, shown: str | None) -> None:
    """What begins like an HTML page is shown without tags and scripts, other text as it is."""
    assert is_page(text) is (shown is not None)
    assert text_of_page(text) == (text if shown is None else shown)
