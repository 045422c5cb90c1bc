"""A process of its own that uses a pool's state: told what to do on stdin, a JSON line each."""

from __future__ import annotations

import json
import sys
from itertools import cycle, islice
from typing import Any

from keyrot_middleware.core.model import (
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Scope,
    Verdict,
)
from keyrot_middleware.state.redis import RedisState

INFO = CallInfo("gemini-2.5-flash", "generateContent", 10, 10)


def keys_of(command: dict[str, Any]) -> tuple[tuple[int, Candidate], ...]:
    """Make the keys that are named, all with the same limits or each with its own."""
    keys, same = command["keys"], command.get("limits", {})
    limits = keys if isinstance(keys, dict) else dict.fromkeys(keys, same)
    return tuple((0, Candidate(name, name, name, Limits(**of))) for name, of in limits.items())


def do(command: dict[str, Any]) -> Any:
    """Ask `times` for one of the keys; settle as told; name the keys that were lent.

    Where they are told the time with `now`, it stands still for them, and no minute ends meanwhile.
    The requests have so many `tokens`, in turn; where they are told, each is named with its key.
    """
    now = command.get("now")
    state = RedisState(
        command["url"],
        RetryPolicy(),
        pool=command["pool"],
        lease_s=command.get("lease_s", 600.0),
        test_clock=None if now is None else lambda: float(now),
    )
    lent: list[Any] = []
    offer, sizes = keys_of(command), cycle(command.get("tokens", [INFO.tokens]))
    for info in (INFO._replace(tokens=size) for size in islice(sizes, command.get("times", 1))):
        reply = state.acquire(info, offer, spread=command.get("spread", False))
        if not isinstance(reply, Lease):
            continue
        lent.append([reply.key_id, info.tokens] if "tokens" in command else reply.key_id)
        if command.get("settle") == "success":
            state.settle(reply, Outcome(LeaseOutcome.SUCCESS))
        elif command.get("settle") == "minute":
            verdict = Verdict(
                "quota_minute", 429, Scope.PROJECT_MODEL, reply.at + 40, has_known_end=True
            )
            state.settle(reply, Outcome(LeaseOutcome.FAILURE, verdict))
    if command.get("close", True):
        state.close()
    return lent


def say(what: Any) -> None:
    """Give an answer."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do what comes in, until nothing comes any more."""
    say("ready")
    for line in sys.stdin:
        say(do(json.loads(line)))


if __name__ == "__main__":
    main()
