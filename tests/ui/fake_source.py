"""A source of the page that tests fill: with the fields of a real pool, and without one."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from keyrot_middleware.core.judgement import KEY_STATES
from keyrot_middleware.errors import KeyrotError

__all__ = ["FakeSource", "call", "key", "later", "sample", "used", "window"]

MODEL = "gemini-3.1-flash-lite"
NUMBERS = count(1)
OF_KEY = ["reset", "disable"]


def later(seconds: float = 0) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def window(amount: int, limit: int | None, source: str = "configured") -> dict[str, Any]:
    return {"used": amount, "limit": limit, "source": None if limit is None else source}


def used(rpm: Any, reason: str | None = None, at: str | None = None) -> dict[str, Any]:
    here: dict[str, Any] = {"available": reason is None, "available_at": at, "reason": reason}
    here |= {"runs_out_at": None, "learned": {}, "sources": {}}
    here |= {"counts_with": None, "held_back": 3, "refused": 2}
    here["fullest_minute"] = {"limit": "rpm", "used": 5, "of": 5}
    here |= dict.fromkeys(("requests_minute", "tokens_minute", "requests_day"), 1)
    return here | {"rpm": rpm, "tpm": window(1, None), "rpd": window(1, 20, "learned")}


def key(key_id: str, project: str | None = "proj-a", state: str = "available", **more: Any) -> Any:
    allowed = {"disabled": ["enable"], "unresolved": ["reset"]}.get(state, OF_KEY)
    none = ("reason", "cooldown_until", "cooldown_reason", "cooldown_scope", "last_error")
    none += ("model", "available_at", "last_used", "usd_today", "disabled_reason", "expires")
    made: dict[str, Any] = dict.fromkeys(none)
    made |= {"key_id": key_id, "project": project, "platform": "gemini_api", "tier": "free"}
    made |= {
        "priority": 0,
        "use": 1,
        "state": state,
        "sentence": state,
        "available": state == "available",
    }
    made |= {"active": True, "in_cooldown": False}
    made["ends_by"] = "success" if state == "rejected" else "time"
    made["limits"] = dict.fromkeys(("rpm", "tpm", "rpd", "max_concurrency"))
    made |= {"success_count": 0, "error_count": 0, "used": {}, "usd": {}}
    made["allowed_actions"] = allowed
    made["unpriced_calls_today"] = 0
    made["tokens_today"] = {"input": 0, "output": 0, "cached": 0}
    made["history"] = {"from": None, "requests": [0] * 60, "failures": [0] * 60}
    assert more.keys() <= made.keys()
    return made | more


def call(*attempts: tuple[str, int | None, str | None], **more: Any) -> dict[str, Any]:
    failed = bool(attempts and attempts[-1][2])
    made: dict[str, Any] = dict.fromkeys(("workload", "trace_id", "trace_url"))
    made |= {"id": str(next(NUMBERS)), "at": later(), "model": MODEL, "seconds": 1.2}
    made |= {"outcome": "failed" if failed else "ok", "waited": False, "cost_usd": 0.0012}
    made |= {"input_tokens": 1_200, "output_tokens": 340, "estimated": False}
    made["attempts"] = [
        {"key_id": key_id, "code": code, "failure": failure, "seconds": 0.4}
        | {"message": f"Google about {failure}" if failure else ""}
        for key_id, code, failure in attempts
    ]
    return made | more


class FakeSource:
    """Keys and calls that a test may change while the page is open."""

    def __init__(self, keys: list[Any] | None = None, calls: list[Any] | None = None) -> None:
        self.keys = keys or []
        self.calls = calls or []
        self.changed: list[tuple[str, ...]] = []
        self.disabled_for_s = 0.0
        """The actions: (action, key id)."""
        self.broken: str | None = None
        """The error of each request."""
        self.more: dict[str, Any] = {}
        """Overrides of the answer of `status`."""
        self.workloads = ["chat", "nightly-batch"]
        self.before: Callable[[], object] = lambda: None
        """Called by each request."""

    def status(
        self, *, offset: int = 0, limit: int = 100, query: str = "", state: str = "", sort: str = ""
    ) -> dict[str, Any]:
        """Filter, sort and page the keys."""
        self._begin()
        states = {name: sum(one["state"] == name for one in self.keys) for name in KEY_STATES}
        at = min((one["available_at"] for one in self.keys if one["available_at"]), default=None)
        calls: dict[str, dict[str, Any]] = {}
        for one in self.keys:
            for model, usage in one["used"].items():
                begun: dict[str, Any] = {
                    "model": model,
                    "workload": None,
                    "available": 0,
                    "keys": 0,
                }
                begun |= {"available_at": at, "ends_by": "time"}
                counts = calls.setdefault(model, begun)
                counts["keys"] += 1
                counts["available"] += bool(usage["available"])
                counts["answer"] = "served" if counts["available"] else "no"
                counts["is_trouble"] = not counts["available"]
                counts["sentence"] = f"{model}: no key."
                counts["runs_out_at"] = usage["runs_out_at"]
        found = [
            one
            for one in self.keys
            if (not state or one["state"] == state)
            and query.lower() in f"{one['key_id']}\n{one['project']}\n{[*one['used']]}".lower()
        ]
        if sort:
            found.sort(key=lambda one: one["key_id"], reverse=sort.startswith("-"))
        shown = found[offset : offset + limit]
        hour = {"calls": 331, "failed_calls": 2, "requests": 340, "failures": 9, "waits": 3}
        summary: dict[str, Any] = {"keys": len(self.keys), "available": states["available"]}
        summary["states"] = states
        summary |= {"calls": list(calls.values()), "answers": [], "last_hour": hour}
        today = {"input_tokens": 120_331, "output_tokens": 20_331, "cost_usd": 0.1234}
        today |= {"estimated_tokens": 0, "unpriced_calls": 0, "unpriced_models": []}
        summary |= {"today": today, "midnight": later(-3600)}
        none: dict[str, Any] = {"differ": [], "differences": [], "keys_file": None}
        summary |= {"processes": {"running": 3, **none}}
        summary["projects"] = {
            one["project"]: {
                name: one[name] for name in ("usd_today", "usd", "unpriced_calls_today")
            }
            for one in shown
            if one["project"] is not None
        }
        budget = {"usd": {"day": {"spent": 1.23, "limit": 5.0}}, "unpriced_calls_today": 0}
        summary["workloads"] = {"nightly": budget}
        said = [one["sentence"] for one in summary["calls"] if one["is_trouble"]]
        headline: dict[str, Any] = {"sentences": said or ["All calls are served."]}
        count = f"{states['available']} of {len(self.keys)} keys are available."
        hour_text = "2 of 331 calls failed. 9 of 340 requests failed."
        headline |= {"keys": {"sentence": count}, "hour": hour_text}
        summary["headline"] = headline | {"unknown": ["1 reply of Gemini not known: 401"]}
        made = {"pool": "default", "shared": True, "state_url": "redis://127.0.0.1:6379/0"}
        made |= {"degraded": False, "at": later(), "cost_known": True, "has_records": True}
        made |= {"summary": summary, "total": len(found), "offset": offset, "limit": limit}
        return made | {"keys": shown} | self.more

    def attempts(self, *, key: str = "", limit: int = 100) -> dict[str, Any]:
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
        counters = ("requests", "failures", "refused", "calls", "failed_calls", "waits")
        counters += (
            "input_tokens",
            "output_tokens",
            "nano_usd",
            "cached_tokens",
            "estimated_tokens",
            "unpriced_calls",
        )
        series: dict[str, Any] = {one: [n % 7 for n in range(slots)] for one in counters}
        sums = {counter: sum(values) // 3 for counter, values in series.items()}
        if by in ("key", "project") and name:
            series |= dict.fromkeys(counters[3:])
        names = {"workload": self.workloads, "model": [MODEL]}.get(by, [])
        made = {"by": by, "name": name, "hours": hours, "at": later(), "step_s": step}
        made |= {"from": later(-slots * step), "unknown": None, "series": series}
        return made | {"shares": [{"name": one, **sums} for one in names]}

    def explain(self, model: str, tokens: int = 0, workload: str = "") -> dict[str, Any]:
        """Return the first available key."""
        self._begin()
        chosen = next((one["key_id"] for one in self.keys if one["available"]), None)
        names = ("key_id", "project", "available", "reason", "sentence", "available_at", "ends_by")
        return {
            "model": model,
            "tokens": tokens,
            "workload": workload or None,
            "answered_by": None,
            "next_model": None,
            "at": later(),
            "key_id": chosen,
            "answer": "no" if chosen is None else "served",
            "sentence": f"A call of {model} in {workload}, {tokens} tokens, gets {chosen}.",
            "keys": [
                {name: one[name] for name in names}
                | {"position": 1, "may_get_it": one["key_id"] == chosen}
                for one in self.keys
            ],
        }

    def reset(self, key_id: str) -> str:
        self._change("reset", key_id, "available")
        return f"key {key_id} is available again"

    def set_active(self, key_id: str, active: bool, for_s: float = 0.0) -> str:
        name = "enable" if active else "disable"
        self.disabled_for_s = self.disabled_for_s if active else for_s
        self._change(name, key_id, "available" if active else "disabled")
        return f"key {key_id} is {name}d"

    def _begin(self) -> None:
        self.before()
        if self.broken is not None:
            raise KeyrotError(self.broken)

    def _change(self, action: str, key_id: str, state: str) -> None:
        self._begin()
        found = [one for one in self.keys if one["key_id"] == key_id]
        if not found:
            raise KeyError(key_id)
        self.changed.append((action, key_id))
        if state:
            found[0].update(key(key_id, found[0]["project"], state))


def sample() -> FakeSource:
    keys = [
        key(
            "free_1",
            "my-app-dev",
            "cooling_down",
            sentence="Google refused with 429 (quota_minute).",
            available_at=later(42),
            last_error="quota_minute",
            used={MODEL: used(window(5, 5, "learned"), "rpm", later(42))},
        ),
        key("free_2", "my-app-dev", "limited", sentence="RPD is used up", available_at=later(9000)),
        key(
            "paid_1",
            "my-app",
            priority=1,
            success_count=4_120,
            error_count=11,
            last_used=later(-2),
            used={
                MODEL: used(window(312, 1000)) | {"runs_out_at": later(1_800)},
                "gemini-3.1-pro-preview": used(window(1, 9)) | {"runs_out_at": later(9_000)},
            },
            usd_today=1.8423,
            usd={"day": {"spent": 3.5442, "limit": 5.0}},
            tokens_today={"input": 2_412_000, "output": 331_400, "cached": 1_206_000},
            history={"from": later(-3600), "requests": [20] * 60, "failures": [0] * 51 + [1] * 9},
        ),
        key(
            "paid_2",
            "my-app",
            used={MODEL: used(window(298, 1000)) | {"runs_out_at": later(1_800)}},
        ),
        key("tenant_7", "customer-7", "rejected", available_at=later(840)),
        key("tenant_8", None, "unresolved", sentence="The secret store has no value for it."),
        key("old_1", None, "disabled", allowed_actions=[]),
    ]
    ok = ("paid_1", 200, None)
    trace = "0af7651916cd43dd8448eb211c80319c"
    traced = {"trace_id": trace, "trace_url": f"https://jaeger.example/trace/{trace}"}
    calls = [
        call(ok, workload="chat", **traced),
        call(("free_1", 429, "quota_minute"), ok),
        call(("tenant_7", 400, "key_invalid"), ok),
        call(("free_1", 200, None), seconds=12.7, waited=True),
        call(outcome="exhausted", seconds=0.0),
    ]
    return FakeSource(keys, calls)
