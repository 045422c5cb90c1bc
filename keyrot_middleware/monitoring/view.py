"""How a pool is, for people: rows for its keys, and words for the judgement of its calls.

The page, `keyrot status`, `keyrot explain`, `status()`, metrics and alerts show this, of this
process's pool or of a shared state seen from outside. docs/page.md lists the fields. Times are
ISO 8601 in UTC; what is not known is None. No value of a key is in any of them.

Whether calls are served is decided in core/judgement.py alone. A key is available if it is for one
of the models in use; else the block counts that ends first. When the next key is available is
answered without rejected keys: they are tried again, which is no promise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, NamedTuple, TypedDict, cast

from .. import providers
from ..core.activity import LARGE_POOL, ActivityLog, CallRecord, Held, quota_entry
from ..core.answering import Answered
from ..core.failures import (
    ENDED_BY_PERSON,
    KEY_REJECTIONS,
    NOT_OFFERED,
    OF_PROJECT,
    QUOTED,
    REJECTIONS,
    remedy,
)
from ..core.judgement import (
    AVAILABLE,
    REASONS,
    Availability,
    JudgedReplies,
    Judgement,
    KeyState,
    availability,
    ends_by,
)
from ..core.ledger import KeyHealth, Used
from ..core.model import (
    NANO,
    USD_REASONS,
    USD_WINDOWS,
    Block,
    CallInfo,
    Candidate,
    Limits,
    account_name,
    project_name,
    smaller_limit,
)
from ..core.outcomes import Run, how
from ..core.windows import DAY_S, GUARD_S, HOUR_S, Learned, next_midnight, next_minute
from ..core.wording import of_all, one_line, plural, remaining, utc
from ..keys_file import DISABLED_IN_FILE, OUTSIDE_TIERS
from ..runtime.activity_recorder import ActivityRecorder
from ..runtime.call_settings import VERB
from ..runtime.processes import NAMED, NO_PROCESSES, Processes
from ..state import State
from .calls_now import AT_ONCE

URGENCY = ("rejected", "unresolved", "cooling_down", "limited", "available", "disabled")
"""In which order keys are listed: problems first."""
WINDOWS = ("rpm", "tpm", "rpd")
_SENTENCES = REASONS | {
    "platform": "serves calls of another API only",
    DISABLED_IN_FILE: "switched off in keys.json",
    OUTSIDE_TIERS: OUTSIDE_TIERS,
}
"""By the reason of a key's state."""
_MODEL = re.compile(r"[A-Za-z0-9._/:-]{1,200}")
SENTENCES = 3
"""Calls in trouble that a headline names."""
UNKNOWN = "Not known while the shared state cannot be reached."


class FullestMinute(TypedDict):
    """The minute of today in which most was used of a limit, as the pool has counted it."""

    limit: str
    """Which one: `rpm` or `tpm`."""
    used: int
    of: int | None
    """The limit now; None: it is not known."""


class ModelUsage(TypedDict):
    """What a project has used of one model, and whether its key is available for it."""

    requests_minute: int
    tokens_minute: int
    requests_day: int
    learned: dict[str, int]
    """Limits reported by Google: `rpm`, `tpm`, `rpd`."""
    sources: dict[str, str]
    """Where each limit that is known is from: `configured`, `learned`, or `google` if it was read
    from its list of quotas."""
    available: bool
    available_at: str | None
    runs_out_at: str | None
    """When its requests of the day are used up at the rate of the last hour; None: they last."""
    counts_with: str | None
    """The model that answers in place of this one, and in whose limits it counts; None: it has
    limits of its own."""
    held_back: int
    """Calls of today that did not get this key, since the pool had counted a limit of it full."""
    refused: int
    """Requests of today that the provider refused with 429."""
    fullest_minute: FullestMinute | None
    """None: nothing was used today."""


class HealthStatus(TypedDict):
    """The health of one key. Times are ISO 8601 in UTC."""

    model: str | None
    project: str | None
    """As in keys.json, and as `project()` takes it; None: the key has none. `project()` takes the
    id of such a key."""
    platform: str
    """Whose calls it serves: `gemini_api`, `vertex_express`, `openai` or another provider."""
    state: str
    """`available`, `limited`, `cooling_down`, `rejected`, `unresolved` or `disabled`."""
    active: bool
    """False: rejected, without a value, or switched off; `disabled_reason` says why."""
    available: bool
    """A call sent now could get this key, for at least one of the models in use."""
    available_at: str | None
    """When what blocks the key ends; None: it is available, or the time is not known."""
    reason: str | None
    """Why it is not available, such as `quota_minute`; None: it is."""
    last_used: str | None
    expires: str | None
    """When its value ends, as keys.json says; it is used until its provider refuses it."""
    success_count: int
    error_count: int
    in_cooldown: bool
    cooldown_until: str | None
    disabled_reason: str | None
    use: float
    """The part of each limit that is the pool's; the limits here are those parts."""
    limits: dict[str, int | None]
    used: dict[str, ModelUsage]
    """By model, of its project."""


