"""Secrets in AWS Secrets Manager, read with boto3: docs/stores/aws.md."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.text import display
from ..errors import SecretError
from .base import Secret
from .cloud import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    Answer,
    Batch,
    FailureReach,
    SecretRef,
    StoreFailure,
    extract_key,
    find_by_class,
    quiet_loggers,
    read_batches,
    require_extra,
    resolve_refs,
    split_field,
)

__all__ = [
    "DEFAULT_SECRET",
    "LIBRARY_LOGGERS",
    "SECRET_VARIABLE",
    "AwsLogin",
    "AwsStore",
    "failure_from_error",
    "open_aws",
]

# What a failure of Secrets Manager or boto3 means ------------------------------------------------
#
# Codes: the Secrets Manager API reference, and "Common Error Types". Of AWS's messages only the
# ARN of the caller is quoted, since messages of credential helpers may hold anything.


_CALLER = re.compile(r"\b(arn:aws[a-z-]*:(?:iam|sts)::\d{12}:[\w/+=,.@:-]+)", re.ASCII)
_WORD = re.compile(r"\w{1,60}", re.ASCII)

_GRANT = "allow secretsmanager:GetSecretValue on it, and kms:Decrypt if it has a key of its own"
_LOGIN = "the credentials are no longer taken ({}): renew them (aws sso login, a new access key)"
_BUSY = (
    FailureReach.REQUEST,
    "Secrets Manager is busy or failed ({}); it is asked again at the next refresh",
)

_CODES: Mapping[str, tuple[FailureReach, str]] = {
    "ResourceNotFoundException": (
        FailureReach.SECRET,
        "there is no such secret in this region and account, or it has no current version",
    ),
    "AccessDeniedException": (FailureReach.SECRET, f"access denied to {{who}}: {_GRANT}"),
    "DecryptionFailure": (
        FailureReach.SECRET,
        "KMS does not decrypt it for {who}: allow kms:Decrypt on its key, and see that the key "
        "is enabled",
    ),
    "InvalidRequestException": (
        FailureReach.SECRET,
        "it cannot be read as it is now; is it scheduled for deletion? (aws secretsmanager "
        "restore-secret)",
    ),
    "InvalidParameterException": (
        FailureReach.SECRET,
        "Secrets Manager takes this for no name or ARN",
    ),
    "ValidationException": (FailureReach.SECRET, "Secrets Manager takes this for no name or ARN"),
    "ExpiredTokenException": (FailureReach.LOGIN, _LOGIN),
    "UnrecognizedClientException": (FailureReach.LOGIN, _LOGIN),
    "InvalidSignatureException": (
        FailureReach.LOGIN,
        "the credentials are not taken ({}): a wrong secret access key, or this host's clock is "
        "off",
    ),
    "IncompleteSignature": (FailureReach.STORE, "the credentials are not complete ({})"),
    "OptInRequired": (FailureReach.STORE, "this account may not use Secrets Manager here ({})"),
    "ThrottlingException": _BUSY,
}
_ALIASES: Mapping[str, str] = {
    "AccessDenied": "AccessDeniedException",
    "403": "AccessDeniedException",
    "ExpiredToken": "ExpiredTokenException",
    "RequestExpired": "ExpiredTokenException",
    "InvalidClientTokenId": "UnrecognizedClientException",
    "MissingAuthenticationTokenException": "UnrecognizedClientException",
    "SignatureDoesNotMatch": "InvalidSignatureException",
    "Throttling": "ThrottlingException",
    "TooManyRequestsException": "ThrottlingException",
    "RequestLimitExceeded": "ThrottlingException",
    "InternalServiceError": "ThrottlingException",
    "InternalFailure": "ThrottlingException",
    "ServiceUnavailable": "ThrottlingException",
}

_NO_LOGIN = (
    "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
    "AWS_PROFILE, or give this machine a role"
)
_LOGIN_HELPER = "the AWS login failed ({}): log in again (aws sso login), or see ~/.aws/config"
_UNREACHABLE = (
    "Secrets Manager cannot be reached ({}): see the network, AWS_REGION, AWS_ENDPOINT_URL"
)

# Exceptions of botocore. No login counts as LOGIN too: botocore remembers that there was none, so
# the session is made again for the next look-up.
_CLASSES: Mapping[str, tuple[FailureReach, str]] = {
    "NoCredentialsError": (FailureReach.LOGIN, _NO_LOGIN),
    "PartialCredentialsError": (FailureReach.LOGIN, "half of the AWS credentials is not set ({})"),
    "CredentialRetrievalError": (FailureReach.LOGIN, _LOGIN_HELPER),
    "MetadataRetrievalError": (FailureReach.LOGIN, _LOGIN_HELPER),
    "TokenRetrievalError": (FailureReach.LOGIN, _LOGIN_HELPER),
    "UnauthorizedSSOTokenError": (FailureReach.LOGIN, _LOGIN_HELPER),
    "SSOError": (FailureReach.LOGIN, _LOGIN_HELPER),
    "NoRegionError": (FailureReach.STORE, "no AWS region is set: set AWS_REGION, or write the ARN"),
    "ProfileNotFound": (
        FailureReach.LOGIN,
        "AWS_PROFILE names a profile that ~/.aws does not have",
    ),
    "ConfigParseError": (FailureReach.LOGIN, "a file in ~/.aws cannot be read ({})"),
    "InvalidRegionError": (FailureReach.STORE, "AWS_REGION is no name of a region"),
    "SSLError": (
        FailureReach.STORE,
        "the server's certificate is not trusted ({}): set AWS_CA_BUNDLE to the authority's file",
    ),
    # A kept connection that the server has closed meanwhile.
    "ConnectionClosedError": (FailureReach.REQUEST, _UNREACHABLE),
    "ConnectionError": (FailureReach.STORE, _UNREACHABLE),
    "HTTPClientError": (FailureReach.STORE, _UNREACHABLE),
    "ParamValidationError": (FailureReach.SECRET, "boto3 takes this for no name or ARN"),
    "ValueError": (FailureReach.STORE, "AWS_ENDPOINT_URL is no URL"),
}


def error_code(error: Exception) -> str:
    """Return AWS's error code; empty if AWS did not answer."""
    response = getattr(error, "response", None)
    found: Any = response.get("Error", {}) if isinstance(response, dict) else {}
    return str(found.get("Code", ""))


