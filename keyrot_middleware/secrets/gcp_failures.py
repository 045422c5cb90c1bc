"""What a failure of Secret Manager or google-auth means, in words for people.

Codes: google.rpc.Code and the reasons of google.rpc.ErrorInfo. Of an answer's message nothing is
passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .fault import Fault, Reach

__all__ = ["fault_of", "fault_of_answer"]

_WORD = re.compile(r"\w{1,60}", re.ASCII)

_REASONS: Mapping[str, str] = {
    "SERVICE_DISABLED": (
        "the Secret Manager API is not enabled in the project: gcloud services enable "
        "secretmanager.googleapis.com"
    ),
    "BILLING_DISABLED": "the project has no billing account, which Secret Manager needs",
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT": (
        "the login of {who} has not the scope cloud-platform: give the machine that scope"
    ),
}
_STATUS: Mapping[int, tuple[Reach, str]] = {
    400: (
        Reach.HERE,
        "it cannot be read ({code}): is its version disabled or destroyed? add a new version",
    ),
    401: (
        Reach.LOGIN,
        "the login of {who} is no longer taken ({code}): gcloud auth application-default login, "
        "or a new credentials file",
    ),
    403: (
        Reach.HERE,
        "access denied to {who}, or there is no such secret: give it the role "
        "roles/secretmanager.secretAccessor on the secret",
    ),
    404: (Reach.HERE, "there is no such secret in this project, or it has no version"),
    429: (Reach.BUSY, "Secret Manager is busy ({code}); it is asked again at the next refresh"),
}
_FAILED = Reach.BUSY, "Secret Manager failed ({code}); it is asked again at the next refresh"
_OTHER = Reach.HERE, "Secret Manager refused ({code})"

_UNREACHED = (
    "Secret Manager cannot be reached ({}): see the network, and "
    "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER if it is set"
)
_NO_LOGIN = (
    "no Google login was found: set GOOGLE_APPLICATION_CREDENTIALS to a file that is there, or "
    "gcloud auth application-default login, or give this machine a service account"
)
_LOGIN = (
    "the login at Google failed ({}): gcloud auth application-default login, or a new "
    "credentials file"
)
_CUT_OFF = "ProtocolError"
"""urllib3's, inside requests' own: a kept connection that the server has closed meanwhile."""
# Of google.auth.exceptions and requests.exceptions; the nearest class above counts.
_CLASSES: Mapping[str, tuple[Reach, str]] = {
    "DefaultCredentialsError": (Reach.STORE, _NO_LOGIN),
    "RefreshError": (Reach.LOGIN, _LOGIN),
    "TransportError": (Reach.STORE, "Google's login cannot be reached ({}): see the network"),
    "GoogleAuthError": (Reach.STORE, _LOGIN),
    "SSLError": (
        Reach.STORE,
        "the server's certificate is not trusted ({}): set REQUESTS_CA_BUNDLE to the authority's "
        "file",
    ),
    "RequestException": (Reach.STORE, _UNREACHED),
    "JSONDecodeError": (Reach.BUSY, "the answer is not what Secret Manager sends ({})"),
}


def fault_of(error: Exception) -> Fault:
    """Say what an exception of google-auth or requests means."""
    cause = type(error.args[0]).__name__ if error.args else ""
    names = [kind.__name__ for kind in type(error).__mro__]
    if cause == _CUT_OFF:
        return Fault(Reach.BUSY, _UNREACHED.format(cause))
    known = next((_CLASSES[name] for name in names if name in _CLASSES), None)
    reach, words = known or (Reach.HERE, "reading it failed with {}")
    return Fault(reach, words.format(_oauth_error(error) or names[0]))


def fault_of_answer(response: Any, who: str) -> Fault:
    """Say what an answer other than 200 means for *who* asked."""
    status = int(response.status_code)
    found = _error(response)
    for reason in _reasons(found):
        if reason in _REASONS:
            return Fault(Reach.HERE, _REASONS[reason].format(who=who))
    reach, words = _STATUS.get(status, _FAILED if status >= 500 else _OTHER)
    code = str(found.get("status", ""))
    return Fault(reach, words.format(code=code if _WORD.fullmatch(code) else status, who=who))


def _error(response: Any) -> dict[str, Any]:
    try:
        found = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _reasons(error: Mapping[str, Any]) -> list[str]:
    details = error.get("details")
    there = details if isinstance(details, list) else []
    return [str(detail.get("reason", "")) for detail in there if isinstance(detail, dict)]


def _oauth_error(error: Exception) -> str:
    """Give the code of a token endpoint's refusal, such as `invalid_grant`."""
    answers = (part for part in error.args if isinstance(part, dict))
    code = next((str(answer.get("error", "")) for answer in answers), "")
    return code if _WORD.fullmatch(code) else ""
