"""Values and keys.json change under a running program, and stores are down: no call fails."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from four_modes import MODES, ask
from google import genai
from servers import wait_for

import keyrot_middleware
from keyrot_middleware.compose import current_pool
from keyrot_middleware.drive import upkeep
from keyrot_middleware.testing import FakeGemini, Reply

TTL_S = 0.2
"""For tests: how often values are looked up again."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at keys.json often."""
    monkeypatch.setattr(upkeep, "LOOK_S", 0.05)
    monkeypatch.setattr(upkeep, "SETTLE_S", 0.02)


class Files:
    """A pool whose keys are in files, as an orchestrator mounts them, and its keys.json."""

    def __init__(self, gemini: FakeGemini, folder: Path, clock: Any) -> None:
        self._gemini, self._folder, self._clock = gemini, folder, clock
        self.keys_file = folder / "the-keys.json"

    def put(self, key_id: str, label: str | None = None) -> None:
        """Write the value of the fake service's key *label* for *key_id*; at once, as mounts do."""
        label = label or key_id
        try:
            value = self._gemini.key(label).value
        except KeyError:
            value = self._gemini.add_key(label, tier="paid").value
        draft = self._folder / "draft"
        draft.write_text(f"{value}\n")
        draft.rename(self._folder / key_id)

    def list(self, *entries: str | dict[str, Any]) -> None:
        """Write keys.json."""
        found = [{"key_id": one} if isinstance(one, str) else one for one in entries]
        self.keys_file.write_text(json.dumps(found))

    def install(self, **settings: Any) -> None:
        """Install the pool."""
        given = {"secret_store": "file", "secrets_ttl_s": TTL_S, "strategy": "fill", **settings}
        keyrot_middleware.install(
            clock=self._clock,
            keys_file=self.keys_file,
            allowed_hosts=(self._gemini.host,),
            **given,
        )


@pytest.fixture
def files(
    gemini: FakeGemini, tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Files]:
    """Give a directory with mounted secrets; the pool is gone afterwards."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    yield Files(gemini, folder, clock)
    keyrot_middleware.uninstall()


def roster() -> list[str]:
    """Name the keys that serve."""
    pool = current_pool()
    assert pool is not None
    return list(pool.roster.keys)


def value_of(key_id: str) -> str:
    """Give the value that is in force."""
    pool = current_pool()
    assert pool is not None
    return pool.ring.value(key_id)


@pytest.mark.parametrize("mode", MODES)
def test_a_leaked_key_that_is_replaced_serves_again_within_one_refresh(
    mode: str, gemini: FakeGemini, files: Files, connect: Callable[..., Any]
) -> None:
    """The same process goes on: with the other key at once, with the new value soon."""
    files.list("A", "B")
    files.put("A")
    files.put("B")
    files.install()
    client = connect()
    assert ask(mode, client) == "ok from A"
    gemini.always("A", Reply.KEY_LEAKED)
    assert [ask(mode, client) for _ in range(3)] == ["ok from B"] * 3
    assert gemini.sent("A") == 2, "nobody asks with it again"
    files.put("A", "A_new")
    answers: list[str] = []
    wait_for(lambda: answers.append(ask(mode, client)) or answers[-1] == "ok from A_new")
    assert set(answers) <= {"ok from B", "ok from A_new"}
    assert keyrot_middleware.status()["keys"]["A"]["active"]


@pytest.mark.parametrize("mode", MODES)
def test_a_value_that_is_there_already_goes_on_with_the_same_call(
    mode: str, gemini: FakeGemini, files: Files, connect: Callable[..., Any]
) -> None:
    """A pool of one key whose old value is refused: looked up at once, and sent again."""
    files.list("A")
    files.put("A")
    files.install(secrets_ttl_s=300)
    client = connect()
    assert ask(mode, client) == "ok from A"
    gemini.always("A", Reply.KEY_INVALID)
    files.put("A", "A_new")
    assert ask(mode, client) == "ok from A_new"


def test_a_value_replaced_in_time_costs_no_failed_send(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Old and new value are good for a while: the new one is used, and a log line says so."""
    caplog.set_level(logging.INFO, "keyrot_middleware")
    files.list("A")
    files.put("A")
    files.install()
    client = connect()
    ask("sync", client)
    files.put("A", "A_new")
    wait_for(lambda: value_of("A") == gemini.key("A_new").value)
    wait_for(lambda: "pool default: key A has a new value and serves again" in caplog.text)
    assert ask("sync", client) == "ok from A_new"
    gemini.always("A", Reply.KEY_INVALID)
    assert list(client.files.list()) == [], "the client's home key is the new value too"
    assert [request.status for request in gemini.log] == [200] * 3


