"""The activity of the last hour and day, and its bounded size."""

import json
from typing import Any

import pytest

from keyrot_middleware.core.activity import (
    CALLS_KEPT,
    DAY,
    FAILURES_KEPT,
    HOUR,
    MINUTES,
    NAMES_KEPT,
    OTHER,
    POOL,
    ActivityBatch,
    ActivityLog,
    ActivityRows,
    Attempt,
    CallRecord,
    Held,
    Pair,
    dump_call,
    end_of,
    load_call,
    project_entry,
    share_entry,
)
from keyrot_middleware.core.answering import Answered
from keyrot_middleware.core.model import DEFAULT_PLATFORM, NO_USAGE, RetryPolicy, Usage
from keyrot_middleware.core.outcomes import End, dump_end
from keyrot_middleware.core.windows import day_of
from keyrot_middleware.state import MemoryState

NOW = 1_764_158_400.0  # 2025-11-26 12:00:00 UTC
USAGE = Usage(input_tokens=10, output_tokens=5, cached_tokens=4, cost_usd=0.000_002_5)


def call(at: float, *attempts: tuple[str, str | None], **more: object) -> CallRecord:
    """Make a call with one attempt for each pair of key id and failure."""
    made = tuple(Attempt(key, failure, 429 if failure else None, 0.1) for key, failure in attempts)
    fields = {"usage": USAGE, "waited": False} | more
    return CallRecord(at, "m", 0.2, "ok", made)._replace(**fields)  # type: ignore[arg-type]


class Log(ActivityLog):
    def __init__(self, *, is_large_pool: bool = False) -> None:
        self.state = MemoryState(RetryPolicy(), lambda: NOW)
        super().__init__(self.state.activity, self.state.activity_log)
        self.batch = ActivityBatch(is_large_pool=is_large_pool)

    def add(self, record: CallRecord) -> None:
        batch = ActivityBatch(self.batch.names, self.batch.is_large_pool)
        batch.add(record)
        self.merge(batch)

    def merge(self, batch: ActivityBatch) -> None:
        self.state.add_activity(batch.rows())


def test_requests_and_failures_are_counted_per_key_and_minute() -> None:
    """The last of sixty minutes is the current one; the sums are under the pool's name."""
    log = Log()
    log.add(call(NOW - 60, ("a", "quota_minute"), ("b", None)))
    log.add(call(NOW, ("b", None)))
    view = log.view(["a", "b", "never"], NOW)
    assert view.histories["a"].requests[-2:] == [1, 0]
    assert view.histories["a"].failures[-2:] == [1, 0]
    assert view.histories["b"].requests[-2:] == [1, 1]
    assert view.histories[POOL].requests[-2:] == [2, 1]
    assert "never" not in view.histories
    assert len(view.histories["a"].requests) == MINUTES
    later = log.view(["a"], NOW + 3_600).histories
    assert "a" not in later or not sum(later["a"].requests)


def test_usage_is_summed_for_the_pacific_day() -> None:
    """It belongs to the key that served; at midnight Pacific time it starts from zero."""
    log = Log()
    log.add(call(NOW, ("a", "quota_minute"), ("b", None)))
    log.add(call(NOW, ("b", None)))
    log.add(call(NOW, ("b", "timeout"), usage=NO_USAGE))
    log.add(call(NOW, usage=NO_USAGE))
    today = log.view(["a", "b"], NOW).today
    assert (today["b"].input_tokens, today["b"].output_tokens) == (20, 10)
    assert today["b"].cost_usd == 0.000_005
    assert today[POOL] == today["b"]
    assert "a" not in today
    log.add(call(NOW - 86_400, ("b", None)))
    assert log.view(["b"], NOW).today["b"].input_tokens == 20, "a late record of yesterday is none"
    assert log.view(["b"], NOW + 86_400).today == {}


def test_calls_without_a_price_are_counted_by_model_and_workload() -> None:
    """Where a call has tokens, and its cost is not known; of the day, as the cost is."""
    log, unpriced = Log(), USAGE._replace(cost_usd=None)
    log.add(call(NOW, ("a", None), usage=unpriced, workload="w"))
    log.add(call(NOW, ("a", None), usage=unpriced))
    log.add(call(NOW, ("a", None), usage=Usage(0, 0)))
    today = log.view(["a"], NOW).today
    assert (today["a"].unpriced_calls, today["a"].cost_usd) == (2, None)
    assert (log.unpriced("model", NOW), log.unpriced("workload", NOW)) == ({"m": 2}, {"w": 1})
    assert log.unpriced("model", NOW + 86_400) == {}
    assert sum(log.history(share_entry("model", "m"), HOUR, NOW).unpriced_calls) == 2
    log.add(call(NOW, ("a", None), workload="w"))
    today = log.view(["a"], NOW).today
    assert (today["a"].unpriced_calls, today["a"].cost_usd) == (2, 0.000_002_5)


