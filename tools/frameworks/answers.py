"""What a model answers to a framework that puts its own form of answer into the prompt.

The others ask for a text, or have tools called by the protocol: that is FakeGemini's default.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["OK", "dspy", "instructor", "smolagents"]

OK = "ok from good"
_DSPY_FIELD = re.compile(r"`\[\[ ## (\w+) ## \]\]`")
_DSPY_VALUES = {"next_tool_name": "get_weather", "next_tool_args": '{"city": "Paris"}'}


def dspy(body: dict[str, Any]) -> str:
    """Fill in the fields that the end of the prompt names: an answer, or a use of the tool."""
    asked = json.dumps(body["contents"][-1])
    names = dict.fromkeys(name for name in _DSPY_FIELD.findall(asked) if name != "completed")
    fields = [f"[[ ## {name} ## ]]\n{_DSPY_VALUES.get(name, OK)}\n" for name in names]
    return "\n".join([*fields, "[[ ## completed ## ]]"])


def smolagents(body: dict[str, Any]) -> str:
    """Write code: it calls the tool, if there is one that was not called yet, or ends the run."""
    has_tool, seen = "get_weather" in json.dumps(body), "sunny" in json.dumps(body["contents"])
    code = 'print(get_weather("Paris"))' if has_tool and not seen else f'final_answer("{OK}")'
    return f"Thought: I know what to do.\n<code>\n{code}\n</code>"


def instructor(_body: dict[str, Any]) -> dict[str, Any]:
    """Call the function in which instructor asks for the answer."""
    return {"functionCall": {"name": "Answer", "args": {"text": OK}}}