@dataclass(slots=True)
class Row:
    """What is known of one key, and whether it is available."""

    key: Candidate
    known: KeyHealth
    models: dict[str, Availability]
    """Of each model in use that it could serve."""
    overall: Availability
    runs_out: dict[str, float] = field(default_factory=dict)
    """When its project's day ends early, by model; see `forecast`."""
    said: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """What the provider wrote, by failure class and model; see `quote`."""
    held: Mapping[str, Held] = field(default_factory=dict)
    """How often a limit ended a try today, by model."""


class Look(NamedTuple):
    """What was seen of a pool at one moment."""

    at: float
    rows: list[Row]
    """Problems first."""
    calls: list[Judgement]
    """The worst first."""
    runs_out: Mapping[str, float] = {}
    """When the requests of the day of all keys are used up, by model; see `forecast`."""
    emptied_at: float | None = None
    """When the shared state was found to be emptied, within the last hour."""
    processes: Processes = NO_PROCESSES
    """Those that run, as far as they differ."""
    answers: Sequence[Answered] = ()
    """Models that others have answered, today or yesterday."""


# The state of keys -------------------------------------------------------------------------------


def look(state: State, keys: Iterable[Candidate], missing: Mapping[str, str] = {}) -> list[Row]:
    """Return how each of *keys* is now, for the smallest request; nothing is reserved.

    Args:
        state: What calls have left.
        keys: All keys of a pool.
        missing: Why keys have no value, by id.
    """
    keys = list(keys)
    known = state.snapshot(keys)
    able = [key for key in keys if not key.disabled and key.key_id not in missing]
    any_model = blocks_of(state, CallInfo("", VERB, tokens=1), able)
    blocks, in_use = _by_model(state, able, known, any_model)

    def row(key: Candidate) -> Row:
        health = known[key.key_id]
        if key.disabled:
            return Row(key, health, {}, Availability("disabled", None, key.disabled))
        if key.key_id in missing:
            why = missing[key.key_id]
            return Row(key, health, {}, Availability("unresolved", None, "no value", why))
        mine = {
            model: of_key(health, blocks[model].get(key.key_id))
            for model, users in in_use.items()
            if key.platform in users
        }
        # Available for one model, or else blocked until it is for the first one.
        whole = min(mine.values(), key=lambda one: (one != AVAILABLE, one.at or inf), default=None)
        whole = whole or of_key(health, any_model.get(key.key_id))
        return Row(key, health, mine, whole)

    return [row(key) for key in keys]


def _by_model(
    state: State,
    keys: list[Candidate],
    known: Mapping[str, KeyHealth],
    any_model: Mapping[str, Block],
) -> tuple[dict[str, dict[str, Block]], dict[str, set[str]]]:
    """Return what blocks keys, by model, and the platforms of each model in use.

    A model of yesterday is in use while it is blocked.
    """
    models, in_use = set[str](), dict[str, set[str]]()
    for key in keys:
        for used in known[key.key_id].used:
            if used.bucket:
                models.add(used.bucket)
            if used.bucket and counts_today(used):
                in_use.setdefault(used.bucket, set()).add(key.platform)
    blocks = {model: blocks_of(state, CallInfo(model, VERB, tokens=1), keys) for model in models}
    for model, blocked in blocks.items():
        for key in keys:
            if key.key_id in blocked and key.key_id not in any_model:
                in_use.setdefault(model, set()).add(key.platform)
    return blocks, in_use


def blocks_of(state: State, info: CallInfo, keys: list[Candidate]) -> dict[str, Block]:
    """Return why keys would be refused."""
    blocks: dict[str, Block] = {}
    info = info._replace(replaced_by=providers.replaced_by(info.platform, info.model))
    for start in range(0, len(keys), AT_ONCE):
        blocks |= state.get_blocks(info, keys[start : start + AT_ONCE])
    return blocks


def of_key(health: KeyHealth, block: Block | None) -> Availability:
    """Return how a key is; what only a person ends is over when a request has succeeded."""
    here = availability(block)
    if block is not None:
        here = here._replace(ends_by=ends_by(block))
    if health.rejection is None or here.state in ("rejected", "disabled"):
        return here
    is_own = health.rejection in KEY_REJECTIONS
    state: KeyState = "rejected" if is_own else "cooling_down"
    return Availability(state, here.at, health.rejection, ends_by="person")


def counts_today(used: Used) -> bool:
    """Return whether anything was sent to the model in the windows of now."""
    return bool(used.requests_minute or used.tokens_minute or used.requests_day)


