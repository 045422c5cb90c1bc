"""Queues of waiting calls: which call claims a key, and which is woken when."""

from __future__ import annotations

from contextlib import nullcontext
from math import inf

from support.pool import INFO

from keyrot_middleware.core.model import Block, CallInfo
from keyrot_middleware.core.waiting import MAX_CLAIMS, STALL_S, Ticket, WaitingLines

NOW = 1_767_270_630.0
FULL = Block("tpm", NOW + 31, waitable=True)
BUSY = Block("concurrency", NOW + 0.1, waitable=True)
LARGE, SMALL = INFO._replace(tokens=900), INFO._replace(tokens=10)
OTHER = INFO._replace(model="gemini-2.5-pro")


def join(lines: WaitingLines, info: CallInfo = INFO, block: Block = FULL, key: str = "a") -> Ticket:
    """Wait for one key."""
    return lines.join(None, info, {key: block}, block.until, version=lines.version, now=NOW)


def woken(*tickets: Ticket) -> list[bool]:
    """Return which tickets were woken, and clear them."""
    woken_tickets = [ticket.woken for ticket in tickets]
    for ticket in tickets:
        ticket.woken = False
    return woken_tickets


def test_a_key_is_claimed_by_the_first_call() -> None:
    """A later call is not offered it; the earlier one is, and so is another model."""
    lines = WaitingLines()
    first, second = join(lines), join(lines)
    assert "a" in lines.ahead(INFO, None, {}, NOW)
    assert "a" in lines.ahead(INFO, second, {}, NOW)
    assert "a" not in lines.ahead(INFO, first, {}, NOW)
    assert "a" not in lines.ahead(OTHER, None, {}, NOW)
    assert "b" not in lines.ahead(INFO, None, {}, NOW)
    assert "b" in lines.ahead(INFO, None, {"b": inf}, NOW)


def test_a_claimed_key_is_reported_with_the_time_of_the_claim() -> None:
    """A call that cannot wait reports the reason and the end."""
    lines = WaitingLines()
    join(lines)
    claims = lines.ahead(INFO, None, {}, NOW)
    assert "a" in claims
    assert claims.claimed == {"a": FULL}


def test_a_smaller_request_may_go_where_a_larger_does_not_fit() -> None:
    """Until the larger one's time has come; then it is first."""
    lines = WaitingLines()
    join(lines, LARGE)
    assert "a" not in lines.ahead(SMALL, None, {}, NOW)
    assert "a" in lines.ahead(SMALL, None, {}, FULL.until)
    assert "a" in lines.ahead(LARGE._replace(tokens=1_000), None, {}, NOW)


def test_size_does_not_matter_where_no_window_is_full() -> None:
    """A busy key serves a small request no sooner than a large one."""
    lines = WaitingLines()
    join(lines, LARGE, BUSY)
    assert "a" in lines.ahead(SMALL, None, {}, NOW)


def test_times_are_split_into_own_and_claimed() -> None:
    """Capacity that is free before the earlier call expects a key is the later one's."""
    lines = WaitingLines()
    join(lines, LARGE)
    soon = Block("tpm", NOW + 5, waitable=True)
    claims = lines.ahead(SMALL, None, {}, NOW)
    assert claims.split({"a": soon, "b": FULL}) == (NOW + 5, inf)
    assert claims.split({"a": FULL}) == (inf, FULL.until)


def test_leaving_wakes_the_next_and_joining_again_does_not_wake_at_all() -> None:
    """One at a time, in the order of arrival; leaving twice is leaving once."""
    lines = WaitingLines()
    one, two, three = join(lines), join(lines), join(lines)
    lines.join(one, INFO, {"a": FULL}, FULL.until, version=lines.version, now=NOW)
    assert woken(one, two, three) == [False] * 3
    lines.leave(two)
    assert woken(one, two, three) == [False, False, True]
    lines.leave(two)
    assert woken(one, two, three) == [False] * 3
    lines.leave(one)
    lines.leave(three)
    assert lines.lines == {}


def test_a_call_without_room_lets_the_next_smaller_one_try() -> None:
    """The large request finds its minute full again; the small one behind it may fit."""
    lines = WaitingLines()
    large, larger, small = join(lines, LARGE), join(lines, LARGE), join(lines, SMALL)
    lines.join(large, LARGE, {"a": FULL}, FULL.until + 60, version=lines.version, now=NOW)
    assert woken(large, larger, small) == [False, False, True]


