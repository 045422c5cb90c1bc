"""Shared by all tests: a clean environment, internal errors raised, a fake service and a pool."""

import gc
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support.pool import LeaseLog

import keyrot_middleware
from keyrot_middleware import _install, providers
from keyrot_middleware.errors import raise_internal_errors
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.runtime.pool import Pool
from keyrot_middleware.state import State, open_state
from keyrot_middleware.testing import FakeClock, FakeGemini, FakeKey

_OURS = (
    *("GEMINI", "GOOGLE", "KEYROT", "ENABLE_KEY_ROTATION", "SECRET_STORE_TYPE", "REDIS_URL"),
    *("OPENAI", "ANTHROPIC", "GROQ", "MISTRAL", "OPENROUTER"),
)

providers.of("gemini_api")  # so that its failure classes are known, as where a pool has its keys

Connect = Callable[..., Any]

ORDER_SEED = 1
"""The seed of the test order, and of `random` in each test; --randomly-seed sets another."""

settings.register_profile(
    "same",  # the same examples on every run, however slow the machine is
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("fuzz", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell; otherwise every process of a test would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Fix the order before pytest-randomly draws one; a run can then be repeated."""
    if config.getoption("randomly_seed", None) == "default":
        config.option.randomly_seed = ORDER_SEED
    # Pools are installed with unusual settings; warnings about them have tests of their own. Here,
    # since pyproject.toml would import the package before coverage begins.
    config.addinivalue_line("filterwarnings", "ignore::keyrot_middleware.errors.KeyrotWarning")


def pytest_collection_finish() -> None:
    """Leave what the tests import out of each later collection, which would take 0.2 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect at the end of each file, so that what it left open fails it, and no later file."""
    yield
    gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """Say of what that collection finds that any test of the file may have left it."""
    found = pytest.PytestUnraisableExceptionWarning
    try:
        return (yield)
    except (found, ExceptionGroup) as error:
        is_last = nextitem is None or nextitem.path != item.path
        if is_last and (isinstance(error, found) or error.subgroup(found)):
            error.add_note(
                f"Found at the end of {item.path.name}; any of its tests may have left it. "
                "With PYTHONTRACEMALLOC=20 you see where it was made."
            )
        raise


def pytest_sessionfinish() -> None:
    """Stop the Redis servers and the process that tests share, whichever files were run."""
    for module, stop in (("support.servers", "stop_all"), ("support.forks", "stop_forking")):
        if module in sys.modules:
            getattr(sys.modules[module], stop)()


def pytest_unconfigure(config: pytest.Config) -> None:
    """End with a line that says what was skipped; a reason names what would run it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker of pytest-xdist
        return
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", ())
    )
    texts = (f"{count}: {reason}" for reason, count in reasons.most_common())
    reporter.write_line(f"== skipped: {'; '.join(texts) or 'nothing'}")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the machine's own settings: variables, and files in the working directory."""
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def v1beta(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask v1beta, as docs/gemini-api.md says of Live and caches; google-genai 3 asks v1."""
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v1beta")


ROOM_S = 40.0
"""Seconds of a minute that a test needs at most, on a busy machine too; most need one."""


@pytest.fixture
def within_a_minute() -> None:
    """Begin where no minute, and no day, ends soon: for tests on a real server's clock.

    At the edge of a minute limits rightly start again, and the old counts end.
    """
    left = 60 - time.time() % 60
    if left < ROOM_S:
        time.sleep(left + 1.5)  # and past the second after it, which counts in both minutes


@pytest.fixture
def here(clean_environment: None, tmp_path: Path) -> Path:
    """Return the working directory, which is empty."""
    return tmp_path


@pytest.fixture(autouse=True)
def internal_errors_are_raised() -> Iterator[None]:
    """Raise internal errors in every test, so that no test passes because the guard hid one."""
    with raise_internal_errors():
        yield


@pytest.fixture
def clock() -> FakeClock:
    """Start at 12:30:30 UTC; sleeping moves it."""
    return FakeClock()


@pytest.fixture
def gemini(clock: FakeClock) -> Iterator[FakeGemini]:
    """Serve until the test ends, by the same clock as the pool."""
    with FakeGemini(clock) as server:
        yield server


@pytest.fixture
def valkey() -> Iterator[Any]:
    """Start a server of the test's own."""
    from support.servers import BINARIES, Server

    made = Server(BINARIES["valkey"])
    yield made
    made.remove()


class Install:
    """Installs pools in which each key has the label of the fake service's key as its id."""

    def __init__(
        self, gemini: FakeGemini, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, file: Path
    ) -> None:
        self._gemini, self._clock, self._env, self._file = gemini, clock, monkeypatch, file
        self.ledgers: list[LeaseLog] = []

    def __call__(self, *keys: str | dict[str, Any], **settings: Any) -> Pool:
        """Install a pool of *keys* (ids, or entries of keys.json); unknown ones are added."""
        entries = [{"key_id": key} if isinstance(key, str) else key for key in keys]
        for entry in entries:
            label = entry["key_id"]
            self._env.setenv(f"GEMINI_KEY_{label}", self.key(label, entry.get("project")))
        self._file.write_text(json.dumps(entries))
        hosts = {"allowed_hosts": (self._gemini.host,)}
        with self._env.context() as patch:
            patch.setattr(_install, "open_state", self._open_state)
            keyrot_middleware.install(
                clock=self._clock, **{"keys_file": self._file, **hosts, **settings}
            )
        pool = current_pool()
        assert pool is not None
        self.ledger.pool = pool
        return pool

    def _open_state(self, *args: Any, **kwargs: Any) -> State:
        """Open a state and record it from the start: calls may run while install() does."""
        state = open_state(*args, **kwargs)
        self.ledgers.append(LeaseLog(state))
        return state

    def key(self, label: str, project: str | None = None) -> str:
        """Return the value of a key of the fake service; make it if there is none."""
        try:
            return self._gemini.key(label).value
        except KeyError:
            return self._gemini.add_key(label, project=project, tier="paid").value

    @property
    def ledger(self) -> LeaseLog:
        """The ledger of the newest pool."""
        return self.ledgers[-1]


@pytest.fixture
def pool(
    gemini: FakeGemini, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Install]:
    """Install a pool, always uninstall it, and check that each lease was settled exactly once."""
    install = Install(gemini, clock, monkeypatch, tmp_path / "pool-keys.json")
    yield install
    keyrot_middleware.uninstall()
    for ledger in install.ledgers:
        if ledger.checked:
            ledger.check()


@pytest.fixture
def connect(gemini: FakeGemini) -> Iterator[Connect]:
    """Make SDK clients of the fake service, and close them at the end."""
    from google import genai

    clients: list[genai.Client] = []

    def make(api_key: Any = None, *, client_options: Any = None, **more: Any) -> Any:
        """Make a client; *more* are its HTTP options, or *client_options* is all of them."""
        options = client_options or {**gemini.http_options, **more}
        value = api_key.value if isinstance(api_key, FakeKey) else api_key
        clients.append(genai.Client(api_key=value, http_options=options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
