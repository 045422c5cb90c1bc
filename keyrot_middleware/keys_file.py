"""keys.json: a list of keys with their labels and limits, and where each value is kept.

Every mistake in the file is found in one reading, and each is reported by file, key id (or the
entry's number, from 1), field, what was found and what is allowed. Values of keys do not
belong in this file; if one is pasted there, no message shows it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from . import providers
from .core.model import (
    DEFAULT_PLATFORM,
    FREE,
    NO_BUDGET,
    NO_LIMITS,
    OWN_PROJECT,
    USD_WINDOWS,
    Budget,
    Candidate,
    Limits,
    nano_usd,
    smaller_limit,
)
from .core.windows import DAY_S
from .core.wording import did_you_mean, one_line
from .providers.gemini import Gemini
from .providers.keys import display, hide_secrets, holds_key

# Which secret stores there are, by scheme: those of this package, and those that plug in -------
#
# A distribution plugs one in by an entry point of the group `keyrot_middleware.secret_stores`: its
# name is the scheme, its value a callable that takes the environment and returns a `SecretStore`.
# Entry points are read only where a scheme is not one of ours, since that reads files.


GROUP = "keyrot_middleware.secret_stores"

BUILT_STORES = ("env", "vault", "aws", "azure", "gcp", "file")


def entry_point_stores() -> dict[str, EntryPoint]:
    """Return the stores of other distributions by scheme; ours cannot be replaced."""
    stores = {point.name: point for point in entry_points(group=GROUP)}
    return {name: point for name, point in stores.items() if name not in BUILT_STORES}


def is_known_scheme(scheme: str) -> bool:
    """Return whether there is a store of that scheme."""
    return scheme in BUILT_STORES or scheme in entry_point_stores()


SINGLE_KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
"""Variables of the single key in the SDK's own order; also its id in the pool."""

Platform = Literal["gemini_api", "vertex_express"]

Tier = Literal["free", "tier1", "tier2", "tier3", "paid"]
"""Google's usage tiers; `paid` where it does not matter which of them."""

PAID_TIERS = frozenset(get_args(Tier)) - {FREE}

