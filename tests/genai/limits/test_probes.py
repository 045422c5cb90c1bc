"""The first request after a cooldown is a probe: other calls wait for it, but not for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from support.modes import STREAMS, ask, ask_async, run
from support.servers import server
from support.streams import REQUEST

from keyrot_middleware import KeyPoolExhausted
from keyrot_middleware.core.model import Lease, LeaseOutcome, Outcome, Scope, Verdict
from keyrot_middleware.testing import Reply

_pools = count()


@pytest.fixture(params=["memory", "valkey"])
def install_cooled(request: pytest.FixtureRequest, pool: Any, clock: Any) -> Callable[..., Any]:
    """Install a pool of one key whose cooldown has just ended."""

    def install(**settings: Any) -> Any:
        if request.param != "memory":
            settings |= {"state_url": server(request.param).url, "pool": f"probes-{next(_pools)}"}
        made = pool("A", max_wait_s=0, **settings)
        key = made.selector.keys["A"]
        where = key.project, key.billing_account
        lease = Lease("A", *where, "", "", 0, 0, at=0.0, record=key.record)
        verdict = Verdict("capacity", 503, Scope.KEY, clock.time() - 1)
        made.state.settle(lease, Outcome(LeaseOutcome.FAILURE, verdict))
        pool.ledger.checked = request.param == "memory"  # of the others tasks settle unseen
        return made

    return install


@pytest.mark.parametrize("mode", STREAMS)
def test_a_probing_stream_lets_others_go_at_its_first_chunk(
    mode: str, gemini: Any, install_cooled: Any, connect: Any
) -> None:
    """A reader that keeps a half-read stream delays no other call: the key has proved available."""
    install_cooled()
    client = connect()

    async def in_a_loop() -> None:
        stream = await client.aio.models.generate_content_stream(**REQUEST)
        await anext(stream)
        for _ in range(3):
            assert await ask_async("async", client) == "ok from A"
        await stream.aclose()

    if mode == "async_stream":
        run(client, in_a_loop)
    else:
        stream = client.models.generate_content_stream(**REQUEST)
        next(stream)
        for _ in range(3):
            assert ask("sync", client) == "ok from A"
        stream.close()
    assert gemini.count("A", status=200) == 4


def test_a_slow_probe_delays_others_for_two_seconds(
    gemini: Any, clock: Any, install_cooled: Any, connect: Any, request: Any
) -> None:
    """During the probe one more call is sent every two seconds, and a success releases all."""
    shared = request.node.callspec.params["install_cooled"] != "memory"
    install_cooled()
    client = connect()
    gemini.script("A", Reply.OK.delayed(3.0))
    probe = threading.Thread(target=ask, args=("sync", client))
    probe.start()
    assert gemini.wait_for(1, 60.0)
    with pytest.raises(KeyPoolExhausted) as refused:
        ask("sync", client)
    assert "probe" in refused.value.reasons["A"]
    if shared:
        time.sleep(2.05)
    else:
        clock.advance(2)
    assert ask("sync", client) == "ok from A"
    assert ask("sync", client) == "ok from A"
    probe.join()
