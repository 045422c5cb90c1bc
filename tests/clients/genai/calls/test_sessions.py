"""`workload(…, session=…)`: a session keeps to one key, whose project has its prompt cached."""

from collections import Counter

import pytest
from support.modes import MODES, ask, spread

import keyrot_middleware
from keyrot_middleware.monitoring.report import source_of
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.testing import Reply

LONG = "You know this manual. " * 400


def talk(mode, client, session: str, turns: int = 4) -> None:
    """Send some calls of a session, which begin alike."""
    for _ in range(turns):
        with keyrot_middleware.workload("chat", session=session):
            ask(mode, client, contents=f"{session}: {LONG}")


@pytest.mark.parametrize(("strategy", "mode"), spread(["spread", "fill"], MODES))
def test_a_session_keeps_its_key(strategy, mode, gemini, pool, connect) -> None:
    """All calls of a session go to one key, sessions to several; a call without one as before."""
    pool("A", "B", "C", strategy=strategy)
    client = connect()
    used = Counter()
    for session in range(12):
        before = {label: gemini.sent(label) for label in "ABC"}
        talk(mode, client, f"user {session}")
        sent = {label: gemini.sent(label) - before[label] for label in "ABC"}
        assert sorted(sent.values()) == [0, 0, 4]
        used[max(sent, key=sent.__getitem__)] += 1
    assert len(used) == 3
    workloads = source_of(current_pool()).history(by="workload")["shares"]
    (chat,) = workloads
    assert 0.7 < chat["cached_tokens"] / chat["input_tokens"] < 0.76  # all but the first of four
    keys = source_of(current_pool()).status()["keys"]
    assert all(0.7 < k["tokens_today"]["cached"] / k["tokens_today"]["input"] < 0.76 for k in keys)


def test_a_session_uses_another_key_while_its_own_is_not_available(
    gemini, pool, connect, clock
) -> None:
    """It goes back afterwards; the wrong key costs one request."""
    pool("A", "B", "C")
    client = connect()
    talk("sync", client, "user 1", 1)
    own = next(label for label in "ABC" if gemini.sent(label))
    gemini.script(own, Reply.QUOTA_MINUTE)
    talk("sync", client, "user 1", 4)
    assert gemini.sent(own) == 2
    clock.advance(90)
    talk("sync", client, "user 1", 4)
    assert gemini.sent(own) == 6