def test_a_value_found_by_the_clock_is_a_span_of_its_own(
    gemini: FakeGemini, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call is there to have the event, so a short root span has it."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    files.list("A")
    files.put("A")
    files.install()
    files.put("A", "A_new")
    wait_for(exporter.get_finished_spans)
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.parent) == ("refresh secrets", None)
    assert span.attributes == {"keyrot.pool.name": "default", "keyrot.key.id": "A"}
    assert [event.name for event in span.events] == ["keyrot.key.replaced"]


def test_keys_join_and_leave_and_limits_change_without_a_restart(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """keys.json is read again when it has changed; who is under way keeps its key."""
    caplog.set_level(logging.INFO, "keyrot_middleware")
    files.list("A", "B")
    for key_id in ("A", "B", "C"):
        files.put(key_id)
    files.install()
    client = connect()
    pool = current_pool()
    assert pool is not None
    stream = client.models.generate_content_stream(model="gemini-2.5-flash", contents="hello")
    first = next(stream).text
    files.list("C", {"key_id": "B", "rpm": 7})
    wait_for(lambda: roster() == ["C", "B"])
    assert pool.roster.keys["B"].limits.rpm == 7
    assert first + "".join(chunk.text for chunk in stream) == "ok from A"
    assert ask("sync", client) == "ok from C"
    wait_for(lambda: "keys that leave: A" in caplog.text)
    assert "keys that join: C" in caplog.text
    assert set(keyrot_middleware.status()["keys"]) == {"B", "C"}
    files.list("A", "C")
    wait_for(lambda: roster() == ["A", "C"])
    assert ask("sync", client) == "ok from A"


@pytest.mark.parametrize("content", ['[{"key_id": "A", "rpm": -1}]', "[{", None])
def test_a_broken_keys_file_keeps_the_keys_and_is_said_once(
    content: str | None, files: Files, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """An error says what is wrong; the next good version is taken."""
    files.list("A")
    files.put("A")
    files.put("B")
    files.install()
    if content is None:
        files.keys_file.unlink()
    else:
        files.keys_file.write_text(content)
    wait_for(lambda: caplog.records)
    assert ask("sync", connect()) == "ok from A"
    files.list("B")
    wait_for(lambda: roster() == ["B"])
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert told[0].startswith(f"pool default: the keys stay as they were: {files.keys_file}")


def test_a_key_that_is_not_there_at_the_start_joins_when_it_is(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The others serve; it is an error in the log and in status(), until it resolves."""
    files.list("A", "B")
    files.put("B")
    files.install()
    client = connect()
    assert ask("sync", client) == "ok from B"
    assert list(keyrot_middleware.status()["unresolved"]) == ["A"]
    assert [r.getMessage()[:28] for r in caplog.records] == ["left out of the pool: key A:"]
    assert caplog.records[0].levelname == "ERROR"
    files.put("A")
    wait_for(lambda: roster() == ["A", "B"])
    assert ask("sync", client) == "ok from A"
    assert keyrot_middleware.status()["unresolved"] == {}


def test_a_store_that_is_down_leaves_the_single_key(
    gemini: FakeGemini,
    files: Files,
    connect: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With an error in the log, as long as no key of the pool has a value."""
    monkeypatch.setenv("GEMINI_API_KEY", gemini.add_key("single").value)
    files.list("A", "B")
    files.install()
    client = connect()
    assert ask("sync", client) == "ok from single"
    said = "none of its 2 keys has a value yet; calls go with GEMINI_API_KEY alone until one has"
    assert said in caplog.text
    files.put("A")
    wait_for(lambda: "A" in roster())
    assert ask("sync", client) == "ok from A"


@pytest.mark.parametrize("mode", MODES)
def test_without_any_value_calls_go_as_the_sdk_sends_them_until_there_is_one(
    mode: str, gemini: FakeGemini, files: Files, connect: Callable[..., Any], caplog: Any
) -> None:
    """The patch is in place; a client without a key can be made, and serves later."""
    files.list("A")
    files.install()
    assert "calls go out as the SDK sends them until one has" in caplog.text
    status = keyrot_middleware.status()
    assert (status["installed"], status["keys"], list(status["unresolved"])) == (True, {}, ["A"])
    own, bare = connect(gemini.add_key("own").value), connect()
    assert ask(mode, own) == "ok from own"
    with pytest.raises(genai.errors.ClientError):
        ask(mode, bare)
    assert gemini.log[-1].header_values("x-goog-api-key") == [], "no placeholder on the wire"
    files.put("A")
    wait_for(lambda: roster() == ["A"])
    assert ask(mode, bare) == ask(mode, own) == "ok from A"
    assert list(bare.files.list()) == []


def test_by_hand_a_pool_without_a_value_is_exhausted_until_there_is_one(
    gemini: FakeGemini, files: Files
) -> None:
    """A KeyManager can be made, and says that no key can serve."""
    files.list("A")
    files.install()
    manager = keyrot_middleware.get_key_manager()
    with pytest.raises(keyrot_middleware.KeyPoolExhausted, match="has no Gemini API key"):
        manager.select_key()
    files.put("A")
    wait_for(lambda: roster() == ["A"])
    assert manager.select_key().api_key == gemini.key("A").value


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("keyrot-upkeep")]


def test_one_thread_for_each_pool_and_none_after_it(files: Files) -> None:
    """uninstall() ends it; what is replaced afterwards changes nothing."""
    files.list("A")
    files.put("A")
    files.install()
    assert _threads() == ["keyrot-upkeep-default"]
    keyrot_middleware.uninstall()
    wait_for(lambda: not _threads())


def test_a_time_of_zero_means_no_thread_and_no_second_look(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any]
) -> None:
    """Only a refusal of Google has a value looked up again."""
    files.list("A")
    files.put("A")
    files.install(secrets_ttl_s=0)
    assert _threads() == []
    gemini.add_key("A_new", tier="paid")
    files.put("A", "A_new")
    gemini.always("A", Reply.KEY_INVALID)
    assert ask("sync", connect()) == "ok from A_new"


def test_values_in_settings_need_no_thread(gemini: FakeGemini) -> None:
    """Keys that stand in a setting cannot change."""
    try:
        keyrot_middleware.install(keys=["FAKE-one", "FAKE-two"], gemini_api_key="FAKE-three")
        assert _threads() == []
    finally:
        keyrot_middleware.uninstall()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_goes_on_by_itself(gemini: FakeGemini, files: Files) -> None:
    """Servers install() before they fork: each worker looks values up again."""
    files.list("A")
    files.put("A")
    files.install()
    new = gemini.add_key("A_new", tier="paid").value
    child = os.fork()
    if child == 0:
        try:
            wait_for(lambda: value_of("A") == new)
            os._exit(0)
        finally:
            os._exit(1)
    files.put("A", "A_new")
    assert os.waitpid(child, 0)[1] == 0


def test_no_value_gets_into_the_environment(gemini: FakeGemini, files: Files) -> None:
    """Child processes inherit the environment, so no value of a store may stand there."""
    before = dict(os.environ)
    files.list("A")
    files.put("A")
    files.install()
    files.put("A", "A_new")
    wait_for(lambda: value_of("A") == gemini.key("A_new").value)
    assert dict(os.environ) == before
