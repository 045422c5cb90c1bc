"""Other instrumentations wrap the same methods: any order of install and removal is harmless."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import Any

import pytest
from support.modes import MODEL, ask, http_library
from wrapt import wrap_function_wrapper

import keyrot_middleware

OWNER: Any = http_library().Client
NAMES = ("_transport_for_url",)


@pytest.fixture(autouse=True)
def plain_again():
    """Restore the SDK's own functions, whatever a test did to them."""
    before = dict(vars(OWNER))
    yield
    for name, method in before.items():
        if vars(OWNER).get(name) is not method:
            setattr(OWNER, name, method)


class Other:
    """A typical instrumentation: wrapt layers that it removes again."""

    def __init__(self) -> None:
        self.seen = 0

    def on(self) -> None:
        """Wrap."""
        for name in NAMES:
            wrap_function_wrapper(OWNER, name, self._count)

    def _count(self, wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        self.seen += 1
        return wrapped(*args, **kwargs)

    def off_by_layer(self) -> None:
        """Remove its own layer, wherever it is in the chain."""
        for name in NAMES:
            above, layer = None, vars(OWNER)[name]
            while getattr(layer, "_self_wrapper", None) != self._count:
                above, layer = layer, layer.__wrapped__
            if above is None:
                setattr(OWNER, name, layer.__wrapped__)
            else:
                above.__wrapped__ = layer.__wrapped__

    def off_by_snapshot(self, snapshot: dict[str, Any]) -> None:
        """Restore what it found, as instrumentations with a saved original do."""
        for name in NAMES:
            setattr(OWNER, name, snapshot[name])


def snapshot() -> dict[str, Any]:
    """Return the attributes of the class."""
    return {name: vars(OWNER)[name] for name in NAMES}


ORDERS = [
    order
    for order in itertools.permutations(("ours on", "theirs on", "ours off", "theirs off"))
    if order.index("ours on") < order.index("ours off")
    and order.index("theirs on") < order.index("theirs off")
]


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_every_order_of_two_instrumentations_works(order, gemini, pool, connect) -> None:
    """Each works while it is on, in every order; what is left of us at the end does nothing."""
    theirs = Other()
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


def test_our_layer_under_a_plain_closure_passes_through(gemini, pool, connect) -> None:
    """A layer that a decorator holds cannot be removed, but has no effect."""
    pool("A")
    layer = OWNER._transport_for_url

    @functools.wraps(layer)
    def closure(*args: Any, **kwargs: Any) -> Any:
        return layer(*args, **kwargs)

    OWNER._transport_for_url = closure
    assert ask("sync", connect()) == "ok from A"
    keyrot_middleware.uninstall()
    assert vars(OWNER)["_transport_for_url"] is closure
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
        setattr(OWNER, name, method)
    pool("B")
    assert ask("sync", connect()) == "ok from B"
    assert ask("async", connect()) == "ok from B"
    assert gemini.count() == 2


def test_status_reports_that_another_tool_removed_our_layer(gemini, pool, connect) -> None:
    """Another tool's restore removes us: `status()` shows which patches are gone."""
    before = snapshot()
    pool("A")
    OWNER._transport_for_url = before["_transport_for_url"]
    patched = keyrot_middleware.status()["patched"]
    gone = {name for name, there in patched.items() if not there}
    assert gone == {f"{http_library().__name__}.Client._transport_for_url"}
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
