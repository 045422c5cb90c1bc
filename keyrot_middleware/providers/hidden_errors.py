"""Errors that gateways write into the body of a 200, each in a manner of its own.

What shows anything is a reply, and in doubt a body is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..core.failures import objects, parse_error_text

NUMBERS = ("code", "error_code", "errcode", "status_code")
SENTENCES = ("message", "msg", "error_msg", "errmsg", "status_msg")
"""Where an error may have its code, and its sentence."""
_SHOWN = re.compile(
    r'"(?:choices|contents?|candidates|outputs?|output_text|data|embeddings?|results?|texts?'
    r"|completion|response|generations|generated_text|classifications|documents|segments|pages"
    r'|tokens|input_tokens|items|models|images?|audio|predictions)"'
    r'\s*+:\s*+(?!null\b|false\b|""|\[\s*\]|\{\s*\})|"object"\s*:\s*"response"'
)
"""A field that shows something; most replies begin with one, so they are not parsed for this."""
_FINE = re.compile(
    r"(?:0|2\d\d(?:00)?|ok|success\w*|true|none|accepted|completed)?\s*",
    re.ASCII | re.IGNORECASE,
)
_NO_ERROR = re.compile(r"(?:no|none|null|false)?\s*", re.ASCII | re.IGNORECASE)
_JOBS = frozenset({"id", "task_id"})
_CODE = re.compile(r"-?[\w.-]{1,64}", re.ASCII)


def find_error(text: str) -> Mapping[str, Any] | None:
    """Return the body of a 200 if it is an error; None for a reply.

    An error is `{"error": …}`, a code that is not 0 beside a sentence, or `{"success": false}`
    with one.
    """
    if _SHOWN.search(text) is not None:
        return None
    body = parse_error_text(text)
    return body if isinstance(body, dict) and _is_error(body) else None


def _is_error(body: Mapping[str, Any]) -> bool:
    error, base = body.get("error"), body.get("base_resp")
    if isinstance(error, str) and _NO_ERROR.fullmatch(error) is None:
        return True
    if isinstance(error, dict):
        return bool(_code(error) or _sentence(error) or error.get("type"))
    if isinstance(base, dict):
        return _code(base) != ""
    said = any(map(_sentence, (body, *objects(body.get("errors")))))
    if body.get("success") is not None:
        return said and body["success"] is False
    named = "error" in (body.get("type"), body.get("object"))
    return said and (named or (_JOBS.isdisjoint(body) and _code(body) != ""))


def _code(body: Mapping[str, Any]) -> str:
    """Return the code of an error; empty where it says that all is well."""
    found = (body.get(name) for name in NUMBERS)
    code = next((str(one) for one in found if isinstance(one, int | str)), "")
    return code if _FINE.fullmatch(code) is None and _CODE.fullmatch(code) else ""


def _sentence(body: Mapping[str, Any]) -> str:
    """Return the sentence of an error; empty where it says that all is well."""
    found = (body.get(name) for name in SENTENCES)
    said = next((one for one in found if isinstance(one, str)), "")
    return said if _FINE.fullmatch(said) is None else ""
