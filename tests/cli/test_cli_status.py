"""`keyrot status`, `limits`, `reset`, `disable` and `explain`, while a service uses the pool."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.pool import INFO
from support.servers import closed_port, server

import keyrot_middleware
from keyrot_middleware import KeyrotWarning
from keyrot_middleware.core.activity import ActivityRows, Attempt, CallRecord
from keyrot_middleware.core.failures import SLOW_BACKOFF
from keyrot_middleware.core.model import (
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Scope,
    Unavailable,
    Verdict,
)
from keyrot_middleware.core.windows import day_of
from keyrot_middleware.keys_file import KeySpec
from keyrot_middleware.runtime.activity_recorder import ActivityRecorder
from keyrot_middleware.runtime.call_settings import CallSettings
from keyrot_middleware.secrets import Secret
from keyrot_middleware.settings import Workload, terms_of
from keyrot_middleware.state import State, open_shared

NEEDS_A_MINUTE = pytest.mark.usefixtures("within_a_minute")

Keyrot = Callable[..., Any]


KEYS: list[dict[str, Any]] = [
    {"key_id": "idle_01", "model": "gemini-3.1-flash-lite"},
    {"key_id": "used_01", "rpm": 10, "tpm": 250_000, "rpd": 500},
    {"key_id": "cool_01", "project": "p"},
    {"key_id": "gone_01"},
    {"key_id": "off_01", "active": False},
    {"key_id": "also_01", "project": "p"},
]
OF = {entry["key_id"]: KeySpec.model_validate(entry).candidate for entry in KEYS}


class Service:
    """A service that uses the pool, without the SDK."""

    def __init__(self, url: str, pool: str) -> None:
        self.env = {"KEYROT_STATE_URL": url, "KEYROT_POOL": pool}
        state = open_shared(url, RetryPolicy(), time.time, pool=pool)
        assert state is not None
        self.state: State = state

    def acquire(self, key_id: str) -> Lease | Unavailable:
        """Acquire one key."""
        return self.state.acquire(INFO, ((0, OF[key_id]),), strategy="fill")

    def fail(
        self, key_id: str, failure: str, scope: Scope, until: float | None, **more: Any
    ) -> None:
        """Let a request with it fail."""
        lease = self.acquire(key_id)
        assert isinstance(lease, Lease)
        verdict = Verdict(failure, 429, scope, until, **more)
        self.state.settle(lease, Outcome(LeaseOutcome.FAILURE, verdict))

    def use(self) -> None:
        """Use some keys, in each way."""
        for _ in range(3):
            lease = self.acquire("used_01")
            assert isinstance(lease, Lease)
            self.state.settle(lease, Outcome(LeaseOutcome.SUCCESS))
        learned = Limits(rpm=5)
        until = time.time() + 600
        self.fail("cool_01", "quota_minute", Scope.PROJECT_MODEL, until, learned=learned)
        self.fail("gone_01", "key_invalid", Scope.KEY, None, backoff=SLOW_BACKOFF, rejected=True)


@pytest.fixture
def service(tmp_path, clean_environment) -> Iterator[Service]:
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    made = Service(f"sqlite://{tmp_path}/state.sqlite3", "pool")
    made.use()
    yield made
    made.state.close()


@NEEDS_A_MINUTE
def test_the_table_shows_the_state_of_each_key(keyrot: Keyrot, service: Service) -> None:
    """States of status(), windows, ends and errors are visible from another process."""
    ran = keyrot("status", **service.env, GEMINI_KEY_idle_01="FAKE-value-of-idle_01")
    assert ran.returncode == 0, ran.stderr
    drawn = ran.stdout.partition("Used, of each limit")[0]
    lines = {line.split()[0]: line for line in drawn.splitlines() if line.strip()}
    first = "No call was made today. 2 of 6 keys are available.\nLast hour: No call was made.\n"
    assert ran.stdout.startswith(first)
    assert list(lines)[-6:] == ["gone_01", "also_01", "cool_01", "idle_01", "used_01", "off_01"]
    assert "\\n" not in ran.stdout
    assert re.search(r"tried again 2\S+ \S+Z, in \d+ min", lines["cool_01"])
    states = {key_id: lines[key_id].split()[1] for key_id in OF}
    assert states == {
        "idle_01": "available",
        "used_01": "available",
        "cool_01": "cooling_down",
        "gone_01": "rejected",
        "off_01": "disabled",
        "also_01": "unresolved",
    }
    assert "quota_minute" in lines["cool_01"]
    assert re.search(r"rejected +tried again 2.* Gemini rejects the key ", lines["gone_01"])
    used = ran.stdout[ran.stdout.index("Used, of each limit") :].split("\n")
    of = "configured"
    assert [line.split() for line in used if line.startswith(("p ", "used_01"))] == [
        ["p", INFO.model, "1/5", "learned", "10", "1", *["fullest", "minute", "1/5", "RPM"]],
        [
            *("used_01", INFO.model, "3/10", of, "30/250,000", of, "3/500", of),
            *["fullest", "minute", "3/10", "RPM"],
        ],
    ]
    half = keyrot("status", **service.env, KEYROT_USE="0.5").stdout
    assert re.search(
        r"used_01 .* 3/5 conf\S+ +30/125,000 conf\S+ +3/250 conf\S+ +"
        r"fullest minute 3/5 RPM +use 0.5",
        half,
    )


@NEEDS_A_MINUTE
def test_limits_say_what_is_used_and_how_long_it_lasts(keyrot: Keyrot, service: Service) -> None:
    """By project and model, with where each limit is from."""
    called(service, "ok", Attempt("used_01", None, None, 0.1, bucket=INFO.model, requests=90))
    drawn = keyrot("status", **service.env, KEYROT_USE="0.9").stdout
    drawn = drawn[drawn.index("Used, of each limit") :].splitlines()
    rows = {line.split()[0]: " ".join(line.split()) for line in drawn if line.strip()}
    assert rows["p"] == f"p {INFO.model} 1/4 learned 10 1 fullest minute 1/4 RPM use 0.9"
    used = rf"used_01 {INFO.model} 3/9 conf\S+ 30/225,000 conf\S+ 3/450 conf\S+"
    ends = rf"{used} fullest minute 3/9 RPM use 0.9.*"
    assert re.fullmatch(ends, rows["used_01"])


def called(service: Service, outcome: Any, *attempts: Attempt, workload: str = "") -> None:
    """Let a service record a call."""
    activity = ActivityRecorder(service.state, time.time)
    record = CallRecord(time.time(), INFO.model, 0.1, outcome, attempts)
    activity.add(record._replace(workload=workload))
    activity.send()


def test_a_model_that_fails_comes_first_and_is_the_exit_code(keyrot, service) -> None:
    """With `--check`; a call that waits or is served is none, and neither is a workload's."""
    env = service.env | {"GEMINI_KEY_idle_01": "FAKE-value-of-idle_01"}
    called(service, "ok", Attempt("idle_01", None, None, 0.1))
    assert keyrot("status", "--check", **env).returncode == 0
    for _ in range(3):
        called(service, "failed", Attempt("idle_01", "overloaded", 503, 0.1))
    ran = keyrot("status", "--check", **env)
    said = f"{INFO.model}: "
    assert (ran.returncode, ran.stdout[: len(said)]) == (1, said)
    assert keyrot("status", **env).returncode == 0
    found = json.loads(keyrot("status", "--json", **env).stdout)["summary"]
    assert [one["answer"] for one in found["calls"]] == ["failing"]


