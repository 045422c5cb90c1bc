"""The text tree of a trace."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from keyrot_middleware.telemetry.span_tree import format_tree


def test_a_span_without_its_parent_is_at_the_top(traced: Any) -> None:
    """Children are indented under their parents, in the order in which they began."""
    outer = traced.tracer.start_span("outer")
    inside = trace.set_span_in_context(outer)
    second = traced.tracer.start_span("b", inside, attributes={"n": 1, "s": ("x", "y")})
    third = traced.tracer.start_span("a", inside)
    third.add_event("seen", {"t": 0.5})
    for span in (third, second):
        span.end()
    assert traced.tree == "b  INTERNAL\n    n=1\n    s=x,y\na  INTERNAL\n    ! seen t=0.500"
    outer.end()
    assert traced.tree.splitlines()[:3] == ["outer  INTERNAL", "  b  INTERNAL", "      n=1"]


def test_attributes_are_shown_as_the_caller_wants(traced: Any) -> None:
    """A demo shows a few of them, and how long a span took."""
    traced.tracer.start_span("one", attributes={"a": 1, "b": 2}, start_time=0).end(1_500_000_000)
    tree = format_tree(
        traced.spans, lambda name, value: name if name == "a" else None, durations=True
    )
    assert tree == "one  INTERNAL  1500 ms\n    a"
