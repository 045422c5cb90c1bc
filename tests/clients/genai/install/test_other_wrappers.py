"""Other instrumentations wrap the same methods: any order of install and removal is harmless."""

import itertools
from typing import Any

import pytest
from support.modes import ask, http_library
from wrapt import wrap_function_wrapper

import keyrot_middleware

OWNER: Any = http_library().Client
NAME = "_transport_for_url"


@pytest.fixture(autouse=True)
def plain_again():
    """Restore the SDK's own functions, whatever a test did to them."""
    before = vars(OWNER)[NAME]
    yield
    setattr(OWNER, NAME, before)


class Other:
    """A typical instrumentation: wrapt layers that it removes again."""

    def __init__(self) -> None:
        self.seen = 0

    def on(self) -> None:
        wrap_function_wrapper(OWNER, NAME, self._count)

    def _count(self, wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        self.seen += 1
        return wrapped(*args, **kwargs)

    def off(self) -> None:
        """Remove its own layer, wherever it is in the chain."""
        above, layer = None, vars(OWNER)[NAME]
        while getattr(layer, "_self_wrapper", None) != self._count:
            above, layer = layer, layer.__wrapped__
        if above is None:
            setattr(OWNER, NAME, layer.__wrapped__)
        else:
            above.__wrapped__ = layer.__wrapped__


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
        "theirs off": theirs.off,
    }
    ours_on = theirs_on = False
    for step in order:
        steps[step]()
        ours_on = step == "ours on" or (ours_on and step != "ours off")
        theirs_on = step == "theirs on" or (theirs_on and step != "theirs off")
        seen = theirs.seen
        assert ask("sync", own) == ("ok from A" if ours_on else "ok from own")
        assert (theirs.seen > seen) is theirs_on


def test_status_reports_that_another_tool_removed_our_layer(gemini, pool, connect) -> None:
    before = vars(OWNER)[NAME]
    pool("A")
    setattr(OWNER, NAME, before)
    patched = keyrot_middleware.status()["patched"]
    gone = {name for name, there in patched.items() if not there}
    assert gone == {f"{http_library().__name__}.Client._transport_for_url"}
    keyrot_middleware.uninstall()
    assert vars(OWNER)[NAME] is before
