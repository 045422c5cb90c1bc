"""The attributes of measurements: a set is made once and used again, for making one costs more."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from opentelemetry.util.types import AttributeValue

from ..core.model import HOME
from . import names
from .request import request_attributes

__all__ = ["Attributes", "of_attempt", "of_call", "of_pool"]

Attributes = dict[str, AttributeValue]
"""Shared by many measurements: nobody changes one."""

KEPT = 4_096
"""Sets of a kind that are kept; the SDK keeps 2,000 of a metric, and counts the rest as one."""


@lru_cache(maxsize=KEPT)
def of_pool(pool: str, error_type: str | None = None) -> Attributes:
    """Give what a measurement of the whole pool says."""
    return _told({names.POOL: pool, names.ERROR_TYPE: error_type})


@lru_cache(maxsize=KEPT)
def of_attempt(  # noqa: PLR0917 - names would cost as much as the whole look-up
    pool: str,
    key_id: str,
    model: str | None = None,
    token_type: str | None = None,
    failure: str | None = None,
    error_type: str | None = None,
) -> Attributes:
    """Give what a measurement of one send says.

    Args:
        pool: The pool's name.
        key_id: `home` is told of every client's own key: their ids are as many as the clients.
        model: As asked for.
        token_type: `input` or `output`, where tokens are counted.
        failure: A row of core/failures.py.
        error_type: Its HTTP code as text, else the class of the exception.
    """
    told = {
        names.POOL: pool,
        names.KEY_ID: HOME.rstrip(":") if key_id.startswith(HOME) else key_id,
        names.GEN_AI_REQUEST_MODEL: model,
        names.TOKEN_TYPE: token_type,
        names.FAILURE_CLASS: failure,
        names.ERROR_TYPE: error_type,
    }
    return _told(told)


@lru_cache(maxsize=KEPT)
def of_call(  # noqa: PLR0917 - as above
    pool: str,
    operation: str,
    model: str,
    host: str,
    response_model: str | None = None,
    token_type: str | None = None,
    error_type: str | None = None,
    modality: str | None = None,
) -> Attributes:
    """Give what a measurement of a whole call says, by the GenAI conventions and with the pool."""
    told = {
        names.POOL: pool,
        names.GEN_AI_RESPONSE_MODEL: response_model,
        names.TOKEN_TYPE: token_type,
        names.ERROR_TYPE: error_type,
        names.TOKEN_MODALITY: modality,
    }
    return {**request_attributes(operation, model, host), **_told(told)}


def _told(attributes: Mapping[str, str | None]) -> Attributes:
    """Leave out what is not known."""
    return {name: value for name, value in attributes.items() if value}
