"""What the tests of the stores share: ask, and search what was said for values."""

from __future__ import annotations

import traceback
from collections.abc import Iterable

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret, SecretStore

__all__ = ["ask", "ask_all", "told"]


def ask_all(store: SecretStore, **refs: str | None) -> dict[str, str]:
    """Give the value of each key, or the words of its error."""
    found = store.resolve(refs)
    assert found.keys() == refs.keys()
    return {k: v.reveal() if isinstance(v, Secret) else str(v) for k, v in found.items()}


def ask(store: SecretStore, ref: str | None = None, key_id: str = "a") -> str:
    """Give the value of one key, or the words of its error."""
    return ask_all(store, **{key_id: ref})[key_id]


def told(stores: Iterable[SecretStore], refs: dict[str, str | None]) -> str:
    """Ask several stores; give all that can be printed of them and of what they answer."""
    said = []
    for store in stores:
        found = store.resolve(refs)
        said += [repr(store), repr(vars(store)), repr(found)]
        errors = [answer for answer in found.values() if isinstance(answer, SecretError)]
        said += [line for error in errors for line in traceback.format_exception(error)]
        assert [e for e in errors if e.__cause__ or e.__context__] == []
    return "\n".join(said)
