"""Which secret stores there are, by scheme: those of this package, and those that plug in.

A distribution plugs one in by an entry point of the group `keyrot_middleware.secret_stores`: its
name is the scheme, its value a callable that takes the environment and gives a `SecretStore`.
Entry points are read only where a scheme is not one of ours, since that reads files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

__all__ = [
    "BUILT_STORES",
    "GROUP",
    "known",
    "plugged_in",
    "readable_from_file",
    "steers_an_sdk",
]

GROUP = "keyrot_middleware.secret_stores"

BUILT_STORES = ("env", "vault", "aws", "azure", "gcp", "file")

# A `.env` may come with a directory that somebody else made. So it says where keys are and, in
# itself, who may read them; it runs no program, sends no SDK to another server, and makes no other
# authority trusted.
_FROM_FILE: Mapping[str, frozenset[str]] = {
    "vault": frozenset(
        {
            *("VAULT_ADDR", "VAULT_NAMESPACE", "VAULT_AUTH_MOUNT", "VAULT_CLIENT_TIMEOUT"),
            *("VAULT_TOKEN", "VAULT_TOKEN_FILE"),
            *("VAULT_ROLE_ID", "VAULT_ROLE_ID_FILE", "VAULT_SECRET_ID", "VAULT_SECRET_ID_FILE"),
            *("VAULT_K8S_ROLE", "VAULT_K8S_TOKEN_FILE"),
            *("VAULT_JWT_ROLE", "VAULT_JWT", "VAULT_JWT_FILE"),
            *("VAULT_CACERT", "VAULT_CAPATH", "VAULT_CLIENT_CERT", "VAULT_CLIENT_KEY"),
            *("VAULT_SKIP_VERIFY", "KEYROT_VAULT_ALLOW_HTTP", "KEYROT_VAULT_PLACE"),
        }
    ),
    "aws": frozenset(
        {
            *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
            *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
            "KEYROT_AWS_SECRET",
        }
    ),
    "azure": frozenset(
        {
            *("AZURE_KEY_VAULT_URL", "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"),
        }
    ),
    "gcp": frozenset(
        {"GOOGLE_CLOUD_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS", "KEYROT_GCP_SECRET"}
    ),
    "file": frozenset({"CREDENTIALS_DIRECTORY"}),
}
_STEERING: Mapping[str, re.Pattern[str]] = {
    "aws": re.compile(
        r"AWS_(?:CONFIG_FILE|SHARED_CREDENTIALS_FILE|CA_BUNDLE|ENDPOINT_URL(?:_\w+)?"
        r"|WEB_IDENTITY_TOKEN_FILE|ROLE_ARN|CONTAINER_\w+|EC2_METADATA_\w+|USE_\w+_ENDPOINT)"
    ),
    "azure": re.compile(
        r"AZURE_(?:AUTHORITY_HOST|FEDERATED_TOKEN_FILE|TOKEN_CREDENTIALS|CLIENT_CERTIFICATE_\w+)"
    ),
    "gcp": re.compile(r"CLOUDSDK_\w+|GCE_METADATA_\w+|GOOGLE_EXTERNAL_ACCOUNT_\w+"),
}


def readable_from_file(scheme: str, name: str) -> bool:
    """Tell whether `.env` may set a variable of a store; a store that plugs in decides itself."""
    return scheme not in _FROM_FILE or name in _FROM_FILE[scheme]


def steers_an_sdk(scheme: str, name: str) -> bool:
    """Tell whether a variable steers the SDK under a store, so that it is not read from `.env`."""
    return scheme in _STEERING and _STEERING[scheme].fullmatch(name) is not None


def plugged_in() -> dict[str, EntryPoint]:
    """Find the stores of other distributions, by scheme; ours cannot be replaced."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    return {name: point for name, point in found.items() if name not in BUILT_STORES}


def known(scheme: str) -> bool:
    """Tell whether there is a store of that scheme."""
    return scheme in BUILT_STORES or scheme in plugged_in()
