"""Redis: its URLs, its records, and a server that fails."""

import json
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, suppress
from hashlib import sha1
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import pytest
from support.pool import INFO, key
from support.servers import Server, server
from support.states import A, acquire, failed, lease_of, refusal, settle, used

from keyrot_middleware.core import windows
from keyrot_middleware.core.activity import ActivityRows
from keyrot_middleware.core.model import Budget, Limits, RetryPolicy, Scope, Terms
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.errors import ConfigError, MissingExtraError
from keyrot_middleware.state import open_state
from keyrot_middleware.state import redis as state_in_redis
from keyrot_middleware.state.base import HEALTH_S, UNUSED_S
from keyrot_middleware.state.redis import (
    RedisState,
    RedisStateError,
    script_source,
    script_text,
)
from keyrot_middleware.state.redis import Server as Url
from keyrot_middleware.testing import FakeClock

_pools = count()
BOUND_S = 60.0
"""Far less than a call that hangs, far more than its time limits on a busy machine."""


@pytest.fixture
def shared() -> Server:
    one = server("valkey")
    one.execute("FLUSHALL")
    return one


@pytest.fixture
def state(shared: Server) -> Iterator[RedisState]:
    with closing(RedisState(shared.url, RetryPolicy(), pool=f"redis-{next(_pools)}")) as made:
        yield made


