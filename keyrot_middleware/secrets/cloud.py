"""What the cloud stores share: concurrent reads with one retry, and JSON secrets.

The first read runs alone, so that ten threads do not log in ten times, and a store that is down
costs one timeout. The rest is not read from a store that cannot be reached.
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
    "CONNECT_TIMEOUT_S",
    "MAX_CONCURRENCY",
    "READ_TIMEOUT_S",
    "Answer",
    "Batch",
    "FailureReach",
    "ReadBatch",
    "SecretRef",
    "StoreFailure",
    "extract_key",
    "find_by_class",
    "quiet_library_logs",
    "quiet_loggers",
    "read_batches",
    "read_each",
    "require_extra",
    "resolve_refs",
    "split_field",
]

# Why a secret could not be read. Stores return it as a value and raise nothing ------------------


class FailureReach(Enum):
    """Which other reads of the store a failure affects, and whether a retry may work."""

    SECRET = "this secret only; a retry would fail too"
    REQUEST = "this request only; a retry may work: throttled, a failure of the server"
    LOGIN = "the login is no longer accepted: log in again, once"
    STORE = "every secret: the store does not answer, or no login works"


class StoreFailure(NamedTuple):
    """Why there is no value."""

    reach: FailureReach
    message: str
    """What is wrong and what to do; never a value or a token."""


Answer = str | bytes | StoreFailure
"""The stored secret, or why it could not be read."""


# Keep values and tokens out of the logs of the stores' libraries ---------------------------------
#
# botocore's DEBUG lines hold whole responses and session tokens; the libraries of Azure and Google
# mask theirs. The program's own use of the same library still logs: lines are dropped only in
# threads that read secrets.


_reading = ContextVar("keyrot_reading_secrets", default=False)


class _OnlyWarnings(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not _reading.get()


_FILTER = _OnlyWarnings()


def quiet_loggers(*names: str) -> None:
    """Drop what these loggers write below WARNING inside `quiet_library_logs()`."""
    for name in names:
        logging.getLogger(name).addFilter(_FILTER)


@contextmanager
def quiet_library_logs() -> Iterator[None]:
    """Drop the DEBUG and INFO lines of `quiet_loggers` in this context."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


# From a stored secret to the value of one key: the whole text, or one field of a JSON object ---


_BINARY = "it is binary, or holds characters that cannot be printed; store the key as UTF-8 text"


def extract_key(stored: str | bytes, field: str | None, key_id: str) -> Secret | str:
    """Return the key in a stored secret.

    Args:
        stored: The secret; bytes are read as UTF-8.
        field: Of a JSON object; None: the whole text, or the field *key_id* of a JSON object.
        key_id: The key.

    Returns:
        The value, or why there is none; the reason shows nothing of the secret.
    """
    text = _decode(stored)
    if text is None:
        return _BINARY
    found = _parse_object(text)
    if field is None and found is None:
        return _to_secret(text) or "it is empty"
    if found is None:
        return f"it is no JSON object, so it has no field {field}"
    return _get_field(found, field or key_id, named=field is not None)