def describe(row: Row, now: float) -> HealthStatus:
    """Return what is known of a key: the one shape in which `status()`, page and commands have it.

    The page's fields that `HealthStatus` does not list are there too.
    """
    key, known, here = row.key, row.known, row.overall
    out = here.state in ("rejected", "unresolved", "disabled")
    health = {
        **{name: getattr(key, name) for name in _OF_KEY},
        "project": project_name(key.project),
        "state": here.state,
        "reason": here.reason,
        "sentence": sentence(row, here),
        "active": not out,
        "available": here.state == "available",
        "available_at": iso(here.at),
        "ends_by": here.ends_by,
        "in_cooldown": known.cooldown_until is not None and known.cooldown_until > now,
        "cooldown_until": iso(known.cooldown_until),
        **{name: getattr(known, name) for name in _OF_HEALTH},
        "disabled_reason": here.reason if out else None,
        "last_used": iso(known.last_used),
        "expires": iso(key.expires),
        "limits": key.limits.part(key.use)._asdict(),
        "used": {model: _usage(row, model) for model in _models(row)},
        "usd": budgets(key, known),
    }
    return cast(HealthStatus, health)


_OF_KEY = ("key_id", "platform", "model", "tier", "priority", "use")
_OF_HEALTH = ("cooldown_reason", "cooldown_scope", "last_error", "success_count", "error_count")


def _models(row: Row) -> Iterable[str]:
    """Return the models for which a key is blocked, or of which something is known today."""
    known = [u.bucket for u in row.known.used if counts_today(u) or u.bucket in row.models]
    blocked = [model for model, here in row.models.items() if here != AVAILABLE]
    return dict.fromkeys((*blocked, *known, *row.held))


def _usage(row: Row, model: str) -> ModelUsage:
    here, used = row.models.get(model, row.overall), used_of(row.key, row.known, model)
    windows = limit_windows(row.key, used)
    learned, held = used.limits.part(row.key.use)._asdict(), row.held.get(model, Held())
    usage = {
        "requests_minute": used.requests_minute,
        "tokens_minute": used.tokens_minute,
        "requests_day": used.requests_day,
        "learned": {name: limit for name, limit in learned.items() if limit is not None},
        "sources": {name: one["source"] for name, one in windows.items() if one["source"]},
        "available": here == AVAILABLE,
        "available_at": iso(here.at),
        "reason": here.reason,
        "sentence": None if here == AVAILABLE else sentence(row, here, model),
        "runs_out_at": iso(row.runs_out.get(model)),
        "counts_with": providers.replaced_by(row.key.platform, model) or None,
        **held._asdict(),
        "fullest_minute": fullest_minute(row.key, used),
        **windows,
    }
    return cast(ModelUsage, usage)


def counts_as(key: Candidate, model: str) -> str:
    """Return the model in whose limits the requests of a key for a model count."""
    return providers.replaced_by(key.platform, model) or model


def used_of(key: Candidate, known: KeyHealth, model: str) -> Used:
    """Return what the project of a key has used of a model, or of the one that answers for it."""
    counted = counts_as(key, model)
    found = (used for used in known.used if used.bucket == counted)
    return next(found, Used(counted, 0, 0, 0))


def forecast(rows: Sequence[Row], activity: ActivityRecorder, now: float) -> dict[str, float]:
    """Find out when requests per day are used up at the rate of the last hour, if that is today.

    That of each project is in its rows. The rates of large pools are not known.

    Args:
        rows: The keys.
        activity: The rates.
        now: Epoch seconds.

    Returns:
        When those of all keys that can serve a model are, by model, epoch seconds.
    """
    end, quotas = next_midnight(now, activity.zone), dict[str, dict[str, list[Row]]]()
    for row in rows if len(rows) <= LARGE_POOL else ():
        name = project_name(row.key.project) or row.key.key_id
        for model in {*row.models, *(used.bucket for used in row.known.used)}:
            entry = quota_entry(name, counts_as(row.key, model))
            quotas.setdefault(model, {}).setdefault(entry, []).append(row)
    entries = [name for names in quotas.values() for name in names]
    counts = activity.read().last_hour(entries, now) if entries else {}

    def ends(left: float, count: int) -> float:
        return now + left * HOUR_S / count if count else inf

    exhausted_at = {}
    for model, names in quotas.items():
        left_in_pool = []
        for name, users in names.items():
            left = min(_left_today(row, model) for row in users)
            serving = [row for row in users if _serves_before(end, row.models.get(model))]
            for row in serving if ends(left, counts[name]) < end else ():
                row.runs_out[model] = ends(left, counts[name])
            if serving:
                left_in_pool.append(left)
        at = ends(sum(left_in_pool), sum(counts[name] for name in names))
        if left_in_pool and at < end:
            exhausted_at[model] = at
    return exhausted_at


