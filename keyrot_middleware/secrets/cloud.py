"""Read many secrets in little time: one read first, the rest side by side, a second try.

The first read goes alone, so that sixteen threads do not log in sixteen times, and a store that
is down is found out once. A store that nobody reaches is not asked for the rest.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from importlib import import_module
from typing import Any, NamedTuple

from ..core.text import did_you_mean, holds_key
from ..errors import MissingExtraError, SecretError
from .base import Secret

__all__ = [
    "AT_ONCE",
    "Answer",
    "Ask",
    "Batch",
    "FailureReach",
    "SecretRef",
    "StoreFailure",
    "extract_key",
    "quiet_library_logs",
    "quiet_loggers",
    "read_batches",
    "require_extra",
    "resolve_refs",
    "split_field",
]

# Why a secret could not be read, as a value: stores give it back, and raise nothing ------------


class FailureReach(Enum):
    """What a failure says about the other secrets of the store, and about trying again."""

    HERE = "this secret only; the next try would fail too"
    BUSY = "this request only; another try may work: throttled, a failure of the server"
    LOGIN = "the login is no longer taken: log in again, once"
    STORE = "every secret: nobody answers, or nobody can log in"


class StoreFailure(NamedTuple):
    """Why there is no value."""

    reach: FailureReach
    words: str
    """For people: what is wrong and what to do; never a value or a token."""


Answer = str | bytes | StoreFailure
"""What a store has for one secret."""


# Keep values and tokens out of the logs that the stores' libraries write while we read ---------
#
# botocore's DEBUG lines hold whole answers and session tokens; the libraries of Azure and Google
# mask theirs. A program that debugs with the root logger at DEBUG must not find its keys there. Its
# own use of the same library logs as before: lines are dropped only in a thread that reads for us.


_reading = ContextVar("keyrot_reading_secrets", default=False)


class _OnlyWarnings(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not _reading.get()


_FILTER = _OnlyWarnings()


def quiet_loggers(*names: str) -> None:
    """Let these loggers write no more than warnings inside `quiet_library_logs()`."""
    for name in names:
        logging.getLogger(name).addFilter(_FILTER)


@contextmanager
def quiet_library_logs() -> Iterator[None]:
    """Read secrets inside this."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


# From a stored secret to the value of one key: the whole text, or one field of a JSON object ---


_BINARY = "it is binary, or holds characters that cannot be printed; store the key as UTF-8 text"


def extract_key(stored: str | bytes, field: str | None, key_id: str) -> Secret | str:
    """Find a key in what a store has.

    Args:
        stored: The secret; bytes are read as UTF-8.
        field: Of a JSON object; None: the whole text, or the field *key_id* of a JSON object.
        key_id: Whose value is looked for.

    Returns:
        The value, or in words why there is none; the words show nothing of what is stored.
    """
    text = _text(stored)
    if text is None:
        return _BINARY
    found = _object(text)
    if field is None and found is None:
        return _value(text) or "it is empty"
    if found is None:
        return f"it is no JSON object, so it has no field {field}"
    return _field(found, field or key_id, named=field is not None)


def _text(stored: str | bytes) -> str | None:
    if isinstance(stored, str):
        return stored.removeprefix("\ufeff")
    try:
        return stored.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _object(text: str) -> dict[str, Any] | None:
    """Read a JSON object; None where the text is none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _field(found: dict[str, Any], name: str, *, named: bool) -> Secret | str:
    if name not in found:
        # A key may have been written as a name by mistake: then nothing is suggested.
        hint = did_you_mean(name, (other for other in found if not holds_key(other)))
        more = "" if named else "; name the field after # in the key's place"
        return f"the JSON object in it has no field {name}{more}{hint and '.'}{hint}"
    value = found[name]
    if not isinstance(value, str):
        return f"the field {name} of its JSON object is no text"
    return _value(value) or f"the field {name} of its JSON object is empty"


def _value(text: str) -> Secret | str:
    """Refuse what was binary once; a stray U+FFFD shows where a tool has made text of it."""
    value = text.strip()
    return Secret(value) if value.isprintable() and "\ufffd" not in value else _BINARY


# What to say where the library of a store is not installed -------------------------------------


def require_extra(store: str, modules: Mapping[str, str]) -> None:
    """Import the libraries of a store.

    Args:
        store: Its scheme, which is the name of its extra too: `aws`.
        modules: Module and the package that people install: `{"azure.identity": "azure-identity"}`.

    Raises:
        MissingExtraError: A ConfigError with the pip line, in place of the ImportError.
    """
    missing = next((package for name, package in modules.items() if not _imports(name)), None)
    if missing is not None:
        raise MissingExtraError(wanted_by=f"the secret store {store}", package=missing, extra=store)


def _imports(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


# What the cloud stores have in common: places to names, names to answers, answers to keys ------


class SecretRef(NamedTuple):
    """Where a key is, once its place has been understood."""

    name: str
    """Of the secret, as the store's reader takes it."""
    place: str
    """As people write it: `aws://prod/gemini#pro_01`."""
    field: str | None = None
    """Of the JSON object in the secret."""


