"""Zero code: `opentelemetry-instrument python app.py` puts the pool in place too.

OpenTelemetry finds `KeyrotInstrumentor` by its entry point, before the program's first line runs.
What it raised would abort every other instrumentation, so it raises nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)

from ._install import install, uninstall
from .errors import KeyrotError
from .telemetry.logs import log_to_stderr

_log = logging.getLogger("keyrot_middleware")


class KeyrotInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # theirs is untyped
    """Install and uninstall the pool as an OpenTelemetry instrumentation."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Name the versions of the SDK that the pool goes under."""
        return ("google-genai >= 1.65, < 4",)

    def _instrument(self, **settings: Any) -> None:
        """Call `install()`; what is wrong is logged as an error, and the program starts without.

        Args:
            settings: Those of `install()`; the command passes none.
        """
        with log_to_stderr():
            try:
                install(**settings)
            except KeyrotError as error:
                _log.error("the program starts without the pool: %s", error)
            except Exception as error:
                # The text of a foreign error could hold a secret: its type is enough.
                name = type(error).__name__
                _log.error("the program starts without the pool: %s", name)

    def _uninstrument(self, **_: Any) -> None:
        """Restore exactly what was there."""
        uninstall()
