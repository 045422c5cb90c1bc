"""Mistakes that a type checker must find: exactly the marked lines."""

import keyrot_middleware
from keyrot_middleware import KeyManager, KeyPoolExhausted

keyrot_middleware.install(stratgy="fill")  # wrong
keyrot_middleware.install(strategy="fil")  # wrong
keyrot_middleware.install(strategy=3)  # wrong
keyrot_middleware.install(max_wait_s="soon")  # wrong
keyrot_middleware.install(call_spans=3)  # wrong
keyrot_middleware.install(keys=[1])  # wrong
KeyManager(max_atempts=2)  # wrong
KeyManager(max_attempts="2")  # wrong
keyrot_middleware.stauts()  # wrong
keyrot_middleware.status()["key"]  # wrong
keyrot_middleware.status()["keys"]["a"]["avalable"]  # wrong


def why(error: KeyPoolExhausted) -> None:
    """Attributes are typed."""
    str(error.reason)  # wrong
    error.retry_at.isoformat()  # wrong
