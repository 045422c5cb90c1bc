"""Ask a state what the calls of a pool would get now, from any process that sees it.

With what calls are made is in runtime/call_settings.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from ..core.activity import ActivityLog, Pair
from ..core.judgement import ANSWERS, Judgement, judge
from ..core.model import Block, CallInfo, Candidate
from ..core.outcomes import End, Minutes, Run, Runs, find_failing, find_runs
from ..core.selection import Selector
from ..runtime.activity_recorder import ActivityRecorder
from ..runtime.call_settings import CallSettings
from ..state.base import State

AT_ONCE = 500
"""Keys of which the state is asked in one step, since calls must not wait for a large pool."""


def judge_calls(
    state: State,
    selector: Selector,
    activity: ActivityRecorder,
    settings: CallSettings,
    rejected: Mapping[str, str],
    *,
    now: float,
) -> list[Judgement]:
    """Judge the calls of each model and workload of today; those of yesterday if not served.

    Args:
        state: What calls have left.
        selector: The keys that serve calls.
        activity: What was called lately.
        settings: With what calls are made.
        rejected: See `judge`.
        now: Epoch seconds.

    Returns:
        The worst first.
    """
    log = activity.read()
    judge_pair = judge_of(state, selector, log, settings, rejected, now=now)
    judged_pairs = [(judge_pair(pair), calls) for pair, calls in log.pairs(now).items()]
    shown = [here for here, calls in judged_pairs if calls or here.answer != "served"]
    return sorted(shown, key=lambda here: (ANSWERS.index(here.answer), not here.is_spare))


def judge_of(
    state: State,
    selector: Selector,
    log: ActivityLog,
    settings: CallSettings,
    rejected: Mapping[str, str],
    *,
    now: float,
) -> Callable[[Pair], Judgement]:
    """Return what judges calls of a model and a workload, and of the next models of its chain."""
    judged = dict[Pair, Judgement]()
    runs, pairs = read_runs(log, now), log.pairs(now)

    def one(pair: Pair, *before: Pair) -> Judgement:
        if pair not in judged:
            following = settings.next_models.get(pair.model)
            beyond = pair._replace(model=following) if following else pair
            next_one = None if beyond in (pair, *before) else one(beyond, pair, *before)
            info = settings.info(pair.model, pair.workload or None, pair.platform)
            keys = [key for _, key in selector.ranking(info)]
            asked, blocks = ask(state, info, keys, rejected)
            judged[pair] = judge(
                info,
                asked,
                blocks,
                now=now,
                rejected=rejected,
                runs=runs(pair, pairs),
                wait_s=settings.wait_s,
                next_model=next_one,
            )._replace(keys=len(keys))
        return judged[pair]

    return one


def read_runs(log: ActivityLog, now: float) -> Callable[[Pair, Iterable[Pair]], Runs]:
    """Return what finds what calls of a pair lately came to; the others of its model count too."""
    outcomes, known = log.outcomes(now), dict[Pair, list[End]]()

    def of(pair: Pair) -> tuple[list[End], Minutes]:
        if pair not in known:
            known[pair] = log.ends(pair)
        return known[pair], outcomes.get(pair, {})

    @cache
    def failing(pair: Pair) -> Run | None:
        return find_failing(*of(pair), now)

    def runs(pair: Pair, pairs: Iterable[Pair]) -> Runs:
        others = (one for one in pairs if one[:2] == pair[:2] and one != pair)
        return find_runs(of(pair), map(failing, others), now)

    return runs


def ask(
    state: State, info: CallInfo, keys: Sequence[Candidate], rejected: Mapping[str, str]
) -> tuple[list[Candidate], dict[str, Block]]:
    """Ask for what blocks keys, in a large pool up to the first ones that could serve a call.

    Returns:
        The keys that were asked about, and what blocks them.
    """
    asked, blocks = list[Candidate](), dict[str, Block]()
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        blocks |= state.get_blocks(info, some)
        asked += some
        if any(key.key_id not in blocks and key.key_id not in rejected for key in some):
            break
    return asked, blocks
