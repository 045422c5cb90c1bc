"""The values that every room shares: who may send, what a call is, what came of it.

Quota belongs to key ⊂ project ⊂ billing account, and within a project to a model *bucket*:
several model names that Google counts together (GEMINI.md A1, B1). A `Scope` says which of
these a failure is about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf
from typing import Literal, NamedTuple

__all__ = [
    "GENERIC_VERBS",
    "HOME",
    "LAST_RESORT",
    "MODEL_SCOPES",
    "NO_LIMITS",
    "NO_USAGE",
    "POOL_KEY",
    "Backoff",
    "Block",
    "CallInfo",
    "Candidate",
    "Lease",
    "LeaseOutcome",
    "Limits",
    "Outcome",
    "RetryPolicy",
    "Scope",
    "Strategy",
    "Unavailable",
    "Usage",
    "Verdict",
    "project_label",
]

HOME = "home:"
"""How the id of a client's own explicit key begins, where that key is not one of the pool's."""


class Scope(StrEnum):
    """What a failure is about, from the narrowest to the widest."""

    NONE = "none"
    """Nobody: no key is blamed."""
    KEY = "key"
    KEY_VERB = "key_verb"
    """One key for one method of the API."""
    KEY_MODEL = "key_model"
    PROJECT_MODEL = "project_model"
    """A project's quota for one model bucket."""
    PROJECT_CACHE = "project_cache"
    """A project's capability to store cached content; generation goes on."""
    PROJECT = "project"
    BILLING = "billing"


GENERIC_VERBS = frozenset({"get", "list", "patch", "delete"})
"""Verbs that many collections share, so that a failure of one says nothing of another's."""
MODEL_SCOPES = frozenset({Scope.KEY_MODEL, Scope.PROJECT_MODEL})
"""What only a call that counts in a model's quota can tell."""


class Limits(NamedTuple):
    """What a key may use; None means that nobody knows."""

    rpm: int | None = None
    """Requests in a wall-clock minute."""
    tpm: int | None = None
    """Input tokens in a wall-clock minute."""
    rpd: int | None = None
    """Requests in a day of America/Los_Angeles."""
    max_concurrency: int | None = None
    """Requests under way at once; never learned."""


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key as selection and quota see it: labels and limits, never its value."""

    key_id: str
    project: str
    billing_account: str
    limits: Limits = NO_LIMITS
    model: str | None = None
    workload: str | None = None
    tier: str | None = None
    priority: int = 0
    weight: float = 1.0
    active: bool = True
    record: str = ""
    """Under which name its cooldowns are kept: its id and the fingerprint of its value, so that
    what Google said of one value is not held against another. Without a value its id alone."""

    def __post_init__(self) -> None:
        if not self.record:
            object.__setattr__(self, "record", self.key_id)

    def with_value(self, fingerprint: str) -> Candidate:
        """Give the key as that of the value with this fingerprint.

        A key without a project is its own project (keys_file), so that goes with the value too.
        """
        record = f"{self.key_id}@{fingerprint}" if fingerprint else self.key_id
        project, account = self.project, self.billing_account
        if project == f"{_OWN_PROJECT}{self.record}":
            project = f"{_OWN_PROJECT}{record}"
        if account == f"project:{self.project}":
            account = f"project:{project}"
        return replace(self, record=record, project=project, billing_account=account)


_OWN_PROJECT = "key:"
"""How the project of a key begins that names none."""


def project_label(project: str) -> str:
    """Name a project for people: without the fingerprint that tells apart keys' own projects."""
    return project.partition("@")[0] if project.startswith(_OWN_PROJECT) else project


class CallInfo(NamedTuple):
    """What the pool needs to know of one request; nothing of its content."""

    model: str
    """As asked for, without `models/`; empty where the request names none."""
    verb: str
    """The API's method, such as `generateContent`; `get`, `list`, … for plain paths."""
    tokens: int = 0
    """Input tokens to reserve: the estimate, scaled by what responses taught."""
    estimate: int = 0
    """Input tokens as estimated from the body alone."""
    requests: int = 1
    """What the request counts towards RPM: one per item of a batchEmbedContents."""
    stream: bool = False
    bound_to_owner: bool = False
    """It touches stored things, so it must go with their owner's key or the home key."""
    idempotent: bool = True
    """Sending it twice does no harm (a create is not)."""
    resources: tuple[str, ...] = ()
    """Stored things that it names: `files/abc`, `cachedContents/x`, a continuation token…"""
    workload: str | None = None
    conversation: str | None = None
    """A digest that stays the same through one conversation (strategy `sticky`)."""
    host: str = ""
    """Where it goes: `host` or `host:port`."""
    sdk_retries: bool = False
    """The program asked the SDK itself to retry 5xx, so we do not multiply its retries."""
    counts_in_quota: bool = True
    """It counts in its model's quota. Counting tokens, a batch, a stored thing does not."""

    @property
    def quota_model(self) -> str:
        """Name the model in whose quota it counts; empty where it counts in none."""
        return self.model if self.counts_in_quota else ""


