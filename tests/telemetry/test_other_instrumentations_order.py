"""Every order in which a pool and two other instrumentations are installed and removed.

Traceloop's wraps none of the methods that the pool patches.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from google import genai
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
from keyrot_middleware import KeyrotWarning

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
    """Restore the SDK's own functions."""
    with plain_sdk():
        yield


class Stage:
    """Takes the steps, and makes a call after each; returns which spans were made."""

    def __init__(self, traced: Any, pool: Any, client: Any) -> None:
        self.traced, self._pool, self._client = traced, pool, client
        self._installed = False
        self._layers: dict[str, list[str]] = {seam: [] for seam in WRAPPED_BY}
        """The layers of each method, as far as we know them."""
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
        """Return the layers of a method after a step: the others restore what they had found."""
        layers = self._layers[seam]
        if word == "in":
            self._found[party, seam] = layers
            return [*layers, party]
        if party == OURS:
            return [layer for layer in layers if layer != OURS]
        return self._found[party, seam]

    def is_rotating(self, seam: str) -> bool:
        """Return whether a pool is installed, and no other has removed it from a method."""
        return self._installed and OURS in self._layers[seam]

    @property
    def has_lost_patches(self) -> bool:
        """Return whether a pool is installed, and another has removed it from a method."""
        return self._installed and any(OURS not in layers for layers in self._layers.values())

    def repaired(self) -> None:
        """Note that the pool has put its patches back."""
        for seam, layers in self._layers.items():
            if OURS not in layers:
                self._layers[seam] = [*layers, OURS]

    def is_unpatched(self, seam: str) -> bool:
        """Return whether no layer is left, not even a disabled one that another restored."""
        return not self._layers[seam]

    def call(self, mode: str) -> tuple[str, dict[str, int], list[Any]]:
        """Call once; return the answer, how many spans each of the others made, and our own."""
        known = len(self.traced.spans)
        answer = ask(mode, self._client)
        spans = self.traced.spans[known:]
        scopes = Counter(span.instrumentation_scope.name for span in spans)
        ours = [span for span in spans if span.instrumentation_scope.name == OURS]
        return answer, {name: scopes[name] for name in (OFFICIAL, OPENINFERENCE)}, ours


@pytest.fixture(scope="module")
def alone() -> dict[tuple[Step, ...], list[dict[str, int]]]:
    """The spans of the others without us, after each step; computed once."""
    return {}


@pytest.mark.parametrize(
    ("mode", "seam"), [("sync", "request"), ("async_stream", "async_request_streamed")]
)
@pytest.mark.parametrize("order", ORDERS, ids=_name)
def test_every_order_works(
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
    stage, others = Stage(traced, pool, client), {OFFICIAL: 0, OPENINFERENCE: 0}
    for step in order:
        stage.take(step)
        others = others if step[0] == OURS else next(expected)
        if stage.has_lost_patches:
            _call_without_the_pool(stage, mode, seam, others)
        answer, spans, ours = stage.call(mode)
        is_rotating = stage.is_rotating(seam)
        assert answer == ("ok from A" if is_rotating else "ok from own")
        assert spans == others
        # OpenInference's span of a stream is not the current one when the stream is sent.
        above = others if mode == "sync" else {OFFICIAL: others[OFFICIAL]}
        assert [span.name for span in ours] == _expected(is_rotating, above=any(above.values()))
        if keyrot_middleware.status()["installed"]:
            assert all(keyrot_middleware.status()["patched"].values())
    assert stage.is_unpatched(seam) is not hasattr(vars(BaseApiClient)[seam], "__wrapped__")


def _call_without_the_pool(stage: Stage, mode: str, seam: str, others: dict[str, int]) -> None:
    """Make the call that notices that patches were removed, and puts them back."""
    lost = not stage.is_rotating(seam)
    assert keyrot_middleware.status()["patched"][seam] is not lost
    with pytest.warns(KeyrotWarning, match="removed patches of the pool .* are put back"):
        if lost:
            answer, spans, ours = stage.call(mode)
            assert (answer, spans, ours) == ("ok from own", others, [])
        else:  # a method that this call does not use; whoever makes a client notices it too
            genai.Client(api_key="FAKE").close()
    stage.repaired()


def _without_us(
    steps: tuple[Step, ...], mode: str, traced: Any, client: Any
) -> list[dict[str, int]]:
    stage, others = Stage(traced, None, client), []
    for step in steps:
        stage.take(step)
        others.append(stage.call(mode)[1])
    return others


def _expected(is_rotating: bool, *, above: bool) -> list[str]:
    """Return our spans: an attempt, and the call's if no other has one."""
    if not is_rotating:
        return []
    return ["attempt A"] if above else ["attempt A", "generate_content gemini-2.5-flash"]