def _left_today(row: Row, model: str) -> float:
    day = limit_windows(row.key, used_of(row.key, row.known, model))["rpd"]
    return inf if day["limit"] is None else max(day["limit"] - day["used"], 0)


def _serves_before(end: float, here: Availability | None) -> bool:
    if here is None or here.state == "rejected":
        return False
    return here == AVAILABLE or (here.at is not None and here.at < end)


def utilization(row: Row) -> Iterator[tuple[str, str, float]]:
    """Yield the used share of each known limit: model, or "" for a budget, limit, share."""
    for model in (used.bucket for used in row.known.used):
        shares = parts(row.key, used_of(row.key, row.known, model))
        yield from ((model, name, part) for name, part in shares.items())
    for reason, limit, spent in zip(USD_REASONS, row.key.usd, row.known.spent, strict=True):
        if limit is not None:
            yield "", reason, (spent or 0) / limit


def parts(key: Candidate, used: Used) -> dict[str, float]:
    """Return the used part of each known limit of a window."""
    known = {n: one for n, one in limit_windows(key, used).items() if one["limit"] is not None}
    return {n: one["used"] / one["limit"] if one["limit"] else 1.0 for n, one in known.items()}


def budgets(key: Candidate, known: KeyHealth) -> dict[str, dict[str, float]]:
    """Return what was spent of each budget of a key, US dollars, by window."""
    found = zip(USD_WINDOWS, known.spent, key.usd, strict=True)
    return {
        window: {"spent": (spent or 0) / NANO, "limit": limit / NANO}
        for window, spent, limit in found
        if limit is not None
    }


def _limits(key: Candidate, used: Used) -> Limits:
    """Return the limits in force, as far as they are the pool's."""
    return Learned(0.0, used.limits).smaller(key.limits).part(key.use)


def limit_windows(key: Candidate, used: Used) -> dict[str, dict[str, Any]]:
    """Return what is used of each limit of a window, the limit, and where it is from."""
    amounts = (used.requests_minute, used.tokens_minute, used.requests_day)
    windows = {}
    for name, amount, learned, own, read, limit in zip(
        WINDOWS, amounts, used.limits, key.limits, used.read, _limits(key, used), strict=False
    ):
        sources = {read: "google", own: "configured"}
        source = None if limit is None else sources.get(smaller_limit(own, learned), "learned")
        windows[name] = {"used": amount, "limit": limit, "source": source}
    return windows


def fullest_minute(key: Candidate, used: Used) -> FullestMinute | None:
    """Return the fullest minute of today: of the limit of which most was used."""
    known = [*zip(WINDOWS[:2], map(int, used.peaks), _limits(key, used), strict=False)]
    if not any(most for _, most, _ in known):
        return None
    shares = {name: most / of if of else -1 for name, most, of in known}
    name, most, of = max(known, key=lambda one: shares[one[0]])
    return {"limit": name, "used": most, "of": of}


class Left(TypedDict):
    """What is left of a limit, until the window ends."""

    limit: int
    left: int
    until: str


def left_of(row: Row, model: str, now: float, zone: str) -> dict[str, Left | None]:
    """Return what is left of each limit of a key for a model; None: no limit is known."""
    ends = {"rpd": iso(next_midnight(now, zone))}
    left: dict[str, Left | None] = {}
    for name, one in limit_windows(row.key, used_of(row.key, row.known, model)).items():
        limit, until = one["limit"], ends.get(name) or iso(next_minute(now - GUARD_S))
        rest = None if limit is None else max(limit - one["used"], 0)
        left[name] = None if rest is None else {"limit": limit, "left": rest, "until": str(until)}
    return left


def left_of_all(
    rows: Iterable[Row], one: Judgement, now: float, zone: str
) -> dict[str, Left | None]:
    """Return the sums over all keys that can serve a model; keys of a project share a limit.

    None: the limit of one of them is not known.
    """
    projects = {row.key.project: row for row in rows if _can_serve(row, one)}
    parts = [left_of(row, one.model, now, zone) for row in projects.values()]
    sums: dict[str, Left | None] = {}
    for name in WINDOWS:
        known = [part[name] for part in parts]
        found = [left for left in known if left is not None]
        if not found or len(found) < len(known):
            sums[name] = None
            continue
        limit, rest = (sum(left[field] for left in found) for field in ("limit", "left"))
        sums[name] = {"limit": limit, "left": rest, "until": found[0]["until"]}
    return sums


def _can_serve(row: Row, one: Judgement) -> bool:
    state = row.models.get(one.model, row.overall).state
    return one.model in row.models and state in ("available", "limited")


