"""Secrets, and the stores that keep them.

`__all__` is what the author of another store needs (docs/secrets.md); the rest is the pool's.
"""

from .remote import RemoteStore, Stored, Unreadable
from .secret import PlainText as PlainText
from .secret import Secret, SecretStore

__all__ = ["RemoteStore", "Secret", "SecretStore", "Stored", "Unreadable"]
