"""Sync and async are one flow: the same script gives the same commands, and keeps each promise."""

import asyncio
from functools import partial
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support import replies as r
from support.pool import INFO, STREAMED, Rig, Tape, key
from support.replies import Chunks, ChunkStream

from keyrot_middleware.core.commands import Refresh, Send, Settle, Sleep
from keyrot_middleware.core.flow import CallState, Exhausted
from keyrot_middleware.core.model import Lease, Limits
from keyrot_middleware.core.waiting import Ticket
from keyrot_middleware.runtime import runner
from keyrot_middleware.state import MemoryState

FAULTS: dict[str, Any] = {
    "ok": lambda: r.OK,
    "minute": lambda: r.minute("7s"),
    "soon": lambda: r.minute("1ms"),
    "long": lambda: r.minute("50s"),
    "day": r.day,
    "capacity": r.capacity,
    "invalid": r.invalid,
    "replaced": r.invalid,
    "blocked": r.blocked,
    "denied": r.denied,
    "far": r.unsupported_region,
    "overloaded": r.overloaded,
    "deadline": lambda: r.failure(504),
    "reset": lambda: r.lost("reset"),
    "connect": lambda: r.lost("connect"),
    "timeout": lambda: r.lost("timeout"),
    "bad": r.bad,
}
STREAMS: dict[str, Any] = {
    "ok": lambda: Chunks(1, 2, 3, names=("continuation:t",)),
    "empty": Chunks,
    "broken": lambda: Chunks(1, failed=r.overloaded()),
    "revoked": lambda: Chunks(1, 2, failed=r.invalid()),
    "unclosable": lambda: Chunks(1, 2, complaint=ConnectionError("already closed")),
}
STREAKS = ["minute", "soon", "overloaded", "connect", "replaced"]
"""Faults that come again and again use a budget up."""
INTERRUPTS = (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit, SystemExit, ValueError)
LIMITS = [Limits(), Limits(rpm=2), Limits(tpm=100), Limits(max_concurrency=1)]


class Script:
    """Keys, what upstream answers to each, and calls: all drawn by one seed."""

    def __init__(self, seed: int) -> None:
        self.draw, self.seed = Random(seed), seed
        draw = self.draw
        names = "abcd"[: draw.randint(1, 4)]
        self.stream = draw.random() < 0.5
        self.replies = {**FAULTS, **(STREAMS if self.stream else {})}
        self.keys = [
            key(
                name,
                draw.choice(LIMITS),
                project=draw.choice([name, name, "p"]),
                model=draw.choice([None, None, r.MODEL, "gemini-3.1-pro-preview"]),
                tier=draw.choice([None, "free", "paid"]),
                priority=draw.choice([0, 0, 1, 1_000_000]),
            )
            for name in names
        ]
        self.answers = {
            name: draw.choices(list(self.replies), k=draw.randint(0, 6))
            if draw.random() < 0.5
            else [draw.choice(STREAKS)] * draw.randint(3, 6)
            for name in names
        }
        self.policy = {
            "strategy": draw.choice(["spread", "fill", "sticky"]),
            "max_attempts": draw.choice([0, 0, 1, 2]),
            "max_retries": draw.choice([0, 1, 2]),
            "max_wait_s": draw.choice([0.0, 10.0, 30.0]),
        }
        self.calls = [self._call() for _ in range(draw.randint(1, 4))]

    def _call(self) -> tuple[Any, Any, dict[int, type[BaseException]], int | None]:
        """Draw a call: its home key, which step is interrupted by what, how much is read."""
        draw = self.draw
        info = (STREAMED if self.stream else INFO)._replace(
            tokens=draw.choice([10, 80]),
            idempotent=draw.random() < 0.7,
            sdk_retries=draw.random() < 0.3,
            bound_to_owner=draw.random() < 0.3,
            resources=draw.choice([(), ("files/x",), ("continuation:t",)]),
            conversation=draw.choice([None, "1f"]),
        )
        when = {draw.randint(1, 14): draw.choice(INTERRUPTS)} if draw.random() < 0.5 else {}
        return info, draw.choice([None, *self.keys]), when, draw.choice([None, 1, 2, 3])

    def rig(self) -> Rig:
        """Build the rig for one run; each twin has exceptions and a clock of its own."""
        rig = Rig(*self.keys, **self.policy)
        rig.pool.random = Random(self.seed).random
        rig.default = self.replies["ok"]
        for key_id, names in self.answers.items():
            for name in names:
                rig.will(key_id, lambda key_id=key_id, name=name: self._reply(rig, key_id, name))
        return rig

    def _reply(self, rig: Rig, key_id: str, name: str) -> Any:
        if name == "replaced":
            rig.store.values[key_id] += "x"
        return self.replies[name]()


class Ran(Tape):
    """What a call did. It is interrupted before a command is performed, or after a Settle was."""

    def __init__(self, rig: Rig, call: CallState, when: dict[int, type[BaseException]]) -> None:
        super().__init__()
        self.rig, self.call, self.when, self.step = rig, call, when, 0
        self.result: Any = None
        self.unfair: list[str] = []
        """Keys that were available while the call slept."""

    def before(self, command: Any) -> None:
        super().before(command)
        self.step += 1
        if self.step in self.when and type(command) is not Settle:
            raise self.when[self.step]
        waits = type(command) is Sleep and command.reason == "key"
        if waits and not self.call.info.bound_to_owner:
            acquire = partial(MemoryState.acquire, self.rig.state)
            for key_id, one in self.rig.selector.keys.items():
                offer, is_out = ((0, one),), key_id in self.call.excluded
                if not is_out and isinstance(
                    acquire(self.call.info, offer, strategy="fill"), Lease
                ):
                    self.unfair.append(key_id)

    def after(self, command: Any, reply: Any) -> None:
        super().after(command, reply)
        if self.step in self.when and type(command) is Settle:
            raise self.when[self.step]


