"""A source of the page that tests fill: by the schema of docs/page.md, and without a pool."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import sin
from typing import Any

from keyrot_middleware.core.availability import KEY_STATES
from keyrot_middleware.errors import KeyrotError
from keyrot_middleware.monitoring.headline import headline_of

__all__ = ["FakeSource", "call", "key", "many", "sample", "window"]

MODEL = "gemini-2.5-flash"


def iso(moment: datetime) -> str:
    """Write a time as the API does."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def window(used: int, limit: int | None, source: str | None = "configured") -> dict[str, Any]:
    """Make what is used of one limit."""
    return {"used": used, "limit": limit, "source": source if limit is not None else None}


def key(key_id: str, project: str | None = "proj-a", state: str = "available", **more: Any) -> Any:
    """Make one key of `status`."""
    made = {
        "key_id": key_id,
        "project": project,
        "platform": "gemini_api",
        "model": None,
        "tier": "free",
        "priority": 0,
        "state": state,
        "reason": None,
        "sentence": "A call sent now could get this key." if state == "available" else state,
        "available": state == "available",
        "available_at": None,
        "cooldown_until": None,
        "cooldown_reason": None,
        "cooldown_scope": None,
        "last_error": None,
        "last_used": None,
        "success_count": 0,
        "error_count": 0,
        "used": {},
        "usd_today": None,
        "usd_spent": None,
        "usd_per_day": None,
        "allowed_actions": allowed_actions(state),
        "tokens_today": {"input": 0, "output": 0},
        "history": {"from": None, "requests": [0] * 60, "failures": [0] * 60},
    }
    assert more.keys() <= made.keys()
    return made | more


def allowed_actions(state: str) -> list[str]:
    """Return what may be done by hand with a key in this state."""
    off = {"disabled": ["enable", "check"], "unresolved": ["reset"]}
    return off.get(state, ["reset", "disable", "check"])


def call(*attempts: tuple[str, int | None, str | None], **more: Any) -> dict[str, Any]:
    """Make one call of `attempts`, from (key id, code, failure) of each attempt."""
    failed = attempts[-1][2] if attempts else None
    made = {
        "at": iso(datetime.now(UTC)),
        "model": MODEL,
        "seconds": 1.2,
        "outcome": "failed" if failed else "ok",
        "waited": False,
        "workload": None,
        "trace_id": None,
        "trace_url": None,
        "attempts": [
            {"key_id": key_id, "code": code, "failure": failure, "seconds": 0.4}
            for key_id, code, failure in attempts
        ],
    }
    return made | more


