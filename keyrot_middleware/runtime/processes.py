"""What the processes of one pool say of themselves, and in what they differ.

Each writes once a minute, and when its keys change, with what it makes calls: settings and a digest
of its keys (`Said`), and the keys themselves without a value or its place. A process with other
limits than the rest judges by its own, so what it reports is true of its own calls only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

from ..core.activity import LARGE_POOL
from ..core.json_rows import NUMBER
from ..core.model import NANO, USD_WINDOWS, Budget, Candidate, Limits, account_name, project_name
from ..core.wording import one_line
from ..forks import process_name
from ..keys_file import OUTSIDE_TIERS
from ..state.base import State
from .call_settings import Said, read_said
from .state_lists import rows_of

ALIVE_S = 90.0
"""A process that has not written for so long has ended, as far as the rest compare themselves."""
LASTS_S = 115.0
"""Two minutes, as rows have them: processes that differ for so long are no rolling update."""
NAMED = 3
"""Processes, and differences, that a sentence names."""


class Processes(NamedTuple):
    """The processes of a pool that run, as far as they differ."""

    names: tuple[str, ...] = ()
    """`host:pid` of all that say it; an older version does not."""
    differing: tuple[str, ...] = ()
    """Those of them that differ from most, or from the first one."""
    differences: tuple[str, ...] = ()
    """In what: `key a: rpm 2, elsewhere 10`, `workload batch`."""
    lasted_s: float = 0.0
    """For how long they have run beside each other."""
    unread: tuple[str, ...] = ()
    """Those of them that do not read their keys.json."""
    problem: str = ""
    """Why not."""


NO_PROCESSES = Processes()


def own_name(pool: object) -> str:
    """Return how a *pool* of this process is named in a state."""
    return f"{process_name()}/{id(pool) % 10_000}"


# Keys --------------------------------------------------------------------------------------------


def dump_keys(keys: Sequence[Candidate]) -> tuple[str, str]:
    """Return what is said of keys and decides about their use as text, and a digest of it."""
    text = json.dumps([_dump(key) for key in keys], separators=(",", ":"))
    return text, blake2b(text.encode(), digest_size=8).hexdigest()


def texts_of_keys(keys: Sequence[Candidate]) -> tuple[dict[str, tuple[list[str], int]], str]:
    """Return what a process writes into the state of its keys, and their digest.

    Of a large pool only the digest is kept.
    """
    text, digest = dump_keys(keys)
    return ({f"keys:{digest}": ([text], 1)} if len(keys) <= LARGE_POOL else {}), digest


def read_keys(state: State, digest: str) -> list[Candidate]:
    """Return the keys that a process has written; none if they are not known."""
    found = rows_of(state, f"keys:{digest}", _load)
    return found[0] if found else []


def read_running_keys(state: State, now: float) -> list[Candidate]:
    """Return the keys with which most processes of a pool run; none if that is not known."""
    rows = _alive(read_said(state), now)
    counts = Counter(latest.keys for latest, *_ in rows.values())
    found = (read_keys(state, digest) for digest, _ in counts.most_common())
    return next(filter(None, found), [])


_TEXTS = ("key_id", "project", "billing_account")
_KINDS: Mapping[str, Any] = {
    **dict.fromkeys((*_TEXTS, "platform"), str),
    **dict.fromkeys(("model", "workload", "tier", "disabled"), str | None),
    **dict.fromkeys((*Limits._fields, *USD_WINDOWS), NUMBER),
    **dict.fromkeys(("priority", "weight", "use", "expires"), NUMBER),
}
"""What the fields of a key are."""
_NO_DIFFERENCE = {"expires"}
"""It decides about no call, and an older version does not write it."""


def _dump(key: Candidate) -> dict[str, Any]:
    """Return the fields of a key that are not the default, without a trace of its value."""
    fields = {name: getattr(key, name) for name in _KINDS if hasattr(key, name)}
    fields |= key.limits._asdict() | dict(zip(USD_WINDOWS, key.usd, strict=True))
    if key.disabled == OUTSIDE_TIERS:
        del fields["disabled"]  # each service has tiers of its own
    none = Candidate("", "", "")
    return {
        n: one for n, one in fields.items() if one is not None and one != getattr(none, n, None)
    }


def _load(text: str) -> list[Candidate]:
    rows = json.loads(text)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("no keys")
    return [_load_one(row) for row in rows]


def _load_one(row: dict[str, Any]) -> Candidate:
    kinds = {name: kind for name, kind in _KINDS.items() if name in row}
    if not kinds.keys() >= {*_TEXTS} or not all(isinstance(row[n], kinds[n]) for n in kinds):
        raise ValueError("no key")
    limits = Limits(*map(row.get, Limits._fields))
    usd = Budget(*map(row.get, USD_WINDOWS))
    known = {name: row[name] for name in _KINDS if name in row and hasattr(Candidate, name)}
    return Candidate(**{name: row[name] for name in _TEXTS} | known, limits=limits, usd=usd)


# Differences -------------------------------------------------------------------------------------


def find_processes(state: State, said: Sequence[Said], now: float) -> Processes:
    """Return which processes run, and in what they differ.

    What a service chooses for its own calls is no difference: tiers, the next model, how long to
    wait, and workloads that only it names.

    Args:
        state: Has their keys.
        said: What they have said of themselves, the latest first.
        now: Epoch seconds.
    """
    rows = _alive(said, now)
    unread = [name for name, (latest, *_) in rows.items() if latest.problem]
    problem = rows[unread[0]][0].problem if unread else ""
    differing, differences, lasted_s = dict[str, None](), dict[str, None](), 0.0
    for thing, read in _things(rows).items():
        values = {name: one for name, (latest, *_) in rows.items() if (one := read(latest))}
        (usual, _), *others = Counter(values.values()).most_common()
        for value, _ in others:
            texts = [thing] if thing else [*_differences(state, value, usual)]
            names, most = ([n for n in values if values[n] == one] for one in (value, usual))
            if texts:
                differing |= dict.fromkeys(names)
                differences |= dict.fromkeys(texts)
                lasted_s = max(lasted_s, _overlap(rows, read, names, most))
    return Processes(
        _shown(rows), _shown([*differing]), tuple(differences), lasted_s, _shown(unread), problem
    )


_Read = Callable[[Said], str]
"""Returns one thing of what a process has said; "" if it does not say it."""


def _things(rows: Mapping[str, Sequence[Said]]) -> dict[str, _Read]:
    """Return what processes may differ in, by its name; that of keys is ""."""
    latest = [one for one, *_ in rows.values()]
    names = dict.fromkeys(name for one in latest for name in one.settings.terms if name)
    return {
        **({"": lambda one: one.keys} if rows else {}),
        **{f"workload {one_line(name)}": partial(_terms, name) for name in names},
    }


def _terms(workload: str, said: Said) -> str:
    """Return what a workload may use; who else it makes wait is a matter of one service."""
    found = said.settings.terms.get(workload)
    return "" if found is None else str(found._replace(behind=""))


def _alive(said: Sequence[Said], now: float) -> dict[str, list[Said]]:
    """Return what each process that runs has said, the latest first, by its name."""
    rows: dict[str, list[Said]] = {}
    for one in said:
        if one.process:
            rows.setdefault(one.process, []).append(one)
    return {name: rows[name] for name in sorted(rows) if rows[name][0].at > now - ALIVE_S}


def _shown(names: Sequence[str] | Mapping[str, object]) -> tuple[str, ...]:
    return tuple(one_line(name.rpartition("/")[0] or name) for name in names)


def _overlap(rows: Mapping[str, Sequence[Said]], read: _Read, *groups: Sequence[str]) -> float:
    """Return for how long groups have run beside each other, each as it is now."""
    begun, latest = list[float](), list[float]()
    for names in groups:
        latest.append(max(rows[name][0].at for name in names))
        begun.append(min(_since(rows[name], read) for name in names))
    return max(min(latest) - max(begun), 0.0)


def _since(rows: Sequence[Said], read: _Read) -> float:
    """Return since when a process is as it is."""
    value = read(rows[0])
    other = next((n for n, one in enumerate(rows) if read(one) != value), len(rows))
    return rows[other - 1].at


def _differences(state: State, one: str, usual: str) -> Iterator[str]:
    """Yield in what keys of which these are the digests differ."""
    here, there = read_keys(state, one), read_keys(state, usual)
    if here and there:
        yield from _of_keys(here, there)
    else:
        yield "keys"


def _of_keys(here: Sequence[Candidate], there: Sequence[Candidate]) -> Iterator[str]:
    """Yield in what keys differ; of those with other fields the fields."""
    others = {key.key_id: key for key in there}
    own = {key.key_id: key for key in here}
    for key_id in dict.fromkeys((*own, *others)):
        name = f"key {one_line(key_id)}"
        if key_id not in others:
            yield f"{name}: only there"
        elif key_id not in own:
            yield f"{name}: not there"
        else:
            mine, theirs = _words(own[key_id]), _words(others[key_id])
            texts = [
                f"{field} {mine[field]}, elsewhere {theirs[field]}"
                for field in mine
                if mine[field] != theirs[field]
            ]
            if texts:
                yield f"{name}: {'; '.join(texts)}"


def _words(key: Candidate) -> dict[str, str]:
    """Return the fields of a key in words."""
    fields = {name: _dump(key).get(name) for name in _KINDS if name not in _NO_DIFFERENCE}
    fields |= {"project": project_name(key.project), "weight": key.weight, "use": key.use}
    account = account_name(key.billing_account).removeprefix("billing account ")
    fields |= {"billing_account": account or None}
    for window, limit in zip(USD_WINDOWS, key.usd, strict=True):
        del fields[window]
        fields[f"usd {window}"] = None if limit is None else f"{limit / NANO:g}"
    return {n: "none" if one is None else one_line(str(one)) for n, one in fields.items()}
