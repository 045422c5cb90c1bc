"""How `status()` looks in a notebook: a table instead of a dict's repr."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ..core.model import smaller_limit
from ..core.text import one_line, short_time

__all__ = ["NotebookDict"]

COLUMNS = ("key", "state", "reason", "available at", "used")
LEFT = 'style="text-align:left"'
COLORS = {"available": "#1a7f37", "limited": "#9a6700", "cooling_down": "#9a6700"}
"""Of a state; the others are red, and `disabled` has no color."""
LIMIT_OF = {"requests_minute": "rpm", "tokens_minute": "tpm", "requests_day": "rpd"}
"""Which limit each count has."""


class NotebookDict(dict[str, Any]):
    """What `status()` returns: a dict that Jupyter shows as a table."""

    def _repr_html_(self) -> str:
        if not self.get("installed"):
            return "<p>keyrot: no pool is installed.</p>"
        keys: Mapping[str, Any] = self["keys"]
        lines = [f"Pool {self['pool']}", *self["headline"]]
        if self["degraded"]:
            lines.append("The shared state cannot be reached.")
        title = "<br>".join(_text(line) for line in lines)
        head = "".join(f"<th {LEFT}>{name}</th>" for name in COLUMNS)
        rows = "".join(_row(key_id, key) for key_id, key in keys.items())
        return (
            f"<table><caption {LEFT}>{title}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )


def _row(key_id: str, key: Mapping[str, Any]) -> str:
    state = key["state"]
    color = COLORS.get(state, "inherit" if state == "disabled" else "#cf222e")
    used = "<br>".join(_text(_used(model, key)) for model in key["used"]) or "-"
    known, at = key["available_at"], "now"
    if not key["available"]:
        at = "-" if known is None else short_time(known)
    cells = (
        _text(key_id),
        f'<span style="color:{color}">{_text(state)}</span>',
        _text(key["reason"] or "-"),
        _text(at),
        used,
    )
    return f"<tr>{''.join(f'<td {LEFT}>{cell}</td>' for cell in cells)}</tr>"


def _used(model: str, key: Mapping[str, Any]) -> str:
    used, limits = key["used"][model], key["limits"]
    counts = []
    for field, name in LIMIT_OF.items():
        limit = smaller_limit(limits.get(name), used["learned"].get(name))
        counts.append(f"{used[field]:,}{f'/{limit:,}' if limit is not None else ''} {name}")
    return f"{model or 'any model'}: {', '.join(counts)}"


def _text(value: object) -> str:
    """Escape for HTML what may come from a program's users or from a server."""
    return escape(one_line(str(value)))