DISABLED_IN_FILE = "active=false"
OUTSIDE_TIERS = "its tier is not one of KEYROT_TIERS"
"""Why a key is disabled."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ALLOWED_CHARACTERS = {f"^{_NAME.pattern}$": "letters, digits and _, no digit first"}
"""What a pattern allows, in words."""
_VALUES_ELSEWHERE = (
    "the value of a key does not belong in this file: put it into the variable "
    "KEYROT_KEY_<key_id>, or name its place, such as env://NAME"
)
_VALUE_FIELDS = frozenset({"key", "api_key", "apikey", "value", "token"})


def _good_id(key_id: str) -> str:
    if key_id in SINGLE_KEYS:
        raise ValueError(f"{key_id} is taken: it stands for the program's own key")
    return key_id


def _good_place(place: str) -> str:
    """Refuse what is no place; it may be a key, so it is never shown."""
    scheme, _, name = place.partition("://")
    good = {"env": _NAME.fullmatch(name), "file": name.startswith("/")}.get(scheme, name)
    if not good or not is_known_scheme(scheme):
        known = ", ".join(f"{one}://" for one in (*BUILT_STORES, *entry_point_stores()))
        raise ValueError(
            f"found no place (not shown here); allowed: env://NAME, file:///path, or a place in one"
            f" of {known}; {_VALUES_ELSEWHERE}"
        )
    return place


def one_of(name: str, allowed: Collection[str]) -> str:
    """Return *name*.

    Raises:
        ValueError: It is not *allowed*.
    """
    if name not in allowed:
        hint = did_you_mean(str(name), allowed)
        raise ValueError(f"found {display(name)}; allowed: {', '.join(allowed)}.{hint}")
    return name


def _good_provider(name: str) -> str:
    known = providers.names()
    if name not in known and (problem := providers.plugged_in()[1].get(name)):
        raise ValueError(problem)
    return one_of(name, known)


def _good_project(project: str) -> str:
    """Refuse the name that the pool gives to a key without a project."""
    if project.startswith(OWN_PROJECT):
        raise ValueError(f"found {display(project)}; no project begins with {OWN_PROJECT}")
    return project


_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?")


def good_time(text: str) -> str:
    """Return a date or a time as keys.json has it.

    Raises:
        ValueError: It is none.
    """
    try:
        if _TIME.fullmatch(text):
            expires_at(text)
            return text
    except (ValueError, OverflowError):  # such as February 30
        pass
    raise ValueError(
        f"found {display(text)}; allowed: a date, 2027-03-01, or a time, 2027-03-01T12:00:00Z"
    )


def expires_at(text: str) -> float:
    """Return when a value ends that has this date or time, epoch seconds.

    A date is the last day on which it is valid, in UTC. A time without a zone is one in UTC.
    """
    at = datetime.fromisoformat(text)
    at = at.replace(tzinfo=at.tzinfo or UTC)
    return at.timestamp() + (DAY_S if len(text) == _DATE_LENGTH else 0)


_DATE_LENGTH = len("2027-03-01")


def _bare_model(model: str) -> str:
    return model.removeprefix("models/")


_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Count = Annotated[int, Field(gt=0)]
Usd = Annotated[float, Field(ge=1e-06, le=1000000.0)]
Use = Annotated[float, Field(gt=0, le=1)]
UsdWindow = Literal["10m", "day", "month"]
SPEND_RATES: Mapping[Tier | None, float] = {"tier1": 10.0, "tier2": 50.0, "tier3": 200.0}
"""What Google lets a billing account spend within ten minutes, US dollars."""


class KeySpec(BaseModel):
    """One key of the pool: labels, limits and where its value is kept, never the value.

    The same class as `APIKeyMetadata`, and one entry of keys.json. The quick reference is made of
    the descriptions.

    Raises:
        ValidationError: pydantic's, a ValueError; it shows no input.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    key_id: Annotated[str, Field(pattern=f"^{_NAME.pattern}$"), AfterValidator(_good_id)]
    """letters, digits and `_`, no digit first; appears in logs and spans"""
    model: Annotated[_Text, AfterValidator(_bare_model)] | None = None
    """the model this key is for; other models use it only if no other key is available"""
    workload: _Text | None = None
    """a name for `workload()`"""
    tier: Tier | None = None
    """`free`, `tier1`, `tier2`, `tier3`, `paid`; see `KEYROT_TIERS`"""
    provider: Annotated[str, AfterValidator(_good_provider)] = Gemini.name
    """whose key it is: `gemini`, `openai`, `anthropic`, …; see [providers.md](providers.md)"""
    platform: Platform = DEFAULT_PLATFORM
    """`vertex_express`: the key is for [Vertex AI in express mode](express-mode.md), and for
    nothing else"""
    project: Annotated[_Text, AfterValidator(_good_project)] | None = None
    """keys of one project and platform share one quota; a key without a project shares its quota
    with no other key"""
    billing_account: _Text | None = None
    """projects of one account share credit and spending caps"""
    priority: int = 0
    """lower goes first; a higher one is used only if no lower one is available"""
    weight: float = Field(default=1.0, gt=0)
    """share of the load under `spread`, if no limit is known"""
    rpm: _Count | None = None
    """requests per minute"""
    tpm: _Count | None = None
    """input tokens per minute"""
    rpd: _Count | None = None
    """requests per Pacific day"""
    max_concurrency: _Count | None = None
    """concurrent requests of one process"""
    use: Use | None = None
    """the part of each limit of its project that is the pool's, such as `0.9`, of learned ones too;
    the rest is for [other programs](limits.md#leave-some-to-other-programs); else `KEYROT_USE`"""
    usd: dict[UsdWindow, Usd] | None = None
    """US dollars: `{"10m": 9, "day": 20, "month": 250}`, or some of them; what the billing account
    may spend in ten minutes, and the project in a Pacific day and month: see
    [cost.md](cost.md#budgets)"""
    active: bool = True
    """`false` disables the key"""
    expires: Annotated[str, AfterValidator(good_time)] | None = None
    """the last day of the value in UTC, `2027-03-01`, or its end, `2027-03-01T12:00:00Z`:
    [warnings](rotate.md#keys-that-end) come 30, 7 and 1 days before; it never ends a key itself"""
    secret: Annotated[str, AfterValidator(_good_place)] | None = Field(default=None, repr=False)
    """where the value is stored: `env://NAME`, `file:///path`, `vault://…`, `aws://…`,
    `azure://…`, `gcp://…` ([secrets.md](secrets.md)); without it, in the default location of
    `SECRET_STORE_TYPE`"""

    @property
    def service(self) -> str:
        """The platform of its calls: that of Gemini's two, or its provider."""
        return self.platform if self.provider == Gemini.name else self.provider

    @property
    def candidate(self) -> Candidate:
        """The key as selection and quota see it.

        A key without a project is its own project, and a project without a billing account
        pays for itself. A project has quotas of its own on each platform, and an account is one
        of its provider.
        """
        project = self.project or f"{OWN_PROJECT}{self.key_id}"
        account = self.billing_account or f"project:{project}"
        if self.project and self.service != DEFAULT_PLATFORM:
            project = f"{project}/{self.service}"
        if self.billing_account and self.provider != Gemini.name:
            account = f"{account}/{self.provider}"
        limits = Limits(self.rpm, self.tpm, self.rpd, self.max_concurrency)
        rate = None
        if self.billing_account and self.service == DEFAULT_PLATFORM and find_spec("genai_prices"):
            rate = SPEND_RATES.get(self.tier)
        usd: dict[Any, float | None] = {"10m": rate}
        return Candidate(
            key_id=self.key_id,
            project=project,
            billing_account=account,
            limits=limits,
            model=self.model,
            workload=self.workload,
            tier=self.tier,
            priority=self.priority,
            weight=self.weight,
            disabled=None if self.active else DISABLED_IN_FILE,
            platform=self.service,
            usd=budget(usd | (self.usd or {})),
            expires=None if self.expires is None else expires_at(self.expires),
        )


