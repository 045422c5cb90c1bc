"""How long a request waits for a key, chains of models, and libraries that are imported later."""

import json
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
url = f"http://{sys.argv[2]}/v1beta/models/gemini-3.1-flash-lite:generateContent"
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


IMPORTS = """
import sys, threading, time
from collections import Counter
import keyrot_middleware
from google import genai
from keyrot_middleware.runtime.pool import SystemClock

class Recorder:
    found = []
    def find_spec(self, name, path=None, target=None):
        self.found.append((threading.current_thread().name, name))

class Clock(SystemClock):
    times = Counter()
    def time(self):
        self.times[threading.current_thread().name] += 1
        return time.time()

url, host, state, heard_by = sys.argv[1:]
heard = threading.Event()
events = {"alerts": [f"json://{host}/"], "on_event": lambda event: heard.set()}
keyrot_middleware.install(
    clock=Clock(), allowed_hosts=(host,), state_url=state, limits_from="google",
    secrets_ttl_s=0.1, **(events if heard_by == "alerts" else {}),
)
assert "genai_prices" not in sys.modules  # 5 MB, which the first price needs
sys.meta_path.insert(0, Recorder())
client = genai.Client(http_options={"base_url": url})
for _ in range(3):
    client.models.generate_content(model="gemini-3.1-flash-lite", contents="hello")
assert heard_by != "alerts" or heard.wait(60)
turns = Clock.times["keyrot-refresher-default"] + 3
while Clock.times["keyrot-refresher-default"] < turns:
    time.sleep(0.05)
keyrot_middleware.uninstall()
assert ("MainThread", "genai_prices") in Recorder.found
for thread, name in Recorder.found:
    if thread.startswith("keyrot-") and name in sys.modules:
        print(thread, name)
"""


@pytest.mark.parametrize("heard_by", ["alerts", "nobody"])
def test_no_thread_of_ours_imports_anything(heard_by, tmp_path, monkeypatch) -> None:
    """A program that looks at sys.modules meanwhile would find modules that are half made.

    The threads read limits and secrets, price calls, keep the state up and send alerts.
    """
    with FakeGemini() as gemini:
        bad, good = (gemini.add_key(name, project=f"{name}-1234").value for name in ("bad", "good"))
        gemini.always("bad", Reply.KEY_INVALID)
        keys = [{"key_id": "bad", "project": "bad-1234", "tier": "tier1"}]
        keys += [{"key_id": "good", "project": "good-1234", "tier": "tier1", "priority": 1}]
        keys += [{"key_id": "lost", "secret": "vault://secret/lost"}]
        (tmp_path / "keys.json").write_text(json.dumps(keys))
        monkeypatch.setenv("GEMINI_KEY_bad", bad)
        monkeypatch.setenv("GEMINI_KEY_good", good)
        monkeypatch.setenv("VAULT_ADDR", gemini.url)
        monkeypatch.setenv("VAULT_TOKEN", "FAKE")
        monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDQUOTAS", gemini.url)
        state = f"sqlite://{tmp_path}/state.sqlite3"
        args = [sys.executable, "-W", "ignore", "-c", IMPORTS, gemini.url, gemini.host, state]
        args.append(heard_by)
        run = subprocess.run(
            args, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
        )
    assert (run.returncode, run.stdout.split()) == (0, []), run.stderr
