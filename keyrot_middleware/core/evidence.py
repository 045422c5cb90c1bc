"""What each key answered lately, and in which words it was refused since.

A refusal in words that no row of a table knows may be about the key, its account or the request, or
it is the page of a gateway, which came to this key by chance. The words do not say so. What other
keys get for the same request does:

- *Another key answers*: the call is served, and the first one is set aside, as a guess, for a
  minute at first. If it has answered lately, or another key was refused alike, that takes three
  refusals in a row.
- *A key answers a later request than one that was refused so*: the words are nobody's. For 15
  minutes no key is set aside for them, and what two keys get alike of which one works is the
  request's, or a gateway's: the call ends.
- *Other keys are refused too*: they may be of one account that has ended. The call goes on, past
  all keys that were refused so lately, to five keys at most; to three once one of them works, since
  it is rather the request's then.
- *Every key was refused so within a minute*: one request, and its reply.

A key *works* if it has answered in the last 15 minutes, and was not refused in these words since.

A 429 that names no time is compared too: what a second key gets within a minute of an answer is
taken for the limit of a gateway, which counts by address. No key cools down for it but one that
gets it seven times in a row.

This is what one process has seen, and it is lost with it. Other processes find out for themselves,
at one request each; that a key is set aside they see in the shared state. A process that makes a
single call sets none aside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple

from .failures import OVERLOADED, names_model
from .model import HOME, Backoff, Block, CallInfo, Lease, Scope, Verdict
from .windows import DAY_S

FRESH_S = 900.0
"""How long an answer shows that a key works, and a refusal that it does not."""
LATELY_S = 60.0
"""How long a key would be refused again, an answer shows that it is not limited, and a 429 of two
keys that it is shared."""
MOST_ASKED = 5
"""Keys that one call asks for which a refusal is unknown."""
MOST_ASKED_AT_WORK = 3
"""The same where one of them works, so that it is rather the request's."""
TIMES = 3
"""How often in a row a key is refused that worked, or that is not the only one, until it is set
aside: the page of a gateway may come twice by chance."""
TIMES_LIMITED = 6
"""How often in a row a key gets the 429 of a gateway until it is rather its own."""
MOST_WORDS = 128
"""Different words, and models that fail, that are compared at a time."""
LIMIT_CODE = 429
"""A limit ends by itself, so an answer does not show whose it is."""
FAILING_REQUESTS = 3
"""Requests of a model that fail in a row, until it is failing whatever the key."""
GUESS_BACKOFF = Backoff(60.0, 21_600.0)
"""How long a key is set aside: a minute, then twice as long each time, up to 6 hours."""


class Words(NamedTuple):
    """What refusals have in common that say the same."""

    platform: str
    model: str
    """Empty: they say nothing about one model."""
    code: int | None
    text: str
    """Without ids, keys and counts, which differ."""


def words_of(verdict: Verdict, info: CallInfo) -> Words:
    """Return in which words a request was refused."""
    text = re.sub(r"\S*(?:[\d*…]|\.\.)\S*", "", verdict.message)
    return Words(info.platform, _model_of(verdict, info), verdict.code, text)


def guess(verdict: Verdict, info: CallInfo) -> Verdict:
    """Return what a refusal that no row knows means for a key beside one that got an answer.

    A 400, 403 or 404 may be about the model alone, and so may what names one.
    """
    scope = Scope.KEY_MODEL if _model_of(verdict, info) else Scope.KEY
    return replace(verdict, scope=scope, backoff=GUESS_BACKOFF)


def _model_of(verdict: Verdict, info: CallInfo) -> str:
    """Return the model that a refusal is about; empty if it is about all, or in no one's quota."""
    is_about = verdict.code in (400, 403, 404) or names_model(verdict.message, info)
    return info.quota_model if is_about else ""


class Refusal(NamedTuple):
    """An attempt of a call that was refused in words that no row knows."""

    lease: Lease
    verdict: Verdict
    words: Words
    worked: bool
    """The key works nevertheless."""