APIKeyMetadata = KeySpec


def budget(usd: Mapping[Any, float | None]) -> Budget:
    """Return what may be spent, of dollars by window."""
    amounts = (None if (n := usd.get(name)) is None else nano_usd(n) for name in USD_WINDOWS)
    return Budget(*amounts) if any(usd.values()) else NO_BUDGET


def allowed_tiers(names: Iterable[str]) -> frozenset[str]:
    """Return the tiers that *names* stand for; `paid` is every paid one.

    Raises:
        ValueError: One of them is no tier, or there is none.
    """
    names = frozenset(filter(None, map(str.strip, names)))
    for name in sorted(names) or [""]:
        one_of(name, get_args(Tier))
    return names | PAID_TIERS if "paid" in names else names


def candidates_of(
    keys: Sequence[KeySpec], tiers: frozenset[str] | None = None, use: float = 1.0
) -> tuple[Candidate, ...]:
    """Return keys as selection and quota see them, each with the limits and budgets that it shares.

    The keys of a project share both, and so do those that name none. If they name different ones,
    the smallest holds, of `use` too; limits of a key that has a `model` are for other keys of that
    model only. What may be spent within ten minutes is shared by the keys of a billing account.

    Args:
        keys: Those of the pool.
        tiers: Keys of another tier are disabled; None: all are used.
        use: The part of each limit that is the pool's, where no key of a project names one.
    """
    candidates = [key.candidate for key in keys]
    budgets: dict[str, Budget] = {}
    limits: dict[tuple[str, str | None], Limits] = {}
    uses: dict[str, float] = {}
    for key, spec in zip(candidates, keys, strict=True):
        if spec.use is not None:
            uses[key.project] = min(spec.use, uses.get(key.project, 1.0))
        for purse, usd in key.purses:
            smallest = map(smaller_limit, usd, budgets.get(purse, NO_BUDGET))
            budgets[purse] = Budget(*smallest)
        group = key.project, key.model
        limits[group] = _smaller(key.limits, limits.get(group, NO_LIMITS))

    def shared(key: Candidate) -> Candidate:
        of_account = budgets.get(f"billing:{key.billing_account}", NO_BUDGET)
        of_project = budgets.get(f"project:{key.project}", NO_BUDGET)
        usd = of_project._replace(ten_minutes=of_account.ten_minutes)
        of_model, of_all = (limits.get((key.project, one), NO_LIMITS) for one in (key.model, None))
        return replace(
            within_tiers(key, tiers),
            usd=NO_BUDGET if key.tier == FREE or usd == NO_BUDGET else usd,
            limits=_smaller(key.limits, of_model, of_all),
            use=uses.get(key.project, use),
        )

    return tuple(map(shared, candidates))


def within_tiers(key: Candidate, tiers: frozenset[str] | None) -> Candidate:
    """Return a key, disabled if its tier is not one of these; None: all are used."""
    is_outside = not (key.disabled or tiers is None or key.tier in tiers)
    return replace(key, disabled=OUTSIDE_TIERS) if is_outside else key


def _smaller(own: Limits, *others: Limits) -> Limits:
    """Return the smallest of each limit; `max_concurrency` is a key's own."""
    for other in others:
        smallest = map(smaller_limit, own, other)
        own = Limits(*smallest)._replace(max_concurrency=own.max_concurrency)
    return NO_LIMITS if own == NO_LIMITS else own


