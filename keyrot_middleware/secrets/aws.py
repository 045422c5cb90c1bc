"""Secrets in AWS Secrets Manager, read with boto3: docs/stores/aws.md."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.text import shown
from ..errors import SecretError
from .aws_failures import code_of, fault_of, fault_of_code
from .aws_login import AwsLogin
from .base import Secret
from .extra import need
from .fault import Answer, Fault, Reach
from .hush import hush
from .lookup import Spot, look_up, split_field
from .reading import Batch, read_all

__all__ = ["DEFAULT_SECRET", "SECRET_VARIABLE", "TALKATIVE", "AwsStore", "open_aws"]

DEFAULT_SECRET = "keyrot"
SECRET_VARIABLE = "KEYROT_AWS_SECRET"
"""Names the JSON secret in which a key of any id is looked for: a name or an ARN."""

_MOST_AT_ONCE = 20
"""Secrets in one BatchGetSecretValue: the service's limit for SecretIdList."""
_MOST_PAGES = 20
_SCHEME = "aws://"
_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:([a-z0-9-]+):\d{12}:secret:([\w/+=.@-]+)")
_NAME = re.compile(r"[\w/+=.@-]{1,512}", re.ASCII)
_SUFFIX = re.compile(r"-[A-Za-z0-9]{6}")
"""What Secrets Manager puts behind a name in an ARN; a place may leave it out."""
_WHOLE_BATCH = frozenset({"InvalidParameterException", "InvalidRequestException"})
"""Codes by which one secret spoils a whole batch: each is then read by itself."""
_DENIED = frozenset({"AccessDeniedException", "AccessDenied", "403"})
TALKATIVE = tuple(f"botocore.{name}" for name in ("auth", "endpoint", "hooks", "parsers", "utils"))
"""Loggers whose DEBUG lines hold whole answers, signatures and session tokens."""

_log = logging.getLogger("keyrot_middleware")


def open_aws(environ: Mapping[str, str]) -> AwsStore:
    """Open the store; nothing is read or connected yet.

    Args:
        environ: Settings: `AWS_*` as boto3 knows them, and `KEYROT_AWS_SECRET`.

    Raises:
        MissingExtraError: boto3 is not installed.
    """
    need("aws", {"boto3": "boto3"})
    hush(*TALKATIVE)
    return AwsStore(AwsLogin(environ), environ.get(SECRET_VARIABLE) or DEFAULT_SECRET)


class AwsStore:
    """Find a key at `aws://NAME-or-ARN#field`, or in the field of its id of one JSON secret.

    Always the version AWSCURRENT.
    """

    scheme = "aws"

    def __init__(self, login: AwsLogin, default: str = DEFAULT_SECRET) -> None:
        """Read with a login; *default* is the name or ARN of the JSON secret."""
        self._login = login
        self._default = default
        self._batches = True

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up: one secret by itself, more of them 20 in a request."""
        return look_up(refs, self._spot, self._read)

    def place(self, key_id: str) -> str:
        """Tell where a key is kept unless told otherwise."""
        return f"{_SCHEME}{self._default}#{key_id}"

    def _spot(self, key_id: str, ref: str | None) -> Spot | str:
        place = ref or self.place(key_id)
        name, field = split_field(place.removeprefix(_SCHEME))
        if field == "" or not (_ARN.fullmatch(name) or _NAME.fullmatch(name)):
            return f"found the place {shown(place)}; allowed: aws://NAME#FIELD, aws://ARN#FIELD"
        return Spot(name, place, field)

    def _read(self, names: Iterable[str]) -> Mapping[str, Answer]:
        """Read region by region; a secret that is no ARN is in the login's own."""
        regions: dict[str | None, list[str]] = {}
        for name in names:
            regions.setdefault(_region(name), []).append(name)
        answers: dict[str, Answer] = {}
        for mine in regions.values():
            answers.update(read_all(self._batched(mine), self._ask, self._login.forget))
        return answers

    def _batched(self, names: Sequence[str]) -> list[Batch]:
        size = _MOST_AT_ONCE if self._batches else 1
        return [tuple(names[start : start + size]) for start in range(0, len(names), size)]

    def _ask(self, batch: Batch) -> Mapping[str, Answer]:
        try:
            client = self._login.client(_region(batch[0]))
        except Exception as error:
            return dict.fromkeys(batch, fault_of(error))
        if len(batch) > 1 and self._batches:
            answers = self._ask_batch(client, batch)
            if answers is not None:
                return answers
        return _ask_each(client, batch)

    def _ask_batch(self, client: Any, batch: Batch) -> Mapping[str, Answer] | None:
        """Read up to 20; None where each has to be read by itself."""
        try:
            return _pages(client, batch)
        except Exception as error:
            code = code_of(error)
            if code in _DENIED:
                self._no_batches()
                return None
            return None if code in _WHOLE_BATCH else dict.fromkeys(batch, fault_of(error))

    def _no_batches(self) -> None:
        """Go on one by one, and say so once."""
        if self._batches:
            self._batches = False
            _log.warning(
                "aws: secretsmanager:BatchGetSecretValue is denied, so secrets are read one by "
                "one; allow it (docs/stores/aws.md) to read 20 in a request"
            )


def _region(name: str) -> str | None:
    arn = _ARN.fullmatch(name)
    return arn[1] if arn else None


def _ask_each(client: Any, batch: Batch) -> dict[str, Answer]:
    """Read one by one; where nobody answers, the rest is not asked for."""
    answers: dict[str, Answer] = {}
    for name in batch:
        answer = answers[name] = _ask_one(client, name)
        if isinstance(answer, Fault) and answer.reach in (Reach.LOGIN, Reach.STORE):
            return dict.fromkeys(batch, answer) | answers
    return answers


def _ask_one(client: Any, name: str) -> Answer:
    try:
        return _stored(client.get_secret_value(SecretId=name))
    except Exception as error:
        return fault_of(error)


def _pages(client: Any, batch: Batch) -> dict[str, Answer]:
    """Read a batch to its last page; what it does not mention is left out."""
    answers: dict[str, Answer] = {}
    more: dict[str, str] = {}
    for _ in range(_MOST_PAGES):
        page = client.batch_get_secret_value(SecretIdList=list(batch), **more)
        for found in page.get("SecretValues", ()):
            answers.update((name, _stored(found)) for name in batch if _is(name, found))
        for error in page.get("Errors", ()):
            fault = fault_of_code(error.get("ErrorCode", ""), error.get("Message", ""))
            answers.setdefault(error.get("SecretId", ""), fault)
        if not page.get("NextToken"):
            break
        more = {"NextToken": page["NextToken"]}
    return answers


def _is(name: str, found: Mapping[str, Any]) -> bool:
    """Tell whether a secret is the one asked for, by name, ARN, or ARN without its suffix."""
    arn = found.get("ARN", "")
    if name in (found.get("Name"), arn):
        return True
    return arn.startswith(name) and _SUFFIX.fullmatch(arn, len(name)) is not None


def _stored(found: Mapping[str, Any]) -> str | bytes:
    text = found.get("SecretString")
    return text if isinstance(text, str) else bytes(found.get("SecretBinary", b""))
