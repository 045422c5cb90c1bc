"""Random scripts for twin rigs: what upstream answers, what interrupts, how much is read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from keyrot_middleware.core.commands import Settle, Sleep
from keyrot_middleware.core.flow import CallState, Exhausted
from keyrot_middleware.core.model import CallInfo, Candidate, Lease, Limits
from keyrot_middleware.core.waiting import Ticket
from keyrot_middleware.runtime import runner
from support import replies as r
from support.pool import INFO, STREAMED, RecordingState, Rig, Tape, key
from support.replies import Chunks

__all__ = ["SCRIPTS", "Ran", "Script", "plain", "run_async", "run_sync"]

FAULTS: Mapping[str, Any] = {
    "ok": lambda: r.OK,
    "minute": lambda: r.minute("7s"),
    "soon": lambda: r.minute("1ms"),
    "long": lambda: r.minute("50s"),
    "day": r.day,
    "capacity": r.capacity,
    "invalid": r.invalid,
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
STREAMS: Mapping[str, Any] = {
    "ok": lambda: Chunks(1, 2, 3, names=("continuation:t",)),
    "empty": Chunks,
    "broken": lambda: Chunks(1, failed=r.overloaded()),
    "revoked": lambda: Chunks(1, 2, failed=r.invalid()),
    "unclosable": lambda: _unclosable("already closed"),
}
INTERRUPTS = (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit, SystemExit, ValueError)


def _unclosable(complaint: str) -> Chunks:
    chunks = Chunks(1, 2)
    chunks.complaint = ConnectionError(complaint)
    return chunks


@dataclass(frozen=True)
class Script:
    """The script of a few calls, one after the other."""

    keys: tuple[Candidate, ...]
    policy: dict[str, Any]
    replies: dict[str, list[str]]
    """Per key id: names of `FAULTS` or, for streams, of `STREAMS`; `replaced` too."""
    calls: tuple[tuple[CallInfo, Candidate | None, dict[int, type[BaseException]], int | None], ...]
    """Per call: the call, the home key, which step is interrupted by what, how much is read."""
    seed: int
    stream: bool

    def rig(self) -> Rig:
        """Build the rig for one run; each twin has exceptions and a clock of its own."""
        rig = Rig(*self.keys, **self.policy)
        dice = random.Random(self.seed)
        rig.pool.random = dice.random
        rig.default = STREAMS["ok"] if self.stream else r.OK
        for key_id, names in self.replies.items():
            rig.will(key_id, *(self._reply(rig, key_id, name) for name in names))
        return rig

    def _reply(self, rig: Rig, key_id: str, name: str) -> Any:
        if name == "replaced":
            return lambda: _replaced(rig, key_id)
        return (STREAMS.get(name) if self.stream else None) or FAULTS[name]


def _replaced(rig: Rig, key_id: str) -> Any:
    rig.store.values[key_id] += "x"
    return r.invalid()


@dataclass
class Ran:
    """The result of one call, for comparison."""

    tape: Tape
    call: CallState
    result: Any = None
    unfair: list[str] = field(default_factory=list)
    """Keys that were available while the call slept."""

    @property
    def log(self) -> list[Any]:
        """The tape in plain values."""
        return [plain(entry) for entry in self.tape.log]


def plain(value: Any) -> Any:
    """Make values of two rigs comparable: no identities, no private data."""
    if isinstance(value, BaseException):
        return type(value).__name__, str(value), getattr(value, "__notes__", [])
    if isinstance(value, Lease):
        return ("Lease", *value._replace(reservation=None))
    if isinstance(value, Chunks):
        return "stream"
    if isinstance(value, Ticket):
        return "ticket"
    if isinstance(value, tuple | list):
        return (type(value).__name__, *map(plain, value))
    return value


class _Interrupts(Tape):
    """Raise at chosen steps: before a command is performed, or after a Settle was."""

    def __init__(self, rig: Rig, ran: Ran, when: Mapping[int, type[BaseException]]) -> None:
        super().__init__()
        self.rig, self.ran, self.when, self.step = rig, ran, when, 0

    def before(self, command: Any) -> None:
        """Raise, unless it is a Settle; look for keys that could serve while the call sleeps."""
        super().before(command)
        self.step += 1
        if self.step in self.when and type(command) is not Settle:
            raise self.when[self.step]
        if (
            type(command) is Sleep
            and command.reason == "key"
            and not self.ran.call.info.bound_to_owner
        ):
            self.ran.unfair += _available(self.rig, self.ran.call)

    def after(self, command: Any, reply: Any) -> None:
        """Raise after a Settle."""
        super().after(command, reply)
        if self.step in self.when and type(command) is Settle:
            raise self.when[self.step]


def _available(rig: Rig, call: CallState) -> list[str]:
    """List the keys that the state would lease right now and that have not failed the call."""
    acquire = super(RecordingState, rig.state).acquire
    candidates = [k for k in rig.selector.keys.values() if k.key_id not in call.excluded]
    replies = [acquire(call.info, ((0, k),), spread=False) for k in candidates]
    return [reply.key_id for reply in replies if isinstance(reply, Lease)]


def _begin(
    rig: Rig, info: CallInfo, home: Candidate | None, when: Mapping[int, type[BaseException]]
) -> Ran:
    ran = Ran(Tape(), rig.make(info, home))
    ran.tape = _Interrupts(rig, ran, when)
    return ran


def _raised(exhausted: Exhausted) -> BaseException:
    return exhausted


def run_sync(script: Script) -> tuple[Rig, list[Ran]]:
    """Play a script in this thread."""
    rig, all_of_them = script.rig(), []
    for info, home, when, take in script.calls:
        ran = _begin(rig, info, home, when)
        try:
            reply = runner.run(rig.pool, ran.call, rig.send, _raised, ran.tape)
            ran.result = _take(reply, take) if isinstance(reply, runner.Relay) else reply
        except BaseException as error:
            ran.result = error
        rig.pool.settle_abandoned()
        all_of_them.append(ran)
    return rig, all_of_them


def _take(chunks: runner.Relay, most: int | None) -> list[Any]:
    taken = []
    for chunk in chunks:
        taken.append(chunk)
        if len(taken) == most:
            chunks.close()
            break
    return taken


async def run_async(script: Script) -> tuple[Rig, list[Ran]]:
    """Play a script in this task."""
    rig, all_of_them = script.rig(), []
    for info, home, when, take in script.calls:
        ran = _begin(rig, info, home, when)
        try:
            reply = await runner.arun(rig.pool, ran.call, rig.asend, _raised, ran.tape)
            ran.result = (
                await _atake(reply, take) if isinstance(reply, runner.AsyncRelay) else reply
            )
        except BaseException as error:
            ran.result = error
        rig.pool.settle_abandoned()
        all_of_them.append(ran)
    return rig, all_of_them


async def _atake(chunks: runner.AsyncRelay, most: int | None) -> list[Any]:
    taken = []
    async for chunk in chunks:
        taken.append(chunk)
        if len(taken) == most:
            await chunks.aclose()
            break
    return taken


_STREAKS = st.builds(
    lambda fault, times: [fault] * times,
    st.sampled_from(["minute", "soon", "overloaded", "connect", "replaced"]),
    st.integers(3, 6),
)
"""The same fault again and again: what uses a budget up."""


@st.composite
def _scripts(draw: st.DrawFn) -> Script:
    stream = draw(st.booleans())
    names = "abcd"[: draw(st.integers(1, 4))]
    keys = tuple(draw(_keys(name)) for name in names)
    faults = [*FAULTS, *(STREAMS if stream else ()), "replaced"]
    some = st.lists(st.sampled_from(faults), max_size=6) | _STREAKS
    replies = draw(st.fixed_dictionaries(dict.fromkeys(names, some)))
    info = st.builds(
        (STREAMED if stream else INFO)._replace,
        tokens=st.sampled_from([10, 80]),
        idempotent=st.sampled_from([True, True, False]),
        sdk_retries=st.sampled_from([False, False, True]),
        bound_to_owner=st.sampled_from([False, False, True]),
        resources=st.sampled_from([(), ("files/x",), ("continuation:t",)]),
        conversation=st.sampled_from([None, "1f"]),
    )
    when = st.dictionaries(st.integers(1, 14), st.sampled_from(INTERRUPTS), max_size=1)
    call = st.tuples(info, st.sampled_from([None, *keys]), when, st.none() | st.integers(1, 3))
    policy = {
        "strategy": draw(st.sampled_from(["spread", "fill", "sticky"])),
        "max_attempts": draw(st.sampled_from([0, 0, 1, 2])),
        "max_retries": draw(st.sampled_from([0, 1, 2])),
        "max_wait_s": draw(st.sampled_from([0.0, 10.0, 30.0])),
    }
    calls = tuple(draw(st.lists(call, min_size=1, max_size=4)))
    return Script(keys, policy, replies, calls, draw(st.integers(0, 9)), stream)


def _keys(name: str) -> st.SearchStrategy[Candidate]:
    return st.builds(
        lambda limits, **labels: key(name, limits, **labels),
        st.sampled_from([Limits(), Limits(rpm=2), Limits(tpm=100), Limits(max_concurrency=1)]),
        project=st.sampled_from([name, name, "p"]),
        model=st.sampled_from([None, None, r.MODEL, "gemini-2.5-pro"]),
        tier=st.sampled_from([None, "free", "paid"]),
        priority=st.sampled_from([0, 0, 1, 1_000_000]),
    )


SCRIPTS = _scripts()