def failure_from_error(error: Exception) -> StoreFailure:
    """Return what an exception of boto3 means."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        reach, message = find_by_class(error, _CLASSES)
        return StoreFailure(reach, message.format(type(error).__name__))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return failure_from_code(
        error_code(error), str(response.get("Error", {}).get("Message", "")), status
    )


def failure_from_code(code: str, message: str, status: int = 0) -> StoreFailure:
    """Return what an error code means; *message* is searched for the caller's ARN only."""
    name = _ALIASES.get(code, code)
    if name not in _CODES and status >= 500:
        name = "ThrottlingException"
    reach, text = _CODES.get(name, (FailureReach.SECRET, "Secrets Manager refused ({})"))
    caller = _CALLER.search(message)
    who = caller[1].rstrip(".,:") if caller else "these credentials"
    return StoreFailure(
        reach, text.format(code if _WORD.fullmatch(code) else "unknown code", who=who)
    )


# boto3's clients, made at the first read, which is when credentials are looked for --------------


# Settings that botocore takes from os.environ alone; this store takes them from its own settings.
_VARIABLES = {
    "profile": ("AWS_DEFAULT_PROFILE", "AWS_PROFILE"),
    "config_file": ("AWS_CONFIG_FILE",),
    "credentials_file": ("AWS_SHARED_CREDENTIALS_FILE",),
    "ca_bundle": ("AWS_CA_BUNDLE",),
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


class AwsLogin:
    """The standard credential chain, and a client per region; safe from several threads."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Do not connect yet; keys_file.py says which settings `.env` may contain."""
        self._environ = environ
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[str | None, Any] = {}

    def client(self, region: str | None = None) -> Any:
        """Return the Secrets Manager client of a region; None: the region of the settings.

        Raises:
            botocore.exceptions.BotoCoreError: No region is set, a profile does not exist.
        """
        with self._lock:
            if region not in self._clients:
                self._session = self._session or self._open_session()
                self._clients[region] = self._connect(region)
            return self._clients[region]

    def forget(self) -> None:
        """Read the credentials again at the next request."""
        with self._lock:
            self._session = None
            self._clients.clear()

    def _open_session(self) -> Any:
        import botocore.session  # noqa: PLC0415 - open_aws has imported it
        from botocore.credentials import EnvProvider  # noqa: PLC0415

        session = botocore.session.Session()
        for name, variables in _VARIABLES.items():
            value = _first(self._environ, variables)
            if value and not _first(os.environ, variables):
                session.set_config_variable(name, value)
        chain = session.get_component("credential_provider")
        chain.providers.insert(0, EnvProvider(self._environ))
        return session

    def _connect(self, region: str | None) -> Any:
        from botocore.config import Config  # noqa: PLC0415

        return self._session.create_client(
            "secretsmanager",
            region_name=region or _first(self._environ, _REGIONS) or None,
            endpoint_url=_first(self._environ, _ENDPOINTS) or None,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                # cloud.read_batches retries.
                retries={"total_max_attempts": 1, "mode": "standard"},
            ),
        )


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")


