"""A search for values of keys in everything that a program may print of an exception."""

import contextlib
import pickle
import traceback
from types import FrameType
from typing import Any


def texts_of(error: BaseException) -> list[str]:
    """Collect every text of an exception, of its chain, its response and its request."""
    found = ["".join(traceback.format_exception(error))]
    link: BaseException | None = error
    while link is not None:
        found += [str(link), repr(link), repr(link.args), *getattr(link, "__notes__", ())]
        found += [repr(vars(link)), *map(repr, vars(link).values())]
        found += http_texts(getattr(link, "response", None)) + http_texts(link)
        with contextlib.suppress(Exception):  # a live response cannot be pickled anyway
            found.append(pickle.dumps(link).decode("latin-1"))
        for frame, _ in traceback.walk_tb(link.__traceback__):
            found += held(frame)
        link = link.__cause__ or link.__context__
    return found


def held(frame: FrameType) -> list[str]:
    """Show the local variables of a frame of ours, as error reporters do."""
    ours = "keyrot_middleware" in frame.f_code.co_filename
    return [repr(value) for value in frame.f_locals.values()] if ours else []


def http_texts(holder: Any) -> list[str]:
    """Collect bodies and headers of a response of httpx, httpx2 or aiohttp, or of its wrapper."""
    if holder is None:
        return []
    found = [repr(holder)]
    below = getattr(holder, "response_stream", None)
    if below is not None:
        found += [repr(below)] if isinstance(below, list) else http_texts(below)
    for name in ("text", "content", "_content", "_body", "headers", "url"):
        with contextlib.suppress(Exception):
            value = getattr(holder, name)
            found += [repr(value), value.decode() if isinstance(value, bytes) else str(value)]
    for name in ("request", "request_info", "_request_info"):
        with contextlib.suppress(Exception):
            request = getattr(holder, name)
            found += [repr(request), repr(list(request.headers.items())), str(request.url)]
            found += [repr(list(getattr(request.headers, "raw", ())))]
    return found


def hold_no_key(error: Any, gemini, *labels: str) -> None:
    values = [gemini.key(label).value for label in labels]
    parts = [value[10:-1] for value in values]
    leaks = [text for text in texts_of(error) for part in parts if part in text]
    assert leaks == []
