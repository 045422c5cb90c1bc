"""Would a call be served now? The one judgement that page, status, alerts, logs and errors word.

It is made from values: the keys in the order of the call, what blocks them (of a call that was
made, or of one that nobody made), which of them were rejected, and how the last calls ended. The
answers, worst first:

- *no*: no key can serve it, and waiting does not help in time;
- *failing*: there is a key, but most of the last calls failed, whatever the key;
- *refused*: there is a key, but most of the last requests were refused, each by its own fault;
- *due*: all that is left is a rejected key, which the next call tries again; or the last call got
  no key, and what blocked the keys is over by a guess, not by a success;
- *waits*: it waits for a known time that its limit allows;
- *busy*: it waits until another call ends;
- *served*: a key is available.

*refused*, *due* and *busy* promise nothing. What only a person ends is no key again before a
success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Literal, NamedTuple, get_args

from .chains import ABOUT_THE_MODEL
from .failures import (
    KEY_REJECTIONS,
    NOT_OFFERED,
    OVERLOADED,
    QUOTED,
    REJECTIONS,
    Implies,
    classes,
    remedy,
)
from .ledger import KeyHealth
from .model import (
    IN_USE,
    LIMITED,
    OTHER_PLATFORM,
    OTHER_PROJECT,
    OTHER_TIER,
    Block,
    CallInfo,
    Candidate,
    account_name,
    project_name,
)
from .outcomes import Runs
from .wording import utc

Answer = Literal["no", "failing", "refused", "due", "waits", "busy", "served"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
"""The worst first."""
EndsBy = Literal["time", "guess", "success", "person"]
"""What ends it: a time that the provider or our own window names, a time that we try it again, a
call that succeeds, or a person."""

DISABLED_BY_HAND = "disabled"
"""The reason of a cooldown that an operator began, to keep a key from being used."""

_NOT_ALLOWED = {
    OTHER_TIER: "not one that this call may use (KEYROT_TIERS, workload)",
    OTHER_PROJECT: "not the one that this call may use (project)",
    OTHER_PLATFORM: "not that of this call",
}
REASONS = {
    "concurrency": "all requests that max_concurrency allows are under way",
    "usd_10m": "the budget of ten minutes is spent",
    "usd": "the budget of the day is spent",
    "usd_month": "the budget of the month is spent",
    "usd_reserved": "requests under way may spend the rest of a budget",
    "probe": "one request is under way to see whether the key works again",
}
"""Of reasons that are no failure class and no window."""
_BY_PERSON = classes(Implies.PERSON | Implies.REFUSAL, *_NOT_ALLOWED)
_BY_TIME = (LIMITED - IN_USE) | {"quota_day", DISABLED_BY_HAND}


class Judgement(NamedTuple):
    """Whether a call of a model and a workload would be served now."""

    model: str
    workload: str | None
    """None: a call of none that is named."""
    answer: Answer
    able: int
    """How many keys could serve it now; of a large pool at least so many."""
    keys: int
    """How many it may use."""
    key_id: str | None = None
    """Of the others (or of its own, if it is spare): the one that is expected back first."""
    block: Block | None = None
    """What blocks that; None: nothing does, or it is rejected and due."""
    ends_by: EndsBy | None = None
    """What ends that, or what ends *failing*; None: there is nothing to end."""
    runs: Runs = Runs()
    """What the last calls came to, as far as it is not good."""
    is_spare: bool = False
    """Keys of others serve it, since its workload's own are out, or the next model does."""
    is_own: bool = False
    """What its workload may use is among what blocks it: others may be served."""
    next_model: str = ""
    """The model to which such calls go on, and which serves them; then it is spare too."""
    due: tuple[str, ...] = ()
    """The rejected keys that calls try again now, one each."""

    @property
    def is_trouble(self) -> bool:
        """Return whether somebody should know."""
        return self.answer in ("no", "failing") or self.is_spare