@NEEDS_A_MINUTE
def test_a_workload_at_its_share_is_seen_from_outside(keyrot, service) -> None:
    """Although the terms were given to `install()`: its processes have written them down."""
    settings = CallSettings(terms_of({"night": Workload(share=0.1)}))
    service.state.add_activity(ActivityRows({}, settings.texts(time.time())))
    night = settings.info(INFO.model, "night", "gemini_api")
    service.state.acquire(night, ((0, OF["used_01"]),), strategy="fill")  # one a minute
    called(service, "ok", Attempt("used_01", None, None, 0.1), workload="night")
    found = json.loads(keyrot("status", "--json", **service.env).stdout)["summary"]["calls"]
    assert {one["workload"]: one["available"] for one in found} == {"night": 0}


@pytest.mark.parametrize("key_id", ["gone_01", "cool_01", "used_01"])
def test_reset_makes_a_key_available(keyrot, service, key_id) -> None:
    """A running service can lease the key again; the output says how the key is now."""
    ran = keyrot("reset", key_id, **service.env)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"key {key_id} is reset; it is now: available now\n"
    assert isinstance(service.acquire(key_id), Lease)


def test_a_key_is_disabled_and_enabled(keyrot: Keyrot, service: Service, monkeypatch) -> None:
    """Running services use it no longer, and use it again; one that none has used is refused."""
    monkeypatch.setitem(OF, "used_01", OF["used_01"].with_value("f"))
    service.state.record_values([OF["used_01"]])
    ran = keyrot("disable", "idle_01", **service.env)
    assert (ran.returncode, '"active": false in keys.json' in ran.stderr) == (1, True)
    ran = keyrot("disable", "used_01", **service.env)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("key used_01 is disabled until ")
    assert isinstance(service.acquire("used_01"), Unavailable)
    ran = keyrot("enable", "used_01", **service.env)
    assert (ran.returncode, ran.stdout) == (0, "key used_01 is enabled\n")
    assert isinstance(service.acquire("used_01"), Lease)
    ran = keyrot("disable", "used_01", "--for", "6h", **service.env)
    assert (ran.returncode, "key used_01 is disabled until " in ran.stdout) == (0, True)
    block = service.acquire("used_01").blocks["used_01"]
    assert 5.9 * 3_600 < block.until - time.time() < 6.1 * 3_600
    ran = keyrot("disable", "used_01", "--for", "6 weeks", **service.env)
    assert (ran.returncode, "allowed: a time such as" in ran.stderr) == (2, True)
    assert "no key 'used' in pool" in keyrot("disable", "used", **service.env).stderr
    ran = keyrot("enable", "off_01", **service.env)
    assert (ran.returncode, "change it there" in ran.stderr) == (1, True)