def least_used(keys: Sequence[Candidate], known: Mapping[str, KeyHealth], model: str) -> list[str]:
    """Return the keys of whose scarcest limit least is used; see `QuotaWindows.utilization`."""
    shares = {}
    for key in keys:
        used = used_of(key, known[key.key_id], model)
        per_weight = used.requests_minute / key.weight
        shares[key.key_id] = max(parts(key, used).values(), default=per_weight)
    return [key_id for key_id, share in shares.items() if share == min(shares.values())]


def iso(moment: float | None) -> str | None:
    """Write epoch seconds as ISO 8601 in UTC; None for never, and for what has no end."""
    if moment is None or not isfinite(moment):
        return None
    return utc(moment).isoformat().replace("+00:00", "Z")


# Words -------------------------------------------------------------------------------------------


QUOTES_READ = 20
"""Of so many keys the last failures are read, to find what providers wrote."""


def quote(rows: Iterable[Row], log: ActivityLog) -> None:
    """Find out what providers wrote as they refused keys, and note it in the rows.

    What one key of a project or a billing account got is said of the others too.
    """
    wanted = {row.key.key_id: reasons for row in rows if (reasons := _quoted(row))}
    rows = [row for row in rows if row.key.key_id in wanted]
    quotes: dict[tuple[str, str, str], tuple[float, str]] = {}
    # One that was refused itself is read before those that its account or project takes along.
    for row in sorted(rows, key=lambda row: row.known.last_error not in QUOTED)[:QUOTES_READ]:
        for call in log.failures(row.key.key_id):
            for failure, model, text in _sentences(call, row.key.key_id):
                of = whom(row.key, failure), failure, model
                quotes[of] = max(quotes.get(of, (0.0, "")), (call.at, text))
    for row in rows:
        row.said = {
            (failure, model): text
            for (who, failure, model), (_, text) in quotes.items()
            if failure in wanted[row.key.key_id] and who == whom(row.key, failure)
        }


def _quoted(row: Row) -> set[str]:
    """Return in which classes a key is refused that are said with the provider's words."""
    known = (row.known.rejection, row.overall.reason, *(one.reason for one in row.models.values()))
    return {reason for reason in known if reason and reason in QUOTED}


def _sentences(call: CallRecord, key_id: str) -> Iterator[tuple[str, str, str]]:
    """Yield what a provider wrote of a key: failure class, model if it is about one, sentence."""
    for one in call.attempts:
        if one.key_id == key_id and one.message and one.failure and one.failure in QUOTED:
            model = one.bucket if one.failure in NOT_OFFERED else ""
            yield one.failure, model, one_line(one.message)


def refusal(row: Row, reason: str, model: str = "", who: str = "") -> str:
    """Say what a provider refuses, with its own words, and what a person does about it.

    Args:
        row: The key that is blocked.
        reason: The failure class.
        model: For which it is.
        who: Instead of whose name it is.
    """
    provider = providers.of(row.key.platform)
    said = row.said.get((reason, model if reason in NOT_OFFERED else ""))
    said = said or provider.says.get(reason, "")
    why = f'{reason}: "{said}"' if said else reason
    who = who or whom(row.key, reason)
    if reason in NOT_OFFERED:
        name = f"model {model_label(model)}" if model else "this model"
        return f"{provider.title} does not offer {name} to {who} ({why})"
    if reason in REJECTIONS:
        what = who if reason in KEY_REJECTIONS else f"{who} for this method"
        return f"{provider.title} rejects {what} ({why}); {remedy(reason)}"
    return f"{provider.title} refuses {who} ({why})"


def sentence(row: Row, here: Availability, model: str = "") -> str:
    """Say in a sentence how a key is, for a model. Its time is not in it."""
    reason = here.reason or ""
    match here.state:
        case "available":
            return "available now"
        case "limited":
            text = here.note or _SENTENCES.get(reason) or f"{reason.upper()} is used up"
            return text if here.note else f"{text}{_of_budget(row, reason)}"
        case "rejected" | "cooling_down" if reason in QUOTED:
            model = model or next((name for name, one in row.models.items() if one == here), "")
            who = whom(row.key, reason)
            return refusal(row, reason, model, "the key" if who.startswith("key ") else who)
        case "cooling_down":
            return _SENTENCES.get(reason) or f"cooling down after {reason}"
        case "unresolved":
            known = here.note or "the secret store has none"
            return f"no value: {known}"
        case _:
            return _SENTENCES.get(reason, "switched off by hand")


def _of_budget(row: Row, reason: str) -> str:
    """Return what was spent of a budget, if that is the reason: `: $5.00 of $5.00`."""
    if reason not in USD_REASONS:
        return ""
    window = USD_REASONS.index(reason)
    return f": {spent_of(row.known.spent[window], row.key.usd[window])}"


def spent_of(spent: int | None, limit: int | None) -> str:
    """Write billionths of a dollar that were spent, of those of a budget: `$4.99 of $5.00`."""
    amounts = ((spent or 0) / NANO, (limit or 0) / NANO)
    digits = 2 if amounts[1] >= 1 else 4 if amounts[1] >= 0.01 else 6
    return " of ".join(f"${amount:,.{digits}f}" for amount in amounts)


