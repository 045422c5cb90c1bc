"""What the calls of a model and a workload lately came to, and whether they fail.

The end of each call is evidence, whatever its class: *good*; *failed*, whether by the provider, a
gateway, a model that is gone or a reply that is no answer; *refused*, since the request itself is
at fault; *no_key*, since no key could serve it. A call that its program cancelled says nothing.

Calls *fail* where most of the last ones did: of the last ten, as far as they ended within ten
minutes of the latest, three at least. So they do where the last three failed and none was good in
the minute before. Three good ones in a row end that.

A fault that comes and goes is one fault. It lasts from the minute from which on most calls failed
to the last minute in which half of them did, and is over when calls have been good for as long, or
for ten minutes. What no time ends needs a good call for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Literal, NamedTuple, get_args

from .json_rows import NUMBER, read_row

EndKind = Literal["good", "failed", "refused", "no_key"]
KINDS: tuple[EndKind, ...] = get_args(EndKind)

ENDS_KEPT = 10
"""Of the calls of each model and workload: the latest ends; as many again of those without a
key."""
FEW = 3
"""So many calls that fail are no chance; so many good ones in a row are none. So many of the latest
ends that failed are kept beside the latest ones."""
MINUTE_S = 60.0
QUIET_MIN = 10
"""After so many minutes of good calls a fault is over, and what fails then is another one."""
QUIET_S = QUIET_MIN * MINUTE_S
SAID_MAX = 160
"""Characters of what a service wrote."""


class End(NamedTuple):
    """How a call ended."""

    at: float
    """When, epoch seconds."""
    kind: EndKind
    failure: str = ""
    """The failure class; of one that got no key: what ends first of what blocked the keys."""
    code: int | None = None
    """The HTTP status of a failure, if there was a response."""
    said: str = ""
    """What the service wrote, or why there was no response."""
    process: str = ""
    """Which process has made the call."""
    by_time: bool = False
    """Of one that got no key: a time ends what blocked the keys, no success is needed."""


Minutes = Mapping[int, Mapping[EndKind, int]]
"""How many calls of a model and a workload ended in which way, by minute since 1970."""


class Run(NamedTuple):
    """Calls of a model and a workload that fail, or did until just now."""

    kind: EndKind
    """How they ended: `failed`, `refused` or `no_key`."""
    failure: str
    """That of the last one; see `End`."""
    code: int | None
    said: str
    since: float
    """When the first of them ended: to the minute, for an hour."""
    calls: int
    """How many calls ended since then."""
    failed: int
    """How many of them ended so."""
    last: float
    """When the last of them ended, epoch seconds."""
    is_on: bool = True
    """It goes on; else most calls are good now, not yet for long enough."""
    others: int = 0
    """How many of the latest calls, ten at most, ended in another way."""
    process: str = ""
    """All are of this process, while calls of others are good."""


def dump_end(end: End) -> str:
    """Return an end as text, for a state."""
    return json.dumps(end, separators=(",", ":"))


_FIELDS = (NUMBER, str, str, int | None, str, str, bool)


def load_end(text: str) -> End:
    """Read an end.

    Raises:
        ValueError: It is none.
        TypeError: It lacks what each version writes.
    """
    at, kind, *more = read_row(text, _FIELDS)
    if kind not in KINDS:
        raise ValueError("no end of a call")
    return End(at, kind, *more)


def is_most(ends: Sequence[End], kind: EndKind) -> bool:
    """Return whether most of the last calls ended in one way; see above.

    Args:
        ends: The latest first; those that say nothing about this are left out.
        kind: The way.
    """
    lately = [end.kind == kind for end in ends if end.at > ends[0].at - QUIET_S]
    most = sum(lately) >= FEW and sum(lately) * 2 > len(lately)
    row = _row(ends, kind)
    if not ends or ends[0].kind != kind:
        return most and row < FEW
    other = next((end.at for end in ends if end.kind != kind), -inf)
    return most or (row >= FEW and other <= ends[0].at - MINUTE_S)


def _row(ends: Sequence[End], kind: EndKind) -> int:
    """Return how many of the latest calls all ended so, or all did not."""
    same = [end.kind == kind for end in ends]
    return next((n for n, one in enumerate(same) if one != same[0]), len(same))


def find_failing(ends: Sequence[End], minutes: Minutes, now: float) -> Run | None:
    """Return the calls that fail, or did until just now; None if there is no such fault.

    Args:
        ends: How the last calls ended, the latest first.
        minutes: The same of the last hour, by minute.
        now: Epoch seconds.
    """
    bad = [end for end in ends if end.kind == "failed"]
    if not bad:
        return None
    known = _sent(ends)
    fault = _find_fault(minutes, "failed")
    if fault and (fault.bad < FEW or fault.is_over(now)):
        fault = None
    row = 0 if not known or known[0].kind != "failed" else _row(known, "failed")
    is_on = is_most(known, "failed") or (fault is not None and row >= FEW)
    if not is_on and fault is None:
        return None
    counts = _count(known, "failed") if is_on else (bad[-1].at, 0, 0)
    last = bad[0]
    # A call that was not sent, since the model is gone, quotes the one that was.
    said = next((one for one in bad if one.said and one.failure == last.failure), last)
    run = Run("failed", last.failure, said.code, said.said, *_more(counts, fault), last.at, is_on)
    others = 0 if row else _row(known, "failed") if known else 0
    return run._replace(others=others, process=_process(known, "failed"))


def _sent(ends: Sequence[End]) -> list[End]:
    """Return how the last calls ended that got a key."""
    return [end for end in ends if end.kind != "no_key"][:ENDS_KEPT]


def _more(counts: tuple[float, int, int], fault: _Fault | None) -> tuple[float, int, int]:
    """Return since when, how many calls and how many bad ones: the fault's if that has more."""
    if fault is None or fault.bad <= counts[2]:
        return counts
    return min(counts[0], fault.since), fault.calls, fault.bad


