"""The pool's state in Redis: each decision is a run of ledger.lua, so it is atomic.

Only the server's clock decides (ADR 0009). Times that are returned are by this host's clock, and
times that are passed in are read as such, if the two clocks differ by more than `GUARD_S`.

A call waits for one round trip, that of `acquire`. The settle of a plain success is *deferred*: it
is sent with the next script of this process, with its activity, or at `close()`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from hashlib import sha1
from importlib.resources import files
from math import inf
from operator import methodcaller
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from ..core import windows
from ..core.activity import ActivityRows, lifetime_s
from ..core.affinity import owner_lifetime
from ..core.ledger import (
    KeyHealth,
    Ledger,
    Records,
    Reservation,
    owner_name,
    quota_name,
    quota_names,
)
from ..core.model import (
    FREE,
    NO_BUDGET,
    NO_LIMITS,
    Block,
    CallInfo,
    Candidate,
    Lease,
    Limits,
    Outcome,
    RetryPolicy,
    Scope,
    Strategy,
    Terms,
    Unavailable,
    Verdict,
    nano_usd,
)
from ..core.selection import RankedCandidates
from ..core.windows import cooldown_names, next_midnight, next_month, scope_key
from ..core.wording import one_line
from ..errors import ConfigError, KeyrotError
from ..forks import after_fork
from ..locks import Lock
from .base import (
    FOREVER,
    OF_LIMITS,
    UNUSED_S,
    Deferred,
    OtherVersionError,
    State,
    UnreadableRecordError,
    can_wait,
    dump,
    expires_at,
    load,
    report_unreadable,
)

TIMEOUT_S = 2.0
"""How long to wait for a reply: on a host with thirty busy processes one took 0.9 s."""
MAX_CONNECTIONS = 2**31
"""One per thread in use; redis-py allows only 100 by default."""
MAX_OFFERS = 1_000
ROWS_AT_ONCE = 500
_SWEPT = ("learned", "cooldowns", "purses", "health")
"""Hashes that live as long as one of their records is in use."""
_DROP = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
"""
"""Drops records that are as they were read."""
_FAILURES = (RedisError, RedisClusterException, OSError)
"""What redis-py raises; RedisClusterException is not a RedisError."""
_ECHO = re.compile(r",? with args\b.*", re.DOTALL)
"""Servers echo commands that they do not understand, such as `AUTH` with its password."""
_LUA_LINE = re.compile(r"\buser_script:(\d{1,4})\b")
"""Where a script ended, in the server's error."""
_LUA_CONSTANTS = re.compile(r"^local ([A-Z_, ]+) = ([\d., ]+)(?: --.*)?$", re.MULTILINE)
_parse: Any = parse_url  # has no types
_Node: Any = ClusterNode
_Sentinel: Any = Sentinel
_decode = json.JSONDecoder().decode
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_text = lru_cache(1_000)(_json)
"""Few names are in use."""


class RedisStateError(KeyrotError):
    """Raised when the server was not reached in time, or refused."""


class RedisRefusedError(RedisStateError):
    """The server answered with an error."""


@cache
def script_source() -> str:
    """Return ledger.lua as it is in the repository: a script that does the same, more slowly."""
    return (files("keyrot_middleware.state") / "ledger.lua").read_text(encoding="utf-8")


@cache
def script_text() -> str:
    """Return ledger.lua with the numbers of its constants in the places of their names.

    As locals they would cost each function that uses one, in each run: a seventh of its time.
    Lines stay where they are in the file, since the errors of a server name lines and no names.
    """
    text = script_source()
    numbers = dict[str, str]()
    for names, values in _LUA_CONSTANTS.findall(text):
        numbers |= zip(names.split(", "), values.split(", "), strict=True)
    text = _LUA_CONSTANTS.sub("", text)
    return re.sub(rf"\b(?:{'|'.join(numbers)})\b", lambda name: numbers[name[0]], text)