def whom(key: Candidate, reason: str) -> str:
    """Return what a provider refuses: a key, its project or its billing account, as it is named."""
    project = project_name(key.project)
    of_project = f"project {project}" if project else f"key {key.key_id}"
    if reason in REJECTIONS:
        return f"key {key.key_id}"
    if reason in OF_PROJECT or reason in NOT_OFFERED:
        return of_project
    return account_name(key.billing_account) or of_project


def sentence_of(one: Judgement, now: float) -> str:
    """Say in a sentence how calls of a model and a workload are served."""
    model = model_label(one.model)
    who, of = (one_line(one.workload), f" for {model}") if one.workload else (model, "")
    if (text := _of_calls(one, of, now)) is not None:
        pass
    elif one.is_spare and one.able and not one.next_model:
        text = f"none of its own keys{of}{_end(one, now)}; it uses those of others"
    elif one.answer == "served" and not one.is_spare:
        text = f"{of_all(one.able, one.keys, 'key')}{of}"
    elif one.answer == "due" and not one.next_model:
        text = f"only {one.key_id} is left{of}, which was refused; the next call tries it again"
        if len(one.due) > 1:
            text = f"only refused keys are left{of}, {_names(one.due)}; each call tries one again"
    elif not one.keys:
        text = f"no key may serve it{of}"
    else:
        what = {"waits": "calls wait for a key", "busy": "each key is in use"}
        what = {} if one.next_model else what  # the answer is that of the next model
        text = f"{what.get(one.answer, 'no key')}{of}{_end(one, now)}"
    goes_on = f"; calls go on to {model_label(one.next_model)}" if one.next_model else ""
    return f"{who}: {text}{goes_on}."


def _of_calls(one: Judgement, of: str, now: float) -> str | None:
    """Say what the last calls came to, if that is what there is to say of a judgement."""
    failing, refused, shortage = one.runs
    if one.answer == "failing" and failing is not None:
        return f"{_how_many(failing, of)} failed{_since(failing, now)}: {_how(failing)}"
    if one.answer == "refused" and refused is not None:
        text = f"{_how_many(refused, of)} were refused"
        return f"{text} ({refused.code or refused.failure}): the requests are at fault, no key is"
    if one.answer == "due" and one.able and shortage is not None:
        text = f"{_how_many(shortage, of)} {_verb(shortage)}{_since(shortage, now)}"
        return f"{text}: {_how(shortage)}; the next call tries again"
    if failing is not None and failing.is_on and (one.answer == "no" or one.next_model):
        text = f"{_how_many(failing, of)} failed{_since(failing, now)}: {_how(failing)}"
        at = one.block.until if one.block is not None else inf
        return f"{text}; tried again at {clock(at, now)}" if isfinite(at) else text
    if one.answer != "served" or one.is_spare:
        return None
    for run in (failing, shortage):
        if run is not None:
            # A call that is older than those that are counted is one without a count.
            many = f"{run.failed:,} of {plural(run.calls, 'call')}" if run.calls else "a call"
            counts = f"{many}{of} {_verb(run)}"
            first, last = clock(run.since, now), clock(run.last, now)
            span = f"at {last}" if first == last else f"from {first} to {last}"
            return f"{counts} {span}: {_how(run)}{_after(run)}"
    return None


def _how(run: Run) -> str:
    return f"{how(run)}, all in process {one_line(run.process)}" if run.process else how(run)


def _after(run: Run) -> str:
    if run.others <= 1:
        return "; the last one did not" if run.others else ""
    return f"; the last {run.others:,} calls did not"


def _verb(run: Run) -> str:
    return "got no key" if run.kind == "no_key" else "failed"


def _how_many(run: Run, of: str) -> str:
    if run.failed == run.calls:
        return f"the last {plural(run.calls, 'call')}{of}"
    return f"{run.failed:,} of the last {plural(run.calls, 'call')}{of}"


def _since(run: Run, now: float) -> str:
    if run.last <= now - HOUR_S:
        return f", the last one at {clock(run.last, now)}"
    return f" since {clock(run.since, now)}"


def lines_of_replies(
    judged: Sequence[JudgedReplies], counts: Mapping[tuple[str, str], int], able: Collection[str]
) -> list[str]:
    """Say whose words are that no row knows; keys of several accounts that got the same in one.

    Args:
        judged: The judgements.
        counts: How many replies there were today, by platform and words.
        able: The platforms of which keys are available.
    """
    groups: dict[tuple[object, ...], list[JudgedReplies]] = {}
    for one in judged:
        of = one.platform, one.said, one.model, one.whole, one.is_due
        groups.setdefault(of, []).append(one)
    lines = []
    for first, *others in groups.values():
        keys = sum((one.keys for one in others), first.keys)
        one = first._replace(keys=keys, owner="" if others else first.owner)
        text = sentence_of_replies(one, counts[one.platform, one.said], able)
        lines.append(f"{text[0].upper()}{text[1:]}.")
    return lines


