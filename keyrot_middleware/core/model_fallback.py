"""Which model a request goes to when no key can serve its own, and when it does.

A chain is written `gemini-3.8-flash>gemini-3.6-flash`. A request goes on to the next model of its
chain where the failure is about the model and nothing was delivered: every key that could serve
is limited for it, it is overloaded for everyone, or there is no such model. A request that is
wrong, or that is bound to what one project has stored, stays with its model. So does one
whose contents carry thought signatures: another model refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import inf

from .failures import MODEL_FAILURES
from .flow import OVERLOADED, CallState
from .text import display

MAX_MODELS = 8
"""Models that one request may be sent to."""

_MODEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERBS = ("generateContent", "streamGenerateContent")

_WINDOWS = frozenset({"rpm", "tpm", "rpd", "usd", "usd_reserved", "concurrency"})
_NOT_FOUND = "model_not_found"
"""The failure class of a model that no project has."""
_MISSING = frozenset({_NOT_FOUND, "model_withdrawn"})
_ABOUT_THE_MODEL = MODEL_FAILURES | _WINDOWS | {OVERLOADED, _NOT_FOUND}
"""Failure classes and blocks that end or change with another model, as far as is known."""


def next_models(chains: Iterable[str]) -> dict[str, str]:
    """Return the model that follows each model.

    Args:
        chains: Such as `a>b>c`.

    Raises:
        ValueError: What is wrong in them.
    """
    following: dict[str, str] = {}
    for chain in chains:
        models = [name.strip().removeprefix("models/") for name in chain.split(">")]
        wrong = next((name for name in models if not _MODEL.fullmatch(name)), None)
        if wrong is not None:
            raise ValueError(f"found {display(wrong)} in {display(chain)}, which is no model")
        if len(models) < 2:
            raise ValueError(f"found {display(chain)}, which names no model after the first")
        for model, after in pairwise(models):
            if following.setdefault(model, after) != after:
                raise ValueError(f"found {display(model)} with two models after it")
    for model in following:
        _check_length(model, following)
    return following


def _check_length(model: str, following: Mapping[str, str]) -> None:
    seen = [model]
    while (after := following.get(seen[-1])) is not None:
        if after in seen:
            raise ValueError(f"found {display(after)} twice in one chain")
        seen.append(after)
    if len(seen) > MAX_MODELS:
        raise ValueError(f"found {len(seen)} models in the chain of {display(model)}")


def may_fall_back(call: CallState) -> bool:
    """Return whether a call that has failed may go to another model."""
    info = call.info
    if call.delivered or info.bound_to_owner or info.verb not in _VERBS:
        return False
    verdicts = [attempt.verdict for attempt in call.attempts]
    if verdicts and not (verdicts[-1].rotate or verdicts[-1].failure in (OVERLOADED, _NOT_FOUND)):
        return False
    reasons = {verdict.failure for verdict in verdicts}
    if call.unavailable is not None:
        reasons |= {block.reason for block in call.unavailable.blocks.values()}
    return not reasons.isdisjoint(_ABOUT_THE_MODEL)


def is_missing(call: CallState) -> bool:
    """Return whether a call has failed since no project that was asked has its model."""
    return bool(call.attempts) and all(a.verdict.failure in _MISSING for a in call.attempts)


def fallback_call(call: CallState, model: str) -> CallState:
    """Return the call of the same request to another model, with what is left of its waiting.

    A key that failed for a reason of its own is not tried again.
    """
    failed = {
        attempt.key_id: inf
        for attempt in call.attempts
        if attempt.verdict.rotate and attempt.verdict.failure not in _ABOUT_THE_MODEL
    }
    info = call.info._replace(
        model=model,
        tokens=call.scale.scaled(model, call.info.estimate),
        models_tried=(*call.info.models_tried, call.info.model),
    )
    return CallState(
        info,
        call.selector,
        call.policy,
        call.scale,
        call.classify,
        overload=call.overload,
        waiting_lines=call.waiting_lines,
        wait_limit_s=max(call.budget_s - call.waited_s, 0.0),
        excluded=failed,
    )


def tried_note(models: Iterable[str]) -> str:
    """Return the note on the error of a request that no model of its chain could serve."""
    return f"keyrot: no model could serve this request; tried: {', '.join(models)}"


def stay_note(model: str) -> str:
    """Return the note on the error of a request that may not go on to another model."""
    return (
        f"keyrot: this request stays with {model}, since its contents carry thought signatures "
        "that another model refuses"
    )