def _raised(exhausted: Exhausted) -> BaseException:
    return exhausted


async def run(script: Script, *, is_async: bool) -> tuple[Rig, list[Ran]]:
    rig, every = script.rig(), []
    for info, home, when, most in script.calls:
        ran = Ran(rig, rig.make(info, home), when)
        try:
            if is_async:
                reply = await runner.arun(rig.pool, ran.call, rig.asend, _raised, ran)
            else:
                reply = runner.run(rig.pool, ran.call, rig.asend, _raised, ran)
            ran.result = await _read(reply, most)
        except BaseException as error:
            ran.result = error
        ran.when = {}
        rig.pool.settle_abandoned()
        every.append(ran)
    return rig, every


async def _read(reply: Any, most: int | None) -> Any:
    taken: list[Any] = []
    if isinstance(reply, ChunkStream) and not reply._is_async:
        for chunk in reply:
            taken.append(chunk)
            if len(taken) == most:
                reply.close()
                break
        return taken
    if isinstance(reply, ChunkStream):
        async for chunk in reply:
            taken.append(chunk)
            if len(taken) == most:
                await reply.aclose()
                break
        return taken
    return reply


def plain(value: Any) -> Any:
    """Make values of two rigs comparable: no identities, no private data."""
    if isinstance(value, BaseException):
        return type(value).__name__, str(value), getattr(value, "__notes__", [])
    if isinstance(value, Lease):
        return ("Lease", *value._replace(reservation=None))
    if isinstance(value, Chunks | ChunkStream | Ticket):
        return type(value).__name__
    if isinstance(value, tuple | list):
        return (type(value).__name__, *map(plain, value))
    return value


SEEN: set[str] = set()


@settings(max_examples=120)
@given(seed=st.integers(0, 2**32))
def test_the_same_script_has_the_same_result_sync_and_async(seed: int) -> None:
    """Commands, replies and results; settled once, excluded for good, fair, within each budget."""
    script = Script(seed)
    rig, calls = asyncio.run(run(script, is_async=False))
    twin, others = asyncio.run(run(script, is_async=True))
    for ran, other in zip(calls, others, strict=True):
        assert plain(ran.log) == plain(other.log)
        assert plain(ran.result) == plain(other.result)
        _leases_are_settled_once(ran)
        _failed_keys_stay_excluded(ran)
        _budgets_are_kept(ran, script)
        assert ran.unfair == [], "the call slept while these keys were free"
        SEEN.update(type(what).__name__ for how, what in ran.log if how == "command")
        SEEN.update(f"sleep {sleep.reason}" for sleep in ran.of(Sleep))
        SEEN.add(type(ran.result).__name__)
    assert (rig.sent, rig.slept) == (twin.sent, twin.slept)
    assert rig.state.snapshot(script.keys) == twin.state.snapshot(script.keys)
    rig.check()
    twin.check()


def test_the_scripts_cover_every_command() -> None:
    """Random scripts include failures, waits, retries and interruptions."""
    for seed in range(60):
        test_the_same_script_has_the_same_result_sync_and_async.hypothesis.inner_test(seed)
    assert {"Acquire", "Refresh", "Send", "Settle", "Sleep", "sleep key", "sleep retry"} < SEEN
    assert {"Exhausted", "CancelledError", "KeyboardInterrupt", "ValueError"} < SEEN


def _leases_are_settled_once(tape: Tape) -> None:
    """In order; the last lease of a closed call is settled without its flow."""
    sent = [id(command.lease) for command in tape.of(Send)]
    settled = [id(command.lease) for command in tape.of(Settle)]
    assert settled in (sent, sent[:-1])


def _failed_keys_stay_excluded(tape: Tape) -> None:
    """A failed key is used again only after a wait for its named time, or once replaced."""
    out: dict[str, bool] = {}
    replaced: set[str] = set()
    command = None
    for how, what in tape.log:
        if how == "reply" and type(command) is Refresh and what and command.key_id not in replaced:
            replaced.add(command.key_id)
            out.pop(command.key_id, None)
        command = what if how == "command" else None
        if type(command) is Send:
            assert command.lease.key_id not in out
        elif type(command) is Settle and (verdict := command.outcome.verdict) and verdict.rotate:
            out[command.lease.key_id] = verdict.has_known_end and verdict.may_wait
        elif type(command) is Sleep and command.reason == "key":
            out = {key_id: waits for key_id, waits in out.items() if not waits}


def _budgets_are_kept(ran: Ran, script: Script) -> None:
    sleeps = ran.of(Sleep)
    verdicts = [settle.outcome.verdict for settle in ran.of(Settle)]
    walked = sum(verdict is not None and verdict.rotate for verdict in verdicts)
    assert sum(sleep.reason == "retry" for sleep in sleeps) <= script.policy["max_retries"]
    waited = sum(sleep.seconds for sleep in sleeps if sleep.reason == "key")
    assert waited <= script.policy["max_wait_s"] + 1e-6
    if script.policy["max_attempts"]:
        assert walked <= script.policy["max_attempts"] + len(ran.call.refreshed)