def sentence_of_replies(one: JudgedReplies, count: int, able: Collection[str]) -> str:
    """Say in a sentence, without its end, whose some words are that no row knows."""
    said = one_line(one.said).rstrip(".")
    if one.is_nobodys:
        replies = f"{replies_not_known(count, one.platform)}, to {plural(len(one.keys), 'key')}"
        whose = "They are a gateway's or the requests' own; no key is penalized"
        return f"{replies} that work: {said}. {whose}"
    who, is_one = _keys(one.keys), bool(one.whole) or len(one.keys) == 1
    who = f"{one.whole} ({who})" if one.whole else f"{who} ({one.owner})" if one.owner else who
    model = f" for {model_label(one.model)}" if one.model else ""
    used = ", other keys are used" if one.platform in able else ""
    used = f", calls try {'it' if is_one else 'them'} again" if one.is_due else used
    verb = ("was" if is_one else "were") if one.is_due else "is" if is_one else "are"
    return f"{who} {verb} set aside{model}: {said}; not known here{used}"


def replies_not_known(count: int, platform: str) -> str:
    """Say how many replies of a provider no row knows."""
    title = providers.of(platform).title
    return f"{count:,} {'reply' if count == 1 else 'replies'} of {title} not known"


def _keys(ids: Sequence[str]) -> str:
    """Return keys as a sentence names them: three at most."""
    return f"key{'' if len(ids) == 1 else 's'} {_names(ids)}"