def _decode(stored: str | bytes) -> str | None:
    if isinstance(stored, str):
        return stored.removeprefix("\ufeff")
    try:
        return stored.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _parse_object(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; None: the text is none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _get_field(found: dict[str, Any], name: str, *, named: bool) -> Secret | str:
    if name not in found:
        # A name that is a key by mistake must not be suggested.
        hint = did_you_mean(name, (other for other in found if not holds_key(other)))
        more = "" if named else "; name the field after # in the key's place"
        return f"the JSON object in it has no field {name}{more}{hint and '.'}{hint}"
    value = found[name]
    if not isinstance(value, str):
        return f"the field {name} of its JSON object is no text"
    return _to_secret(value) or f"the field {name} of its JSON object is empty"


def _to_secret(text: str) -> Secret | str:
    """Reject text that was binary: a tool that decoded it left U+FFFD in it."""
    value = text.strip()
    return Secret(value) if value.isprintable() and "\ufffd" not in value else _BINARY


def require_extra(store: str, modules: Mapping[str, str]) -> None:
    """Import the libraries of a store.

    Args:
        store: Its scheme, which is the name of its extra too: `aws`.
        modules: Module and the package that people install: `{"azure.identity": "azure-identity"}`.

    Raises:
        MissingExtraError: A ConfigError with the pip line, in place of the ImportError.
    """
    missing = next((package for name, package in modules.items() if not _can_import(name)), None)
    if missing is not None:
        raise MissingExtraError(wanted_by=f"the secret store {store}", package=missing, extra=store)


def _can_import(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


# From the reference of a key to the secret, and from the secret to the key ----------------------


class SecretRef(NamedTuple):
    """A parsed reference: where a key is kept."""

    name: str
    """Of the secret, as the store reads it."""
    place: str
    """As in keys.json: `aws://prod/gemini#pro_01`."""
    field: str | None = None
    """Of the JSON object in the secret."""


def resolve_refs(
    refs: Mapping[str, str | None],
    parse_ref: Callable[[str, str | None], SecretRef | str],
    read: Callable[[Iterable[str]], Mapping[str, Any]],
    extract: Callable[[Any, str | None, str], Secret | str],
) -> dict[str, Secret | SecretError]:
    """Return the keys; a secret with several keys is read once.

    Args:
        refs: The place of each key id; None: the default one.
        parse_ref: Parses the place of a key id, or returns what is wrong with it.
        read: Returns the stored secret of each name, or why it could not be read.
        extract: Returns the key in a stored secret, given the field and the key id, or why there
            is none.
    """
    parsed = {key_id: parse_ref(key_id, ref) for key_id, ref in refs.items()}
    names = dict.fromkeys(
        target.name for target in parsed.values() if isinstance(target, SecretRef)
    )
    answers = read(names) if names else {}

    def resolve(key_id: str, target: SecretRef | str) -> Secret | str:
        if isinstance(target, str):
            return target
        answer = answers[target.name]
        if isinstance(answer, StoreFailure):
            return f"{target.place}: {answer.message}"
        found = extract(answer, target.field, key_id)
        return f"{target.place}: {found}" if isinstance(found, str) else found

    found = {key_id: resolve(key_id, target) for key_id, target in parsed.items()}
    return {
        key_id: SecretError(f"key {key_id}: {answer}") if isinstance(answer, str) else answer
        for key_id, answer in found.items()
    }


def find_by_class(
    error: Exception, table: Mapping[str, tuple[FailureReach, str]]
) -> tuple[FailureReach, str]:
    """Return the entry of an exception's class, or of its nearest base class."""
    names = (kind.__name__ for kind in type(error).__mro__)
    found = next((table[name] for name in names if name in table), None)
    return found or (FailureReach.SECRET, "reading it failed with {}")


def split_field(place: str) -> tuple[str, str | None]:
    """Split `#field` off a place."""
    path, has_field, field = place.partition("#")
    return path, field if has_field else None


CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 4.0
"""For one request."""
MAX_CONCURRENCY = 10
"""Concurrent requests; as many as a connection pool of urllib3 keeps open."""
RETRY_PAUSE_S = 0.5
"""Pause before the retry of a request that the store was too busy for."""
TOTAL_TIMEOUT_S = 20.0
"""No request starts later than that; the next refresh reads the rest."""

Batch = tuple[str, ...]
"""Names of secrets to read in one request."""
ReadBatch = Callable[[Batch], Mapping[str, Answer]]
"""Reads a batch."""


def read_batches(
    batches: Sequence[Batch], read: ReadBatch, forget_login: Callable[[], None]
) -> dict[str, Answer]:
    """Read all batches; retry a batch once if its login expired or the store was busy.

    Args:
        batches: What to read.
        read: Called from several threads. What it raises is reported by its type only.
        forget_login: Forgets the login: before the second try, and after that if it is refused
            too, so that the next look-up logs in again.

    Returns:
        An answer for each name; if both tries failed, the second failure.
    """
    deadline = time.monotonic() + TOTAL_TIMEOUT_S
    answers = _read_once(batches, read, deadline)
    retriable = {FailureReach.REQUEST, FailureReach.LOGIN}
    retried = [batch for batch in batches if _reaches(batch, answers) & retriable]
    if not retried:
        return answers
    if any(FailureReach.LOGIN in _reaches(batch, answers) for batch in retried):
        forget_login()
    else:
        time.sleep(RETRY_PAUSE_S)
    again = _read_once(retried, read, deadline)
    if FailureReach.LOGIN in _reaches(again, again):
        forget_login()
    found = {n: answer for n, answer in answers.items() if not isinstance(answer, StoreFailure)}
    return {**answers, **again, **found}


def read_each(
    names: Iterable[str], read: Callable[[str], Answer], forget_login: Callable[[], None]
) -> dict[str, Answer]:
    """Read each name in a request of its own, as `read_batches` does."""
    batches = [(name,) for name in names]
    return read_batches(batches, lambda batch: {batch[0]: read(batch[0])}, forget_login)


_STOPS = FailureReach.LOGIN, FailureReach.STORE


def _reaches(names: Iterable[str], answers: Mapping[str, Answer]) -> set[FailureReach]:
    """Return the reach of each failure among the answers for *names*."""
    found = (answers[name] for name in names)
    return {answer.reach for answer in found if isinstance(answer, StoreFailure)}


def _read_once(batches: Sequence[Batch], read: ReadBatch, deadline: float) -> dict[str, Answer]:
    """Read the first batch, then the others concurrently, until the whole store fails.

    The threads are daemons, because the interpreter waits for those of an executor at exit. They
    share dictionaries without a lock: each sets the answers of its own batches.
    """
    answers: dict[str, Answer] = {}
    stops: list[StoreFailure] = []

    def read_in_turn(batches: Sequence[Batch]) -> None:
        for batch in batches:
            if not stops and time.monotonic() > deadline:
                stops.append(_TIMED_OUT)
            found = dict.fromkeys(batch, stops[0]) if stops else _try_read(read, batch)
            for name in batch:
                answer = answers[name] = found.get(name, _NO_ANSWER)
                if isinstance(answer, StoreFailure) and answer.reach in _STOPS:
                    stops.append(answer)

    read_in_turn(batches[:1])
    rest = batches[1:]
    threads = [
        threading.Thread(
            target=read_in_turn,
            args=(rest[start::MAX_CONCURRENCY],),
            name="keyrot-secrets",
            daemon=True,
        )
        for start in range(min(MAX_CONCURRENCY, len(rest)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


_NO_ANSWER = StoreFailure(FailureReach.SECRET, "the store's answer does not mention it")
_TIMED_OUT = StoreFailure(
    FailureReach.STORE, f"the store is too slow: not all was read in {TOTAL_TIMEOUT_S:.0f} s"
)


def _try_read(read: ReadBatch, batch: Batch) -> Mapping[str, Answer]:
    name = "?"
    with quiet_library_logs():
        try:
            return read(batch)
        except Exception as error:
            # The type only: the text of a store's library may hold a token or a value.
            name = type(error).__name__
    return dict.fromkeys(batch, StoreFailure(FailureReach.SECRET, f"reading it failed with {name}"))