DEFAULT_SECRET = "keyrot"
SECRET_VARIABLE = "KEYROT_AWS_SECRET"
"""Name or ARN of the JSON secret with the keys that have no place."""

_BATCH_SIZE = 20
"""Secrets in one BatchGetSecretValue: the service's limit for SecretIdList."""
_MAX_PAGES = 20
_SCHEME = "aws://"
_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:([a-z0-9-]+):\d{12}:secret:([\w/+=.@-]+)")
_NAME = re.compile(r"[\w/+=.@-]{1,512}", re.ASCII)
_SUFFIX = re.compile(r"-[A-Za-z0-9]{6}")
"""Secrets Manager appends it to a name in an ARN; a place may omit it."""
_WHOLE_BATCH = frozenset({"InvalidParameterException", "InvalidRequestException"})
"""Codes of one secret that fail a whole batch: each is then read on its own."""
_DENIED = frozenset({"AccessDeniedException", "AccessDenied", "403"})
LIBRARY_LOGGERS = tuple(
    f"botocore.{name}" for name in ("auth", "endpoint", "hooks", "parsers", "utils")
)
"""Loggers whose DEBUG lines hold whole responses, signatures and session tokens."""

_log = logging.getLogger("keyrot_middleware")


def open_aws(environ: Mapping[str, str]) -> AwsStore:
    """Open the store; nothing is read or connected yet.

    Args:
        environ: Settings: `AWS_*` as boto3 knows them, and `KEYROT_AWS_SECRET`.

    Raises:
        MissingExtraError: boto3 is not installed.
    """
    require_extra("aws", {"boto3": "boto3"})
    quiet_loggers(*LIBRARY_LOGGERS)
    return AwsStore(AwsLogin(environ), environ.get(SECRET_VARIABLE) or DEFAULT_SECRET)


