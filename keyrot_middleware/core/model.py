"""The values that all packages share: keys, calls, leases, outcomes and policies.

Quota belongs to key ⊂ project ⊂ billing account, and within a project to a model *bucket*:
several model names that are counted together (docs/gemini-api.md#what-a-limit-belongs-to). A
`Scope` is the one that a failure is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from .ledger import Reservation

HOME = "home:"
"""Prefix of the id of a client's own explicit key that is not in the pool."""


class Scope(StrEnum):
    """What a failure is about, from the narrowest to the widest."""

    NONE = "none"
    """No key is penalized."""
    KEY = "key"
    KEY_VERB = "key_verb"
    """One key for one method of the API."""
    KEY_MODEL = "key_model"
    PROJECT_MODEL = "project_model"
    """A project's quota for one model bucket."""
    PROJECT_CACHE = "project_cache"
    """A project's storage for cached content; generation is not affected."""
    PROJECT = "project"
    BILLING = "billing"


GENERIC_VERBS = frozenset({"get", "list", "patch", "delete"})
"""Verbs that many collections share: a failure in one says nothing about another."""
MODEL_SCOPES = frozenset({Scope.KEY_MODEL, Scope.PROJECT_MODEL})
"""Scopes that only a call which counts in a model's quota can affect."""


DEFAULT_PLATFORM: Final = "gemini_api"
"""The platform of keys that name none. A platform is a service that keys are for, such as a
provider's API: a call is sent with keys of its own platform only."""


DEFAULT_ZONE = "America/Los_Angeles"
"""Where the day of the default platform ends."""


class Limits(NamedTuple):
    """The limits of a key; None means unknown."""

    rpm: int | None = None
    """Requests in a wall-clock minute."""
    tpm: int | None = None
    """Input tokens in a wall-clock minute."""
    rpd: int | None = None
    """Requests in a day, which ends where the pool's `RetryPolicy.zone` says."""
    max_concurrency: int | None = None
    """Requests in flight at once; never learned."""

    def part(self, share: float) -> Limits:
        """Return a share of each limit of a window: at least 1."""
        parts = (n if n is None else part_of(n, share) for n in self[:3])
        return self._replace(**dict(zip(self._fields, parts, strict=False)))


def part_of(limit: int, share: float) -> int:
    """Return a share of a limit: at least 1."""
    return min(limit, max(1, int(limit * share)))


NO_LIMITS = Limits()


class Reported(NamedTuple):
    """A limit that the headers of a response name: all of it refills all the time."""

    limit: Literal["rpm", "tpm", "rpd"]
    of: int | None
    left: int | None = None

    def for_part(self, share: float) -> Reported:
        """Return the same as if others had the rest of the limit, and used none of it."""
        if self.of is None or self.left is None:
            return self
        return self._replace(left=self.left + self.of - part_of(self.of, share))


def smaller_limit(configured: int | None, learned: int | None) -> int | None:
    """Return the limit in force: the smaller one, since a configured limit is a cap."""
    if configured is None or learned is None:
        return learned if configured is None else configured
    return min(configured, learned)


class Budget(NamedTuple):
    """Billionths of a dollar in each window of money; None: no limit."""

    ten_minutes: int | None = None
    """Of a billing account, any ten minutes."""
    day: int | None = None
    """Of a project or a workload, like the month."""
    month: int | None = None


NO_BUDGET = Budget()
NANO = 10**9
"""Billionths in a dollar."""
MOST = 2**53
"""The most that one amount can be: nine million dollars. Lua counts exactly so far."""
FREE = "free"
"""The tier whose keys are billed nothing: no budget pays for their calls."""
USD_WINDOWS = ("10m", "day", "month")
"""The fields of a `Budget` as users write them."""


def nano_usd(usd: float) -> int:
    """Return an amount of dollars in billionths, `MOST` at most."""
    return round(min(usd * NANO, MOST))


def service_tier(value: object) -> str | None:
    """Return a service tier as requests and responses name it: `FLEX` is `flex`; None for none."""
    name = value.strip().lower() if isinstance(value, str) else ""
    name = name.removeprefix("service_tier_")
    return None if name in ("", "unspecified") or len(name) > 32 else name


class Terms(NamedTuple):
    """What the calls of a workload may use."""

    workload: str = ""
    first: bool = False
    share: float = 1.0
    usd: Budget = NO_BUDGET
    behind: str = ""
    """The workloads for which it leaves room; empty: none."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Return as what its requests are counted beside the whole; "" for all first ones."""
        return (*([""] if self.first else ()), *([self.workload] if self.share < 1.0 else ()))

    @property
    def purse(self) -> tuple[str, Budget]:
        """Return the name of its budget, and what it may spend."""
        return f"workload:{self.workload}", self.usd

    def note(self, kind: str, reason: str, amount: int = 0, limit: int = 0) -> str:
        """Say what blocks its calls, not those of others: *kind* is `first`, `share` or `usd`."""
        if kind == "usd":
            if reason not in _BUDGETS:
                return f"requests under way may spend the rest of a budget of {self.workload}"
            return f"the budget of {_BUDGETS[reason]} of {self.workload} is spent"
        what = f"held back for {self.behind}" if kind == "first" else f"share of {self.workload}"
        return f"{what}: {amount:,} of {limit:,} {_PERIODS[reason]}"