def _count(known: Sequence[End], kind: EndKind) -> tuple[float, int, int]:
    """Return since when the last calls end so, how many there were, and how many ended so."""
    lately = sum(end.at > known[0].at - QUIET_S for end in known)
    shown = known[: max(lately, _row(known, kind)) if known[0].kind == kind else lately]
    places = [place for place, end in enumerate(shown) if end.kind == kind] or [0]
    return shown[places[-1]].at, places[-1] + 1, len(places)


def find_refused(ends: Sequence[End]) -> Run | None:
    """Return the calls that are refused, if most of the last ones are; the latest end first."""
    known = _sent(ends)
    if not is_most(known, "refused"):
        return None
    last = next(end for end in known if end.kind == "refused")
    return Run("refused", last.failure, last.code, "", *_count(known, "refused"), last.at)


def find_shortage(ends: Sequence[End], minutes: Minutes, now: float) -> Run | None:
    """Return the calls that got no key, as long as that is no matter of the past.

    Where a time ends what blocks the keys, it ends this too; else a call that got one.
    """
    none = [end for end in ends if end.kind == "no_key"]
    if not none:
        return None
    last, recent = none[0], ends[:ENDS_KEPT]
    fault = _find_fault(minutes, "no_key")
    if fault and fault.is_over(now, by_time=last.by_time):
        fault = None
    meanwhile = [end for end in ends if none[-1].at <= end.at <= last.at]
    is_newest, whose = ends[0] is last and not last.by_time, _process(meanwhile, "no_key")
    is_recent = last.at > now - (QUIET_S if whose else MINUTE_S)  # the others are good meanwhile
    if not (is_newest or is_recent or fault):
        return None
    row = _row(recent, "no_key")
    counts = _count(recent, "no_key") if last in recent else (last.at, 0, 0)
    run = Run("no_key", last.failure, None, "", *_more(counts, fault), last.at, is_newest)
    return run._replace(others=0 if ends[0] is last else row, process=whose)