@dataclass(slots=True)
class _Mark:
    """A key that was refused in some words, and has answered nothing since."""

    since: float = inf
    """When it was refused first, epoch seconds."""
    at: float = -inf
    """When it was refused last."""
    times: int = 0
    """In a row."""
    answered_at: float = -inf
    """When it had answered before."""


@dataclass(slots=True)
class _Seen:
    """What is known of some words."""

    marks: dict[str, _Mark] = field(default_factory=dict)
    """By key id."""
    disproved_at: float = -inf
    """When a key has answered that had been refused so before."""
    shared_at: float = -inf
    """When a second key was limited so."""

    def is_over(self, now: float) -> bool:
        """Return whether all of it was more than a day ago."""
        return now - max((self.disproved_at, *[m.at for m in list(self.marks.values())])) > DAY_S


class Evidence:
    """What one process has seen of the keys of a pool.

    Without locks: each step is one on a dictionary, and what two threads lose is one observation.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self._answers: dict[str, tuple[float, str]] = {}
        """When each key answered last, and of which model."""
        self._words: dict[Words, _Seen] = {}
        self._failing: dict[tuple[str, str], tuple[int, float]] = {}
        """How many requests of a platform's model failed in a row, and when the last one did."""
        self._rejected: dict[str, Block] = {}
        """In which class the value of each key was rejected, and until when; no answer since."""

    def forget(self, key_id: str) -> None:
        """Forget a key: it has another value, or an operator has reset it."""
        self._answers.pop(key_id, None)
        self._rejected.pop(key_id, None)
        for seen in list(self._words.values()):
            seen.marks.pop(key_id, None)

    def answered(self, info: CallInfo, key_id: str, sent_at: float, now: float) -> None:
        """Note that a key has answered a request that was sent at *sent_at*."""
        if key_id.startswith(HOME):  # the client's own key: there may be any number of them
            return
        self._answers[key_id] = now, info.model
        if self._rejected:
            self._rejected.pop(key_id, None)
        if self._failing:
            self._failing.pop((info.platform, info.model), None)
        if self._words:
            self._disprove(info, key_id, sent_at, now)

    def _disprove(self, info: CallInfo, key_id: str, sent_at: float, now: float) -> None:
        """End the rows of refusals of a key that has answered what was sent after they began."""
        for words, seen in list(self._words.items()):
            mark = seen.marks.get(key_id)
            if seen.is_over(now):
                self._words.pop(words, None)
            elif mark is None or sent_at < mark.since or words.model not in ("", info.model):
                continue
            elif words.code == LIMIT_CODE:
                mark.times = 0
            else:
                seen.marks.pop(key_id, None)
                seen.disproved_at = now

    # Refusals -------------------------------------------------------------------------------------

    def refused(self, info: CallInfo, lease: Lease, verdict: Verdict, now: float) -> Refusal:
        """Note that a key was refused in words that no row knows."""
        words = words_of(verdict, info)
        if lease.key_id.startswith(HOME):
            return Refusal(lease, verdict, words, worked=False)
        mark = self._mark(words, lease.key_id, now)
        worked = mark.times == 1 and now - mark.answered_at <= FRESH_S
        return Refusal(lease, verdict, words, worked)

    def ends(self, refusals: Sequence[Refusal], now: float) -> bool:
        """Return whether a call with these refusals, the latest last, asks no other key."""
        words, most = refusals[-1].words, MOST_ASKED
        if any(one.worked for one in refusals):
            most = MOST_ASKED_AT_WORK
        alike = [one.worked for one in refusals if one.words == words]
        if self._are_nobodys(words, now) and len(alike) > 1 and any(alike):
            return True
        return len(refusals) >= most

    def refused_lately(self, words: Words, now: float) -> tuple[set[str], set[str]]:
        """Return which keys were refused and have answered nothing since: lately so, and others.

        The first would get the same. The others, which were refused in other words or more than a
        minute ago, are tried after those that were not refused: keys that are set aside may all be
        due for a try at once.
        """
        alike, others = set[str](), set[str]()
        for name, seen in list(self._words.items()):
            if name.code == LIMIT_CODE or name.platform != words.platform:
                continue
            for key_id, mark in list(seen.marks.items()):
                is_lately = name == words and now - mark.at <= LATELY_S
                (alike if is_lately else others).add(key_id)
        return alike, others - alike

    def blames(self, refusal: Refusal, now: float) -> bool:
        """Return whether a key is set aside for a refusal, since another one has answered."""
        seen, key_id = self._words.get(refusal.words, _Seen()), refusal.lease.key_id
        mark = seen.marks.get(key_id)
        if mark is None or self._are_nobodys(refusal.words, now):
            return False
        alike = [one.at for one in list(seen.marks.values()) if one is not mark]
        is_doubtful = now - max((mark.answered_at, *alike)) <= FRESH_S
        return refusal.lease.probe or mark.times >= (TIMES if is_doubtful else 1)

    def _are_nobodys(self, words: Words, now: float) -> bool:
        """Return whether a key has answered lately that had been refused so before."""
        seen = self._words.get(words)
        return seen is not None and now - seen.disproved_at <= FRESH_S

    def rejected(self, key_id: str, failure: str, until: float | None) -> None:
        """Note that the value of a key was rejected, and until when it is not used."""
        if not key_id.startswith(HOME) and until is not None:
            self._rejected[key_id] = Block(failure, until)

    def due(self, now: float) -> dict[str, Block]:
        """Return the rejected keys that a call may try again now."""
        return {key_id: b for key_id, b in list(self._rejected.items()) if b.until <= now}

    # Limits ---------------------------------------------------------------------------------------

    def is_shared_limit(self, info: CallInfo, lease: Lease, verdict: Verdict, now: float) -> bool:
        """Note a 429 that names no time; return whether it is taken for that of all keys together.

        Not of a key that gets it again and again, and no answer: that has a limit of its own.
        """
        if lease.key_id.startswith(HOME):
            return False
        words = words_of(verdict, info)
        mark = self._mark(words, lease.key_id, now)
        seen = self._words.get(words, _Seen())
        others = [one for one in list(seen.marks.values()) if one is not mark]
        if now - seen.shared_at > LATELY_S and not any(
            now - one.at <= LATELY_S and one.at - one.answered_at <= LATELY_S for one in others
        ):
            return False
        seen.shared_at = now
        return mark.times <= TIMES_LIMITED

    def limited_lately(self, info: CallInfo, verdict: Verdict, now: float) -> list[str]:
        """Return which keys got such a 429 within the last minute, and no answer since."""
        seen = self._words.get(words_of(verdict, info), _Seen())
        marks = list(seen.marks.items())
        return [key_id for key_id, one in marks if one.times and now - one.at <= LATELY_S]

    def _mark(self, words: Words, key_id: str, now: float) -> _Mark:
        """Note that a key was refused in these words."""
        seen = self._words.get(words)
        if seen is None:
            for name, one in list(self._words.items()):
                if one.is_over(now) or len(self._words) >= MOST_WORDS:
                    self._words.pop(name, None)
            seen = self._words[words] = _Seen()
        mark = seen.marks.get(key_id)
        if mark is None or now - mark.at > FRESH_S:
            mark = _Mark()
        at, model = self._answers.get(key_id, (-inf, ""))
        mark.answered_at = at if words.model in ("", model) else -inf
        mark.since = mark.since if mark.times else now
        mark.at, mark.times = now, mark.times + 1
        seen.marks[key_id] = mark
        return mark

    # Models ---------------------------------------------------------------------------------------

    def failed(self, info: CallInfo, verdict: Verdict, now: float) -> None:
        """Note that a request of a model has failed, which says nothing about the key."""
        if verdict.failure == OVERLOADED:
            name = info.platform, info.model
            if name not in self._failing and len(self._failing) >= MOST_WORDS:
                self._failing.clear()
            self._failing[name] = self._failing.get(name, (0, 0.0))[0] + 1, now

    def is_failing(self, info: CallInfo, now: float) -> bool:
        """Return whether a model fails whatever the key."""
        times, at = self._failing.get((info.platform, info.model), (0, 0.0))
        return times >= FAILING_REQUESTS and now - at <= FRESH_S
