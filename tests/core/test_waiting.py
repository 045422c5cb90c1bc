"""The line of calls that wait for a key: who is first, and who is woken."""

from support.pool import INFO

from keyrot_middleware.core.model import Block, Terms
from keyrot_middleware.core.waiting import LATE_S, Ticket, WaitingLines

NOW = 1_000.0
FULL = {"a": Block("tpm", NOW + 20, waitable=True)}
BUSY = {"b": Block("concurrency", NOW + 0.1, waitable=True)}


def joined(lines: WaitingLines, blocks: dict[str, Block], due: float = NOW + 20) -> Ticket:
    ticket = Ticket(INFO)
    lines.join(ticket, blocks, due, lines.version)
    return ticket


def test_the_first_is_the_front_until_it_leaves() -> None:
    """It wakes the next one then; a second call changes nothing."""
    lines = WaitingLines()
    first, second, third = (Ticket(INFO) for _ in range(3))
    assert [lines.join(t, FULL, NOW + 20, 0) for t in (first, second, third)] == [
        True,
        False,
        False,
    ]
    assert lines.join(first, FULL, NOW + 40, 0), "it keeps its place"
    lines.leave(first)
    lines.leave(first)
    assert (second.woken, third.woken) == (True, False)
    other = Ticket(INFO._replace(model="gemini-3.1-pro-preview"))
    assert lines.join(other, FULL, NOW, lines.version), "of another line"


def test_calls_of_a_first_workload_go_before_all_others() -> None:
    """Each group in its order; they do not wait for what others wait for."""
    lines, first = WaitingLines(), INFO._replace(terms=Terms("chat", first=True))
    batch = [joined(lines, FULL) for _ in range(2)]
    assert lines.turn_in(first, None, NOW + 20) == 0, "the front of the others is late"
    chats = [Ticket(first), Ticket(first)]
    assert [lines.join(one, FULL, NOW + 20, lines.version) for one in chats] == [True, False]
    assert not lines.join(batch[0], FULL, NOW + 20, lines.version)
    assert lines.turn_in(INFO, batch[0], NOW) == 20 + LATE_S
    lines.released("a", gave_back=True)
    assert [one.woken for one in (*chats, *batch)] == [True, False, False, False]
    for one in chats:
        lines.leave(one)
    assert [one.woken for one in (*chats, *batch)] == [True, True, True, False]


def test_a_call_that_comes_looks_unless_the_front_is_about_to() -> None:
    lines = WaitingLines()
    assert lines.turn_in(INFO, None, NOW) == 0
    front = joined(lines, FULL)
    assert lines.turn_in(INFO, None, NOW + 19) == 0
    assert lines.turn_in(INFO, None, NOW + 20) == LATE_S
    front.notify()
    assert lines.turn_in(INFO, None, NOW) == LATE_S
    assert lines.turn_in(INFO._replace(model="gemini-3.1-pro-preview"), None, NOW + 99) == 0
    lines.drop(front)
    lines.drop(None)
    assert lines.turn_in(INFO, None, NOW + 20) == 0


def test_those_behind_look_when_the_front_is_late() -> None:
    lines = WaitingLines()
    front, behind = joined(lines, FULL), joined(lines, FULL)
    assert lines.turn_in(INFO, front, NOW) == 0
    assert lines.turn_in(INFO, behind, NOW) == 20 + LATE_S
    assert lines.turn_in(INFO, behind, NOW + 20 + LATE_S) == 0
    behind.notify()
    assert lines.turn_in(INFO, behind, NOW) == 0
    new = joined(lines, {})
    assert lines.turn_in(INFO, new, NOW) == 0, "it has let the front go first"
    front.notify()
    assert lines.turn_in(INFO, new, NOW) == LATE_S


def test_a_new_front_is_late_only_after_its_own_time() -> None:
    """It could not look before, however long ago it joined: the third does not overtake it."""
    lines = WaitingLines()
    front, second, third = (joined(lines, BUSY, NOW + 0.1) for _ in range(3))
    lines.join(front, BUSY, NOW + 60, lines.version)
    lines.leave(front)
    assert second.woken
    assert lines.turn_in(INFO, third, NOW + 60) == LATE_S


def test_capacity_wakes_the_first_that_waits_for_it() -> None:
    """A full window needs part of a reservation; a busy key only the end of a request."""
    lines = WaitingLines()
    full, busy, later = joined(lines, FULL), joined(lines, BUSY), joined(lines, BUSY)
    lines.released("a", gave_back=False)
    lines.released("c", gave_back=True)
    assert not (full.woken or busy.woken)
    lines.released("a", gave_back=True)
    lines.released("b", gave_back=False)
    assert (full.woken, busy.woken, later.woken) == (True, True, False)
    assert Ticket(INFO).waits_for("a", gave_back=False), "it has not looked yet"


def test_what_is_released_while_a_call_looks_is_not_missed() -> None:
    lines = WaitingLines()
    ticket, before = Ticket(INFO), lines.version
    lines.released("a", gave_back=True)
    lines.join(ticket, FULL, NOW + 20, before)
    assert ticket.woken
    lines.join(ticket, FULL, NOW + 20, lines.version)
    assert not ticket.woken


def test_a_call_that_will_never_run_is_passed_over() -> None:
    """Its loop is closed; the next one is woken in its place."""
    lines = WaitingLines()
    front, lost, last = (joined(lines, FULL) for _ in range(3))
    lost.wake = lambda: False
    lines.leave(front)
    assert last.woken
    assert list(lines.tickets) == [last]


def test_a_changed_key_wakes_all() -> None:
    lines = WaitingLines()
    tickets = [joined(lines, FULL), joined(lines, BUSY)]
    lines.wake_all(["a"])
    assert [(ticket.woken, ticket.renewed) for ticket in tickets] == [(True, {"a"})] * 2


def test_a_call_that_comes_back_has_its_place() -> None:
    """It got a key that then failed: those that came later do not overtake it meanwhile."""
    lines = WaitingLines()
    first, second, third = (joined(lines, FULL) for _ in range(3))
    for one in (first, second):
        lines.leave(one)
    first.woken = second.woken = third.woken = False
    assert lines.turn_in(INFO, first, NOW) == 0, "it came before the front"
    assert lines.join(first, FULL, NOW + 20, lines.version)
    first.notify()
    assert lines.turn_in(INFO, second, NOW) == LATE_S, "it has not looked since, and waits its turn"
    lines.join(second, {}, NOW, lines.version)
    lines.leave(first)
    assert (second.woken, third.woken) == (True, False)