def test_only_the_latest_calls_are_kept() -> None:
    log = Log()
    for number in range(CALLS_KEPT + 5):
        log.add(call(NOW + number, ("a", None)))
    calls = log.view([], NOW + CALLS_KEPT).calls
    assert len(calls) == CALLS_KEPT
    assert calls[0].at == NOW + CALLS_KEPT + 4


def test_a_batch_has_everything_that_calls_add() -> None:
    """Counters by minute and key, usage by day and key, and the calls themselves."""
    batch = ActivityBatch()
    assert not batch
    batch.add(call(NOW, ("a", "quota_minute"), ("b", None), waited=True))
    batch.add(call(NOW, usage=NO_USAGE, outcome="exhausted"))
    assert batch
    counts, texts = batch.rows()
    minute, shares = counts[f"minute:{NOW // 60:.0f}"], counts[f"minute:{NOW // 60:.0f}:shares"]
    assert {name: n for name, n in minute.items() if name.startswith("b:")} == {"b:requests": 1}
    whole = {"requests": 2, "failures": 1, "refused": 1, "calls": 2, "failed_calls": 1, "waits": 1}
    whole |= {"input_tokens": 10, "output_tokens": 5, "nano_usd": 2_500, "cached_tokens": 4}
    assert {name: minute[f"{POOL}:{name}"] for name in whole} == whole
    assert shares == {f"{share_entry('model', 'm')}:{name}": n for name, n in whole.items()}
    assert counts[f"slot:{NOW // 600:.0f}"] == minute
    assert counts["day:2025-11-26"]["b:nano_usd"] == 2_500
    assert len(texts["calls"][0]) == 2


def test_a_call_is_written_as_text_and_read_back() -> None:
    """For a shared state, with what it used and what the service wrote about its keys."""
    attempts = (Attempt("a", "quota_day", 429, 0.5, "", "out"), Attempt("b", None, None, 1.0))
    usage = Usage(7, None, cost_usd=0.25)
    record = CallRecord(NOW, "m", 1.5, "ok", attempts, usage, True, "w", "1f", full=("c", "d"))
    text = dump_call(record)
    read = load_call(text)
    assert read._replace(usage=usage) == load_call(text.encode())._replace(usage=usage) == record
    assert read.usage[:2] == (7, None)
    assert read.usage.cost_usd == 0.25