class Usage(NamedTuple):
    """Tokens as the server counted them; None where it did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    thought_tokens: int | None = None
    model: str | None = None
    """`modelVersion` of the response."""
    response_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    """In lower case."""
    cost_usd: float | None = None
    """What the request cost by the provider's price list, in US dollars; None where not known."""


NO_USAGE = Usage()


class Backoff(NamedTuple):
    """How long a scope cools down that fails again and again: doubled from the base to the most."""

    base_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure means for the pool and for the call; one row of core/failures.py."""

    failure: str
    """The row's name, such as `quota_minute`; seen in spans, logs and notes."""
    code: int | None = None
    """The HTTP code, None for a transport error."""
    scope: Scope = Scope.NONE
    until: float | None = None
    """When the scope is tried again, epoch seconds; None: after the exponential cooldown."""
    backoff: Backoff | None = None
    """Of the exponential cooldown; None: as the settings say."""
    rejected: bool = False
    """Google refuses the key's value. It is tried again after a while, and a new value at once."""
    has_known_end: bool = False
    """The server named that time, or it follows from the quota's window."""
    rotate: bool = False
    """Another key may serve this call."""
    retry: bool = False
    """Nobody's fault: the same request may be sent again, within the retry budget."""
    max_retries: int | None = None
    """Fewer retries than the setting allows (504: one)."""
    max_rotations: int | None = None
    """Stop walking the pool after so many failures of this class in one call."""
    may_wait: bool = True
    """Waiting for the named time can help (not for a request larger than the limit)."""
    sent: bool = True
    """The request reached the server; else its reservation is given back."""
    bucket: str | None = None
    """Google's name for what this model is counted with, where the failure named it."""
    learned: Limits = NO_LIMITS
    """Limits reported by `quotaValue`."""
    is_minute_quota: bool = False
    """A window of a minute is full, so the failure tells how the server counts one."""
    retry_delay_s: float | None = None
    """Seconds until there is room, as the server named them."""
    any_tier: bool = True
    """False: only a key of another tier can help (location refused)."""
    exceeds_limit: bool = False
    """By our count the request is larger than a whole limit, and so than each key's of its tier."""


class LeaseOutcome(StrEnum):
    """How a lease ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    ABANDONED = "abandoned"
    """Cancelled, closed, dropped: the request may have counted, nobody is to blame."""
    UNSENT = "unsent"
    """Nothing left this machine."""
    SERVING = "serving"
    """No end: the first chunk of a stream is here, so the key serves. The end comes later."""


class Outcome(NamedTuple):
    """What a settle tells the state about a lease."""

    kind: LeaseOutcome
    verdict: Verdict | None = None
    usage: Usage = NO_USAGE


class Lease(NamedTuple):
    """The right to send one request with one key, already booked in every window."""

    key_id: str
    project: str
    billing_account: str
    bucket: str
    verb: str
    tokens: int
    """Input tokens reserved."""
    requests: int
    at: float
    """When it was granted, epoch seconds by the state's clock."""
    probe: bool = False
    """It is the first after a cooldown; others wait for what becomes of it."""
    tier: str | None = None
    reservation: object = None
    """The backend's own record of what was booked where."""
    degraded: bool = False
    """Booked by this process alone, since the shared state fails."""
    record: str = ""
    """The key's `Candidate.record` at that time; empty: its id."""


class Block(NamedTuple):
    """Why one key cannot serve now."""

    reason: str
    """A failure class, or `rpm`, `tpm`, `rpd`, `concurrency`, `probe`, `inactive`."""
    until: float
    """When it is tried again, epoch seconds; `inf`: not by itself."""
    waitable: bool = False
    """A call may wait for that time (it is known, not guessed, and not a day's end)."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No candidate can serve now: why, and the soonest time that one will."""

    at: float
    blocks: dict[str, Block]

    @property
    def retry_at(self) -> float:
        """Tell the soonest time at which any of them may serve; `inf` for none."""
        return min((block.until for block in self.blocks.values()), default=inf)


# The rules by which one call walks the pool, waits and is sent again ---------------------------


LAST_RESORT = 1_000_000
"""From this priority on a key comes after all others, those of other models included."""

POOL_KEY = "keyrot-pool"
"""As a key, in a variable or a constructor: no key of its own. It never reaches the wire."""

Strategy = Literal["spread", "fill", "sticky"]
"""`spread`: the least used share first; `fill`: one key until it is exhausted; `sticky`: the same
conversation keeps its key."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How far one call may go before its failure is the program's.

    Walking the pool (a key's own failure) and retrying (nobody's fault) have separate budgets.
    """

    strategy: Strategy = "spread"
    max_attempts: int = 0
    """Sends per call while walking the pool; 0: each key once."""
    max_retries: int = 2
    """Retries after 5xx and connection errors, which blame no key."""
    max_wait_s: float = 65.0
    """Longest wait for a key to come free."""
    cooldown_base_s: float = 30.0
    """First cooldown of a scope where the server named no time."""
    cooldown_max_s: float = 900.0
    """The cooldown doubles with each failure in a row, up to this."""

    @property
    def backoff(self) -> Backoff:
        """Give the exponential cooldown of a scope where the failure class has none of its own."""
        return Backoff(self.cooldown_base_s, self.cooldown_max_s)