# URLs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://host", {"host": "host"}),
        ("redis://host:7000/5", {"host": "host", "port": 7000, "db": 5}),
        ("redis://u:p%40%3A@[::1]:7000", {"username": "u", "password": "p@:", "host": "::1"}),
        ("redis://host?db=2&client_name=me&socket_timeout=3", {"db": 2, "socket_timeout": 3.0}),
        ("rediss://host?ssl_ca_certs=/ca.pem", {"ssl_ca_certs": "/ca.pem"}),
        ("unix://u:p@/run/redis.sock?db=3", {"path": "/run/redis.sock", "db": 3}),
    ],
)
def test_a_url_is_that_of_redis_py(url: str, options: dict[str, Any]) -> None:
    found = Url(url, "KEYROT_STATE_URL").client.connection_pool.connection_kwargs
    assert {name: found[name] for name in options} == options
    assert found["socket_timeout"] >= 1


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://:secret@", "a host is missing"),
        ("redis://:secret@host:99999", "[Pp]ort"),
        ("redis://:secret@a,b", r"redis\+cluster:// or redis\+sentinel://"),
        ("redis+sentinel://:secret@host", "the name of the sentinels' master is missing"),
        ("redis://:secret@host?socket_timeout=soon", "socket_timeout"),
        ("redis://:secret@host?no_such_option=1", "no_such_option"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        open_state(url, RetryPolicy(), time.time, variable="REDIS_URL")
    assert "REDIS_URL" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "redis" or ".state.redis" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[redis\]'") as caught:
        open_state("redis://:hunter2@localhost", RetryPolicy(), time.time)
    assert "hunter2" not in str(caught.value)


# Records ---------------------------------------------------------------------------------------


def everything(state: RedisState) -> None:
    one = key("a", Limits(rpm=50), project="p", billing_account="acc", usd=Budget(day=10**9))
    state.record_values([one.with_value("0123")])
    settle(state, one, used(12), "files/secret-name", "continuation:xxx")
    settle(state, one, failed(Scope.PROJECT_MODEL, bucket="f", learned=Limits(rpm=9)))
    settle(state, key("b"), failed(Scope.KEY, inf))


def test_every_record_has_the_pools_tag_and_an_end(state: RedisState, shared: Server) -> None:
    """All names have the same prefix and hash tag; each record expires."""
    everything(state)
    names = shared.names()
    kinds = "buckets cooldowns day_end fingerprints health learned owner purses quotas"
    assert {name.split(":")[3] for name in names} == set(kinds.split())
    assert len({name.split(":")[2] for name in names}) == 1
    assert all("secret" not in name and "xxx" not in name for name in names)
    ends = {name: shared.execute("TTL", name) for name in names}
    most = {name: 400 if ":health" in name else 32 for name in names}
    assert all(0 < seconds <= most[name] * DAY_S for name, seconds in ends.items()), ends


def test_a_host_with_a_wrong_clock_drops_no_records(shared: Server) -> None:
    """Only the server's clock says which are of keys that went."""
    pool, one = f"redis-{next(_pools)}", key("a", Limits(rpm=9))
    wrong, more = count(time.time() + 40 * DAY_S, 4_000), {"learned": Limits(rpm=5)}
    with closing(RedisState(shared.url, RetryPolicy(), wrong.__next__, pool=pool)) as state:
        settle(state, one, failed(Scope.KEY, time.time() + 40 * DAY_S + 10**9, **more))
        state.add_activity(ActivityRows({}, {}))
        assert shared.execute("HLEN", f"keyrot:v2:{{{pool}}}:learned") == 1
        assert shared.execute("HLEN", f"keyrot:v2:{{{pool}}}:cooldowns") == 1


def test_records_of_keys_that_went_are_dropped(shared: Server) -> None:
    """Once an hour, however long others use the same hashes; what is in use stays."""
    clock, names = FakeClock(), ("learned", "cooldowns", "purses", "health")
    state = RedisState(shared.url, RetryPolicy(), pool="swept", test_clock=clock.time)

    def use(name: str) -> None:
        one = key(name, usd=Budget(day=10**9))
        settle(state, one, failed(Scope.PROJECT, clock.time() + 60, learned=Limits(rpm=9)))

    with closing(state):
        for number in range(700):
            use(f"k{number}")
        for _ in range(40):
            clock.advance(DAY_S)
            use("in-use")
            state.add_activity(ActivityRows({}, {}))
        counts = [shared.execute("HLEN", f"keyrot:v2:{{swept}}:{name}") for name in names]
        assert counts == [1, 1, 1, 701]  # when a key was last used is known for longer
        clock.advance(365 * DAY_S)
        use("in-use")
        state.add_activity(ActivityRows({}, {}))
        found = [shared.execute("HKEYS", f"keyrot:v2:{{swept}}:{name}") for name in names]
        assert [len(one) for one in found] == [1] * 4
        assert all("in-use" in str(one) for one in found)
        assert state.snapshot([key("in-use")])["in-use"].error_count == 41


def test_a_refusal_writes_nothing(state: RedisState, shared: Server) -> None:
    """An acquire that is refused leaves every record and its expiry as they were."""
    keys = [key("a", Limits(rpm=1, rpd=1)), key("b"), key("c")]
    lease_of(state, keys[0])
    settle(state, keys[1], failed(Scope.KEY_MODEL))
    settle(state, keys[2], failed(Scope.PROJECT, inf))

    def dump() -> Any:
        return {n: (shared.execute("DUMP", n), shared.execute("PEXPIRETIME", n)) for n in names}

    names = shared.names()
    before = dump()
    refusal(state, *keys)
    assert (dump(), shared.names()) == (before, names)


def test_a_call_costs_one_script(state: RedisState, shared: Server) -> None:
    """The script that acquires settles what has succeeded before; nothing is searched for."""
    keys = [key(f"k{n}", Limits(rpm=100)) for n in range(8)]
    settle(state, key("other"), failed(Scope.KEY))
    shared.execute("CONFIG", "RESETSTAT")
    for _ in range(10):
        state.settle(lease_of(state, *keys), used(11))
    rows = shared.execute("INFO", "commandstats")
    assert rows["cmdstat_evalsha"]["calls"] == 10
    assert not [name for name in rows if name.endswith(("scan", "keys"))]
    known = state.snapshot(keys)
    assert sum(health.success_count for health in known.values()) == 10


def test_pools_of_two_names_share_nothing(shared: Server) -> None:
    """Two pools on one server have a limit of their own each."""
    one = key("a", Limits(rpd=1))
    states = [RedisState(shared.url, RetryPolicy(), pool=name) for name in ("x", "y")]
    for state in states:
        lease_of(state, one)
    for state in states:
        refusal(state, one)
        state.close()


def test_unusual_names_do_not_collide_and_are_no_error(state: RedisState) -> None:
    """A project `a:b` with model `c`, a project `a` with `b:c`; a string that UTF-8 cannot hold."""
    first, second = key("k1", project="a:b"), key("k2", project="a")
    lease_of(state, first, info=INFO._replace(model="c"))
    lease_of(state, second, info=INFO._replace(model="b:c"))
    lease_of(state, key("k3"), info=INFO._replace(model="m\ud800"))
    used_of = {k: v.used for k, v in state.snapshot([first, second]).items()}
    assert [used.bucket for used in used_of["k1"]] == ["c"]
    assert [used.bucket for used in used_of["k2"]] == ["b:c"]


def test_the_servers_clock_decides(shared: Server) -> None:
    """A host whose clock is five minutes behind cools a key down as long as the others."""
    seconds, micros = shared.execute("TIME")
    now, one = int(seconds) + int(micros) / 1e6, A
    late, right = FakeClock(now - 300), FakeClock(now)
    behind = RedisState(shared.url, RetryPolicy(), late.time, pool="clocks")
    other = RedisState(shared.url, RetryPolicy(), right.time, pool="clocks")
    lease = lease_of(behind, one)
    assert lease.at == pytest.approx(late.time(), abs=20)
    until = behind.settle(lease, failed(Scope.KEY, late.time() + 60, has_known_end=True))
    assert until == pytest.approx(late.time() + 60, abs=20)
    for state, clock in ((behind, late), (other, right)):
        assert refusal(state, one).retry_at == pytest.approx(clock.time() + 60, abs=20)
        seen = state.snapshot([one])["a"]
        assert seen.cooldown_until == pytest.approx(clock.time() + 60, abs=20)
        state.close()


# The script ------------------------------------------------------------------------------------


def test_the_numbers_of_the_script_are_those_of_python() -> None:
    """It has them as locals of its own, so that the file can be read, and run, by itself."""
    found = dict(re.findall(r"^local (\w+) = ([\d.]+)\b", script_source(), re.MULTILINE))
    known = {"QUOTA_S": 2 * DAY_S, "UNUSED_S": UNUSED_S, "HEALTH_S": HEALTH_S}
    known |= {name: getattr(windows, name) for name in found.keys() - known}
    assert {name: float(number) for name, number in found.items()} == known
    assert len(known) == 15


def test_the_file_itself_is_a_script_that_does_the_same(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent has numbers in the places of names, in lines that are those of the file."""
    one, terms = key("c", Limits(rpm=9, tpm=900)), Terms("night", share=0.5, behind="chat")
    found, texts = [], (script_text(), script_source())
    for text in texts:
        digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(state_in_redis, "script_text", lambda text=text: text)
        monkeypatch.setattr(state_in_redis, "script_digest", lambda digest=digest: digest)
        shared.execute("FLUSHALL")
        clock = FakeClock()
        with closing(RedisState(shared.url, RetryPolicy(), test_clock=clock.time)) as made:
            everything(made)
            for _ in range(9):
                clock.advance(29.5)
                settle(made, one, used(12), info=INFO._replace(terms=terms))
        names = [name for name in shared.names() if ":owner:" not in name]
        tables = [name for name in names if "day_end" not in name]
        rows = [(name, shared.execute("HGETALL", name)) for name in tables]
        found.append(sorted(rows))
    assert found[0] == found[1]
    assert len(found[0]) >= 5
    assert len({text.count("\n") for text in texts}) == 1


def test_an_error_of_the_script_shows_its_line(state: RedisState, shared: Server) -> None:
    """The server names only the number of the line."""
    lease_of(state, A)
    (name,) = (one for one in shared.names() if ":quotas:" in one)
    (field,) = shared.execute("HKEYS", name)
    row = json.loads(shared.execute("HGET", name, field))
    shared.execute("HSET", name, field, json.dumps([row[0], True, *row[2:]]))  # a number to Python
    with pytest.raises(RedisStateError) as caught:
        acquire(state, A)
    found = re.search(
        r"user_script:(\d+): attempt .*; line (\d+) of ledger.lua is `(.+)`$", str(caught.value)
    )
    assert found is not None, caught.value
    assert found[1] == found[2]
    assert script_source().splitlines()[int(found[1]) - 1].strip() == found[3]
    assert "q[" in found[3]


# A server that fails ---------------------------------------------------------------------------


def test_a_server_that_comes_back_is_used(valkey: Server) -> None:
    """A connection was closed, scripts were flushed, it has restarted: only its end is an error."""
    state, one = RedisState(valkey.url, RetryPolicy()), A
    lease_of(state, one)
    valkey.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    lease_of(state, one)
    valkey.execute("SCRIPT", "FLUSH")
    lease_of(state, one)
    valkey.stop()
    with pytest.raises(RedisStateError, match=r"redis://127.0.0.1:\d+: .*refused"):
        lease_of(state, one)
    valkey.start()
    lease_of(state, one)
    state.close()


def test_a_server_that_hangs_is_given_up(valkey: Server) -> None:
    """SIGSTOP: a call and the check wait for their time limits; SIGCONT ends it."""
    with closing(RedisState(valkey.strict_url, RetryPolicy())) as state:
        settle(state, A)
        valkey.signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            for call in (lambda: acquire(state, A), state.check):
                with pytest.raises(RedisStateError):
                    call()
        finally:
            valkey.signal(signal.SIGCONT)
        assert time.monotonic() - began < BOUND_S
        lease_of(state, A)


def test_what_has_timed_out_is_not_repeated() -> None:
    """The server may have done it: a call that hangs waits for one time limit."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}?socket_timeout=0.1"
        state = RedisState(url, RetryPolicy())
        with closing(state), pytest.raises(RedisStateError, match="Timeout"):
            acquire(state, A)
        mute.setblocking(False)
        mute.accept()[0].close()
        with pytest.raises(BlockingIOError):
            mute.accept()


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 400 Bad",
        "-ERR unknown command 'AUTH', with args beginning with: 's3cret+pass'",
        "-ERR no s3cret+pass",
    ],
)
def test_a_server_of_another_protocol_is_an_error_without_the_password(answer: str) -> None:
    """Whatever the server echoes, no message and no cause of one contains it."""

    def serve() -> None:
        with suppress(OSError):  # until it is shut down
            while True:
                with other.accept()[0] as conn:
                    conn.recv(10_000)
                    conn.sendall(f"{answer}\r\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as other:
        serving = threading.Thread(target=serve)
        serving.start()
        at = f"127.0.0.1:{other.getsockname()[1]}"
        state = RedisState(f"redis://:s3cret%2Bpass@{at}", RetryPolicy())
        with pytest.raises(RedisStateError) as caught:
            acquire(state, A)
        other.shutdown(socket.SHUT_RDWR)
        serving.join()
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


async def test_a_user_and_a_database_of_the_url_are_used(valkey: Server) -> None:
    """The records are in the database of the URL, by a user with the permissions in the docs."""
    text = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")
    allowed = re.search(r"`(evalsha [a-z|\s]+)`", text)
    assert allowed is not None
    may = [f"+{command}" for command in f"{allowed[1]} select".split()]
    valkey.execute("ACL", "SETUSER", "keyrot", "on", ">p@ss:w/rd", "~keyrot:v2:{own}*", *may)
    url = f"redis://keyrot:p%40ss%3Aw%2Frd@127.0.0.1:{valkey.port}/3"
    with closing(RedisState(url, RetryPolicy(), pool="own")) as state:
        everything(state)
        assert state.get_owner(["files/secret-name"]) == ("a", "p")
        state.reset(key("a", project="p", billing_account="acc"))
        assert state.snapshot([A])["a"].error_count == 1
        state.check()
    assert "db3" in valkey.execute("INFO", "keyspace")
