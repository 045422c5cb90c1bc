"""The suites that are run, with their requirements."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["SUITES", "Suite"]


@dataclass(frozen=True, slots=True)
class Suite:
    """The tests of another package, as they are in its sdist, or, of google-genai, in its wheel.

    Attributes:
        name: Short; also the folder in ``.venv-coexist``.
        package: Name and version, on the index and of the sdist.
        requirements: Further packages that its tests import.
        options: Further options of pytest.
        least_passed: Fewer than this, alone, mean that the environment is broken.
        least_sent: Fewer requests through a pool mean that equal outcomes prove nothing.
        hosts: The hosts that are allowed, if not Google's: their requests pass the pool's layer.
        tests: The folder of the tests.
        repository: Where they are, under the version as a tag, if the sdist has none.
    """

    name: str
    package: str
    requirements: tuple[str, ...]
    options: tuple[str, ...]
    least_passed: int
    least_sent: int = 0
    hosts: str = ""
    tests: str = "tests"
    repository: str = ""

    @property
    def sdist(self) -> str:
        """The folder that the sdist unpacks to."""
        name, _, version = self.package.partition("==")
        return f"{name.replace('-', '_')}-{version}"

    @property
    def is_sdk(self) -> bool:
        """Whether it is one of google-genai's own."""
        return self.package.startswith("google-genai==")


_SDKS = [
    Suite(
        f"genai-{version}",
        f"google-genai=={version}",
        requirements=(),
        options=(
            *("-p", "sdk_plugin", "--mode=api"),
            *("-o", "consider_namespace_packages=true"),  # else they import a second copy, `genai`
        ),
        least_passed=700,
        least_sent=100,
        tests="google/genai/tests",
    )
    for version in ("1.65.0", "1.75.0", "2.34.0", "3.6.1")
]
_OPENINFERENCE = Suite(
    "openinference",
    "openinference-instrumentation-google-genai==1.4.14",
    # Its recordings are of /v1beta and httpx; 3.x of the SDK speaks /v1 and httpx2.
    ("google-genai==2.34.0", "pillow==13.0.0", "pytest-recording==0.14.1", "respx==0.22.0"),
    ("--record-mode=none",),
    least_passed=150,
    least_sent=30,
)
_SDK = "google-genai==3.6.1"
_PEER = Suite(
    "httpx",
    "httpx==0.28.1",
    (
        *(_SDK, "brotli==1.2.1", "chardet==5.2.0", "click==8.5.1", "h2==4.4.1", "pygments==2.21.0"),
        *("rich==15.0.0", "socksio==1.0.0", "trio==0.35.0", "trustme==1.2.1", "uvicorn==0.54.0"),
        "zstandard==0.25.0",
    ),
    ("-o", "addopts=", "-o", "asyncio_mode=strict"),
    least_passed=1_300,
    hosts="127.0.0.1,localhost,example.com,www.example.com,example.org,www.example.org,foo.bar,test_url",
)
_PEERS = (
    _PEER,
    replace(
        _PEER,
        name="requests",
        package="requests==2.34.2",
        requirements=(
            *(_SDK, "httpbin==0.10.4", "pysocks==1.7.1", "pytest-httpbin==2.1.0"),
            *("pytest-mock==3.17.0", "trustme==1.2.1"),
        ),
        options=_PEER.options[:2],
        least_passed=500,
    ),
    replace(
        _PEER,
        name="respx",
        package="respx==0.23.1",
        requirements=(_SDK, "flask==3.1.3", "starlette==1.10.0", "trio==0.35.0"),
        options=(
            *("-o", "addopts=", "-p", "no:respx"),
            *("-o", "asyncio_default_fixture_loop_scope=session"),
        ),
        least_passed=200,
        repository="https://github.com/lundberg/respx",
    ),
    replace(
        _PEER,
        name="responses",
        package="responses==0.26.1",
        requirements=(_SDK, "pytest-httpserver==1.2.0", "tomli-w==1.2.0"),
        options=_PEER.options[:2],
        least_passed=150,
        tests="responses/tests",
    ),
    replace(
        _PEER,
        name="pytest-httpx",
        package="pytest-httpx==0.36.2",
        requirements=(_SDK,),
        options=_PEER.options[:2],
        least_passed=290,
    ),
)
"""What patches or replaces the HTTP libraries, and these libraries themselves."""
SUITES = (*_SDKS, _OPENINFERENCE, *_PEERS)
