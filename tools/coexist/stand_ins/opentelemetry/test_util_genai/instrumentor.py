"""An instrumentation that is active inside a `with` block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def instrument(
    instrumentor: Any,
    *,
    content_capture: str | None = None,
    extra_env: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Iterator[Any]:
    """Instrument with the arguments, under the given variables."""
    variables = dict(extra_env or {})
    if content_capture is not None:
        variables["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = content_capture
    with mock.patch.dict(os.environ, variables):
        instrumentor.instrument(**arguments)
        try:
            yield instrumentor
        finally:
            instrumentor.uninstrument()