def test_calls_are_counted_by_workload_project_and_model_for_an_hour_and_a_day() -> None:
    """Each has its own counts; a key and a project have requests only."""
    log = Log()
    served = Attempt("a", None, None, 0.1, "p")
    made = call(NOW, workload="night", attempts=(Attempt("b", "quota_day", 429, 0.1), served))
    log.add(made)
    log.add(call(NOW + 300, usage=NO_USAGE, outcome="exhausted", model=""))
    now = NOW + 7_200
    for entry, requests in ((project_entry("p"), 1), ("a", 1), (share_entry("model", "m"), 2)):
        assert sum(log.history(entry, HOUR, NOW).requests) == requests
        assert sum(log.history(entry, HOUR, now).requests) == 0
        assert sum(log.history(entry, DAY, now).requests) == requests
    assert sum(log.history(POOL, DAY, now).failed_calls) == 1
    assert sum(log.history(project_entry("p"), DAY, now).calls) == 0
    assert log.shares("workload", DAY, now) == {"night": [2, 1, 1, 1, 0, 0, 10, 5, 2_500, 4, 0, 0]}
    assert log.shares("workload", HOUR, now) == {}
    assert log.shares("model", DAY, NOW + 90_000) == {}
    for span, slot_s, slots in ((HOUR, 60, 60), (DAY, 600, 144)):
        assert (span.numbers(NOW)[-1], len(span.numbers(NOW))) == (NOW // slot_s, slots)


def test_who_has_refused_is_counted_by_key_and_model_for_a_day() -> None:
    """Keys that a limit of our own kept from a call, and requests that got a 429."""
    log = Log()
    log.add(call(NOW, ("a", "quota_minute"), ("b", None), full=("c", "d")))
    log.add(call(NOW, ("a", "quota_minute"), full=("c",), model="n\nn"))
    log.add(call(NOW, ("a", "quota_minute"), full=("c",), model=""))
    log.add(call(NOW, ("b", None)))
    assert log.limits(NOW) == {
        "a": {"m": Held(0, 1), "n\nn": Held(0, 1)},
        "c": {"m": Held(1, 0), "n\nn": Held(1, 0)},
        "d": {"m": Held(1, 0)},
    }
    assert log.limits(NOW + 90_000) == {}
    log.state.add_activity(ActivityRows({f"limits:{day_of(NOW, log.zone)}": {"odd": 1}}, {}))
    assert "odd" not in log.limits(NOW)
    large = Log(is_large_pool=True)
    large.add(call(NOW, ("a", "quota_minute"), full=("c",)))
    assert large.limits(NOW) == {}


def test_models_that_others_answer_are_counted_for_two_days() -> None:
    """Of yesterday it is known that there were some; a version of the model is none."""
    log = Log()
    for by in ("newer", "newer", "m-001", None):
        log.add(call(NOW, ("a", None), usage=USAGE._replace(model=by)))
    assert log.answers(NOW) == [Answered("gemini_api", "m", "newer", 2)]
    assert log.answers(NOW + 86_400) == [Answered("gemini_api", "m", "newer", 0)]
    assert log.answers(NOW + 2 * 86_400) == []


def test_keys_of_a_large_pool_are_counted_for_an_hour_only() -> None:
    """So that ten thousand keys stay small; the pool and its workloads are counted for a day."""
    log = Log(is_large_pool=True)
    log.add(call(NOW, ("a", None), workload="night"))
    assert sum(log.history("a", HOUR, NOW).requests) == 1
    assert sum(log.history("a", DAY, NOW).requests) == 0
    assert sum(log.history(POOL, DAY, NOW).requests) == 1
    assert "night" in log.shares("workload", DAY, NOW)


def test_the_names_of_workloads_are_bounded() -> None:
    """Those after the first ones are counted as others; nothing is lost."""
    log = Log()
    for number in range(NAMES_KEPT + 5):
        log.add(call(NOW, workload=f"w{number}", usage=NO_USAGE))
    shares = log.shares("workload", HOUR, NOW)
    assert len(shares) == NAMES_KEPT + 1
    assert shares[OTHER][3] == 5


def test_replies_that_no_row_knows_are_counted_by_minute_beside_the_answers() -> None:
    """Without ids and tags; of an hour; those after the first ones have no key."""
    log, page = Log(), "<html><h1>Forbidden</h1> ray 8f2 </html><scr"
    refused = Attempt("a", "unknown_refusal", 403, 0.1, "", page)
    for after in (0, 1, 60):
        log.add(call(NOW + after, attempts=(refused, Attempt("b", None, None, 0.1))))
    log.add(call(NOW + 120, ("a", None)))
    minute = NOW // 60
    [found] = log.unknown(NOW + 180)
    assert found == ("a", "403 Forbidden ray …", {minute: 2, minute + 1: 1}, [minute + 2])
    assert log.unknown(NOW + 3_720) == []
    for number in range(NAMES_KEPT):
        log.add(call(NOW, attempts=(refused._replace(key_id=f"k{number}"),)))
    assert len(log.unknown(NOW)) == NAMES_KEPT
    assert OTHER in log.shares("unknown", HOUR, NOW)


def test_the_last_failures_of_each_key_are_kept() -> None:
    """However many calls there were since; the newest first, one entry for a call."""
    log = Log()
    log.add(call(NOW, ("a", "timeout"), ("a", "timeout"), ("b", None)))
    for number in range(CALLS_KEPT):
        log.add(call(NOW + number, ("b", None)))
    (kept,) = log.failures("a")
    assert (kept.at, log.failures("b")) == (NOW, [])
    for number in range(FAILURES_KEPT + 5):
        log.add(call(NOW + number, ("a", "timeout")))
    assert [one.at - NOW for one in log.failures("a")[:2]] == [FAILURES_KEPT + 4, FAILURES_KEPT + 3]
    assert len(log.failures("a")) == FAILURES_KEPT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[1,"m",1,"ok",[7],[]]',
        '[1,"m",1,"ok",[],0,"","",1,1,null]',
    ],
)
def test_what_is_no_call_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        load_call(text)