def _with_line(error: str) -> str:
    """Return an error of the server with the line of ledger.lua at which its script ended."""
    found = _LUA_LINE.search(error)
    number = int(found[1]) if found else 0
    lines = script_source().splitlines()[number - 1 : number] if number else []
    return error + "".join(f"; line {number} of ledger.lua is `{line.strip()}`" for line in lines)


@cache
def script_digest() -> str:
    """Return the name of the script in a server."""
    return sha1(script_text().encode(), usedforsecurity=False).hexdigest()


_OF_PARENTS: list[Any] = []


class Server:
    """The server of a URL, by redis-py: docs/redis.md has the URLs."""

    def __init__(self, url: str, variable: str) -> None:
        """Parse *url* without connecting.

        Raises:
            ConfigError: It is wrong; the message has no password.
        """
        scheme, _, rest = url.partition("://")
        base, _, self._kind = scheme.partition("+")
        address, mark, query = rest.partition("?")
        place, slash, path = address.partition("/")
        user, at, hosts = place.rpartition("@")
        self._master = ""
        if self._kind == "sentinel":
            self._master, _, path = path.partition("/")
        first, *others = [unquote(host) for host in hosts.split(",")]
        problem, port = "", 26379 if self._kind == "sentinel" else 6379
        try:
            self._options: dict[str, Any] = _parse(
                f"{base}://{user}{at}{first}{slash}{path}{mark}{query}"
            )
            nodes = [urlsplit(f"//{host}") for host in (first, *others)]
            self._nodes = [(node.hostname or "", node.port or port) for node in nodes]
        except ValueError as error:
            problem = str(error)
        if not problem and base != "unix" and not all(host for host, _ in self._nodes):
            problem = "a host is missing"
        if others and not self._kind:
            problem = "several hosts need redis+cluster:// or redis+sentinel://"
        if self._kind == "sentinel" and not self._master:
            problem = "the name of the sentinels' master is missing"
        if problem:
            raise ConfigError(f"{variable} ({scheme}://…): {problem}; see docs/redis.md")
        self._secrets = [self._options.get(name) for name in ("password", "username")]
        self.address = f"{scheme}://{hosts}{slash}{path if base == 'unix' else ''}".rstrip("/")
        self._lock = Lock()
        self._client: Any = None
        after_fork(self, Server._after_fork)
        if not self._kind:
            self._check_options(variable)

    def _after_fork(self) -> None:
        """Leave the parent's client alone: another thread may have held its locks at the fork."""
        _OF_PARENTS.append(self._client)
        self._client = None

    def _check_options(self, variable: str) -> None:
        pool = self.client.connection_pool
        try:
            pool.connection_class(**pool.connection_kwargs)
        except (TypeError, RedisError) as error:
            raise ConfigError(f"{variable}: {self.hide(str(error))}; see docs/redis.md") from None

    @property
    def client(self) -> Any:
        """The client, connected or not; that of a cluster connects when it is made."""
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = self._open()
        return self._client

    def _open(self) -> Any:
        options = {
            "socket_timeout": TIMEOUT_S,
            "socket_connect_timeout": TIMEOUT_S,
            "retry": Retry(
                NoBackoff(), 1, (RedisConnectionError,)
            ),  # a time-out may have been heard
            "protocol": 2,
            **self._options,
        }
        if not self._kind:
            return redis.Redis.from_pool(
                redis.ConnectionPool(max_connections=MAX_CONNECTIONS, **options)
            )
        for name in ("host", "port"):
            options.pop(name, None)
        if options.pop("connection_class", None) is not None:
            options["ssl"] = True
        if self._kind == "cluster":
            options.pop("db", None)
            nodes = [_Node(host, port) for host, port in self._nodes]
            return RedisCluster(startup_nodes=nodes, **options)
        sentinel = {
            name.removeprefix("sentinel_"): options.pop(name)
            for name in ("sentinel_username", "sentinel_password")
            if name in options
        }
        timeouts = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")}
        tls = {name: value for name, value in options.items() if name.startswith("ssl")}
        found = _Sentinel(self._nodes, sentinel_kwargs={**timeouts, **tls, **sentinel}, **options)
        return found.master_for(self._master)

    def run(self, work: Callable[[Any], Any]) -> Any:
        """Return what *work* returns with the client.

        Raises:
            RedisStateError: The server was not reached in time, or refused.
        """
        try:
            return work(self.client)
        except _FAILURES as error:
            text = self.hide(one_line(_ECHO.sub("", str(error)))) or type(error).__name__
            kind = RedisRefusedError if isinstance(error, ResponseError) else RedisStateError
            raise kind(f"{self.address}: {text}") from None

    def hide(self, text: str) -> str:
        """Return a text without the password, and without a user's name that may be a token."""
        for secret in filter(None, self._secrets):
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "[redacted]", text)
        return text

    def close(self) -> None:
        """Close the connections; a later command opens new ones."""
        if self._client is not None:
            self._client.close()