def _process(ends: Sequence[End], kind: EndKind) -> str:
    """Return the process of all calls that ended so, if calls of others did not."""
    bad = {end.process for end in ends if end.kind == kind}
    others = {end.process for end in ends if end.kind != kind} - bad
    return next(iter(bad)) if len(bad) == 1 and others else ""


class _Fault(NamedTuple):
    """Minutes in which most calls ended in one way that is not good."""

    first: int
    """The first and the last of them, since 1970."""
    last: int
    calls: int
    bad: int
    good_since: int | None
    """The first minute after the last one in which most calls were good; None: there is none."""

    @property
    def since(self) -> float:
        return self.first * MINUTE_S

    def is_over(self, now: float, *, by_time: bool = False) -> bool:
        """Return whether calls have been good for as long as it lasted, or for ten minutes."""
        since = self.last + 1 if by_time else self.good_since
        lasted = (self.last + 1 - self.first) * MINUTE_S
        return since is not None and now - since * MINUTE_S >= min(lasted, QUIET_S)


def _find_fault(minutes: Minutes, kind: EndKind) -> _Fault | None:
    """Return the latest fault: it begins where, seen from its end, most calls were bad."""
    fault: _Fault | None = None
    first = last = good_since = None
    calls = bad = best = 0
    for minute in sorted(minutes, reverse=True):
        ill, well = _of_kind(minutes[minute], kind)
        is_bad = ill * 2 >= ill + well and ill > 0
        if last is None and not is_bad:
            good_since = minute if well else good_since
            continue
        last = minute if last is None else last
        if first is not None and well and not is_bad and first - minute >= QUIET_MIN:
            break
        calls, bad = calls + ill + well, bad + ill
        if is_bad:
            first = minute
            if 2 * bad - calls >= best:
                best = 2 * bad - calls
                fault = _Fault(minute, last, calls, bad, good_since)
    return fault


def _of_kind(counts: Mapping[EndKind, int], kind: EndKind) -> tuple[int, int]:
    """Return how many calls ended so, and how many got further; a refused one is neither."""
    further = ("good",) if kind == "failed" else ("good", "failed", "refused")
    return counts.get(kind, 0), sum(counts.get(one, 0) for one in further)  # type: ignore[call-overload]


class Runs(NamedTuple):
    """What calls of a model and a workload lately came to, as far as it is not good."""

    failing: Run | None = None
    refused: Run | None = None
    shortage: Run | None = None


def find_runs(
    mine: tuple[Sequence[End], Minutes], others: Iterable[Run | None], now: float
) -> Runs:
    """Return what is not good of the calls of a model and a workload.

    What fails for another workload since this one has had its last good call, fails for this one.

    Args:
        mine: How its last calls ended, the latest first, and those of the last hour by minute.
        others: What fails for the other workloads of the model.
        now: Epoch seconds.
    """
    ends, minutes = mine
    failing = find_failing(ends, minutes, now)
    newest = max((end.at for end in ends if end.kind in ("good", "refused")), default=0.0)
    for other in () if failing and failing.is_on else others:
        if other and other.is_on and other.since > newest:
            failing = other
            break
    return Runs(failing, find_refused(ends), find_shortage(ends, minutes, now))


# Words -------------------------------------------------------------------------------------------

_HOW = {
    "timeout": "the time-out of the program",
    "connect": "no connection",
    "reset": "the connection broke off",
    "gateway": "a gateway or a proxy",
    "no_answer": "something that is no answer",
    "model_not_found": "there is no such model",
    "model_withdrawn": "the model is withdrawn",
    "not_sent": "no request was sent",
}
"""By failure class; the rest by its HTTP status and its name."""
_SERVER_ERROR = 500


def how(run: Run) -> str:
    """Say in which way calls end that are not good: `503 "The model is overloaded"`."""
    words = _HOW.get(run.failure, run.failure)
    if run.code and run.code >= _SERVER_ERROR and run.failure not in _HOW:
        words = ""  # the status says it
    text = ", ".join(filter(None, (str(run.code or ""), words)))
    said = run.said.rstrip(". ")
    return f'{text} "{said}"' if said else text