def judge(
    info: CallInfo,
    keys: Sequence[Candidate],
    blocks: Mapping[str, Block],
    *,
    now: float,
    rejected: Mapping[str, str],
    runs: Runs = Runs(),  # noqa: B008 - it is a constant
    wait_s: float = 0.0,
    next_model: Judgement | None = None,
) -> Judgement:
    """Judge whether a call would be served now.

    Args:
        info: The call.
        keys: Those that it may use.
        blocks: Why keys cannot serve it; the rest can.
        now: Epoch seconds.
        rejected: In which class keys were cut off by what only a person ends, by id, if no request
            has succeeded since.
        runs: What the last calls of its model and workload came to.
        wait_s: How long it may wait.
        next_model: The judgement of the model that such a call goes on to.
    """
    able = {key.key_id for key in keys} - blocks.keys() - rejected.keys()
    own = {key.key_id: key for key in keys if info.workload and key.workload == info.workload}
    is_spare = bool(own and able) and able.isdisjoint(own)
    out = {i: one for i, one in blocks.items() if not is_spare or i in own}
    due = [i for i in (own if is_spare else [key.key_id for key in keys]) if i in rejected]
    due = [i for i in due if i not in out or out[i].reason in IN_USE]
    # What ends while a key is rejected does not bring it back.
    out |= {i: Block(rejected[i], out[i].until) for i in out.keys() & rejected.keys()}
    first = min(out, key=lambda i: _turn(out[i]), default=None)
    block = None if first is None else out[first]
    end: EndsBy | None = "person" if block is None and not keys else None
    end = end if block is None else ends_by(block)
    if due and end in (None, "person"):
        first, block, end = due[0], None, "success"
    answer: Answer = "no"
    if able:
        answer = "served"
    elif any(one.reason in IN_USE for one in out.values()):
        answer = "busy"
    elif any(one.waitable and one.until - now <= wait_s for one in out.values()):
        answer = "waits"
    elif due:
        answer = "due"
    following = ""
    goes_on = answer == "no" and any(one.reason in ABOUT_THE_MODEL for one in blocks.values())
    run = runs.failing
    if run is not None and run.is_on and answer != "no":
        answer, end, goes_on = "failing", "success", run.failure == OVERLOADED
    elif answer == "served" and not is_spare and runs.refused is not None:
        answer, end = "refused", "success"
    elif answer == "served" and not is_spare and runs.shortage is not None and runs.shortage.is_on:
        answer, end = "due", "success"
    if goes_on and next_model and ANSWERS.index(next_model.answer) > ANSWERS.index(answer):
        answer, is_spare, following = next_model.answer, True, next_model.model
    head = info.model, info.workload, answer, len(able), len(keys)
    is_own = any(one.note for one in out.values())
    return Judgement(*head, first, block, end, runs, is_spare, is_own, following, tuple(due))


def first_block(blocks: Mapping[str, Block]) -> Block | None:
    """Return the block that is expected to end first."""
    return min(blocks.values(), key=_turn, default=None)


def ends_by(block: Block) -> EndsBy:
    """Return what ends a block: *guess* where it is tried again at a time that nobody named."""
    if block.reason in _BY_PERSON:
        return "person"
    is_named = block.reason in _BY_TIME or (block.waitable and block.reason not in IN_USE)
    return "time" if block.until < inf and is_named else "guess"


def _turn(block: Block) -> tuple[bool, bool, float, bool]:
    """Return in which order blocks are expected to end; of two at once, the one with a note."""
    return block.until == inf, ends_by(block) == "person", block.until, not block.note


