"""Other instrumentations wrap the same methods: any order of install and removal is harmless."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import Any

import pytest
from google.genai._api_client import BaseApiClient
from support.modes import MODEL, ask
from wrapt import wrap_function_wrapper

import keyrot_middleware
from keyrot_middleware.adapters.patching import remove_layer

NAMES = ("request", "request_streamed", "async_request", "async_request_streamed")


@pytest.fixture(autouse=True)
def plain_again():
    """Restore the SDK's own functions, whatever a test did to them."""
    before = dict(vars(BaseApiClient))
    yield
    for name, method in before.items():
        if vars(BaseApiClient).get(name) is not method:
            setattr(BaseApiClient, name, method)


class Other:
    """A typical instrumentation: wrapt layers that it removes again."""

    def __init__(self) -> None:
        self.seen = 0

    def on(self) -> None:
        """Wrap."""
        for name in NAMES:
            wrap_function_wrapper("google.genai._api_client", f"BaseApiClient.{name}", self._count)

    def _count(self, wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        self.seen += 1
        return wrapped(*args, **kwargs)

    def off_by_layer(self) -> None:
        """Remove its own layer, wherever it is in the chain."""
        for name in NAMES:
            remove_layer(BaseApiClient, name, self._mine(name))

    def off_by_snapshot(self, snapshot: dict[str, Any]) -> None:
        """Restore what it found, as instrumentations with a saved original do."""
        for name in NAMES:
            setattr(BaseApiClient, name, snapshot[name])

    def _mine(self, name: str) -> Any:
        layer = vars(BaseApiClient)[name]
        while getattr(layer, "_self_wrapper", None) != self._count:
            layer = layer.__wrapped__
        return layer


def snapshot() -> dict[str, Any]:
    """Return the attributes of the class."""
    return {name: vars(BaseApiClient)[name] for name in NAMES}


ORDERS = [
    order
    for order in itertools.permutations(("ours on", "theirs on", "ours off", "theirs off"))
    if order.index("ours on") < order.index("ours off")
    and order.index("theirs on") < order.index("theirs off")
]


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_every_order_of_two_instrumentations_ends_where_it_began(
    order, gemini, pool, connect
) -> None:
    """Each works while it is on, in every order; at the end the SDK's functions are back."""
    before, theirs = snapshot(), Other()
    own = connect(gemini.add_key("own").value)
    steps = {
        "ours on": lambda: pool("A"),
        "ours off": keyrot_middleware.uninstall,
        "theirs on": theirs.on,
        "theirs off": theirs.off_by_layer,
    }
    ours_on = theirs_on = False
    for step in order:
        steps[step]()
        ours_on = step == "ours on" or (ours_on and step != "ours off")
        theirs_on = step == "theirs on" or (theirs_on and step != "theirs off")
        seen = theirs.seen
        assert ask("sync", own) == ("ok from A" if ours_on else "ok from own")
        assert (theirs.seen > seen) is theirs_on
    after = snapshot()
    assert all(after[name] is before[name] for name in NAMES)


def test_our_layer_under_another_is_removed_from_the_middle(gemini, pool, connect) -> None:
    """uninstall() under another wrapt layer leaves that layer and nothing of ours."""
    theirs, before = Other(), snapshot()
    pool("A")
    theirs.on()
    keyrot_middleware.uninstall()
    own = connect(gemini.add_key("own").value)
    assert ask("sync", own) == "ok from own"
    assert ask("async", own) == "ok from own"
    assert theirs.seen == 2
    assert all(vars(BaseApiClient)[name].__wrapped__ is before[name] for name in NAMES)


def test_our_layer_under_a_plain_closure_passes_through(gemini, pool, connect) -> None:
    """A layer that a decorator holds cannot be removed, but has no effect."""
    pool("A")
    layer = BaseApiClient.request

    @functools.wraps(layer)
    def closure(*args: Any, **kwargs: Any) -> Any:
        return layer(*args, **kwargs)

    BaseApiClient.request = closure  # type: ignore[method-assign]
    assert ask("sync", connect()) == "ok from A"
    keyrot_middleware.uninstall()
    assert vars(BaseApiClient)["request"] is closure
    assert ask("sync", connect(gemini.add_key("own").value)) == "ok from own"
    pool("B")
    assert ask("sync", connect()) == "ok from B"
    assert gemini.count() == 3


def test_our_layer_brought_back_by_a_snapshot_is_pass_through(gemini, pool, connect) -> None:
    """A saved original that contains our layer, restored after uninstall(), has no effect."""
    pool("A")
    ours = snapshot()
    theirs = Other()
    theirs.on()
    keyrot_middleware.uninstall()
    theirs.off_by_snapshot(ours)
    own = connect(gemini.add_key("own").value)
    assert ask("sync", own) == "ok from own"
    assert ask("async_stream", own) == "ok from own"


def test_install_again_over_a_dead_layer(gemini, pool, connect) -> None:
    """A new pool works once, over any layer that an old one left."""
    pool("A")
    ours = snapshot()
    keyrot_middleware.uninstall()
    for name, method in ours.items():
        setattr(BaseApiClient, name, method)
    pool("B")
    assert ask("sync", connect()) == "ok from B"
    assert ask("async", connect()) == "ok from B"
    assert gemini.count() == 2


def test_status_reports_that_another_tool_removed_our_layer(gemini, pool, connect) -> None:
    """Another tool's restore removes us: `status()` shows which patches are gone."""
    before = snapshot()
    pool("A")
    for name in ("request", "async_request"):
        setattr(BaseApiClient, name, before[name])
    patched = keyrot_middleware.status()["patched"]
    assert {name for name, there in patched.items() if not there} == {"request", "async_request"}
    keyrot_middleware.uninstall()
    assert snapshot() == before


@pytest.mark.parametrize("way", ["await", "async with", "a task"])
def test_aiohttp_of_the_program_with_a_key_of_the_pool(way, gemini, pool, connect) -> None:
    """Its `request` can be awaited, entered and run in a task, as without a pool."""
    aiohttp = pytest.importorskip("aiohttp")
    pool("A")
    ask("sync", connect())
    url = f"{gemini.url}/v1beta/models/{MODEL}:generateContent"
    request = {
        "json": {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
        "headers": {"x-goog-api-key": gemini.key("A").value},
    }

    async def go() -> int:
        async with aiohttp.ClientSession() as session:
            if way == "async with":
                async with session.request("POST", url, **request) as response:
                    return int(response.status)
            sending = session.request("POST", url, **request)
            response = await (asyncio.create_task(sending) if way == "a task" else sending)
            response.release()
            return int(response.status)

    assert asyncio.run(go()) == 200
