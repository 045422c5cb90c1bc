"""The SDK or this package is reloaded or imported again: calls use one pool, never two.

Each case runs in a process of its own, since it changes what is imported.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.forks import run_fork

BEGIN = """
import importlib, os, sys
import keyrot_middleware
from keyrot_middleware.testing import FakeGemini

def fresh(prefix):
    for name in [n for n in sys.modules if n == prefix or n.startswith(prefix + ".")]:
        del sys.modules[name]
    parent, _, name = prefix.rpartition(".")
    if parent:
        vars(sys.modules[parent]).pop(name, None)

def install():
    global keyrot_middleware
    import keyrot_middleware
    keyrot_middleware.install(allowed_hosts=(server.host,))

def api_clients():
    import gc
    found = [c for c in gc.get_objects() if isinstance(c, type) and c.__name__ == "BaseApiClient"]
    current = sys.modules["google.genai._api_client"].BaseApiClient
    assert current in found
    return found

def layers(cls):
    from wrapt import FunctionWrapper
    count, method = 0, vars(cls)["request"]
    while isinstance(method, FunctionWrapper):
        count, method = count + 1, method.__wrapped__
    return count

server = FakeGemini().__enter__()
values = [server.add_key(label, tier="paid").value for label in ("A", "B")]
os.environ["GEMINI_API_KEYS"] = ",".join(values)
from google import genai
untouched = dict(vars(genai._api_client.BaseApiClient))
install()
before = genai.Client(http_options=server.http_options)
"""

END = """
from google import genai
server.always("A", __import__("keyrot_middleware.testing").testing.Reply.QUOTA_DAY)
client = genai.Client(http_options=server.http_options)
request = dict(model="gemini-2.5-flash", contents="hello")
for _ in range(4):
    sent = server.count()
    assert client.models.generate_content(**request).text == "ok from B"
    assert server.count() - sent <= 2, "the SDK or a second pool has sent it again"
assert before.models.generate_content(**request).text == "ok from B"
assert server.sent("A") <= 1, server.sent("A")
assert set(map(layers, api_clients())) <= {0, 1}
assert layers(genai._api_client.BaseApiClient) == 1
assert all(keyrot_middleware.status()["patched"].values())
keyrot_middleware.uninstall()
assert set(map(layers, api_clients())) == {0}
assert not [f for f in sys.meta_path if type(f).__module__.startswith("keyrot")]
client.close(), before.close()
server.__exit__(None, None, None)
print("done")
"""

RELOADS = {
    "the SDK's package": "importlib.reload(genai)",
    "its api client": "importlib.reload(sys.modules['google.genai._api_client'])",
    "its api client and client": (
        "importlib.reload(sys.modules['google.genai._api_client'])\n"
        "importlib.reload(sys.modules['google.genai.client'])\n"
        "importlib.reload(genai)"
    ),
    "the SDK, imported anew": "fresh('google.genai'); del genai",
    "the SDK, imported anew before install()": (
        "fresh('google.genai'); import google.genai as genai; install()"
    ),
    "this package": "importlib.reload(keyrot_middleware); install()",
    "its composition root": "importlib.reload(sys.modules['keyrot_middleware._install']); "
    "importlib.reload(keyrot_middleware); install()",
    "this package, imported anew": "fresh('keyrot_middleware'); install()",
    "both": "fresh('keyrot_middleware'); fresh('google.genai'); install()",
    "its api client, and then this package": (
        "importlib.reload(sys.modules['google.genai._api_client'])\n"
        "fresh('keyrot_middleware'); install()"
    ),
    "both, twice": "for _ in (1, 2): fresh('keyrot_middleware'); fresh('google.genai'); install()",
}


UNINSTALL = """
fresh("keyrot_middleware")
import keyrot_middleware
keyrot_middleware.uninstall()
assert set(map(layers, api_clients())) == {0}
print("done")
"""

LOADER = """
fresh("google.genai")
from google import genai
module = sys.modules["google.genai._api_client"]
assert type(module.__loader__).__name__ == "SourceFileLoader"
assert module.__spec__.loader is module.__loader__
print("done")
"""


@pytest.mark.parametrize("what", RELOADS)
def test_calls_go_through_one_pool(what: str) -> None:
    """They rotate with one layer, and uninstall() restores every class that was patched."""
    assert run_fork(BEGIN + RELOADS[what] + "\n" + END) == "done\n"


def test_uninstall_of_a_fresh_copy_removes_the_old_pool() -> None:
    """Also where install() was not called again."""
    assert run_fork(BEGIN + UNINSTALL) == "done\n"


def test_a_pool_without_the_sdk_is_replaced_too() -> None:
    """This package is imported again before the SDK is imported at all."""
    program = BEGIN.replace("from google import genai\n", "").replace(
        "before = genai",
        "fresh('keyrot_middleware'); install()\nfrom google import genai\nbefore = genai",
    )
    program = "\n".join(line for line in program.splitlines() if not line.startswith("untouched"))
    done = subprocess.run(
        [sys.executable, "-c", program + END],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout == "done\n"


def test_the_sdks_loader_is_its_own_after_the_import() -> None:
    """The import machinery keeps nothing of ours with a module."""
    assert run_fork(BEGIN + LOADER) == "done\n"
