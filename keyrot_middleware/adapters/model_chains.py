"""The models of a request that no key can serve: the next one of its chain, then the next."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from ..core.error_body import parse_error
from ..core.flow import CallState
from ..core.model_fallback import (
    SignedModels,
    fallback_call,
    is_missing,
    may_fall_back,
    response_signatures,
    stay_note,
    tried_note,
    with_model,
)
from ..core.text import one_line
from ..errors import warn_safely
from ..runtime.pool import Pool

__all__ = ["Chains", "Models"]

_log = logging.getLogger("keyrot_middleware")

_QUOTED = 300
"""Characters of Google's message in a warning."""


class Chains:
    """What the requests of a pool have shown about the models of its chains."""

    __slots__ = ("_missing", "_pool", "signed")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.signed = SignedModels()
        self._missing: set[str] = set()
        """Models that were warned of."""

    @property
    def next_models(self) -> Mapping[str, str]:
        """The model after each model."""
        return self._pool.next_models

    def now(self) -> float:
        """Return the time, epoch seconds."""
        return self._pool.clock.time()

    def record_signatures(self, model: str, body: object) -> None:
        """Remember the model of the thought signatures in a response."""
        if found := response_signatures(body):
            self.signed.record(found, model, self.now())

    def warn_of_missing(self, call: CallState, error: Exception) -> None:
        """Warn once of a model that Google does not have."""
        model = call.info.model
        if model in self._missing or not is_missing(call):
            return
        self._missing.add(model)
        after = self.next_models.get(model)
        then = f"requests go on to {after}" if after else "it is the last of its chain"
        body = getattr(error.__cause__ or error, "details", None)
        why = one_line(parse_error(404, body, None, self.now()).message)
        text = (
            f"KEYROT_FALLBACK_MODELS: the model {model} is misspelt or retired, and {then}; "
            f"Google answers 404: {why[:_QUOTED]}"
        )
        _log.warning("%s", text)
        warn_safely(text)


class Models(ABC):
    """The models of one request, tried one after the other. An adapter says how it names one."""

    __slots__ = ("_chains", "_error", "_stays_with", "call")

    def __init__(self, call: CallState, chains: Chains, contents: Any) -> None:
        """Begin with the requested model, or with the one that the request must stay with.

        Args:
            call: The call of the request.
            chains: Those of the pool.
            contents: The contents of the request, with the signatures in them.
        """
        self.call = call
        """That of the current model."""
        self._chains = chains
        self._error: Exception | None = None
        """That of the first model."""
        model = chains.signed.model_for(call.info, contents, chains.next_models, chains.now())
        self._stays_with = model
        """The model whose thought signatures the request carries."""
        if model is not None and model != call.info.model and self.send_to(model):
            call.info = with_model(call, model)

    @abstractmethod
    def send_to(self, model: str) -> bool:
        """Send the request to another model; return False if that is not possible."""

    def take(self, call: CallState) -> None:
        """Use another call, that to the next model."""
        self.call = call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Forget the first error if it was not raised: it and its frames hold each other."""
        if self._error is not None:
            _forget_frames(self._error)

    def go_on(self, error: Exception) -> bool:
        """Go on to the next model after a failure; return whether there is one for the request."""
        if self._error is None:
            self._error = error
        else:
            _forget_frames(error)  # not seen by the program; see `__exit__`
        call = self.call
        self._chains.warn_of_missing(call, error)
        if not may_fall_back(call):
            return False
        if self._stays_with is not None:
            self._error.add_note(stay_note(self._stays_with))
            return False
        model = self._chains.next_models.get(call.info.model)
        if model is None or not self.send_to(model):
            return False
        self.take(fallback_call(call, model))
        return True

    def take_error(self) -> Exception:
        """Return the error to raise, that of the first model."""
        error, self._error = self._error, None
        assert error is not None  # noqa: S101 - narrows the type; a model has just failed
        info = self.call.info
        if info.models_tried and self._stays_with is None:
            error.add_note(tried_note((*info.models_tried, info.model)))
        return error


def _forget_frames(error: Exception) -> None:
    """Forget the frames of an error that is not raised, and of the library's own behind it."""
    for link in (error, error.__cause__):
        if link is not None:
            link.__traceback__ = None
