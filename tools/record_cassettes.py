"""Record the cassettes again from FakeGemini: ``python tools/record_cassettes.py [FOLDER]``.

Nothing is written to the folder (cassettes/) unless the traffic is the scenario's and the file has
no key: ``make record``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from functools import partial
from pathlib import Path

from google import genai
from google.genai import errors

import keyrot_middleware
from keyrot_middleware.providers.keys import holds_key
from keyrot_middleware.settings import ENV_NAMES
from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.cassette_scenarios import (  # noqa: E402 - the tests' own, found by the line above
    ANSWER,
    SCENARIOS,
    Scenario,
    traffic,
    values_for,
)
from support.cassettes import recorder  # noqa: E402

Connect = Callable[[], genai.Client]


class RecordingError(Exception):
    """The recorded traffic is not the expected one."""


def main(arguments: list[str]) -> int:
    """Record every scenario and return the exit code."""
    folder = Path(arguments[0]).resolve() if arguments else ROOT / "cassettes"
    with nothing_around():
        for name, scenario in SCENARIOS.items():
            with fake(scenario) as (connect, keys):
                text = record(scenario, connect, keys)
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
            print(f"{name}: recorded")
    return 0


@contextmanager
def nothing_around() -> Iterator[None]:
    """Remove every setting, .env and keys.json of this machine, which would add keys."""
    for name in ENV_NAMES.values():
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        yield


@contextmanager
def fake(scenario: Scenario) -> Iterator[tuple[Connect, dict[str, str]]]:
    """Serve the scenario: yield a factory of clients of the fake, and its keys."""
    replies = {429: Reply.QUOTA_MINUTE, 400: Reply.KEY_INVALID, 403: Reply.KEY_SUSPENDED}
    keys = values_for(scenario.names)
    with FakeGemini(FakeClock()) as gemini:
        gemini.answer(ANSWER)
        for name, status in dict(scenario.traffic).items():
            gemini.add_key(name, value=keys[name])
            gemini.always(name, replies.get(status))
        with pool(keys, gemini.host):
            yield partial(genai.Client, http_options=gemini.http_options), keys


@contextmanager
def pool(keys: dict[str, str], host: str) -> Iterator[None]:
    """Install a pool that uses the keys in order."""
    values = list(keys.values())
    keyrot_middleware.install(keys=values, strategy="fill", allowed_hosts=(host,), max_wait_s=0)
    try:
        yield
    finally:
        keyrot_middleware.uninstall()


def record(scenario: Scenario, connect: Connect, keys: dict[str, str]) -> str:
    """Run the scenario's program and return the text of its cassette.

    Raises:
        RecordingError: If the traffic differs, or a key is in the text.
    """
    path = Path("recording.yaml").absolute()
    path.unlink(missing_ok=True)
    with recorder(keys).use_cassette(path) as cassette:
        cassette.get_metadata("recorded_from", "FakeGemini")
        for _ in range(scenario.calls):
            with suppress(errors.APIError):  # the traffic decides about the result
                scenario.program(connect())
    text = path.read_text(encoding="utf-8")
    if traffic(cassette) != scenario.traffic:
        raise RecordingError(f"expected {scenario.traffic}, the traffic was {traffic(cassette)}")
    if holds_key(text) or any(value in text for value in keys.values()):
        raise RecordingError("a key is in the recording")
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
