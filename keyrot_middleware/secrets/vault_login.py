"""How a token is got from Vault: given as it is, or in exchange for something secret."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .base import Secret
from .vault_faults import Fault, Kind
from .vault_settings import Login, Source, VaultSettings
from .vault_wire import Line

__all__ = ["Identity", "log_in", "renew"]

_RENEW_AFTER = 2 / 3
"""The part of a token's life after which it is renewed, as Vault's own agent does."""
_GOOD_PART = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Identity:
    """A token, and what is known of it.

    Attributes:
        name: For people: the role or the accessor, never the token.
        renew_at: On the monotonic clock, in seconds; None: it does not expire, or nobody knows.
        over_at: When it is no token any more.
    """

    token: Secret
    name: str
    renewable: bool = False
    renew_at: float | None = None
    over_at: float | None = None

    def lasting(self, asked_at: float, seconds: float, *, renewable: bool) -> Identity:
        """Give the same for so many more seconds; 0: for ever."""
        if seconds <= 0:
            return replace(self, renewable=False, renew_at=None, over_at=None)
        renew_at, over_at = asked_at + seconds * _RENEW_AFTER, asked_at + seconds
        return replace(self, renewable=renewable, renew_at=renew_at, over_at=over_at)


def log_in(settings: VaultSettings, clock: Callable[[], float]) -> Identity | Fault:
    """Get a token the way that the settings name; files are read now."""
    login = settings.login
    parts: dict[str, Secret] = {}
    for name, source in login.parts.items():
        value = _read(source)
        if isinstance(value, Fault):
            return value
        parts[name] = value
    if login.mount is None:
        return _take(settings, clock(), parts["token"], login.parts["token"].name)
    return _exchange(settings, clock(), parts)


def renew(settings: VaultSettings, clock: Callable[[], float], held: Identity) -> Identity | Fault:
    """Have the life of a token made longer."""
    asked_at = clock()
    with Line(settings, held.token) as line:
        answer = line.post("auth/token/renew-self", {})
    if isinstance(answer, Fault):
        return answer
    return _lasting(held, asked_at, answer.get("auth") or {}, "lease_duration")


def _take(settings: VaultSettings, asked_at: float, token: Secret, source: str) -> Identity | Fault:
    """Look a given token up: when does it end, and what is its accessor?"""
    with Line(settings, token) as line:
        answer = line.get("auth/token/lookup-self")
    if isinstance(answer, Fault):
        if answer.kind is not Kind.DENIED:
            return answer
        # A policy may forbid just this, so the token is tried all the same.
        why = "wrong, expired, revoked, or without the policy default"
        return Identity(token, f"the token in {source} ({why}: Vault tells nothing of it)")
    data = answer.get("data") or {}
    name = f"the token in {source} (accessor {data.get('accessor')})"
    return _lasting(Identity(token, name), asked_at, data, "ttl")


def _exchange(
    settings: VaultSettings, asked_at: float, parts: Mapping[str, Secret]
) -> Identity | Fault:
    """Give the parts of a login away for a token."""
    login = settings.login
    body = {name: value.reveal() for name, value in parts.items()}
    masked = tuple(body.values())
    if login.role:
        body["role"] = login.role
    with Line(settings) as line:
        answer = line.post(f"auth/{login.mount}/login", body, masked)
    if isinstance(answer, Fault):
        return _login_failed(answer, login)
    auth = answer.get("auth") or {}
    if not isinstance(auth.get("client_token"), str):
        return Fault(Kind.REFUSED, f"the {login.name} login at auth/{login.mount} gave no token")
    role = login.role or (auth.get("metadata") or {}).get("role_name") or "(unnamed)"
    name = f"the {login.name} role {role} (token accessor {auth.get('accessor')})"
    token = Secret(auth["client_token"])
    return _lasting(Identity(token, name), asked_at, auth, "lease_duration")


def _lasting(known: Identity, asked_at: float, told: Mapping[str, Any], field: str) -> Identity:
    seconds = told.get(field)
    return known.lasting(
        asked_at,
        float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e9 else 0,
        renewable=told.get("renewable") is True,
    )


def _login_failed(fault: Fault, login: Login) -> Fault:
    if fault.kind is Kind.DOWN:
        return fault
    role = f" as {login.role}" if login.role else ""
    sources = " and ".join(source.name for source in login.parts.values())
    return Fault(
        Kind.REFUSED,
        f"the {login.name} login{role} at auth/{login.mount} failed: {fault.text}; is the method "
        f"mounted there (VAULT_AUTH_MOUNT), and are {sources} right?",
    )


def _read(source: Source) -> Secret | Fault:
    """Give a part of the login; its value is in no message."""
    value = source.value
    if source.path is not None:
        try:
            value = Secret(source.path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            return _unread(source, why)
    if value is None or not _GOOD_PART.fullmatch(value.reveal()):
        why = "it holds a blank or a character that is not ASCII" if value else "it is empty"
        return Fault(Kind.REFUSED, f"{source.name} is no good: {why}")
    return value


def _unread(source: Source, why: str) -> Fault:
    text = f"{source.name} cannot be read: {why}"
    if source.name.endswith("/.vault-token"):
        text += (
            "; say who this program is: VAULT_TOKEN, VAULT_TOKEN_FILE, VAULT_ROLE_ID with "
            "VAULT_SECRET_ID, VAULT_K8S_ROLE, or VAULT_JWT_ROLE with VAULT_JWT"
        )
    return Fault(Kind.REFUSED, text)
