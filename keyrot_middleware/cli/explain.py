"""`keyrot explain MODEL`: which key a call would get now, and why each other would not be used."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

from ..errors import KeyrotError
from .console import available_at, console, escape, table
from .shared_pool import NOT_SHARED, open_source

__all__ = ["explain"]


def explain(model: str, tokens: int, workload: str, *, as_json: bool) -> int:
    """Print which key a call would get; nothing is sent, and nothing reserved.

    Args:
        model: As in a call, with or without `models/`.
        tokens: Input tokens of the call.
        workload: Whose keys are preferred; "" for none.
        as_json: Print JSON.

    Returns:
        0; or 1 where no key is available, or that cannot be found out.
    """
    try:
        with open_source() as source:
            if source is None:
                print(json.dumps({"shared": False}, indent=2) if as_json else NOT_SHARED)
                return 1
            found = source.explain(model, tokens, workload)
    except KeyrotError as error:
        if as_json:
            print(json.dumps({"error": str(error)}, indent=2))
        else:
            print(f"keyrot: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    return 0 if found["key_id"] is not None else 1


def _show(found: dict[str, Any]) -> None:
    out = console()
    out.print(escape(found["sentence"]))
    drawn = table("", "order", "key", "project", "why", "available at")
    now = datetime.fromisoformat(found["at"])
    for key in found["keys"]:
        chosen = key["key_id"] == found["key_id"]
        drawn.add_row(
            str(key["position"] or "-"),
            f"[green]{escape(key['key_id'])}[/]" if chosen else escape(key["key_id"]),
            escape(key["project"] or "-"),
            escape(key["sentence"]),
            available_at(key["available"], key["available_at"], now),
        )
    out.print(drawn)
    out.print("Keys of the same order are tried together; a lower order goes first.")
