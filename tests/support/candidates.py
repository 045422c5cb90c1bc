"""Candidates that a selector offers, for its tests."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from keyrot_middleware.core.model import Block, CallInfo, Candidate
from keyrot_middleware.core.selection import Selector
from support.pool import INFO, key

NOW = 1_767_270_630.0
DEAD = Block("key_invalid", inf)


def list_candidates(
    selector: Selector,
    info: CallInfo = INFO,
    excluded: Iterable[str] = (),
    now: float = NOW,
    draw: float = 0.0,
) -> list[str]:
    lists = selector.candidate_batches(info, dict.fromkeys(excluded), now, draw, {})
    return [candidate.key_id for candidates in lists for _, candidate in candidates]


def many(count: int, **labels: object) -> list[Candidate]:
    return [key(f"k{number}", **labels) for number in range(count)]