def describe_block(block: Block, said: str = "") -> str:
    """Say why a key cannot serve, and until when: `quota_day until 2026-01-02 08:00:00Z`.

    Args:
        block: What blocks it.
        said: What the provider wrote, if that is known.
    """
    if block.reason in _NOT_ALLOWED:
        return f"{block.reason}: {_NOT_ALLOWED[block.reason]}"
    why = block.note or REASONS.get(block.reason, block.reason)
    if said:
        why = f'{why} "{said}"'
    elif block.reason in NOT_OFFERED:
        why = f"{why}: the provider does not offer this model to the key"
    elif block.reason in QUOTED and block.reason not in REJECTIONS:
        why = f"{why}: a person ends that at the provider"
    if block.until == inf or block.reason in IN_USE:
        return why
    at = f"{utc(block.until):%Y-%m-%d %H:%M:%SZ}"
    if block.reason in REJECTIONS:
        return f"{why}, rejected; {remedy(block.reason)}; tried again at {at}"
    return f"{why} until {at}" if ends_by(block) == "time" else f"{why}; tried again at {at}"


# The state of a key ------------------------------------------------------------------------------

KeyState = Literal["available", "limited", "cooling_down", "rejected", "unresolved", "disabled"]
KEY_STATES: tuple[KeyState, ...] = get_args(KeyState)
"""The state of a key, in the words of status(), the CLI, metrics and the docs."""


class Availability(NamedTuple):
    """Whether a key can be leased now."""

    state: KeyState
    at: float | None = None
    """When it is available again, epoch seconds; None: it is, or the time is unknown."""
    reason: str | None = None
    """That of the `Block`."""
    note: str = ""
    """Likewise."""
    ends_by: str | None = None
    """What ends it; see judgement.py."""


AVAILABLE = Availability("available")


def availability(block: Block | None) -> Availability:
    """Return what a block means; None stands for none."""
    if block is None:
        return AVAILABLE
    known = isfinite(block.until) and block.reason not in IN_USE
    state: KeyState = "cooling_down"
    if block.reason in LIMITED:
        state = "limited"
    elif block.reason == DISABLED_BY_HAND:
        state = "disabled"
    elif block.reason in KEY_REJECTIONS:
        state = "rejected"
    return Availability(state, block.until if known else None, block.reason, block.note)


# Replies that no row knows -----------------------------------------------------------------------

LATELY_MIN = 10
"""How long ago replies of a gateway are news, minutes."""
NEWS = 5
"""So many of them are: one odd request is none."""
TRIED_AGAIN = 2
"""So many to the keys that are set aside for them."""
_LIMIT = "429 "
"""How words of a limit begin, which ends by itself and takes out a key for a model."""


class UnknownReply(NamedTuple):
    """What a key was replied in words that no row knows."""

    key_id: str
    said: str
    """The status and the words, without ids."""
    refused: Mapping[int, int]
    """How often, by minute since 1970."""
    answered: Sequence[int] = ()
    """In which minutes it answered requests, in the same hour."""


class JudgedReplies(NamedTuple):
    """Whose some words are that no row knows."""

    platform: str
    said: str
    keys: tuple[str, ...]
    """Of nobody's words: those that got them and work. Else those that are set aside for them."""
    replies: int
    """How often these got them in the last hour."""
    lately: int
    """The same of the last ten minutes."""
    is_nobodys: bool
    """They are a gateway's, or the requests' own."""
    is_news: bool
    """Somebody should know."""
    owner: str = ""
    """The billing account, or else the project, that the keys name: `billing account b`."""
    whole: str = ""
    """The account or project of which all keys are out that were tried since."""
    model: str = ""
    """For which the keys are set aside; empty: for all."""
    is_due: bool = False
    """None of the keys is cooling down: the next calls try them again."""


