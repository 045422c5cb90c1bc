"""Format spans as a tree of text, for examples and snapshots in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from keyrot_middleware.telemetry import semconv

FormatAttribute = Callable[[str, Any], str | None]
"""Formats one attribute; returns None to omit it."""


def format_attribute(name: str, value: Any) -> str:
    """Format an attribute: `name=value`, floats with three decimals, dollars with six."""
    if isinstance(value, float):
        return f"{name}={value:.{6 if name == semconv.COST else 3}f}"
    return f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def format_tree(
    spans: Iterable[Any], formatter: FormatAttribute = format_attribute, *, durations: bool = False
) -> str:
    """Format finished *spans* as a tree: children indented, ordered by start time.

    Args:
        spans: The SDK's `ReadableSpan` objects, of one trace or several. A span
            whose parent is not among them is a root.
        formatter: Formats an attribute.
        durations: Append the duration of each span in milliseconds.
    """
    ordered = sorted(spans, key=lambda span: span.start_time)
    known = {span.context.span_id for span in ordered}
    children: dict[int | None, list[Any]] = {}
    for span in ordered:
        parent = span.parent.span_id if span.parent is not None else None
        children.setdefault(parent if parent in known else None, []).append(span)
    return "\n".join(
        line
        for root in children.get(None, ())
        for line in _lines(root, children, formatter, durations)
    )


def _lines(
    span: Any, children: dict[int | None, list[Any]], formatter: FormatAttribute, durations: bool
) -> Iterator[str]:
    yield _head(span, durations)
    for text in _format_attributes(span.attributes, formatter):
        yield f"    {text}"
    for event in span.events:
        yield "    ! " + " ".join([event.name, *_format_attributes(event.attributes, formatter)])
    for child in children.get(span.context.span_id, ()):
        for line in _lines(child, children, formatter, durations):
            yield f"  {line}"


def _head(span: Any, durations: bool) -> str:
    parts = [f"{span.name}  {span.kind.name}"]
    if span.status.status_code.name != "UNSET":
        parts.append(f"{span.status.status_code.name} {span.status.description or ''}".rstrip())
    if durations:
        parts.append(f"{(span.end_time - span.start_time) / 1e6:.0f} ms")
    return "  ".join(parts)


def _format_attributes(attributes: Any, formatter: FormatAttribute) -> list[str]:
    texts = (formatter(name, value) for name, value in sorted((attributes or {}).items()))
    return [text for text in texts if text is not None]
