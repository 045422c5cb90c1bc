"""The suites that are run, with their requirements."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["SUITES", "Suite"]


@dataclass(frozen=True, slots=True)
class Suite:
    """The tests of one instrumentation of google-genai, as they are in its sdist.

    Attributes:
        name: Short; also the folder in ``.venv-coexist``.
        package: Name and version, on the index and of the sdist.
        sdk: The google-genai that is installed with it.
        requirements: Further packages that its tests import.
        options: Further options of pytest.
        least_passed: Fewer than this, alone, mean that the environment is broken.
        least_sent: Fewer requests through a pool mean that equal outcomes prove nothing.
    """

    name: str
    package: str
    sdk: str
    requirements: tuple[str, ...]
    options: tuple[str, ...]
    least_passed: int
    least_sent: int

    @property
    def sdist(self) -> str:
        """The folder that the sdist unpacks to."""
        name, _, version = self.package.partition("==")
        return f"{name.replace('-', '_')}-{version}"


_OFFICIAL = Suite(
    "official",
    "opentelemetry-instrumentation-google-genai==1.3b0",
    "2.32.0",  # the newest that its tests are written for
    ("fsspec==2026.9.0", "pytest-vcr==1.0.2"),
    ("--vcr-record=none",),
    least_passed=600,
    least_sent=5,
)
_OPENINFERENCE = Suite(
    "openinference",
    "openinference-instrumentation-google-genai==1.4.14",
    "2.34.0",  # its recordings are of /v1beta and httpx; 3.x speaks /v1 and httpx2
    ("pillow==13.0.0", "pytest-recording==0.14.1", "respx==0.22.0"),
    ("--record-mode=none",),
    least_passed=150,
    least_sent=30,
)
SUITES = (
    _OFFICIAL,
    _OPENINFERENCE,
    replace(_OFFICIAL, name="official-3", sdk="3.6.1", least_passed=500),
    replace(_OPENINFERENCE, name="openinference-3", sdk="3.6.1", least_passed=90),
)