class RedisState(State):
    """The pool's state in a server that all its processes share."""

    is_local: ClassVar[bool] = False

    def __init__(
        self,
        url: str,
        policy: RetryPolicy,
        clock: Callable[[], float] = time.time,
        *,
        pool: str = "default",
        variable: str = "KEYROT_STATE_URL",
        test_clock: Callable[[], float] | None = None,
    ) -> None:
        """Parse the URL; the first call connects.

        Args:
            url: See docs/redis.md.
            policy: For the lengths of exponential cooldowns.
            clock: This host's clock, by which times are returned; it decides nothing.
            pool: Its name, part of the name of each record.
            variable: The setting that has *url*, for messages.
            test_clock: For tests only: decides instead of the server's clock.

        Raises:
            ConfigError: The URL is wrong.
        """
        super().__init__(test_clock or clock)
        self._policy, self._test_clock = policy, test_clock
        self._base = f"keyrot:v2:{{{pool}}}"
        self._server = Server(url, variable)
        self._skew = 0.0
        """How far the server's clock is ahead of this host's, seconds; 0 within the guard."""
        self._knows_time = False
        self._offers: dict[int, tuple[RankedCandidates, str]] = {}
        """Candidates as JSON, by their identity: most calls have one of a few tuples."""
        self._deferred = Deferred[str](self)
        self._is_closed = self._unreadable = False
        self._swept_at = self._clock()

    # Leases ---------------------------------------------------------------------------------------

    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, strategy: Strategy
    ) -> Lease | Unavailable:
        extra = f',"terms":{_json(_terms(info.terms))}' if info.terms and info.requests else ""
        if info.replaced_by and info.quota_model:
            extra += f',"replaced_by":{_text(info.replaced_by)}'
        call = (
            f'{{"model":{_text(info.quota_model)},"verb":{_text(info.verb)}'
            f',"requests":{info.requests},"tokens":{info.tokens},"strategy":"{strategy}"'
            f',"input_cost":{info.input_cost},"longest_cost":{info.longest_cost}'
            f'{extra},"keys":{self._offer(candidates)}}}'
        )
        now, _, reply, _ = self._decide([], call)
        found, at = _decode(reply.decode()), now - self._skew
        blocks = {
            key_id: Block(
                reason,
                self._host_time(until),
                bool(waitable),
                info.terms.note(amounts[0], reason, *amounts[1:]) if amounts and info.terms else "",
            )
            for key_id, (reason, until, waitable, *amounts) in found["blocks"].items()
        }
        if "place" not in found:
            return Unavailable(at, blocks)
        key: Candidate = candidates[found["place"]][1]
        reservation = Reservation(
            tuple(found["slot"]),
            info.quota_model,
            found["reserved"],
            found["period"],
            info.terms.parts if info.terms and info.requests else (),
            found.get("old_bucket", ""),
        )
        more = {"probe": found["probe"], "purses": tuple(found["purses"]), "refused": blocks}
        return key.lease(info, found["bucket"], at, reservation=reservation, **more)

    def _offer(self, candidates: RankedCandidates) -> str:
        """Return candidates as JSON."""
        known = self._offers.get(id(candidates))
        if known is None or known[0] is not candidates:
            if len(self._offers) >= MAX_OFFERS:
                self._offers.clear()
            text = _json([_offer(group, key) for group, key in candidates])
            known = self._offers[id(candidates)] = candidates, text
        return known[1]

    def _settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> float | None:
        packed = self._pack_settle(lease, outcome, names)
        if self._can_defer(lease, outcome, names):
            self._deferred.add(packed)
            return None
        _, ends, _, _ = self._decide([packed])
        return self._host_time(float(ends[-1])) if ends[-1] else None

    def settles_without_io(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> bool:
        """Return whether `settle` only defers; see `State.settles_without_io`."""
        return self._can_defer(lease, outcome, tuple(names))

    def _can_defer(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> bool:
        """Return whether a settle may be sent later, since no other call depends on it."""
        return not self._is_closed and can_wait(lease, outcome, names)

    def _pack_settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> str:
        usage, found = outcome.usage, lease.reservation
        record, used = lease.record or lease.key_id, usage.input_tokens
        row = (
            f'{{"kind":"{outcome.kind.value}","key":{_text(lease.key_id)},"record":{_text(record)}'
            f',"project":{_text(lease.project)},"account":{_text(lease.billing_account)}'
            f',"bucket":{_text(lease.bucket)},"verb":{_text(lease.verb)}'
            f',"requests":{lease.requests},"tokens":{lease.tokens}'
            f',"used":{"null" if used is None else used},"at":{lease.at + self._skew}'
        )
        if isinstance(found, Reservation):
            minute, late, day_end = found.slot
            row += f',"slot":[{minute},{"true" if late else "false"},{day_end}]'
        more = self._more_to_settle(lease, outcome, names)
        return f"{row},{_json(more)[1:]}" if more else f"{row}}}"

    def _more_to_settle(
        self, lease: Lease, outcome: Outcome, names: Sequence[str]
    ) -> dict[str, Any]:
        """Return what only some settles have."""
        found, row = lease.reservation, dict[str, Any]()
        if lease.probe:
            row["probe"] = True
        if isinstance(found, Reservation):
            if found.parts:
                row["parts"] = found.parts
            if found.old_bucket:
                row["old_bucket"] = found.old_bucket
        if lease.purses:
            cost = outcome.usage.cost_usd
            row |= {"purses": lease.purses, "cost": None if cost is None else nano_usd(cost)}
            if isinstance(found, Reservation):
                row |= {"reserved": found.cost, "period": found.period}
        if names:
            row["owned"] = [(owner_name(name), owner_lifetime(name).seconds) for name in names]
        if outcome.reported and lease.requests:
            named = {str(one.limit): (one.of, one.left) for one in outcome.reported}
            row["reported"] = [named.get(name, (None, None)) for name in ("rpm", "tpm", "rpd")]
        if outcome.verdict is not None:
            row["model"] = found.model if isinstance(found, Reservation) else lease.bucket
            row["verdict"] = self._verdict_row(lease, outcome.verdict)
        return row

    def _verdict_row(self, lease: Lease, verdict: Verdict) -> dict[str, Any]:
        bucket, reservation = verdict.bucket or lease.bucket, lease.reservation
        if isinstance(reservation, Reservation) and bucket == reservation.old_bucket:
            bucket = lease.bucket
        base_s, max_s = verdict.backoff or self._policy.backoff
        row: dict[str, Any] = {
            "failure": verdict.failure,
            "bucket": bucket,
            "waitable": verdict.has_known_end and verdict.may_wait,
            "base_s": base_s,
            "max_s": max_s,
        }
        if verdict.until is not None:
            row["until"] = min(verdict.until + self._skew, FOREVER)
        if verdict.learned != NO_LIMITS:
            row["learned"] = verdict.learned[:3]
        if verdict.scope is not Scope.NONE:
            row["owner"], row["scope"] = scope_key(
                verdict.scope,
                record=lease.record or lease.key_id,
                project=lease.project,
                billing_account=lease.billing_account,
                bucket=bucket,
                verb=lease.verb,
            )
        return row

    def _decide(
        self, settles: list[str], call: str = ""
    ) -> tuple[float, list[bytes], bytes, bytes]:
        """Run the script: deferred settles, these, then a call; return its reply."""
        if not self._knows_time:  # this host's clock may be hours off
            self._run("[]")
        settled = ",".join(self._deferred.take() + settles)
        hour = int((self._clock() + self._skew) // windows.HOUR_S)
        ends = _ends_text(hour, self._policy.zone)
        now, *rest = self._run(f"[{settled}],{ends}{call and ','}{call}")
        return now, *rest

    def _run(self, given: str) -> Any:
        """Run the script, and note the time of the server.

        Raises:
            UnreadableRecordError: It ended at a record of a limit; nothing was changed.
            RedisStateError: It ended elsewhere, or the server was not reached.
        """
        test_time = "null" if self._test_clock is None else repr(self._test_clock())
        args = (1, self._base, f"[{test_time},{given}]".encode(errors="replace"))
        began = self._clock()

        def work(client: Any) -> Any:
            try:
                return client.evalsha(script_digest(), *args)
            except NoScriptError:  # EVAL keeps it for the next time
                return client.eval(script_text(), *args)

        try:
            now, *rest = self._server.run(work)
        except RedisRefusedError as error:
            self._read_limits()  # it may have ended at a record
            raise RedisRefusedError(_with_line(str(error))) from None
        skew = float(now) - began
        self._skew = skew if abs(skew) > windows.GUARD_S else 0.0
        self._knows_time = True
        return float(now), *rest

    def _read_limits(self) -> None:
        """Read all records that hold limits.

        Raises:
            UnreadableRecordError: One of them cannot be read.
        """
        day_end = self._server.run(lambda client: client.get(f"{self._base}:day_end")) or b""
        for table in OF_LIMITS:
            self._get_all(table, f"quotas:{day_end.decode()}" if table == "quotas" else "")
        self._unreadable = False

    def _check_version(self, newer: bytes | None) -> None:
        if newer:
            text = "a newer version of keyrot_middleware uses it; update this one"
            raise OtherVersionError(f"{self._server.address}: {text}")

    def _host_time(self, server_time: float) -> float:
        return float("inf") if server_time >= FOREVER else server_time - self._skew

    # Keys -----------------------------------------------------------------------------------------

    def _get_blocks(self, info: CallInfo, keys: Sequence[Candidate]) -> dict[str, Block]:
        records, now, quotas = self._read("learned", "cooldowns", "buckets", "purses")
        ledger = Ledger(records, self._policy)
        bucket, old_bucket = ledger.buckets(info)
        names = [n for key in keys for n in quota_names(key.project, bucket, info.terms)]
        names += [quota_name(key.project, old_bucket) for key in keys if old_bucket]
        records.quotas = self._get("quotas", names, quotas) if names else {}
        found = ledger.get_blocks(info, keys, now)
        return {
            key_id: block._replace(until=self._host_time(block.until))
            for key_id, block in found.items()
        }

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        keys = list(candidates)
        self._check_version(self._server.run(lambda client: client.get(f"{self._base}:newer")))
        records, now, quotas = self._read("learned", "cooldowns", "purses")
        records.quotas = self._get_all("quotas", quotas)
        records.health = self._get("health", [key.key_id for key in keys])
        found = Ledger(records, self._policy).snapshot(keys, now)
        for health in found.values():
            if health.last_used is not None:
                health.last_used -= self._skew
            if health.cooldown_until is not None:
                health.cooldown_until = self._host_time(health.cooldown_until)
        return found

    def _read(self, *tables: str) -> tuple[Records, float, str]:
        """Return whole tables, the time by the server's clock, and the name of the day's counts."""
        now, _, _, quotas = self._decide([])
        found = Records(**{name: self._get_all(name) for name in tables})
        return found, now, quotas.decode().removeprefix(f"{self._base}:")

    def _get_all(self, table: str, name: str = "") -> dict[str, Any]:
        full = f"{self._base}:{name or table}"
        rows = self._server.run(lambda client: client.hgetall(full))
        found = [(field.decode(errors="replace"), row) for field, row in rows.items()]
        return self._load(table, found)

    def _get(self, table: str, fields: Sequence[str], name: str = "") -> dict[str, Any]:
        return self._load(table, zip(fields, self._hmget(name or table, fields), strict=True))

    def _load(self, table: str, rows: Iterable[tuple[str, bytes | None]]) -> dict[str, Any]:
        try:
            found = {name: load(table, name, text) for name, text in rows if text is not None}
        except UnreadableRecordError as error:
            self._unreadable = True
            raise UnreadableRecordError(f"{self._server.address}: {error}") from None
        return {name: record for name, record in found.items() if record is not None}

    def _hmget(self, name: str, fields: Sequence[str]) -> list[bytes | None]:
        full, encoded = f"{self._base}:{name}", [one.encode(errors="replace") for one in fields]
        if not encoded:
            return []
        found: list[bytes | None] = self._server.run(lambda client: client.hmget(full, encoded))
        return found

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return the keys with the values that processes have; see `State.with_values`."""
        keys = list(candidates)
        known = self._get("fingerprints", [key.key_id for key in keys])
        return Ledger(Records(fingerprints=known), self._policy).with_values(keys)

    def reset(self, key: Candidate) -> None:
        """Forget every cooldown that blocks *key*, and its project's learned limits."""
        self._server.run(
            lambda client: client.hdel(f"{self._base}:cooldowns", *cooldown_names(key))
        )
        learned = f"{self._base}:learned"
        fields = self._server.run(lambda client: client.hkeys(learned))
        found = [one for one in fields if one.decode().partition("\n")[0] == key.project]
        if found:
            self._server.run(lambda client: client.hdel(learned, *found))

    def record_values(self, candidates: Iterable[Candidate]) -> None:
        """Record the values of keys; see `State.record_values`."""
        rows = {key.key_id: dump(key.fingerprint) for key in candidates if key.fingerprint}
        self._write("fingerprints", rows, UNUSED_S)

    def take_limits(self, project: str, found: Mapping[str, Limits]) -> None:
        """Use limits of a project that were read; see `State.take_limits`."""
        now, *_ = self._decide([])
        learned = self._get("learned", [quota_name(project, bucket) for bucket in found])
        Ledger(Records(learned=learned), self._policy).take_limits(project, found, now)
        self._write("learned", {name: dump(one) for name, one in learned.items()}, windows.DAY_S)

    def _write(self, table: str, rows: Mapping[str, str], for_s: float) -> None:
        full = f"{self._base}:{table}"
        encoded = {name.encode(errors="replace"): text for name, text in rows.items()}
        if encoded:
            self._server.run(lambda client: client.hset(full, mapping=encoded))
            self._server.run(lambda client: client.expire(full, int(for_s)))

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        records = {f"{self._base}:owner:{owner_name(name)}": name for name in names}
        if not records:
            return None
        found = self._server.run(lambda client: client.mget(list(records)))
        for (record, name), text in zip(records.items(), found, strict=True):
            if text is not None:
                kept = owner_lifetime(name)
                if kept.renewed:
                    self._server.run(methodcaller("expire", record, kept.seconds))
                key_id, project = json.loads(text)
                return key_id, project
        return None

    # Activity -------------------------------------------------------------------------------------

    def add_activity(self, rows: ActivityRows) -> None:
        """Add to the activity of the pool, and send deferred settles."""
        self.flush()

        def work(client: Any) -> Any:
            pipe = client.pipeline(transaction=False)
            for name, counts in rows.counts.items():
                for field, n in counts.items():
                    pipe.hincrby(f"{self._base}:{name}", field, n)
                pipe.expire(f"{self._base}:{name}", lifetime_s(name))
            for name, (texts, most) in rows.texts.items():
                pipe.lpush(f"{self._base}:{name}", *texts)
                pipe.ltrim(f"{self._base}:{name}", 0, most - 1)
                pipe.expire(f"{self._base}:{name}", lifetime_s(name))
            pipe.get(f"{self._base}:newer")
            return pipe.execute()[-1]

        self._check_version(self._server.run(work))
        self._sweep(self._clock() + self._skew)

    def _sweep(self, now: float) -> None:
        """Drop records of keys and models that are used no more."""
        if 0 <= now - self._swept_at < windows.HOUR_S:
            return
        self._swept_at = now
        for table in _SWEPT:
            name = f"{self._base}:{table}"
            gone = list[bytes]()
            for field, text in self._server.run(methodcaller("hgetall", name)).items():
                with suppress(UnreadableRecordError):  # a call that needs it says so
                    record = load(table, field.decode(errors="replace"), text)
                    if record is not None and expires_at(record, now) <= now:
                        gone += field, text
            for start in range(0, len(gone), 2 * ROWS_AT_ONCE):
                some = gone[start : start + 2 * ROWS_AT_ONCE]
                self._server.run(methodcaller("eval", _DROP, 1, name, *some))

    def activity(
        self, names: Sequence[str], fields: Sequence[str] | None
    ) -> list[Mapping[str, int]]:
        """Return the counts of records; see `State.activity`."""

        def work(client: Any) -> Any:
            pipe = client.pipeline(transaction=False)
            for name in names:
                full = f"{self._base}:{name}"
                if fields is None:
                    pipe.hgetall(full)
                else:
                    pipe.hmget(full, fields)
            return pipe.execute()

        rows = self._server.run(work)
        if fields is None:
            rows = [{field.decode(errors="replace"): n for field, n in row.items()} for row in rows]
        else:
            rows = [dict(zip(fields, row, strict=True)) for row in rows]
        return [
            {field: int(_number(name, n)) for field, n in row.items() if n is not None}
            for name, row in zip(names, rows, strict=True)
        ]

    def activity_log(self, name: str) -> list[str]:
        """Return the texts of a list; see `State.activity_log`."""
        full = f"{self._base}:{name}"
        found = self._server.run(lambda client: client.lrange(full, 0, -1))
        return [text.decode(errors="replace") for text in found]

    # The server -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Check whether the server can be written to.

        Raises:
            RedisStateError: It cannot be, or does not respond.
        """
        self._server.run(lambda client: client.set(f"{self._base}:check", "", ex=60))
        self._check_version(self._server.run(lambda client: client.get(f"{self._base}:newer")))
        self._decide([])
        if self._unreadable:
            self._read_limits()

    def flush(self) -> None:
        """Send the deferred settles."""
        while self._deferred:
            self._decide([])

    def close(self) -> None:
        """Send the deferred settles and close connections; calls in flight can still be settled."""
        super().close()
        self._is_closed = True
        self._deferred.finish()
        self._server.close()


def _number(name: str, text: bytes | None) -> float:
    number = inf
    with suppress(ValueError):
        number = float(text or 0)
    if not abs(number) < 2**63:
        report_unreadable(one_line(name))
        return 0.0
    return number


@lru_cache(8)
def _ends_text(hour: int, zone: str) -> str:
    """Return when the day and the month of *hour* end, counted in full hours since the epoch."""
    now = hour * windows.HOUR_S
    return f"{next_midnight(now, zone)},{next_month(now, zone)}"


def _terms(terms: Terms) -> dict[str, Any]:
    row: dict[str, Any] = {"parts": terms.parts, "first": bool(terms.behind)}
    if terms.share < 1.0:
        row |= {"share": terms.share, "workload": terms.workload}
    if terms.usd != NO_BUDGET:
        name, budget = terms.purse
        row["purse"] = name, *budget
    return row


def _offer(group: int, key: Candidate) -> dict[str, Any]:
    rpm, tpm, rpd, _ = key.limits
    row: dict[str, Any] = {"key": key.key_id, "record": key.record, "project": key.project}
    row |= {"account": key.billing_account, "rpm": rpm, "tpm": tpm, "rpd": rpd}
    row |= {"group": group or None, "weight": key.weight if key.weight != 1 else None}
    row |= {"use": key.use if key.use != 1 else None, "free": key.tier == FREE or None}
    row["purses"] = [(name, *budget) for name, budget in key.purses] or None
    return {name: value for name, value in row.items() if value is not None}