def file_version(path: Path) -> tuple[int, int, int] | None:
    """Return a value that changes with the file, without reading it; None if there is no file."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_keys(path: Path) -> tuple[tuple[KeySpec, ...], list[str]]:
    """Return the keys of a keys.json, and a sentence for each thing that is wrong."""
    name = one_line(hide_secrets(str(path)))
    entries, problem = _parse(path)
    if problem:
        return (), [f"{name}: {problem}"]
    keys: list[KeySpec] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        key, wrong = _read_entry(number, entry)
        keys += [key] if key else []
        problems += [f"{name}, {text}" for text in wrong]
    ids = Counter(key.key_id for key in keys)
    problems += [
        f"{name}, key {hide_secrets(key_id)}, field key_id: found in {times} entries; allowed: once"
        for key_id, times in ids.items()
        if times > 1
    ]
    return tuple(keys), problems


def with_expires(text: str, key_id: str, expires: str | None) -> str | None:
    """Return the text of a keys.json in which a key ends at another time; nothing else changes.

    Args:
        text: The file.
        key_id: The key.
        expires: A date or a time; None: it names none.

    Returns:
        None if the file has no such entry, or one whose text this does not understand.
    """
    decoder, at = json.JSONDecoder(), text.find("[") + 1
    while (begin := text.find("{", at)) >= 0:
        try:
            entry, at = decoder.raw_decode(text, begin)
        except ValueError:
            return None
        if isinstance(entry, dict) and entry.get("key_id") == key_id:
            break
    else:
        return None
    old = text[begin:at]
    new = _EXPIRES.sub("", old)
    if new == old:
        new = _EXPIRES_FIRST.sub("{", old)
    if new == old and "expires" in entry:  # its name is written with an escape
        return None
    if expires is not None:
        body = new[:-1].rstrip()
        break_ = re.search(r"\n[ \t]*(?=\")", body)  # one field a line
        between = f",{break_[0]}" if break_ else ", "
        new = f"{body}{between}{json.dumps('expires')}: {json.dumps(expires)}{new[len(body) :]}"
    wanted = {name: value for name, value in entry.items() if name != "expires"}
    if expires is not None:
        wanted["expires"] = expires
    return text[:begin] + new + text[at:] if _loads(new) == wanted else None


_EXPIRES = re.compile(r',\s*"expires"\s*:\s*(?:"[^"]*"|null)')
_EXPIRES_FIRST = re.compile(r'\{\s*"expires"\s*:\s*(?:"[^"]*"|null)\s*,\s*')


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _parse(path: Path) -> tuple[list[Any], str | None]:
    """Return the entries of the file, or why there are none."""
    if not path.is_file():  # a pipe could not be read again when it changes
        return [], "there is no such file; create it (see keys_example.json) or name another"
    try:
        entries = json.loads(path.read_text("utf-8-sig"))  # editors on Windows mark the byte order
    except (OSError, ValueError, RecursionError) as error:
        return [], f"this is no JSON that can be read: {hide_secrets(str(error))}"
    if not isinstance(entries, list):
        return [], f"found {display(entries)}; allowed: a list of keys, [{{…}}, {{…}}]."
    return entries, None


def _read_entry(number: int, entry: object) -> tuple[KeySpec | None, list[str]]:
    """Return the entry's key, or a sentence for each field that is wrong."""
    if not isinstance(entry, dict):
        return None, [f"entry {number}: found {display(entry)}; allowed: an object, {{…}}."]
    key_id = entry.get("key_id")
    who = f"entry {number}"
    if isinstance(key_id, str) and _NAME.fullmatch(key_id) and hide_secrets(key_id) == key_id:
        who = f"key {key_id}"
    pasted = [name for name, value in entry.items() if isinstance(value, str) and holds_key(value)]
    if pasted:
        text = f"found an API key itself (not shown here); {_VALUES_ELSEWHERE}."
        return None, [f"{who}, field {hide_secrets(name)}: {text}" for name in pasted]
    try:
        return KeySpec.model_validate(entry), []
    except ValidationError as error:
        problems = error.errors(include_url=False)
    return None, [f"{who}, field {_in_field(problem)}" for problem in problems]


def _in_field(problem: Any) -> str:
    name = str(problem["loc"][0])
    if problem["type"] != "extra_forbidden":
        return f"{name}: {sentence(problem, ('secret',))}"
    if name.lower() in _VALUE_FIELDS:
        return f"{display(name)}: there is no such field. {_VALUES_ELSEWHERE}"
    return f"{display(name)}: {sentence(problem, fields=KeySpec.model_fields)}"


def sentence(problem: Any, hidden: Container[str] = (), fields: Iterable[str] = ()) -> str:
    """Return a problem of pydantic's in its own words, with what was found unless it is hidden.

    Args:
        problem: One of `ValidationError.errors()`.
        hidden: Names whose values are never shown.
        fields: Those that there are, where a name may be none of them.
    """
    if problem["type"] == "extra_forbidden":
        return f"there is no such field.{did_you_mean(str(problem['loc'][-1]), fields)}"
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] in ("missing", "value_error") or problem["loc"][0] in hidden:
        return text if text.endswith("?") else f"{text}."
    if problem["type"] == "string_pattern_mismatch":
        text = f"Allowed: {ALLOWED_CHARACTERS[problem['ctx']['pattern']]}"
    elif problem["loc"][-1] == "usd" and problem["type"] == "dict_type":
        text = 'Allowed: dollars by window, such as {"day": 5}'
    expected = re.findall("'([^']+)'", problem.get("ctx", {}).get("expected", ""))
    hint = did_you_mean(str(problem["input"]), expected)
    return f"found {display(problem['input'])}. {text}.{hint}"