def test_an_unknown_key_is_an_error_that_lists_the_known_ones(keyrot, service) -> None:
    """A typing error changes nothing, and the right name is suggested."""
    ran = keyrot("reset", "gone_1", **service.env)
    assert ran.returncode == 1
    assert "no key 'gone_1' in pool" in ran.stderr
    assert 'Did you mean "gone_01"?' in ran.stderr
    value = "AIzaFAKE" + "a1B2c" * 6
    ran = keyrot("reset", value, **service.env)
    assert (ran.returncode, value in ran.stdout + ran.stderr) == (1, False)


@pytest.mark.parametrize("command", [("status",), ("status", "--json"), ("reset", "idle_01")])
def test_a_server_that_is_down_is_reported(keyrot, service, command) -> None:
    """Exit code 1, the URL without its password, no traceback."""
    url = f"redis://user:hunter2@127.0.0.1:{closed_port()}/0"
    ran = keyrot(*command, **{**service.env, "KEYROT_STATE_URL": url})
    assert ran.returncode == 1
    output = ran.stdout + ran.stderr
    assert "redis://127.0.0.1" in output
    assert "hunter2" not in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("command", "code"), [(("status",), 1), (("reset", "idle_01"), 1)])
def test_a_state_in_memory_is_reported_as_inside_each_process(
    keyrot, tmp_path, command, code
) -> None:
    """With memory:// the command has nothing to show and names the functions to call."""
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    ran = keyrot(*command)
    assert ran.returncode == code
    assert "keyrot_middleware.status()" in ran.stdout + ran.stderr
    assert json.loads(keyrot("status", "--json").stdout) == {"shared": False}


def test_explain_shows_which_key_a_call_would_get(keyrot: Keyrot, service: Service) -> None:
    """The result first, then why each other key is not used; nothing is sent."""
    env = {**service.env, "GEMINI_KEY_idle_01": "FAKE-value-of-idle_01"}
    ran = keyrot("explain", INFO.model, **env)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"A call to {INFO.model} would get key idle_01 now.")
    assert "cooling down after quota_minute" in " ".join(ran.stdout.split())
    options = ("--tokens", "10", "--workload", "night", "--json")
    found = json.loads(keyrot("explain", INFO.model, *options, **env).stdout)
    assert (found["key_id"], found["tokens"], found["workload"]) == ("idle_01", 10, "night")
    assert [key["position"] for key in found["keys"]][:2] == [1, 2]