_BUDGETS = {"usd_10m": "ten minutes", "usd": "the day", "usd_month": "the month"}
_PERIODS = {
    "rpm": "a minute",
    "tpm": "tokens a minute",
    "rpd": "a day",
    "concurrency": "at once",
}


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
    disabled: str | None = None
    """Why no call uses it; None: calls use it."""
    platform: str = DEFAULT_PLATFORM
    usd: Budget = NO_BUDGET
    """What its billing account and its project may spend; see keys_file.candidates_of."""
    use: float = 1.0
    """The part of each limit of its project that is the pool's."""
    record: str = ""
    """The name under which its cooldowns are stored: its id and the fingerprint of its value, so
    that a rejection of one value does not affect another. Without a value its id alone."""
    expires: float | None = None
    """When its value ends, epoch seconds, as keys.json says; for warnings, never for a choice."""

    def __post_init__(self) -> None:
        if not self.record:
            object.__setattr__(self, "record", self.key_id)

    @property
    def purses(self) -> tuple[tuple[str, Budget], ...]:
        """Return the names of its budgets, and what each may spend; a new value changes neither."""
        project, account = project_label(self.project), self.billing_account
        if account == f"project:{self.project}":
            account = f"project:{project}"
        of_account, of_project = Budget(self.usd.ten_minutes), self.usd._replace(ten_minutes=None)
        found = (f"project:{project}", of_project), (f"billing:{account}", of_account)
        return tuple(one for one in found if one[1] != NO_BUDGET)

    @property
    def fingerprint(self) -> str:
        """Return that of its value; empty if the value is not known here."""
        return self.record[len(self.key_id) + 1 :]

    def lease(self, info: CallInfo, bucket: str, at: float, **more: Any) -> Lease:
        """Return a lease of this key for a call; *more* are fields that depend on the state."""
        return Lease(
            key_id=self.key_id,
            project=self.project,
            billing_account=self.billing_account,
            bucket=bucket,
            verb=info.verb,
            tokens=info.tokens,
            requests=info.requests,
            at=at,
            tier=self.tier,
            record=self.record,
            **more,
        )

    def with_value(self, fingerprint: str) -> Candidate:
        """Return a copy for the value with this fingerprint.

        A key without a project is its own project (keys_file), so its project changes too.
        """
        record = f"{self.key_id}@{fingerprint}" if fingerprint else self.key_id
        project, account = self.project, self.billing_account
        if project == f"{OWN_PROJECT}{self.record}":
            project = f"{OWN_PROJECT}{record}"
        if account == f"project:{self.project}":
            account = f"project:{project}"
        return replace(self, record=record, project=project, billing_account=account)


@dataclass(frozen=True, slots=True)
class WorkloadBudget(Candidate):
    """A workload whose spending a snapshot reads; its name stands for the id of a key."""

    @property
    def purses(self) -> tuple[tuple[str, Budget], ...]:
        """Return its budget."""
        return (Terms(self.key_id, usd=self.usd).purse,)


OWN_PROJECT = "key:"
"""Prefix of the project of a key that names none; no key may name one that begins so."""


def project_label(project: str) -> str:
    """Return a project without the fingerprint of a key that is its own project: an inner name."""
    return project.partition("@")[0] if project.startswith(OWN_PROJECT) else project


def project_name(project: str) -> str | None:
    """Return a project for display; None for a key that is its own project, since it names none."""
    return None if project.startswith(OWN_PROJECT) else project


def account_name(account: str) -> str:
    """Return a billing account for display; empty for a project that is its own."""
    return "" if account.startswith("project:") else f"billing account {account}"


