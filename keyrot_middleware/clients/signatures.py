"""Which model wrote the thought signatures that a request carries, where it stood in for another.

A model refuses the signatures of another one. After a fallback the next request of a tool loop or a
chat names the first model again, but carries those of the second. They are what conversations are
known by: two that begin with the same prompt may have been served by different models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from ..providers.base import Events
from ..state.memory import BoundedDict

_MOST = 10_000
_BEGIN = 120
"""Characters by which one is known; of a long one in a large reply no more is kept."""
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
"""google-genai reads base64 in one alphabet and writes it in the other."""

Marks = tuple[bytes, ...]


class Signatures:
    """Those of models that stood in, as digests; the ones that were noted last."""

    def __init__(self) -> None:
        self._models: BoundedDict[str] = BoundedDict(_MOST)

    def __bool__(self) -> bool:
        """Return whether any model has stood in."""
        return bool(self._models)

    def note(self, asked: str, model: str, text: str, marks: Marks) -> None:
        """Note the signatures in a reply of *model*, of which *asked* was requested."""
        for name in _names(asked, text.encode("utf-8", "replace"), marks):
            self._models[name] = model

    def model_of(self, asked: str, content: bytes, marks: Marks) -> str:
        """Return which model stood in for *asked* in a conversation; empty: none, as far as known.

        Args:
            asked: The model that the request names.
            content: Its body.
            marks: How a signature is called in it; see `Provider.model_marks`.
        """
        last = ""
        for name in _names(asked, content, marks):
            last = self._models.get(name, last)
        return last


class SignedEvents(Events):
    """The events of a stream, each of which goes to *note* too: so all are parsed."""

    __slots__ = ("_events", "_note")

    def __init__(self, events: Events, note: Callable[[str], None]) -> None:
        self._events, self._note = events, note

    @property
    def usage(self) -> Any:
        """The tokens so far."""
        return self._events.usage

    @property
    def names(self) -> Any:
        """Stored things that were named so far."""
        return self._events.names

    def feed(self, event: Mapping[str, Any]) -> bool:
        """Add an event; return whether it is the last one."""
        self._note(json.dumps(event))
        return self._events.feed(event)

    def is_error(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event is an error."""
        return self._events.is_error(event)

    def is_preliminary(self, event: Mapping[str, Any]) -> bool:
        """Return whether an event shows nothing yet."""
        return self._events.is_preliminary(event)


def _names(asked: str, content: bytes, marks: Marks) -> Iterator[str]:
    for signature in _pattern(marks).findall(content):
        digest = blake2b(signature.translate(_URL_SAFE), digest_size=8).hexdigest()
        yield f"{digest} {asked}"


@lru_cache
def _pattern(marks: Marks) -> re.Pattern[bytes]:
    return re.compile(rb'(?:%s)"\s*:\s*"([\w+/-]{1,%d})' % (b"|".join(marks), _BEGIN))
