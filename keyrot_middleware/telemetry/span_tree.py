"""Spans as a tree of text: for the demo, for examples, for snapshots in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["format_tree"]

Show = Callable[[str, Any], str | None]
"""Writes one attribute, or leaves it out with None."""


def show(name: str, value: Any) -> str:
    """Write an attribute: `name=value`, seconds to the millisecond."""
    if isinstance(value, float):
        return f"{name}={value:.3f}"
    return f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def format_tree(spans: Iterable[Any], show: Show = show, *, durations: bool = False) -> str:
    """Write finished *spans* as a tree, children indented, in the order in which they began.

    Args:
        spans: The SDK's `ReadableSpan` objects, of one trace or several. One whose parent is not
            among them stands at the top.
        show: Writes an attribute.
        durations: Tell how many milliseconds each span took.
    """
    ordered = sorted(spans, key=lambda span: span.start_time)
    known = {span.context.span_id for span in ordered}
    below: dict[int | None, list[Any]] = {}
    for span in ordered:
        parent = span.parent.span_id if span.parent is not None else None
        below.setdefault(parent if parent in known else None, []).append(span)
    return "\n".join(
        line for root in below.get(None, ()) for line in _lines(root, below, show, durations)
    )


def _lines(
    span: Any, below: dict[int | None, list[Any]], show: Show, durations: bool
) -> Iterator[str]:
    yield _head(span, durations)
    for text in _shown(span.attributes, show):
        yield f"    {text}"
    for event in span.events:
        yield "    ! " + " ".join([event.name, *_shown(event.attributes, show)])
    for child in below.get(span.context.span_id, ()):
        for line in _lines(child, below, show, durations):
            yield f"  {line}"


def _head(span: Any, durations: bool) -> str:
    parts = [f"{span.name}  {span.kind.name}"]
    if span.status.status_code.name != "UNSET":
        parts.append(f"{span.status.status_code.name} {span.status.description or ''}".rstrip())
    if durations:
        parts.append(f"{(span.end_time - span.start_time) / 1e6:.0f} ms")
    return "  ".join(parts)


def _shown(attributes: Any, show: Show) -> list[str]:
    texts = (show(name, value) for name, value in sorted((attributes or {}).items()))
    return [text for text in texts if text is not None]
