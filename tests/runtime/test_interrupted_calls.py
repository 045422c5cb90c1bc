"""Ctrl-C at any moment: the key is available again, at once or within a minute."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, key
from support.replies import Chunks

from keyrot_middleware.core.model import Lease, LeaseOutcome, Limits, Outcome, Scope, Verdict


class CtrlC:
    """Raises KeyboardInterrupt once, at the nth point where Python handles signals.

    Such points are the start of a Python function and the return of a C function.
    """

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> None:
        sys.setprofile(self._look)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    @property
    def was_raised(self) -> bool:
        """Whether it was raised; otherwise the call has fewer such points."""
        return self.left <= 0

    def _look(self, frame: FrameType, event: str, _arg: Any) -> None:
        ours = "keyrot_middleware" in frame.f_code.co_filename
        if ours and event in ("call", "c_return") and not self.was_raised:
            self.left -= 1
            if self.was_raised:
                raise KeyboardInterrupt


def cooled() -> Rig:
    """Make a pool of one key whose cooldown has just ended, with `max_concurrency` 1."""
    one = key("a", Limits(max_concurrency=1))
    rig = Rig(one, max_wait_s=0.0)
    lease = Lease("a", one.project, one.billing_account, "", "", 0, 0, at=0.0, record=one.record)
    verdict = Verdict("capacity", 503, Scope.KEY, rig.clock.time() - 1)
    rig.state.settle(lease, Outcome(LeaseOutcome.FAILURE, verdict))
    return rig


def send_call(rig: Rig, kind: str) -> None:
    """Send one call, whole or as a stream."""
    info = INFO if kind == "whole" else STREAMED
    if kind != "whole":
        rig.will("a", Chunks(1, 2, 3))
    assert rig.call(info) == ("answer" if kind == "whole" else [1, 2, 3])


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_ctrl_c_at_any_moment_loses_no_key(kind: str) -> None:
    """As soon as the traceback of the interrupt is gone."""
    number, was_raised = 0, True
    while was_raised:
        number += 1
        rig, ctrl_c = cooled(), CtrlC(number)
        with suppress(KeyboardInterrupt), ctrl_c:
            send_call(rig, kind)
        was_raised = ctrl_c.was_raised
        rig.state.leases.clear()
        rig.state.settled.clear()
        rig.script.clear()
        rig.clock.advance(60)
        with suppress(KeyboardInterrupt):
            assert rig.call() == "answer", number
    assert number > 50