class CallInfo(NamedTuple):
    """What the pool needs to know about one request, without its content."""

    model: str
    """As requested, without `models/`; empty if the request names none."""
    verb: str
    """The API's method, such as `generateContent`; `get`, `list`, … for plain paths."""
    tokens: int = 0
    """Input tokens to reserve: the estimate, scaled by the usage of earlier responses."""
    estimate: int = 0
    """Input tokens as estimated from the body alone."""
    requests: int = 1
    """How many requests it counts as: one per item of a batchEmbedContents."""
    stream: bool = False
    bound_to_owner: bool = False
    """It uses stored resources, so it needs their owner's key or the home key."""
    idempotent: bool = True
    """Sending it twice is harmless; a create is not."""
    resources: tuple[str, ...] = ()
    """Stored resources that it names: `files/abc`, `cachedContents/x`, a continuation token…

    Where it is not `bound_to_owner`, it goes with their owner's key only if that is known."""
    workload: str | None = None
    conversation: str | None = None
    """A digest that is the same for all turns of a conversation: of the session that `workload()`
    names, or under the strategy `sticky` of how the conversation begins."""
    host: str = ""
    """Its destination: `host` or `host:port`."""
    platform: str = DEFAULT_PLATFORM
    models_tried: tuple[str, ...] = ()
    """Models that could not serve the request before, the requested one first; see
    chains.py."""
    sdk_retries: bool = False
    """The SDK itself is configured to retry 5xx, so the pool does not retry them as well."""
    counts_in_quota: bool = True
    """It counts in its model's quota; token counts, batches and stored resources do not."""
    input_cost: int = 0
    """What its input is estimated to cost, billionths of a dollar; 0 if no key has a budget."""
    longest_cost: int = 0
    """What it costs with the longest answer, likewise."""
    service_tier: str = ""
    """The service tier that it asks for, such as `flex`; empty: standard."""
    tiers: frozenset[str] | None = None
    """The tiers of the keys that may serve it; None: keys of any tier, and of none."""
    project: str | None = None
    """The label of the project whose keys may serve it; None: any."""
    terms: Terms | None = None
    """What its workload may use; None: all."""
    replaced_by: str = ""
    """The model that answers in place of the requested one, as far as its provider has announced
    that: they count together. Empty: the requested one."""

    @property
    def quota_model(self) -> str:
        """Return the model in whose quota it counts; empty if it counts in none."""
        return self.model if self.counts_in_quota else ""

    def may_use(self, key: Candidate) -> bool:
        """Return whether a key is of a platform, a project and a tier that may serve it."""
        return self.why_not(key) is None

    def why_not(self, key: Candidate) -> str | None:
        """Return the reason of the block of a key that may not serve it; None: it may."""
        if key.platform != self.platform:
            return OTHER_PLATFORM
        if self.project is not None and project_label(key.project) != self.project:
            return OTHER_PROJECT
        return OTHER_TIER if self.tiers is not None and key.tier not in self.tiers else None


class Usage(NamedTuple):
    """Tokens as the server counted them, or estimated; None where nothing is known."""

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
    details: tuple[tuple[str, int], ...] = ()
    """Kinds of tokens that may have a price of their own, and how many of the above are of them:
    `input_audio_tokens`, `cache_audio_read_tokens`, `output_image_tokens`…"""
    service_tier: str | None = None
    """The service tier in which the request was served and is billed; None if not known."""
    estimated: bool = False
    """The server has counted nothing: the tokens are those of the texts, as they came."""


NO_USAGE = Usage()


class Backoff(NamedTuple):
    """Exponential cooldown: doubles from `base_s` up to `max_s`."""

    base_s: float
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequences:
    """What follows from a failure of a class: the part that its row and a verdict share."""

    backoff: Backoff | None = None
    """Of the exponential cooldown; None: as the settings say."""
    rejected: bool = False
    """The key's value is rejected. It is probed again slowly, a new value is used at once."""
    has_known_end: bool = False
    """`until` was reported by the server, or follows from the quota's window."""
    rotate: bool = False
    """Try another key; one with a scope always does."""
    retry: bool = False
    """Send the same request again within the retry budget; no key is penalized."""
    max_retries: int | None = None
    """Fewer retries than the setting allows (504: one)."""
    max_rotations: int | None = None
    """Stop trying other keys after this many failures of this class in one call."""
    may_wait: bool = True
    """Waiting can help (not for a request larger than the limit)."""
    sent: bool = True
    """The request reached the server; else its reservation is released."""
    any_tier: bool = True
    """False: only a key of another tier can help (location not supported)."""


@dataclass(frozen=True, slots=True)
class Verdict(Consequences):
    """What a failure means for the pool and for the call; one row of core/failures.py."""

    failure: str
    """The row's name, such as `quota_minute`; seen in spans, logs and notes."""
    code: int | None = None
    """The HTTP code, None for a transport error."""
    scope: Scope = Scope.NONE
    until: float | None = None
    """When the cooldown ends, epoch seconds; None: use the exponential cooldown."""
    bucket: str | None = None
    """The provider's name for the model bucket, if the failure reported it."""
    learned: Limits = NO_LIMITS
    """Limits reported by `quotaValue`."""
    retry_delay_s: float | None = None
    """Seconds until a retry may succeed, as reported by the server."""
    exceeds_limit: bool = False
    """By our count the request is larger than the whole limit of every key of this tier."""
    message: str = field(default="", compare=False)
    """What the service wrote; empty where it is about the request, since it may quote that. Without
    a reply the cause."""
    cause: str = field(default="", compare=False)
    """Why a connection failed, or what came in place of an answer."""
    advice: str = ""
    """What to change in the program, where the reply shows it."""