def test_explain_goes_on_to_the_next_model_as_a_call_does(keyrot: Keyrot, service: Service) -> None:
    """Its keys are used up for the first one, and serve the second: that call does not fail."""
    first, then = INFO.model, "next-model"
    for key_id in ("idle_01", "used_01"):
        service.fail(key_id, "quota_day", Scope.PROJECT_MODEL, time.time() + 3_600)
    env = {**service.env, "GEMINI_KEY_idle_01": "FAKE-value-of-idle_01"}
    assert keyrot("explain", first, **env).returncode == 1
    env["KEYROT_FALLBACK_MODELS"] = f"{first}>{then}"
    ran = keyrot("explain", first, **env)
    assert (ran.returncode, ran.stderr) == (0, "")
    text = " ".join(ran.stdout.split())
    assert text.startswith(f"A call to {first} would go on to {then} now. {first}: no key")
    found = json.loads(keyrot("explain", first, "--json", **env).stdout)
    assert (found["key_id"], found["next_model"], found["answer"]) == (None, then, "served")
    assert json.loads(keyrot("explain", then, "--json", **env).stdout)["next_model"] is None


@pytest.mark.parametrize("lists", ["with prices", "without prices"])
def test_explain_doubts_a_model_that_nothing_knows(
    keyrot: Keyrot, service: Service, hide: Callable[[str], dict[str, str]], lists: str
) -> None:
    """It says so first, suggests a name that is known, and explains the call all the same."""
    env = {**service.env, "GEMINI_KEY_idle_01": "FAKE-value-of-idle_01"}
    if lists == "without prices":
        env |= hide("genai_prices")
    why = {
        "with prices": "the price list of the pool's providers does not know it",
        "without prices": "no key is for it",
    }
    ran = keyrot("explain", "gemini-3.8-flsh", **env)
    first, second, *_ = ran.stdout.splitlines()
    asked = "No call to gemini-3.8-flsh was answered in the last 24 hours, and "
    assert first == f'{asked}{why[lists]}. Did you mean "gemini-3.8-flash"?'
    assert second.startswith("A call to gemini-3.8-flsh would get ")
    assert ran.returncode == 0
    found = json.loads(keyrot("explain", "gemini-3.8-flsh", "--json", **env).stdout)
    assert (found["doubt"], found["answer"]) == (first, "served")


def test_explain_knows_a_model_by_each_that_names_it(keyrot: Keyrot, service: Service) -> None:
    """A key, a call, a chain and the price list; one that a provider calls `models/…` too."""
    activity = ActivityRecorder(service.state, time.time)
    for model, how in (("called-before", "ok"), ("called-in-vain", "failed")):
        activity.add(CallRecord(time.time(), model, 0.1, how, ()))
    activity.send()
    env = service.env | {"KEYROT_FALLBACK_MODELS": "first-of-chain>last-of-chain"}
    names = ("called-before", "first-of-chain", "last-of-chain", INFO.model, "gemini-2.0-flash")
    for name in (*names, f"models/{INFO.model}"):
        assert json.loads(keyrot("explain", name, "--json", **env).stdout)["doubt"] is None, name
    assert json.loads(keyrot("explain", "called-in-vain", "--json", **env).stdout)["doubt"]


def test_without_a_pool_there_is_nothing_to_show(keyrot: Keyrot) -> None:
    """Switched off, and without any key: exit code 1, and the reason."""
    assert "no key: set GEMINI_API_KEYS" in keyrot("status").stderr
    ran = keyrot("status", ENABLE_KEY_ROTATION="false")
    assert (ran.returncode, "ENABLE_KEY_ROTATION" in ran.stderr) == (1, True)


TWO_KEYS: list[dict[str, Any]] = [{"key_id": "one", "rpd": 2}, {"key_id": "two", "rpd": 2}]
OTHER = "gemini-3.1-pro-preview"