def _names(ids: Sequence[str]) -> str:
    shown = [*ids] if len(ids) <= SENTENCES else [*ids[:2], f"{len(ids) - 2} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _end(one: Judgement, now: float) -> str:
    if one.block is None or one.answer == "busy":
        return ""
    at, block = one.block.until, one.block
    why = block.note or _SENTENCES.get(block.reason) or block.reason
    if block.reason in ENDED_BY_PERSON:
        todo = remedy(block.reason) if block.reason in REJECTIONS else "a person ends that"
        why = f"{why}: {todo}"
    if not isfinite(at):
        return f" ({why})"
    until = "until" if one.ends_by == "time" else "; tried again at"
    return f"{' ' * (until == 'until')}{until} {clock(at, now)} ({why})"


def model_label(name: str) -> str:
    """Return the name of a model; not one with which a user of the program addresses a channel."""
    return name if _MODEL.fullmatch(name) else "a model with an unusual name"


def headline(seen: Look, hour: Mapping[str, Any], *, degraded: bool) -> dict[str, Any]:
    """Return the sentences that are said first; docs/page.md lists the fields."""
    said = list(dict.fromkeys(sentence_of(one, seen.at) for one in seen.calls if not is_well(one)))
    more = [f"and {len(said) - SENTENCES} more"] if len(said) > SENTENCES else []
    said = [UNKNOWN] if degraded else said[:SENTENCES] + more
    if not said:
        said = ["All calls are served."] if seen.calls else ["No call was made today."]
    if seen.emptied_at is not None:
        at = clock(seen.emptied_at, seen.at)
        said.insert(0, f"The shared state was emptied at {at}: {WHAT_IS_LOST}.")
    said += lines_of_processes(seen.processes)
    said += lines_of_answers(seen.answers)
    said += [*lines_of_ends(seen.rows, seen.at), *lines_of_unused(seen.rows, seen.at)]
    states = Counter(row.overall.state for row in seen.rows)
    able = states["available"]
    keys = f"{of_all(able, len(seen.rows), 'key')} {'is' if able == 1 else 'are'} available."
    waits = f"; {hour['waits']:,} waited for a key" if hour["waits"] else ""
    is_fine = hour["failures"] and not hour["failed_calls"]
    last = "No call was made."
    if hour["calls"]:
        last = f"{of_all(hour['failed_calls'], hour['calls'], 'call')} failed{waits}. "
        last += f"{of_all(hour['failures'] or 0, hour['requests'], 'request')} failed"
        last += "; a call goes on with another key." if is_fine else "."
    return {
        "sentences": said,
        "keys": {"sentence": keys if seen.rows else "This pool has no key."},
        "hour": UNKNOWN if hour["calls"] is None else last,
    }


NOTICE_DAYS = (1, 7, 30)
"""How many days before the end of a key it is said."""


def notice_of(key: Candidate, now: float) -> int | None:
    """Return within how many of `NOTICE_DAYS` a key ends; 0: it has; None: that is far, or never.

    Nothing is said of a key that is switched off.
    """
    if key.expires is None or key.disabled is not None:
        return None
    left = key.expires - now
    return 0 if left <= 0 else next((n for n in NOTICE_DAYS if left <= n * DAY_S), None)


def how_it_ends(key: Candidate, now: float, *, is_refused: bool = False) -> str:
    """Say when a key that has a date ends, or that it has: what follows its name in a sentence.

    Args:
        key: The key.
        now: Epoch seconds.
        is_refused: Its provider rejects it already.
    """
    at = key.expires or 0.0
    is_day = at % DAY_S == 0  # the last one is the day before
    written = f"{utc(at - 1):%Y-%m-%d}" if is_day else f"{utc(at):%Y-%m-%d %H:%M} UTC"
    if at > now:
        return f"ends on {written}, {remaining(at - now)}"
    goes_on = f"; it is used until {providers.of(key.platform).title} refuses it"
    return f"ended on {written}, as keys.json says{'' if is_refused else goes_on}"


def end_of(row: Row, now: float) -> str:
    """Say when a key that has a date ends, or that it has, in a sentence without its end."""
    ends = how_it_ends(row.key, now, is_refused=row.known.rejection is not None)
    return f"key {row.key.key_id} {ends}"


def lines_of_ends(rows: Iterable[Row], now: float) -> list[str]:
    """Say which keys end within a month, or have ended; the first one first."""
    found = [row for row in rows if notice_of(row.key, now) is not None]
    found.sort(key=lambda row: row.key.expires or 0.0)
    lines = [f"K{end_of(row, now)[1:]}." for row in found[:SENTENCES]]
    more = len(found) - SENTENCES
    verb = "ends" if more == 1 else "end"
    return [*lines, f"{plural(more, 'more key')} {verb} within 30 days."] if more > 0 else lines


UNUSED_DAYS = 90


def lines_of_unused(rows: Iterable[Row], now: float) -> list[str]:
    """Say which keys nobody seems to need: a key that is not used can still leak."""
    found = [
        row.key.key_id
        for row in rows
        if row.key.disabled is None
        and row.known.last_used is not None
        and now - row.known.last_used >= UNUSED_DAYS * DAY_S
    ]
    return [f"Not used for {UNUSED_DAYS} days: {_keys(found)}."] if found else []


def lines_of_answers(answers: Sequence[Answered]) -> list[str]:
    """Say which models others have answered, the most calls first."""
    lines = [f"{providers.how_answered(*one[:3])}." for one in answers[:SENTENCES]]
    more = len(answers) - SENTENCES
    return [*lines, f"Other models answer {more:,} more."] if more > 0 else lines


def lines_of_processes(processes: Processes) -> list[str]:
    """Say in what processes differ, and which do not read their keys.json."""
    lines = [sentence_of_processes(processes)] if processes.differing else []
    return [*lines, f"{sentence_of_keys_file(processes)}."] if processes.problem else lines


def sentence_of_processes(processes: Processes) -> str:
    """Say in a sentence in what processes differ."""
    count, names = len(processes.differing), _listed(processes.differing, ", ")
    verb = "differs" if count == 1 else "differ"
    what = _listed(processes.differences, "; ")
    return f"{count:,} of {len(processes.names):,} processes {verb}: {names} ({what})."


def sentence_of_keys_file(processes: Processes) -> str:
    """Say in a sentence, without its end, that keys.json is not read, and why."""
    which = _listed(processes.unread, ", ")
    goes = (
        "goes on with the keys it had"
        if len(processes.unread) == 1
        else "go on with those they had"
    )
    return f"keys.json is not read: {which} {goes}: {one_line(processes.problem).rstrip('.')}"


def _listed(texts: Sequence[str], between: str) -> str:
    more = [f"{len(texts) - NAMED} more"] if len(texts) > NAMED else []
    return between.join([*texts[:NAMED], *more])


WHAT_IS_LOST = "keys that were switched off by hand are used again, and budgets begin at 0"


def is_well(one: Judgement) -> bool:
    """Return whether there is nothing to say of calls first."""
    is_good = one.runs.failing is None and one.runs.shortage is None
    return one.answer == "served" and not one.is_spare and is_good


def lines_of(headline: Mapping[str, Any]) -> list[str]:
    """Return the lines of a headline."""
    first, *others = headline["sentences"]
    keys, hour = headline["keys"]["sentence"], headline["hour"]
    return [f"{first} {keys}", *others, *headline.get("unknown", ()), f"Last hour: {hour}"]


def clock(at: float, now: float) -> str:
    """Write a time: of today `12:30:41 UTC`, else with the date."""
    written = utc(at)
    same_day = written.date() == utc(now).date()
    return f"{written:%H:%M:%S} UTC" if same_day else f"{written:%Y-%m-%d %H:%M} UTC"
