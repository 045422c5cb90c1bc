"""A process of its own that uses a pool's state: one command on stdin per line, as JSON."""

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
    """Acquire a key `times` times; settle as the command names; return the keys that were leased.

    With the time in `now`, the clock stands still for this state, and no minute ends meanwhile.
    The requests have `tokens` in turn; where these are given, each is returned with its key.
    """
    now = command.get("now")
    state = RedisState(
        command["url"],
        RetryPolicy(),
        pool=command["pool"],
        test_clock=None if now is None else lambda: float(now),
    )
    leased: list[Any] = []
    offer, sizes = keys_of(command), cycle(command.get("tokens", [INFO.tokens]))
    for info in (INFO._replace(tokens=size) for size in islice(sizes, command.get("times", 1))):
        reply = state.acquire(info, offer, spread=command.get("spread", False))
        if not isinstance(reply, Lease):
            continue
        leased.append([reply.key_id, info.tokens] if "tokens" in command else reply.key_id)
        if command.get("settle") == "success":
            state.settle(reply, Outcome(LeaseOutcome.SUCCESS))
        elif command.get("settle") == "minute":
            verdict = Verdict(
                "quota_minute", 429, Scope.PROJECT_MODEL, reply.at + 40, has_known_end=True
            )
            state.settle(reply, Outcome(LeaseOutcome.FAILURE, verdict))
    if command.get("close", True):
        state.close()
    return leased


def reply(what: Any) -> None:
    """Write an answer."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run commands until stdin ends."""
    reply("ready")
    for line in sys.stdin:
        reply(do(json.loads(line)))


if __name__ == "__main__":
    main()