def resolve_refs(
    refs: Mapping[str, str | None],
    spot_of: Callable[[str, str | None], SecretRef | str],
    read: Callable[[Iterable[str]], Mapping[str, Answer]],
) -> dict[str, Secret | SecretError]:
    """Find keys: each secret is read once, however many keys are in it.

    Args:
        refs: The place of each key id; None: the default one.
        spot_of: Understands a key id's place, or says in words what is wrong with it.
        read: Answers for each of the names it is given.
    """
    spots = {key_id: spot_of(key_id, ref) for key_id, ref in refs.items()}
    names = dict.fromkeys(spot.name for spot in spots.values() if isinstance(spot, SecretRef))
    answers = read(names) if names else {}
    return {key_id: _found(key_id, spot, answers) for key_id, spot in spots.items()}


def split_field(place: str) -> tuple[str, str | None]:
    """Take `#field` off a place."""
    path, there, field = place.partition("#")
    return path, field if there else None


def _found(
    key_id: str, spot: SecretRef | str, answers: Mapping[str, Answer]
) -> Secret | SecretError:
    if isinstance(spot, str):
        return SecretError(f"key {key_id}: {spot}")
    answer = answers[spot.name]
    if isinstance(answer, StoreFailure):
        return SecretError(f"key {key_id}: {spot.place}: {answer.words}")
    found = extract_key(answer, spot.field, key_id)
    return SecretError(f"key {key_id}: {spot.place}: {found}") if isinstance(found, str) else found


AT_ONCE = 10
"""Requests under way; as many as an HTTP connection pool of requests or urllib3 keeps open."""
PAUSE_S = 0.5
"""Before a second try where the store was busy."""
LONGEST_S = 20.0
"""No request is begun later than that; a refresh comes again."""

Batch = tuple[str, ...]
"""Names of secrets that are read in one request."""
Ask = Callable[[Batch], Mapping[str, Answer]]
"""Reads a batch."""


def read_batches(
    batches: Sequence[Batch], ask: Ask, log_in_again: Callable[[], None]
) -> dict[str, Answer]:
    """Read all batches; a batch whose login has run out, or that met a busy store, twice.

    Args:
        batches: What to read.
        ask: Called from several threads. What it raises is reported by its type only.
        log_in_again: Forgets the login: before the second try, and where that is refused too,
            so that the next look-up begins with whatever login there is then.

    Returns:
        An answer for each name; where two tries failed, the second failure.
    """
    reading = _BatchReader(ask, time.monotonic() + LONGEST_S)
    reading.round(batches)
    again = [
        batch
        for batch in batches
        if reading.reaches(batch) & {FailureReach.BUSY, FailureReach.LOGIN}
    ]
    if not again:
        return reading.answers
    if any(FailureReach.LOGIN in reading.reaches(batch) for batch in again):
        log_in_again()
    else:
        time.sleep(PAUSE_S)
    reading.round(again)
    if any(FailureReach.LOGIN in reading.reaches(batch) for batch in again):
        log_in_again()
    return reading.answers


class _BatchReader:
    """One call of `read_batches`."""

    def __init__(self, ask: Ask, deadline: float) -> None:
        self.answers: dict[str, Answer] = {}
        self._ask = ask
        self._deadline = deadline
        self._stop: StoreFailure | None = None
        self._lock = threading.Lock()

    def round(self, batches: Sequence[Batch]) -> None:
        """Read each batch once, unless the store as a whole does not answer."""
        self._stop = None
        self._read(batches[:1])
        self._side_by_side(batches[1:])

    def reaches(self, batch: Batch) -> set[FailureReach]:
        """Tell what went wrong in a batch."""
        answers = (self.answers[name] for name in batch)
        return {answer.reach for answer in answers if isinstance(answer, StoreFailure)}

    def _side_by_side(self, batches: Sequence[Batch]) -> None:
        """Read in threads of our own: a program that ends waits for those of an executor."""
        shares = [batches[n::AT_ONCE] for n in range(min(AT_ONCE, len(batches)))]
        threads = [
            threading.Thread(target=self._read, args=(share,), name="keyrot-secrets", daemon=True)
            for share in shares
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _read(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            stop = self._stop or self._too_late()
            answers = dict.fromkeys(batch, stop) if stop else _asked(self._ask, batch)
            with self._lock:
                for name in batch:
                    self._note(name, answers.get(name, _NOTHING))

    def _note(self, name: str, answer: Answer) -> None:
        if not isinstance(answer, StoreFailure):
            self.answers[name] = answer
            return
        if answer.reach in (FailureReach.LOGIN, FailureReach.STORE):
            self._stop = answer
        if isinstance(self.answers.get(name), StoreFailure | None):
            self.answers[name] = answer

    def _too_late(self) -> StoreFailure | None:
        return _TOO_LATE if time.monotonic() > self._deadline else None


_NOTHING = StoreFailure(FailureReach.HERE, "the store's answer does not mention it")
_TOO_LATE = StoreFailure(
    FailureReach.STORE, f"the store is too slow: not all was read in {LONGEST_S:.0f} s"
)


def _asked(ask: Ask, batch: Batch) -> Mapping[str, Answer]:
    name = "?"
    with quiet_library_logs():
        try:
            return ask(batch)
        except Exception as error:
            # Only the type: the text of a store's library may hold a token or a value.
            name = type(error).__name__
    return dict.fromkeys(batch, StoreFailure(FailureReach.HERE, f"reading it failed with {name}"))
