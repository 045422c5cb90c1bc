"""Every order in which a pool and both other instrumentations can come and go."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from google.genai._api_client import BaseApiClient
from opentelemetry import trace
from support.modes import ask
from support.other_instrumentations import (
    OFFICIAL,
    OPENINFERENCE,
    instrument,
    plain_sdk,
    uninstrument,
)

import keyrot_middleware

OURS = "keyrot_middleware"
PARTIES = (OURS, OFFICIAL, OPENINFERENCE)
WRAPPED_BY = {"request": PARTIES, "async_request_streamed": (OURS, OPENINFERENCE)}
"""The official one wraps the whole requests only, to read the body of an embedding."""

STEPS = [(party, word) for party in PARTIES for word in ("in", "out")]
Step = tuple[str, str]


def _orders(steps: list[Step]) -> list[tuple[Step, ...]]:
    return [
        order
        for order in itertools.permutations(steps)
        if all(
            order.index((party, "in")) < order.index((party, "out"))
            for party in PARTIES
            if (party, "in") in steps
        )
    ]


ORDERS = _orders(STEPS)


def _name(order: tuple[Step, ...]) -> str:
    short = {OURS: "ours", OFFICIAL: "official", OPENINFERENCE: "openinference"}
    return ",".join(f"{short[party]} {word}" for party, word in order)


@pytest.fixture(autouse=True)
def sdk_as_it_was() -> Iterator[None]:
    """Put the SDK's own functions back."""
    with plain_sdk():
        yield


class Stage:
    """Take the steps, and ask after each; who says what then."""

    def __init__(self, traced: Any, pool: Any, client: Any) -> None:
        self.traced, self._pool, self._client = traced, pool, client
        self._installed = False
        self._layers: dict[str, list[str]] = {seam: [] for seam in WRAPPED_BY}
        """Who stands in each method, as far as we know of them."""
        self._found: dict[tuple[str, str], list[str]] = {}

    def take(self, step: Step) -> None:
        """Take a step."""
        party, word = step
        if party == OURS:
            self._installed = word == "in"
            self._pool("A") if word == "in" else keyrot_middleware.uninstall()
        elif word == "in":
            instrument(party, self.traced.provider)
        else:
            uninstrument(party)
        for seam, wrappers in WRAPPED_BY.items():
            if party in wrappers:
                self._layers[seam] = self._after(party, word, seam)

    def _after(self, party: str, word: str, seam: str) -> list[str]:
        """Tell what stands in a method after a step: the others put back what they had found."""
        layers = self._layers[seam]
        if word == "in":
            self._found[party, seam] = layers
            return [*layers, party]
        if party == OURS:
            return [layer for layer in layers if layer != OURS]
        return self._found[party, seam]

    def rotating(self, seam: str) -> bool:
        """Tell whether a pool is in, and nobody has wiped it from a method."""
        return self._installed and OURS in self._layers[seam]

    def bare(self, seam: str) -> bool:
        """Tell whether nobody's layer is left, not even a dead one that another brought back."""
        return not self._layers[seam]

    def ask(self, mode: str) -> tuple[str, dict[str, int], list[Any]]:
        """Ask once: the answer, how many spans each of the others made, and our own."""
        known = len(self.traced.spans)
        answer = ask(mode, self._client)
        spans = self.traced.spans[known:]
        scopes = Counter(span.instrumentation_scope.name for span in spans)
        ours = [span for span in spans if span.instrumentation_scope.name == OURS]
        return answer, {name: scopes[name] for name in (OFFICIAL, OPENINFERENCE)}, ours


@pytest.fixture(scope="module")
def alone() -> dict[tuple[Step, ...], list[dict[str, int]]]:
    """Keep what the others do without us, after each step; filled by the first who asks."""
    return {}


@pytest.mark.parametrize(
    ("mode", "seam"), [("sync", "request"), ("async_stream", "async_request_streamed")]
)
@pytest.mark.parametrize("order", ORDERS, ids=_name)
def test_nobody_is_hurt_in_any_order(
    order: tuple[Step, ...],
    mode: str,
    seam: str,
    traced: Any,
    monkeypatch: pytest.MonkeyPatch,
    gemini: Any,
    pool: Any,
    connect: Any,
    alone: dict[Any, list[dict[str, int]]],
) -> None:
    """After each step: the right key, the others' spans as without us, and one logical span."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", traced.provider)
    client = connect(gemini.add_key("own").value)
    theirs = tuple(step for step in order if step[0] != OURS)
    if (theirs, mode) not in alone:
        with plain_sdk():
            alone[theirs, mode] = _without_us(theirs, mode, traced, client)
    expected = iter(alone[theirs, mode])
    stage, told = Stage(traced, pool, client), {OFFICIAL: 0, OPENINFERENCE: 0}
    for step in order:
        stage.take(step)
        told = told if step[0] == OURS else next(expected)
        answer, spans, ours = stage.ask(mode)
        rotating = stage.rotating(seam)
        assert answer == ("ok from A" if rotating else "ok from own")
        assert spans == told
        assert [span.name for span in ours] == _expected(rotating, above=any(told.values()))
        if keyrot_middleware.status()["installed"]:
            assert keyrot_middleware.status()["patched"][seam] is rotating
    assert stage.bare(seam) is not hasattr(vars(BaseApiClient)[seam], "__wrapped__")


def _without_us(
    steps: tuple[Step, ...], mode: str, traced: Any, client: Any
) -> list[dict[str, int]]:
    stage, told = Stage(traced, None, client), []
    for step in steps:
        stage.take(step)
        told.append(stage.ask(mode)[1])
    return told


def _expected(rotating: bool, *, above: bool) -> list[str]:
    """Give our spans: an attempt, and the call's where nobody else has one."""
    if not rotating:
        return []
    return ["attempt A"] if above else ["attempt A", "generate_content gemini-2.5-flash"]