def judge_replies(
    replies: Sequence[UnknownReply],
    keys: Sequence[Candidate],
    known: Mapping[str, KeyHealth],
    now: float,
) -> list[JudgedReplies]:
    """Judge whose the replies of the last hour are that no row knows.

    Words are nobody's if they came again after a key that had got them has answered, and two keys
    that got them work. Else they are of the keys that are set aside for them.

    Args:
        replies: By key and words.
        keys: Those of the pool.
        known: Their health, by id.
        now: Epoch seconds.
    """
    platforms = {key.key_id: key.platform for key in keys}
    by_words: dict[tuple[str, str], dict[str, UnknownReply]] = {}
    for one in replies:
        if one.key_id in platforms and not one.said.startswith(_LIMIT):
            got = by_words.setdefault((platforms[one.key_id], one.said), {})
            got[one.key_id] = one
    judged = []
    for (platform, said), got in [*by_words.items()]:
        if works := _at_work(got, known):
            news = [_lately(got[key_id], now) for key_id in works]
            is_news = sum(news) >= NEWS and sum(map(bool, news)) > 1
            counts = _count(got, works), sum(news)
            judged.append(JudgedReplies(platform, said, works, *counts, True, is_news))
            del by_words[platform, said]
    return _set_aside(by_words, keys, known, now) + judged


def _at_work(got: Mapping[str, UnknownReply], known: Mapping[str, KeyHealth]) -> tuple[str, ...]:
    """Return which keys that got some words work; none if the words may be about keys.

    An account that has ended and works again is refused no more once a key of it has answered.
    """
    last = max(max(one.refused) for one in got.values())
    goes_on = any(min(one.refused) < at <= last for one in got.values() for at in one.answered)
    works = [i for i, one in sorted(got.items()) if one.answered and known[i].set_aside is None]
    return tuple(works) if goes_on and len(works) > 1 else ()


def _lately(one: UnknownReply, now: float) -> int:
    return sum(n for minute, n in one.refused.items() if minute > now // 60 - LATELY_MIN)


def _count(got: Mapping[str, UnknownReply], key_ids: Sequence[str]) -> int:
    return sum(sum(got[key_id].refused.values()) for key_id in key_ids)


def _set_aside(
    by_words: Mapping[tuple[str, str], Mapping[str, UnknownReply]],
    keys: Sequence[Candidate],
    known: Mapping[str, KeyHealth],
    now: float,
) -> list[JudgedReplies]:
    """Return which keys are set aside, by the words that each got last and by account."""
    groups: dict[tuple[str, str, str, str], list[Candidate]] = {}
    aside = [key for key in keys if known[key.key_id].set_aside is not None] if by_words else []
    for key in aside:
        i, owner = key.key_id, next(filter(None, _owners(key)), "")
        mine = [(max(got[i].refused), of) for of, got in by_words.items() if i in got]
        if mine:
            of = *max(mine)[1], owner, known[i].set_aside or ""
            groups.setdefault(of, []).append(key)
    judged = []
    for (platform, said, owner, model), out in groups.items():
        got, ids = by_words[platform, said], tuple(sorted(key.key_id for key in out))
        counts = _count(got, ids), sum(_lately(got[key_id], now) for key_id in ids)
        is_news, whole = counts[0] >= TRIED_AGAIN, _whole(out, keys, got, known)
        is_due = all(known[i].cooldown_until is None for i in ids)
        one = JudgedReplies(platform, said, ids, *counts, False, is_news, owner, whole, model)
        judged.append(one._replace(is_due=is_due))
    return judged


def _owners(key: Candidate) -> tuple[str, str]:
    """Return the billing account and the project that a key names, for people; empty: none."""
    project = project_name(key.project)
    return account_name(key.billing_account), f"project {project}" if project else ""


def _whole(
    out: Sequence[Candidate],
    keys: Sequence[Candidate],
    got: Mapping[str, UnknownReply],
    known: Mapping[str, KeyHealth],
) -> str:
    """Return the account, or else the project, of which no key works as far as they were tried."""
    first, ids = min(min(got[key.key_id].refused) for key in out), {key.key_id for key in out}

    def may_work(key: Candidate) -> bool:
        if one := got.get(key.key_id):
            return max(one.answered, default=0) > min(one.refused)
        return (known[key.key_id].last_used or 0.0) // 60 > first

    for level in (0, 1) if len(out) > 1 else ():
        name, *others = {_owners(key)[level] for key in out}
        rest = [key for key in keys if key.key_id not in ids and _owners(key)[level] == name]
        if name and not others and not any(map(may_work, rest)):
            return name
    return ""
