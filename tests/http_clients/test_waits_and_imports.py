"""How long a request waits for a key, chains of models, and libraries that are imported later."""

import subprocess
import sys
from typing import Any

import httpx
import httpx2
import pytest
import requests
from support.http_modes import BODY, HEADERS, MODEL

from keyrot_middleware.testing import FakeGemini, Reply


def post(library: Any, gemini: Any, **options: Any) -> Any:
    url = f"{gemini.url}/v1beta/models/{MODEL}:generateContent"
    with library.Session() if library is requests else library.Client() as client:
        return client.post(url, json=BODY, headers=HEADERS, **options)


@pytest.mark.parametrize(
    ("library", "options", "code"),
    [
        (httpx, {}, 200),  # httpx's own 5 s: the program has set nothing
        (httpx2, {}, 200),
        (requests, {}, 200),
        (httpx, {"timeout": 60.0}, 200),
        (httpx, {"timeout": None}, 200),
        (httpx, {"timeout": 6.0}, 429),
        (requests, {"timeout": (60, 6)}, 429),
        (requests, {"timeout": 60}, 200),
    ],
)
def test_a_wait_stays_within_the_read_timeout(library, options, code, gemini, pool, clock) -> None:
    """A key that is available again in 30 s is waited for, unless the program waits less."""
    pool("A")
    gemini.script("A", Reply.QUOTA_MINUTE)
    began = clock.time()
    assert post(library, gemini, **options).status_code == code
    assert (clock.time() - began >= 30) is (code == 200)


PROGRAM = """
import sys, keyrot_middleware
assert not {"httpx", "httpx2"} & set(sys.modules)
keyrot_middleware.install(keys=[sys.argv[3]], allowed_hosts=(sys.argv[2],))
import importlib
library = importlib.import_module(sys.argv[1])
url = f"http://{sys.argv[2]}/v1beta/models/gemini-2.5-flash:generateContent"
body = {"contents": [{"parts": [{"text": "hello"}]}]}
def code():
    return library.post(url, json=body, headers={"x-goog-api-key": "keyrot-pool"}).status_code
codes = [code()]
importlib.reload(sys.modules[f"{library.__name__}"])
codes.append(code())
keyrot_middleware.uninstall()
print(*codes, code())
"""


@pytest.mark.parametrize("library", ["httpx", "httpx2", "requests"])
def test_a_library_that_is_imported_later(library) -> None:
    """It is served from its import on, after a reload too, and no more after uninstall()."""
    with FakeGemini() as gemini:
        value = gemini.add_key("A").value
        args = [sys.executable, "-W", "ignore", "-c", PROGRAM, library, gemini.host, value]
        run = subprocess.run(args, capture_output=True, text=True, timeout=240, check=False)
    assert run.stdout.split() == ["200", "200", "400"], run.stderr


@pytest.mark.parametrize("library", [httpx, httpx2, requests], ids=lambda one: one.__name__)
@pytest.mark.parametrize("reply", [Reply.RESET, Reply.CLOSE], ids=["reset", "closed"])
def test_a_lost_connection_is_retried_and_blames_no_key(library, reply, gemini, pool) -> None:
    """The same request goes out again; if the connection stays lost, the error is the library's."""
    pool("A", max_retries=2)
    gemini.script("A", reply)
    assert post(library, gemini).status_code == 200
    gemini.always("A", reply)
    error = requests.ConnectionError if library is requests else library.TransportError
    with pytest.raises(error) as caught:
        post(library, gemini)
    assert "attempt 3 with key A" in "".join(caught.value.__notes__)
    gemini.always("A", None)
    assert post(library, gemini).status_code == 200