class LeaseOutcome(StrEnum):
    """How a lease ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    ABANDONED = "abandoned"
    """Cancelled, closed or dropped: the request may have counted; no key is penalized."""
    UNSENT = "unsent"
    """No request was sent."""
    SERVING = "serving"
    """Not ended: the first chunk of a stream has arrived, so the key works."""


class Outcome(NamedTuple):
    """What is settled for a lease."""

    kind: LeaseOutcome
    verdict: Verdict | None = None
    usage: Usage = NO_USAGE
    reported: Sequence[Reported] = ()
    """The limits that the headers of a success name."""


class Lease(NamedTuple):
    """The right to send one request with one key, already reserved in every window."""

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
    """It is the first after a cooldown; other calls wait for its outcome."""
    tier: str | None = None
    reservation: Reservation | None = None
    """What its state reserved; None: nothing."""
    degraded: bool = False
    """Leased by in-process limits, since the shared state fails."""
    record: str = ""
    """The key's `Candidate.record` at that time; empty: its id."""
    purses: tuple[str, ...] = ()
    """The budgets that pay for it; if there are any, the state must know what it costs."""
    refused: Mapping[str, Block] = MappingProxyType({})
    """Why candidates that come before it were not available, by key id, if the state knows."""


OTHER_TIER = "tier"
OTHER_PROJECT = "project"
OTHER_PLATFORM = "platform"
"""The reasons of a `Block` of a key whose tier, project or platform the call may not use."""
WINDOWS = frozenset({"rpm", "tpm", "rpd"})
"""Reasons of a `Block` of a full window."""
USD_REASONS = ("usd_10m", "usd", "usd_month")
"""Reasons of a `Block` of a budget that is spent, in the order of `Budget`."""
LIMITED = WINDOWS | {*USD_REASONS, "usd_reserved", "concurrency"}
"""Reasons of a `Block` of a limit."""
FULL = WINDOWS | {"concurrency"}
"""Reasons of a `Block` of a limit of requests or tokens."""
IN_USE = frozenset({"concurrency", "probe", "usd_reserved"})
"""Reasons of a `Block` that end when another call ends, whatever it used."""


class Block(NamedTuple):
    """Why a key is not available now."""

    reason: str
    """A failure class, or one of `LIMITED`, `probe`, `tier`, `project`."""
    until: float
    """When it ends, epoch seconds; `inf`: not by itself."""
    waitable: bool = False
    """A call may wait for `until`: it is known, not estimated, and not the end of a day."""
    note: str = ""
    """What its workload leaves to others, if that blocks the call."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No candidate is available now: why, and when the first one will be."""

    at: float
    blocks: dict[str, Block]

    @property
    def retry_at(self) -> float:
        """Return when the first of them is available; `inf` for none."""
        return min((block.until for block in self.blocks.values()), default=inf)

    def beside(self, blocks: Mapping[str, Block]) -> Unavailable:
        """Return the same with these *blocks* before its own."""
        return Unavailable(self.at, {**blocks, **self.blocks}) if blocks else self


# The policy of a call --------------------------------------------------------------------------


LAST_RESORT = 1_000_000
"""Keys with at least this priority come after all others, even those of other models."""

POOL_KEY = "keyrot-pool"
"""As the value of a key: the program has no key of its own. What begins so is never sent."""

Strategy = Literal["spread", "fill", "sticky"]
"""`spread`: the least used share first; `fill`: one key until it is exhausted; `sticky`: the same
conversation keeps its key. A state is asked for `fill` where an owner or a conversation has chosen
the order of the keys."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The budgets of one call before its failure is raised.

    Rotation (a key failed) and retries (no key is penalized) have separate budgets.
    """

    strategy: Strategy = "spread"
    max_attempts: int = 0
    """Sends per call with different keys; 0: each key once."""
    max_retries: int = 2
    """Retries after 5xx and connection errors, which penalize no key."""
    max_wait_s: float = 65.0
    """Longest wait for a key to become available."""
    cooldown_base_s: float = 30.0
    """First cooldown of a scope for which the server reported no time."""
    cooldown_max_s: float = 900.0
    """The cooldown doubles with each failure in a row, up to this."""
    zone: str = DEFAULT_ZONE
    """Where the days and months of the pool end: those of the default platform, if it has keys of
    that, else of its first key's."""

    @property
    def backoff(self) -> Backoff:
        """Return the exponential cooldown for failure classes without one of their own."""
        return Backoff(self.cooldown_base_s, self.cooldown_max_s)