class FakeSource:
    """Keys and calls that a test may change while the page is open."""

    def __init__(self, keys: list[Any] | None = None, calls: list[Any] | None = None) -> None:
        self.keys = keys or []
        self.calls = calls or []
        self.changed: list[tuple[str, ...]] = []
        """The actions: (action, key id)."""
        self.broken: str | None = None
        """The error of each request."""
        self.more: dict[str, Any] = {}
        """Overrides of the answer of `status`."""
        self.today = {"input_tokens": 120331, "output_tokens": 20331, "cost_usd": 0.1234}
        self.workloads = ["chat", "nightly-batch"]
        self.before: Callable[[], object] = lambda: None
        """Called by each request."""

    def status(
        self, *, offset: int = 0, limit: int = 100, query: str = "", state: str = ""
    ) -> dict[str, Any]:
        """Filter and page the keys."""
        self._begin()
        states = {name: 0 for name in KEY_STATES}
        models: dict[str, dict[str, Any]] = {}
        times = [(one["available_at"], one["key_id"]) for one in self.keys if one["available_at"]]
        at, first = min(times, default=(None, None))
        soonest = {"key_id": first, "available_at": at}
        for one in self.keys:
            states[one["state"]] += 1
            for model, used in one["used"].items():
                counts = models.setdefault(model, {"available": 0, "keys": 0, "next": soonest})
                counts["keys"] += 1
                counts["available"] += bool(used["available"])
        found = [
            one
            for one in self.keys
            if (not state or one["state"] == state)
            and query.lower() in f"{one['key_id']}\n{one['project']}\n{[*one['used']]}".lower()
        ]
        return {
            "pool": "default",
            "shared": True,
            "state_url": "redis://127.0.0.1:6379/0",
            "degraded": False,
            "at": iso(datetime.now(UTC)),
            "cost_known": True,
            "has_records": True,
            "summary": _with_headline(
                {
                    "keys": len(self.keys),
                    "available": states["available"],
                    "states": states,
                    "next": soonest,
                    "models": models,
                    "last_hour": {
                        "calls": 331,
                        "failed_calls": 2,
                        "requests": sum(sum(one["history"]["requests"]) for one in self.keys),
                        "failures": sum(sum(one["history"]["failures"]) for one in self.keys),
                        "waits": 3,
                    },
                    "today": self.today,
                    "projects": _projects(found[offset : offset + limit]),
                }
            ),
            "total": len(found),
            "offset": offset,
            "limit": limit,
            "keys": found[offset : offset + limit],
        } | self.more

    def attempts(self, *, key: str = "", limit: int = 100) -> dict[str, Any]:
        """Return the calls that tried *key*."""
        self._begin()
        tried = [
            one
            for one in self.calls
            if not key or any(attempt["key_id"] == key for attempt in one["attempts"])
        ]
        return {"calls": tried[:limit]}

    def history(self, *, by: str = "", name: str = "", hours: int = 1) -> dict[str, Any]:
        """Return the same waves for every name."""
        self._begin()
        slots, step = (60, 60) if hours == 1 else (144, 600)
        begin = datetime.now(UTC) - timedelta(seconds=slots * step)
        waves = {
            "requests": [round(20 + 15 * sin(n / 5)) for n in range(slots)],
            "failures": [3 * (n % 13 == 0) for n in range(slots)],
            "refused": [2 * (n % 13 == 0) for n in range(slots)],
            "calls": [round(18 + 14 * sin(n / 5)) for n in range(slots)],
            "failed_calls": [int(n == slots // 2) for n in range(slots)],
            "waits": [n % 7 for n in range(slots)],
            "input_tokens": [1000 * (n % 7) for n in range(slots)],
            "output_tokens": [100 * (n % 7) for n in range(slots)],
            "nano_usd": [1_000_000 * (n % 7) for n in range(slots)],
        }
        series: dict[str, Any] = dict(waves)
        if by in ("key", "project") and name:
            series |= {"calls": None, "failed_calls": None, "waits": None}
        names = {"workload": self.workloads, "model": [MODEL]}.get(by, [])
        sums = {counter: sum(values) // 3 for counter, values in waves.items()}
        return {
            "by": by,
            "name": name,
            "hours": hours,
            "at": iso(datetime.now(UTC)),
            "from": iso(begin),
            "step_s": step,
            "is_kept": True,
            "series": series,
            "shares": [{"name": one, **sums} for one in names],
        }

    def explain(self, model: str, tokens: int = 0, workload: str = "") -> dict[str, Any]:
        """Return the first available key."""
        self._begin()
        chosen = next((one["key_id"] for one in self.keys if one["available"]), None)
        ready = [one["key_id"] for one in self.keys if one["available"]]
        keys = [
            {
                "key_id": one["key_id"],
                "project": one["project"],
                "position": ready.index(one["key_id"]) + 1 if one["available"] else None,
                "available": one["available"],
                "reason": one["reason"],
                "sentence": one["sentence"],
                "available_at": one["available_at"],
            }
            for one in self.keys
        ]
        sentence = f"A call of {model} with {tokens} input tokens gets {chosen}."
        return {
            "model": model,
            "tokens": tokens,
            "workload": workload or None,
            "at": iso(datetime.now(UTC)),
            "key_id": chosen,
            "sentence": sentence,
            "keys": keys,
        }

    def reset(self, key_id: str) -> str:
        """Make it available."""
        self._change("reset", key_id).update(
            state="available",
            available=True,
            available_at=None,
            sentence="Available again.",
            allowed_actions=allowed_actions("available"),
        )
        return f"Key {key_id} is available again."

    def set_active(self, key_id: str, active: bool) -> str:
        """Disable or enable it."""
        action, state = ("enable", "available") if active else ("disable", "disabled")
        allowed = allowed_actions(state)
        self._change(action, key_id).update(
            state=state, available=active, sentence=state, allowed_actions=allowed
        )
        return f"Key {key_id} is {'enabled' if active else 'disabled'}."

    def check(self, key_id: str) -> str:
        """Return that it answers."""
        self._change("check", key_id)
        return f"Key {key_id} answers (0.2 s)."

    def _begin(self) -> None:
        self.before()
        if self.broken is not None:
            raise KeyrotError(self.broken)

    def _change(self, action: str, key_id: str) -> Any:
        self._begin()
        found = [one for one in self.keys if one["key_id"] == key_id]
        if not found:
            raise KeyError(f"no key {key_id!r}")
        self.changed.append((action, key_id))
        return found[0]


def _with_headline(summary: dict[str, Any]) -> dict[str, Any]:
    return summary | {"headline": headline_of(summary)}


def _projects(keys: list[Any]) -> dict[str, Any]:
    """Sum the cost of each project's keys."""
    found: dict[str, Any] = {}
    for one in keys:
        if one["project"] is None:
            continue
        project = found.setdefault(one["project"], {"usd_today": None, "usd_per_day": None})
        if one["usd_today"] is not None:
            project["usd_today"] = (project["usd_today"] or 0.0) + one["usd_today"]
        project["usd_per_day"] = project["usd_per_day"] or one["usd_per_day"]
    return found


def many(count: int) -> FakeSource:
    """Make a source of *count* keys, ten to a project, each in use."""
    used = {
        MODEL: {
            "available": True,
            "available_at": None,
            "rpm": window(1, 5),
            "tpm": window(1000, 250_000),
            "rpd": window(7, 20, "learned"),
        }
    }
    keys = [key(f"key_{n}", f"project-{n // 10}", used=used) for n in range(1, count + 1)]
    return FakeSource(keys)


TRACED = {
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "trace_url": "https://jaeger.example/trace/0af7651916cd43dd8448eb211c80319c",
}


def sample() -> FakeSource:
    """Make a pool as an operator may find it: each state once, and calls."""
    now = datetime.now(UTC)

    def later(**time: float) -> str:
        return iso(now + timedelta(**time))

    def history(base: int, wave: int, failures: dict[int, int]) -> dict[str, Any]:
        noise = ((n * 7919 + wave * 104729) % 1009 / 1009 for n in range(60))
        slow = (1 + sin((n + wave) / 9) for n in range(60))
        requests = [round(base * (0.45 * s + 0.5 * x)) for s, x in zip(slow, noise, strict=True)]
        return {
            "from": later(minutes=-60),
            "requests": requests,
            "failures": [failures.get(n, 0) for n in range(60)],
        }

    def usage(rpm: Any, tpm: Any, rpd: Any, at: str | None = None) -> dict[str, Any]:
        here = {"available": at is None, "available_at": at, "reason": "rpd" if at else None}
        return here | {"rpm": rpm, "tpm": tpm, "rpd": rpd}

    pro = "gemini-2.5-pro"
    keys = [
        key(
            "free_1",
            "my-app-dev",
            "cooling_down",
            reason="quota_minute",
            sentence=f"Google refused with 429 (quota_minute); tried again at "
            f"{later(seconds=42)[11:19]} UTC.",
            available_at=later(seconds=42),
            last_error="quota_minute",
            last_used=later(seconds=-9),
            success_count=218,
            error_count=6,
            used={
                MODEL: usage(
                    window(5, 5, "learned"),
                    window(18_204, 250_000, "learned"),
                    window(17, 20),
                    later(seconds=42),
                )
            },
            usd_today=0.0,
            tokens_today={"input": 48_200, "output": 9_100},
            history=history(5, 3, {12: 1, 31: 1, 58: 2}),
        ),
        key(
            "free_2",
            "my-app-dev",
            "limited",
            reason="rpd",
            sentence="Requests per day are exhausted (20 of 20); available again at 08:00:00 UTC, "
            "midnight Pacific time.",
            available_at=later(hours=6, minutes=12),
            last_used=later(minutes=-31),
            success_count=20,
            used={
                MODEL: usage(
                    window(0, 5),
                    window(0, 250_000),
                    window(20, 20, "learned"),
                    later(hours=6, minutes=12),
                )
            },
            usd_today=0.0,
            tokens_today={"input": 12_430, "output": 2_004},
            history={
                "from": later(minutes=-60),
                "requests": [int(n % 2 == 0 and n < 40) for n in range(60)],
                "failures": [0] * 60,
            },
        ),
        key(
            "paid_1",
            "my-app",
            tier="tier1",
            priority=1,
            last_error="overloaded",
            last_used=later(seconds=-2),
            success_count=4_120,
            error_count=11,
            used={
                MODEL: usage(
                    window(312, 1000), window(1_640_000, 2_000_000), window(4_131, 10_000)
                ),
                pro: usage(
                    window(14, 150), window(88_400, 2_000_000, "learned"), window(201, 1_000)
                ),
            },
            usd_today=1.8423,
            usd_per_day=5.0,
            usd_spent=3.5442,
            tokens_today={"input": 2_412_000, "output": 331_400},
            history=history(40, 19, {5: 3, 6: 2, 44: 4}),
        ),
        key(
            "paid_2",
            "my-app",
            tier="tier1",
            priority=1,
            last_used=later(seconds=-4),
            success_count=3_988,
            used={
                MODEL: usage(
                    window(298, 1000), window(1_520_000, 2_000_000), window(3_988, 10_000)
                ),
            },
            usd_today=1.7019,
            usd_per_day=5.0,
            usd_spent=3.5442,
            tokens_today={"input": 2_209_000, "output": 310_100},
            history=history(38, 17, {}),
        ),
        key(
            "tenant_7",
            "customer-7",
            "rejected",
            tier="paid",
            reason="key_invalid",
            sentence="Google rejects this value with 400 (key_invalid); replace its value. "
            "Probed again at 12:45:00 UTC.",
            available_at=later(minutes=14),
            last_error="key_invalid",
            last_used=later(minutes=-1),
            success_count=902,
            error_count=3,
            usd_today=0.2201,
            tokens_today={"input": 410_200, "output": 60_400},
            history=history(6, 4, {57: 1, 58: 1, 59: 1}),
        ),
        key(
            "tenant_8",
            "customer-8",
            "unresolved",
            tier="paid",
            reason="no value",
            sentence="The secret store has no value for it: vault://kv/tenants#tenant_8.",
        ),
        key(
            "old_1",
            None,
            "disabled",
            tier="tier1",
            allowed_actions=["check"],
            reason="active=false",
            sentence="Switched off by its owner (active: false).",
            last_used=later(days=-3),
            success_count=51_200,
            error_count=40,
        ),
    ]
    tried = ("free_1", 429, "quota_minute")
    ok = ("paid_1", 200, None)
    calls = [
        call(ok, at=later(seconds=-2), seconds=0.84, workload="chat", **TRACED),
        call(tried, ok, at=later(seconds=-9), seconds=1.21),
        call(("paid_2", 200, None), at=later(seconds=-11), model=pro, seconds=6.4),
        call(("tenant_7", 400, "key_invalid"), ok, at=later(seconds=-64), seconds=1.02),
        call(("paid_1", 503, "overloaded"), ("paid_2", 200, None), at=later(seconds=-80)),
        call(("free_1", 200, None), at=later(seconds=-85), seconds=12.7, waited=True),
        call(tried, ("free_2", 429, "quota_day"), at=later(seconds=-190), seconds=0.5),
        call(at=later(seconds=-193), outcome="exhausted", seconds=0.0),
        call(("free_2", 200, None), at=later(seconds=-200), seconds=0.91),
    ]
    source = FakeSource(keys, calls)
    source.today = {
        "input_tokens": sum(one["tokens_today"]["input"] for one in keys),
        "output_tokens": sum(one["tokens_today"]["output"] for one in keys),
        "cost_usd": sum(one["usd_today"] or 0.0 for one in keys),
    }
    return source