class AwsStore:
    """Reads keys at `aws://NAME-or-ARN#field`, or in the field with their id of one JSON secret.

    Always the version AWSCURRENT.
    """

    scheme = "aws"

    def __init__(self, login: AwsLogin, default: str = DEFAULT_SECRET) -> None:
        """Read with a login; *default* is the name or ARN of the JSON secret."""
        self._login = login
        self._default = default
        self._batches = True

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up: one secret on its own, several 20 in a request."""
        return resolve_refs(refs, self._parse_ref, self._read, extract_key)

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{_SCHEME}{self._default}#{key_id}"

    def _parse_ref(self, key_id: str, ref: str | None) -> SecretRef | str:
        place = ref or self.place(key_id)
        name, field = split_field(place.removeprefix(_SCHEME))
        if field == "" or not (_ARN.fullmatch(name) or _NAME.fullmatch(name)):
            return f"found the place {display(place)}; allowed: aws://NAME#FIELD, aws://ARN#FIELD"
        return SecretRef(name, place, field)

    def _read(self, names: Iterable[str]) -> Mapping[str, Answer]:
        """Read region by region; a name that is not an ARN is in the login's region."""
        regions: dict[str | None, list[str]] = {}
        for name in names:
            regions.setdefault(_region(name), []).append(name)
        answers: dict[str, Answer] = {}
        for mine in regions.values():
            answers.update(read_batches(self._batched(mine), self._read_batch, self._login.forget))
        return answers

    def _batched(self, names: Sequence[str]) -> list[Batch]:
        size = _BATCH_SIZE if self._batches else 1
        return [tuple(names[start : start + size]) for start in range(0, len(names), size)]

    def _read_batch(self, batch: Batch) -> Mapping[str, Answer]:
        try:
            client = self._login.client(_region(batch[0]))
        except Exception as error:
            return dict.fromkeys(batch, failure_from_error(error))
        if len(batch) > 1 and self._batches:
            answers = self._read_together(client, batch)
            if answers is not None:
                return answers
        return _read_each(client, batch)

    def _read_together(self, client: Any, batch: Batch) -> Mapping[str, Answer] | None:
        """Read up to 20; None: each has to be read on its own."""
        try:
            return _pages(client, batch)
        except Exception as error:
            code = error_code(error)
            if code in _WHOLE_BATCH:
                return None
            if code not in _DENIED:
                return dict.fromkeys(batch, failure_from_error(error))
        if self._batches:
            self._batches = False
            _log.warning(
                "aws: secretsmanager:BatchGetSecretValue is denied, so secrets are read one by "
                "one; allow it (docs/stores/aws.md) to read 20 in a request"
            )
        return None


def _region(name: str) -> str | None:
    arn = _ARN.fullmatch(name)
    return arn[1] if arn else None


def _read_each(client: Any, batch: Batch) -> dict[str, Answer]:
    """Read one by one; stop at a failure of the login or of the whole store."""
    answers: dict[str, Answer] = {}
    for name in batch:
        answer = answers[name] = _read_one(client, name)
        if isinstance(answer, StoreFailure) and answer.reach in (
            FailureReach.LOGIN,
            FailureReach.STORE,
        ):
            return dict.fromkeys(batch, answer) | answers
    return answers


def _read_one(client: Any, name: str) -> Answer:
    try:
        return _secret_value(client.get_secret_value(SecretId=name))
    except Exception as error:
        return failure_from_error(error)


def _pages(client: Any, batch: Batch) -> dict[str, Answer]:
    """Read a batch to its last page; secrets that it does not mention are left out."""
    answers: dict[str, Answer] = {}
    more: dict[str, str] = {}
    for _ in range(_MAX_PAGES):
        page = client.batch_get_secret_value(SecretIdList=list(batch), **more)
        for found in page.get("SecretValues", ()):
            answers.update((name, _secret_value(found)) for name in batch if _matches(name, found))
        for error in page.get("Errors", ()):
            failure = failure_from_code(error.get("ErrorCode", ""), error.get("Message", ""))
            answers.setdefault(error.get("SecretId", ""), failure)
        if not page.get("NextToken"):
            break
        more = {"NextToken": page["NextToken"]}
    return answers


def _matches(name: str, found: Mapping[str, Any]) -> bool:
    """Return whether a secret has this name, ARN, or ARN without its suffix."""
    arn = found.get("ARN", "")
    if name in (found.get("Name"), arn):
        return True
    return arn.startswith(name) and _SUFFIX.fullmatch(arn, len(name)) is not None


def _secret_value(found: Mapping[str, Any]) -> str | bytes:
    text = found.get("SecretString")
    return text if isinstance(text, str) else bytes(found.get("SecretBinary", b""))
