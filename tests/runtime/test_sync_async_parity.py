"""Sync and async are one flow: the same script gives the same commands and promises."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from support.flow_scripts import SCRIPTS, Ran, Script, plain, run_async, run_sync
from support.pool import Tape

from keyrot_middleware.core.commands import Refresh, Send, Settle, Sleep


@settings(max_examples=120, deadline=None)
@given(SCRIPTS)
def test_the_same_script_gives_the_same_commands_sync_and_async(script: Script) -> None:
    """Commands, replies, exceptions and results are the same in both drivers."""
    sync_rig, in_thread = run_sync(script)
    async_rig, in_task = asyncio.run(run_async(script))
    for one, other in zip(in_thread, in_task, strict=True):
        assert one.log == other.log
        assert plain(one.result) == plain(other.result)
    assert (sync_rig.sent, sync_rig.slept) == (async_rig.sent, async_rig.slept)
    assert sync_rig.state.snapshot(script.keys) == async_rig.state.snapshot(script.keys)
    sync_rig.state.check()
    async_rig.state.check()


@settings(max_examples=120, deadline=None)
@given(SCRIPTS)
def test_every_promise_holds_for_every_script(script: Script) -> None:
    """Settled once, excluded for good, fair, and within each of the three budgets."""
    rig, calls = run_sync(script)
    rig.state.check()
    for ran in calls:
        _leases_are_settled_once(ran.tape)
        _failed_keys_stay_excluded(ran.tape)
        _budgets_are_kept(ran, script)
        assert ran.unfair == [], "the call slept while these keys were free"


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
    sleeps = ran.tape.of(Sleep)
    verdicts = [settle.outcome.verdict for settle in ran.tape.of(Settle)]
    walked = sum(verdict is not None and verdict.rotate for verdict in verdicts)
    assert sum(sleep.reason == "retry" for sleep in sleeps) <= script.policy["max_retries"]
    waited = sum(sleep.seconds for sleep in sleeps if sleep.reason == "key")
    assert waited <= script.policy["max_wait_s"] + 1e-6
    if script.policy["max_attempts"]:
        assert walked <= script.policy["max_attempts"] + len(ran.call.refreshed)


def test_the_scripts_cover_every_command() -> None:
    """Random scripts must include failures, waits, retries and interruptions."""
    seen: set[str] = set()

    @settings(max_examples=120, deadline=None, database=None, derandomize=True)
    @given(SCRIPTS)
    def look(script: Script) -> None:
        for ran in run_sync(script)[1]:
            seen.update(type(what).__name__ for how, what in ran.tape.log if how == "command")
            seen.add(type(ran.result).__name__)
            seen.update(f"sleep {sleep.reason}" for sleep in ran.tape.of(Sleep))

    look()
    commands = {"Acquire", "Refresh", "Send", "Settle", "Sleep"}
    thrown = {"CancelledError", "KeyboardInterrupt", "ValueError"}
    assert commands | thrown | {"sleep key", "sleep retry"} <= seen
