"""A store as the ring asks it: in threads of its own, and again when it is time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ..core.text import mask_keys
from ..errors import KeyrotError, SecretError
from .base import Secret, SecretStore
from .lanes import Lane, Ticket
from .rota import Rota

__all__ = ["Answers", "Source"]

Answers = dict[str, Secret | SecretError]


class Source:
    """One store of a ring."""

    def __init__(
        self,
        store: SecretStore,
        enter: Callable[[Source, Ticket, Answers], None],
        idle: Callable[[], None],
        rota: Callable[[], Rota],
    ) -> None:
        """Ask nothing yet.

        Args:
            store: Whom to ask.
            enter: Takes each answer, in the thread in which it came.
            idle: Called when it has answered all that was asked.
            rota: Makes a plan of when to ask again.
        """
        self.store = store
        self.told = False
        """That a key of it has no current value was said, and not yet that all have one again."""
        self._enter = enter
        self._new_rota = rota
        self._instant = bool(getattr(store, "instant", False))
        name = f"keyrot-secrets-{store.scheme}"
        self._lane = Lane(self._answer, idle, name)
        self._urgent = Lane(self._answer, idle, f"{name}-urgent")
        self.rota = rota()

    @property
    def fixed(self) -> bool:
        """Tell whether asking again by the clock is of no use."""
        return bool(getattr(self.store, "fixed", False))

    @property
    def busy(self) -> bool:
        """Tell whether it is being asked, other than urgently."""
        return self._lane.busy

    def ask(
        self, refs: Mapping[str, str | None], *, urgent: bool = False, takers: int = 0
    ) -> Ticket:
        """Ask for keys; an instant store has answered when this returns.

        Args:
            refs: Their places, as in keys.json.
            urgent: A call waits: do not queue behind a look-up of all.
            takers: How many take the answer, and say themselves that a key was replaced.
        """
        if not self._instant:
            lane = self._urgent if urgent else self._lane
            return lane.put(refs, takers=takers)
        ticket = Ticket(refs, takers=takers)
        try:
            self._answer(ticket)
        finally:
            ticket.finish(ticket.changed)
        return ticket

    def answered(self, *, failing: bool) -> None:
        """Say whether a key of this store has no current value, so that it is asked again."""
        self.rota.answered(time.monotonic(), failing=failing)

    def renew(self) -> None:
        """Begin anew in a forked child."""
        self._lane.renew()
        self._urgent.renew()
        self.rota = self._new_rota()

    def _answer(self, ticket: Ticket) -> None:
        self._enter(self, ticket, _ask(self.store, ticket.refs))


def _ask(store: SecretStore, refs: Mapping[str, str | None]) -> Answers:
    """Ask a store for keys; an answer for each, whatever the store does."""
    why = "gave no answer"
    found: Mapping[str, Secret | SecretError] = {}
    try:
        found = dict(store.resolve(refs))
    except KeyrotError as error:
        why = f"cannot be used: {mask_keys(str(error))}"
    except Exception as error:
        # Only its type: the message of a store's library may hold a token or a value.
        why = f"failed with {type(error).__name__}"
    return {
        key_id: answer
        if isinstance(answer := found.get(key_id), Secret | SecretError)
        else SecretError(f"key {key_id}: the secret store {store.scheme} {why}")
        for key_id in refs
    }
