"""What a failure of Secrets Manager or boto3 means, in words for people.

Codes: the Secrets Manager API reference, and "Common Error Types". The messages of AWS name
the caller and the resource, and no value; still nothing of them is passed on but the ARN of the
caller, since messages of credential helpers may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .fault import Fault, Reach

__all__ = ["code_of", "fault_of", "fault_of_code"]

_CALLER = re.compile(r"\b(arn:aws[a-z-]*:(?:iam|sts)::\d{12}:[\w/+=,.@:-]+)", re.ASCII)

_GRANT = "allow secretsmanager:GetSecretValue on it, and kms:Decrypt if it has a key of its own"
_LOGIN = "the credentials are no longer taken ({}): renew them (aws sso login, a new access key)"
_BUSY = Reach.BUSY, "Secrets Manager is busy or failed ({}); it is asked again at the next refresh"

_CODES: Mapping[str, tuple[Reach, str]] = {
    "ResourceNotFoundException": (
        Reach.HERE,
        "there is no such secret in this region and account, or it has no current version",
    ),
    "AccessDeniedException": (Reach.HERE, f"access denied to {{who}}: {_GRANT}"),
    "DecryptionFailure": (
        Reach.HERE,
        "KMS does not decrypt it for {who}: allow kms:Decrypt on its key, and see that the key "
        "is enabled",
    ),
    "InvalidRequestException": (
        Reach.HERE,
        "it cannot be read as it is now; is it scheduled for deletion? (aws secretsmanager "
        "restore-secret)",
    ),
    "InvalidParameterException": (Reach.HERE, "Secrets Manager takes this for no name or ARN"),
    "ValidationException": (Reach.HERE, "Secrets Manager takes this for no name or ARN"),
    "ExpiredTokenException": (Reach.LOGIN, _LOGIN),
    "UnrecognizedClientException": (Reach.LOGIN, _LOGIN),
    "InvalidSignatureException": (
        Reach.LOGIN,
        "the credentials are not taken ({}): a wrong secret access key, or this host's clock is "
        "off",
    ),
    "IncompleteSignature": (Reach.STORE, "the credentials are not complete ({})"),
    "OptInRequired": (Reach.STORE, "this account may not use Secrets Manager here ({})"),
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
_UNREACHED = "Secrets Manager cannot be reached ({}): see the network, AWS_REGION, AWS_ENDPOINT_URL"

# LOGIN also where there was none: botocore remembers that, and a later look-up is to find it.
# Of botocore and, where a class is not named, of the nearest class above it.
_CLASSES: Mapping[str, tuple[Reach, str]] = {
    "NoCredentialsError": (Reach.LOGIN, _NO_LOGIN),
    "PartialCredentialsError": (Reach.LOGIN, "half of the AWS credentials is not set ({})"),
    "CredentialRetrievalError": (Reach.LOGIN, _LOGIN_HELPER),
    "MetadataRetrievalError": (Reach.LOGIN, _LOGIN_HELPER),
    "TokenRetrievalError": (Reach.LOGIN, _LOGIN_HELPER),
    "UnauthorizedSSOTokenError": (Reach.LOGIN, _LOGIN_HELPER),
    "SSOError": (Reach.LOGIN, _LOGIN_HELPER),
    "NoRegionError": (Reach.STORE, "no AWS region is set: set AWS_REGION, or write the ARN"),
    "ProfileNotFound": (Reach.LOGIN, "AWS_PROFILE names a profile that ~/.aws does not have"),
    "ConfigParseError": (Reach.LOGIN, "a file in ~/.aws cannot be read ({})"),
    "InvalidRegionError": (Reach.STORE, "AWS_REGION is no name of a region"),
    "SSLError": (
        Reach.STORE,
        "the server's certificate is not trusted ({}): set AWS_CA_BUNDLE to the authority's file",
    ),
    # A kept connection that the server has closed meanwhile.
    "ConnectionClosedError": (Reach.BUSY, _UNREACHED),
    "ConnectionError": (Reach.STORE, _UNREACHED),
    "HTTPClientError": (Reach.STORE, _UNREACHED),
    "ParamValidationError": (Reach.HERE, "boto3 takes this for no name or ARN"),
    "ValueError": (Reach.STORE, "AWS_ENDPOINT_URL is no URL"),
}


def code_of(error: Exception) -> str:
    """Give AWS's error code; empty where the failure is none of AWS's answers."""
    response = getattr(error, "response", None)
    found: Any = response.get("Error", {}) if isinstance(response, dict) else {}
    return str(found.get("Code", ""))


def fault_of(error: Exception) -> Fault:
    """Say what an exception of boto3 means."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return _fault_of_class(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return fault_of_code(code_of(error), str(response.get("Error", {}).get("Message", "")), status)


def fault_of_code(code: str, message: str, status: int = 0) -> Fault:
    """Say what an error code means; *message* is searched for the caller's ARN only."""
    name = _ALIASES.get(code, code)
    if name not in _CODES and status >= 500:
        name = "ThrottlingException"
    known = _CODES.get(name, (Reach.HERE, "Secrets Manager refused ({})"))
    reach, words = known
    caller = _CALLER.search(message)
    who = caller[1].rstrip(".,:") if caller else "these credentials"
    return Fault(reach, words.format(_code(code), who=who))


def _code(code: str) -> str:
    return code if re.fullmatch(r"\w{1,60}", code, re.ASCII) else "unknown code"


def _fault_of_class(error: Exception) -> Fault:
    names = (kind.__name__ for kind in type(error).__mro__)
    known = next((_CLASSES[name] for name in names if name in _CLASSES), None)
    reach, words = known or (Reach.HERE, "reading it failed with {}")
    return Fault(reach, words.format(type(error).__name__))
