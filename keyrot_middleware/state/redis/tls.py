"""What a Redis URL says of TLS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["TLS_OPTIONS", "of_tls", "unreadable", "wrong_tls"]

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CERT_REQS = ("required", "optional", "none")
TLS_OPTIONS = (*_FILES, "ssl_cert_reqs")


def of_tls(options: Mapping[str, Any]) -> dict[str, Any]:
    """Pick what sentinels need as well as data servers."""
    return {name: value for name, value in options.items() if name in TLS_OPTIONS}


def wrong_tls(options: Mapping[str, Any], *, tls: bool) -> str | None:
    """Tell what does not fit together; None where all is well."""
    given = of_tls(options)
    if given and not tls:
        return f"its option {next(iter(given))} is for TLS, which has rediss:// in the scheme"
    checks = given.get("ssl_cert_reqs", "required")
    if checks not in _CERT_REQS:
        return f"ssl_cert_reqs is {checks[:40]!r}, and may be {', '.join(_CERT_REQS)}"
    if "ssl_keyfile" in given and "ssl_certfile" not in given:
        return "ssl_keyfile needs ssl_certfile"
    return None


def unreadable(options: Mapping[str, Any]) -> str | None:
    """Tell which file cannot be read, and why; None where all can."""
    for name in _FILES:
        if name in options:
            try:
                with Path(options[name]).open("rb") as file:
                    file.read(1)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                return f"{name} cannot be read: {options[name]!r}: {why}"
    return None
