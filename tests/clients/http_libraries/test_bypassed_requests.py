"""A placeholder that a program sends inside `bypass()`: where the home key goes, who sees it."""

import asyncio
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import httpx2
import pytest
import requests
from support.http_modes import BODY, HEADERS, PATH
from support.json_server import JsonServer, Response
from support.key_search import texts_of
from support.raw_server import RawServer, answer

import keyrot_middleware
from keyrot_middleware.testing import Reply

pytestmark = pytest.mark.promise(number=1)

ERRORS = (OSError, httpx.HTTPError, httpx2.HTTPError)


def _sync(library: Any) -> Callable[[str], Any]:
    def post(url: str) -> Any:
        with library.Session() if library is requests else library.Client() as client:
            return client.post(url, json=BODY, headers=HEADERS)

    return post


def _async(library: Any) -> Callable[[str], Any]:
    async def post(url: str) -> Any:
        async with library.AsyncClient() as client:
            return await client.post(url, json=BODY, headers=HEADERS)

    return lambda url: asyncio.run(post(url))


POSTS = {
    "httpx": _sync(httpx),
    "httpx2": _sync(httpx2),
    "requests": _sync(requests),
    "httpx-async": _async(httpx),
    "httpx2-async": _async(httpx2),
}
ways = pytest.mark.parametrize("post", POSTS.values(), ids=POSTS)


def _frames(error: BaseException | None) -> Iterator[str]:
    """Yield the variables of all functions below the program's that an error came through."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename != __file__:
                for value in tuple(frame.f_locals.values()):
                    yield repr(value)
                    yield repr(getattr(value, "headers", ""))
        error = error.__cause__ or error.__context__


@ways
def test_the_home_key_goes_to_allowed_origins_only(post, gemini, pool) -> None:
    """Another port of an allowed host gets no key of the pool."""
    pool("A")
    with closing(JsonServer(lambda _: Response(200, {}))) as other, keyrot_middleware.bypass():
        assert post(f"{gemini.url}{PATH}").status_code == 200
        post(f"http://127.0.0.1:{other.port}{PATH}")
        assert [one.headers["x-goog-api-key"] for one in other.requests] == ["keyrot-pool"]
    assert gemini.sent("A") == 1


@pytest.mark.parametrize("library", [httpx, httpx2, requests], ids=lambda one: one.__name__)
def test_the_home_key_takes_the_place_of_a_placeholder_in_the_address(
    library, gemini, pool
) -> None:
    """It goes in a header, and the placeholder nowhere: Google refuses two keys."""
    pool("A")
    with keyrot_middleware.bypass():
        url = f"{gemini.url}{PATH}?key=keyrot-pool&alt=json"
        assert library.post(url, json=BODY).status_code == 200
    [sent] = gemini.log
    assert sent.header_values("x-goog-api-key") == [gemini.key("A").value]
    assert sent.path.endswith("?alt=json")


@ways
def test_the_home_key_is_none_that_was_rejected(post, gemini, pool) -> None:
    """The next one takes its place."""
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.KEY_INVALID)
    assert post(f"{gemini.url}{PATH}").status_code == 200
    with keyrot_middleware.bypass():
        assert post(f"{gemini.url}{PATH}").status_code == 200
    assert (gemini.sent("A"), gemini.sent("B")) == (1, 2)


@ways
def test_an_error_that_the_library_raises_shows_no_key(post, gemini, pool) -> None:
    """Neither its texts, its request nor the variables of its frames have the key that was sent."""
    key = gemini.add_key("A").value
    with closing(RawServer(lambda connection, _: connection.close())) as server:
        pool("A", allowed_hosts=(server.host,))
        with keyrot_middleware.bypass(), pytest.raises(ERRORS) as caught:
            post(f"{server.url}{PATH}")
        assert server.keys == [key]
    shown = [*texts_of(caught.value), *_frames(caught.value)]
    assert [text for text in shown if key[10:-1] in text] == []


@ways
def test_an_error_of_the_server_repeats_no_key(post, gemini, pool, caplog) -> None:
    """A key in the body, the head or the reason of a 400 is hidden from the program and the log."""
    key = gemini.add_key("A").value
    body = json.dumps({"error": {"code": 400, "message": f"bad {key}"}}).encode()
    sent = answer(body, f"X-Echo: {key}", status=f"400 {key}")
    with closing(RawServer(lambda connection, _: connection.sendall(sent))) as server:
        pool("A", allowed_hosts=(server.host,))
        with keyrot_middleware.bypass(), caplog.at_level(logging.DEBUG):
            response = post(f"{server.url}{PATH}")
        assert server.keys == [key]
    assert response.json()["error"] == {"code": 400, "message": "bad AIza…[redacted]"}
    shown = repr([response.headers, getattr(response, "reason", ""), response.request.headers])
    assert key[10:-1] not in shown + caplog.text