@pytest.fixture
def shared(tmp_path: Path, clean_environment: None) -> Iterator[tuple[State, dict[str, str]]]:
    (tmp_path / "keys.json").write_text(json.dumps(TWO_KEYS))
    url, pool = server("valkey").url, f"pool-{uuid4().hex[:8]}"
    state = open_shared(url, RetryPolicy(), time.time, pool=pool)
    assert state is not None
    yield state, {"KEYROT_STATE_URL": url, "KEYROT_POOL": pool}
    state.close()


def test_another_pools_name_has_no_records(keyrot, shared) -> None:
    """It says so, since the name may be wrong."""
    state, env = shared
    values = {f"GEMINI_KEY_{entry['key_id']}": f"FAKE-{entry['key_id']}" for entry in TWO_KEYS}
    env = env | values
    for entry, value in zip(TWO_KEYS, values.values(), strict=True):
        key = KeySpec.model_validate(entry).candidate.with_value(Secret(value).fingerprint)
        for _ in range(2):
            lease = state.acquire(INFO, ((0, key),), strategy="fill")
            state.settle(lease, Outcome(LeaseOutcome.SUCCESS))
    wrong = {**env, "KEYROT_POOL": "no-such-pool"}
    shown = " ".join(keyrot("status", **wrong).stdout.split())
    assert "There are no records of a pool 'no-such-pool'" in shown
    found = [json.loads(keyrot("status", "--json", **one).stdout) for one in (wrong, env)]
    assert [one["has_records"] for one in found] == [False, True]


def test_the_state_of_a_key_is_the_same_from_every_terminal(
    keyrot, shared, here, monkeypatch
) -> None:
    """A value that only a service has is one; a value that only the terminal has is none."""
    _, env = shared
    (here / "keys.json").write_text(json.dumps([*TWO_KEYS, {"key_id": "new"}]))
    for name in ("one", "two"):
        monkeypatch.setenv(f"GEMINI_KEY_{name}", f"FAKE-value-of-{name}")
    arguments = {"state_url": env["KEYROT_STATE_URL"], "pool": env["KEYROT_POOL"]}
    with pytest.warns(KeyrotWarning, match="1 of 3 keys have no value"):
        keyrot_middleware.install(**arguments)  # type: ignore[arg-type]
    keyrot_middleware.uninstall()
    for name in ("one", "two"):
        monkeypatch.delenv(f"GEMINI_KEY_{name}")
    for more in ({}, {"GEMINI_KEY_new": "FAKE-value-of-new"}):
        found = json.loads(keyrot("status", "--json", **env, **more).stdout)["keys"]
        assert {one["key_id"]: one["state"] for one in found} == {
            "new": "unresolved",
            "one": "available",
            "two": "available",
        }
    assert found[0]["sentence"] == "no value: no service that uses this pool has reported one"
    explained = json.loads(keyrot("explain", OTHER, "--json", **env).stdout)
    assert explained["key_id"] in (None, "one", "two")
    assert "of 2 keys now" in explained["sentence"]


@pytest.mark.parametrize("text", ["5", "[null]", '{"a":1}', "[" * 9_999, "x"])
def test_a_state_in_which_somebody_wrote_is_shown(text: str, tmp_path: Path, keyrot) -> None:
    """Each of its lists has a row that is none, or holds nothing else."""
    url = f"sqlite:///{tmp_path}/state"
    service = Service(url, "web")
    names = ("settings", "calls", "failures:used_01", "lately:gemini_api\nm\n", "epochs", "emptied")
    lists = {name: ([text], 9) for name in names}
    day = f"pairs:{day_of(time.time(), RetryPolicy().zone)}"
    counts = {day: {text: 1, "gemini_api\nm\n": 1}}
    service.state.add_activity(ActivityRows(counts, lists))
    service.state.close()
    env = {**service.env, "GEMINI_API_KEYS": "FAKE-one,FAKE-two"}
    for arguments in (("status",), ("status", "--json"), ("explain", "m")):
        ran = keyrot(*arguments, **env)
        assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
        assert "a row that cannot be read; it is skipped" in ran.stderr