def test_a_call_of_a_newer_version_is_read() -> None:
    """Without what it says more, in itself, in an attempt and in the usage."""
    attempts = (Attempt("a", None, None, 1.0),)
    record = CallRecord(NOW, "m", 1.5, "ok", attempts, Usage(7, 5))
    row = json.loads(dump_call(record))
    row[4][0].append({"new": 1})
    row[5].append("new")
    assert load_call(json.dumps([*row, "new"]))[:5] == record[:5]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, End(NOW, "good", process="h:1")),
        ({"outcome": "abandoned"}, None),
        ({"outcome": "failed", "attempts": ()}, End(NOW, "failed", "not_sent", process="h:1")),
        (
            {"outcome": "exhausted", "block": "rpm", "by_time": True},
            End(NOW, "no_key", "rpm", process="h:1", by_time=True),
        ),
        ({"outcome": "exhausted"}, End(NOW, "no_key", "timeout", 429, process="h:1")),
        (
            {"outcome": "exhausted", "block": "model_withdrawn"},
            End(NOW, "failed", "model_withdrawn", process="h:1"),
        ),
        ({"outcome": "failed"}, End(NOW, "failed", "timeout", 429, process="h:1")),
    ],
)
def test_the_end_of_a_call_is_evidence(more: dict[str, Any], expected: End | None) -> None:
    """Whatever its class; a model that no key is offered is a failure, no lack of keys."""
    failed = None if not more else "timeout"
    assert end_of(call(NOW, ("a", failed), **more), "h:1") == expected


def test_calls_without_a_key_do_not_push_out_those_that_were_sent() -> None:
    """Ten of each are kept, and many good ones hide neither what failed nor a lack of keys."""
    log, pair = Log(), Pair(DEFAULT_PLATFORM, "m", "")
    log.add(call(NOW, ("a", "overloaded"), outcome="failed"))
    for number in range(12):
        log.add(call(NOW + 1 + number, ("a", None)))
    for number in range(12):
        log.add(call(NOW + 20 + number, outcome="exhausted", block="rpm"))
    kinds = [end.kind for end in log.ends(pair)]
    assert kinds == ["no_key"] * 10 + ["good"] * 10 + ["failed"]


def test_an_end_quotes_the_service_but_not_a_refused_request() -> None:
    """In one line; a request's own error may quote the prompt."""
    said = "Access\n  Denied"
    page = Attempt("a", "gateway", 403, 0.1, message=said)
    own = Attempt("a", "bad_request", 400, 0.1, message="the prompt")
    found = [end_of(call(NOW, outcome="failed", attempts=(one,)), "") for one in (page, own)]
    assert found == [
        End(NOW, "failed", "gateway", 403, "Access Denied"),
        End(NOW, "refused", "bad_request", 400),
    ]


def test_a_list_with_what_is_no_row_shows_the_others() -> None:
    """Its name is reported; a count without the three names of its record is left out."""
    skipped: list[str] = []
    log = Log()
    log._skipped = skipped.append
    ended = [dump_end(End(NOW - n, "failed", "overloaded", 503)) for n in range(3)]
    texts = {
        "failures:a": (["5", dump_call(call(NOW, ("a", "timeout"))), "x"], 9),
        "calls": (["[[]]", dump_call(call(NOW, ("a", None)))], 9),
        "lately:p\nm\nw": ([*ended, "null"], 9),
    }
    day = f"pairs:{day_of(NOW, log.zone)}"
    pairs = {"x": 1, "a\nb": 2, "p\nm\nw": 3}
    ends = {f"{name}:good": n for name, n in pairs.items()}
    counts = {day: pairs, f"outcomes:{int(NOW // 60)}": ends}
    log.state.add_activity(ActivityRows(counts, texts))
    assert len(log.failures("a")) == 1
    assert len(log.view(["a"], NOW).calls) == 1
    assert len(log.ends(Pair("p", "m", "w"))) == 3
    assert log.outcomes(NOW) == {Pair("p", "m", "w"): {int(NOW // 60): {"good": 3}}}
    assert log.pairs(NOW) == {Pair("p", "m", "w"): 3}
    assert {*skipped} == {"failures:a", "calls", "lately:p\nm\nw"}