def test_a_call_keeps_its_place_when_it_waits_a_second_time() -> None:
    """It left the queue to send, failed, and is again before those that came after it."""
    lines = WaitingLines()
    one, two = join(lines), join(lines)
    lines.leave(one)
    assert lines.join(one, INFO, {"a": FULL}, FULL.until, version=lines.version, now=NOW) is one
    assert lines.lines[INFO.model] == [one, two]


def test_a_release_before_a_call_joined_is_not_missed() -> None:
    """Capacity was released after it checked: it checks again."""
    lines = WaitingLines()
    seen = lines.version
    lines.released("a", gave_back=True)
    assert lines.join(None, INFO, {"a": FULL}, FULL.until, version=seen, now=NOW).woken


def test_the_first_call_checks_again_while_others_arrive() -> None:
    """Once a second: a reset or another process makes a key available without a wake-up."""
    lines = WaitingLines()
    front = join(lines)
    for after, looks in ((0.5, False), (1.0, True), (1.5, False), (2.0, True)):
        lines.join(None, INFO, {"a": FULL}, FULL.until, version=lines.version, now=NOW + after)
        assert woken(front) == [looks]


def test_a_release_wakes_the_first_call_that_waits_for_that_key() -> None:
    """The first of each queue; a request that released nothing only frees a busy key."""
    lines = WaitingLines()
    full, busy, late = join(lines), join(lines, block=BUSY), join(lines, block=BUSY)
    other, elsewhere = join(lines, OTHER), join(lines, key="b")
    lines.released("a", gave_back=False)
    assert woken(full, busy, late, other, elsewhere) == [False, True, False, False, False]
    lines.released("a", gave_back=True)
    assert woken(full, busy, late, other, elsewhere) == [True, False, False, True, False]


def test_a_call_that_never_wakes_is_skipped() -> None:
    """Its event loop is closed: `wake` reports it, and the next ticket is woken."""
    lines = WaitingLines()
    one, gone, three = join(lines), join(lines), join(lines)
    gone.wake = lambda: False
    three.wake = lambda: None
    lines.leave(one)
    assert woken(three) == [True]
    assert "a" not in lines.ahead(INFO, three, {}, NOW)


def test_a_collected_call_leaves_no_ticket() -> None:
    """A call that the garbage collector closed, where no lock may be taken."""
    lines = WaitingLines()
    one, gone, three = join(lines), join(lines), join(lines)
    gone.gone = True
    lines.leave(one)
    assert woken(three) == [True]
    assert "a" not in lines.ahead(INFO, three, {}, NOW)
    three.gone = True
    assert "a" not in lines.ahead(INFO, None, {}, NOW)
    assert lines.lines == {}


def test_a_call_that_does_not_act_in_time_is_skipped_until_it_does() -> None:
    """A blocked event loop delays its own calls, not those of others."""
    lines = WaitingLines()
    slow, next_one = join(lines), join(lines)
    claims = lines.ahead(INFO, next_one, {}, NOW)
    claims.skip_stalled(FULL.until + STALL_S - 1)
    assert "a" in claims
    claims.skip_stalled(FULL.until + STALL_S)
    assert "a" not in lines.ahead(INFO, next_one, {}, NOW)
    lines.join(slow, INFO, {"a": FULL}, FULL.until, version=lines.version, now=NOW)
    assert "a" in lines.ahead(INFO, next_one, {}, NOW)


def test_a_call_claims_no_more_keys_than_it_may_need() -> None:
    """Of ten thousand full keys the ones that are available first."""
    lines = WaitingLines()
    blocks = {f"k{n}": Block("rpm", NOW + n, waitable=True) for n in range(1_000)}
    ticket = lines.join(None, INFO, blocks, NOW, version=lines.version, now=NOW)
    assert list(ticket.blocks) == [f"k{n}" for n in range(MAX_CLAIMS)]


def test_a_forked_child_has_no_waiting_calls() -> None:
    """Calls that wait, wait in the parent."""
    lines = WaitingLines()
    join(lines)
    lines.reset(nullcontext())
    assert "a" not in lines.ahead(INFO, None, {}, NOW)
