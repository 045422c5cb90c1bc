"""Chains of models: which model stands in for another.

A chain is written `a>b>c`. A request goes on to the next model of its chain where the failure is
about the model and nothing was delivered: every key that could serve is limited for it, it is
overloaded for everyone, or there is no such model. A request that is wrong, or that is bound to
what one project has stored, stays with its model. So does one whose contents carry thought
signatures: another model refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from .failures import Implies, classes
from .flow import CallState
from .model import LIMITED, CallInfo

_VERBS = ("generateContent", "streamGenerateContent", "chat", "text_completion")

_ABSENT = classes(Implies.ABSENT)
ABOUT_THE_MODEL = classes(Implies.MODEL, *LIMITED)
"""Failure classes and blocks that end or change with another model, as far as is known."""


def may_fall_back(call: CallState) -> bool:
    """Return whether a call that has failed may go to another model."""
    if call.delivered or not has_chain(call.info):
        return False
    verdicts = [attempt.verdict for attempt in call.attempts]
    if verdicts and not (verdicts[-1].rotate or verdicts[-1].failure in ABOUT_THE_MODEL):
        return False
    reasons = {verdict.failure for verdict in verdicts}
    if call.unavailable is not None:
        reasons |= {block.reason for block in call.unavailable.blocks.values()}
    return not reasons.isdisjoint(ABOUT_THE_MODEL)


def has_chain(info: CallInfo) -> bool:
    """Return whether a call is one that another model could serve."""
    return not info.bound_to_owner and info.verb in _VERBS


def is_missing(call: CallState) -> bool:
    """Return whether a call has failed since no project that was asked has its model."""
    return bool(call.attempts) and all(a.verdict.failure in _ABSENT for a in call.attempts)


def fallback_info(call: CallState, model: str) -> CallInfo:
    """Return what the same request to another model is."""
    return call.info._replace(
        model=model,
        tokens=call.scale.scaled(model, call.info.estimate),
        models_tried=(*call.info.models_tried, call.info.model),
    )


def fallback_call(call: CallState, model: str) -> CallState:
    """Return the call of the same request to another model, with what is left of its waiting.

    A key that failed for a reason of its own is not tried again.
    """
    failed = {
        attempt.key_id: inf
        for attempt in call.attempts
        if attempt.verdict.rotate and attempt.verdict.failure not in ABOUT_THE_MODEL
    }
    return CallState(
        fallback_info(call, model),
        call.selector,
        call.policy,
        call.scale,
        call.classify,
        waiting_lines=call.waiting_lines,
        evidence=call.evidence,
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
