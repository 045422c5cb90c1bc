"""The API under `api/`: JSON for the page and for scripts, read from a `PoolReport`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from ..core.availability import KEY_STATES
from ..core.text import did_you_mean, hide_secrets, mask_keys
from ..errors import KeyrotError
from ..genai.key_check import check_key, describe_check, require_allowed_host
from ..guard import handle_internal_error
from ..monitoring.view import SORTS, PoolReport, source_of
from ..runtime.current import current_pool
from ..runtime.pool import Pool
from .access import Access, AccessDenied, Session

T = TypeVar("T")

MAX_KEYS = 500
MAX_CALLS = 100
"""Keys, and calls, in one answer."""
MAX_TEXT = 300
"""Characters of a filter or of a model's name."""
MAX_NUMBER = 10**9
THREADS = 4
"""Requests that are worked on at once: the service has other uses for its threads."""


class BadParameter(Exception):  # noqa: N818 - a reply of HTTP, not a fault
    """A parameter is wrong; the text says what is allowed."""


class Api:
    """Answer the requests under `api/`."""

    def __init__(self, access: Access, source: PoolReport | None, actions: bool) -> None:
        self._access = access
        self._source = source
        self._actions = actions
        self._report: tuple[Pool, PoolReport] | None = None
        self._threads = anyio.CapacityLimiter(THREADS)

    async def status(self, request: Request) -> Response:
        """Return the summary and a page of the keys."""

        def read(source: PoolReport) -> dict[str, Any]:
            state = _text(request, "state")
            if state and state not in KEY_STATES:
                hint = did_you_mean(state, KEY_STATES)
                raise BadParameter(f"state is one of {', '.join(KEY_STATES)}.{hint}")
            sort = _text(request, "sort")
            if sort.removeprefix("-") not in ("", *SORTS):
                raise BadParameter(f"sort is one of {', '.join(SORTS)}, or with - before it")
            found = source.status(
                offset=_number(request, "offset", 0, 0, MAX_NUMBER),
                limit=_number(request, "limit", 100, 1, MAX_KEYS),
                query=_text(request, "query"),
                state=state,
                sort=sort,
            )
            return {**found, "actions": self._actions}

        return await self._answer(request, read)

    async def attempts(self, request: Request) -> Response:
        """Return the newest calls, newest first."""

        def read(source: PoolReport) -> dict[str, Any]:
            limit = _number(request, "limit", MAX_CALLS, 1, MAX_CALLS)
            return source.attempts(key=_text(request, "key"), limit=limit)

        return await self._answer(request, read)

    async def history(self, request: Request) -> Response:
        """Return how many requests and calls there were in the last hours."""

        def read(source: PoolReport) -> dict[str, Any]:
            by, hours = _text(request, "by"), _number(request, "hours", 1, 1, 24)
            if by not in ("", "key", "project", "model", "workload"):
                raise BadParameter("by is one of key, project, model, workload")
            if hours not in (1, 24):
                raise BadParameter("hours is 1 or 24")
            return source.history(by=by, name=_text(request, "name"), hours=hours)

        return await self._answer(request, read)

    async def explain(self, request: Request) -> Response:
        """Return which key a call would get now, and why each other one not."""

        def read(source: PoolReport) -> dict[str, Any]:
            model = _text(request, "model")
            if not model:
                raise BadParameter("model is missing: name the model of the call")
            tokens = _number(request, "tokens", 0, 0, MAX_NUMBER)
            return source.explain(model, tokens, _text(request, "workload"))

        return await self._answer(request, read)

    async def act(self, request: Request) -> Response:
        """Reset, disable, enable or check a key."""
        key_id, action = request.path_params["key_id"], request.path_params["action"]

        def change(source: PoolReport) -> dict[str, Any]:
            calls: dict[str, Callable[[], str]] = {
                "reset": lambda: source.reset(key_id),
                "disable": lambda: source.set_active(key_id, False),
                "enable": lambda: source.set_active(key_id, True),
                "check": lambda: source.check(key_id),
            }
            if action not in calls:
                raise AccessDenied(404, f"There is no such action; there are {', '.join(calls)}.")
            try:
                return {"ok": True, "sentence": calls[action]()}
            except KeyError:
                raise AccessDenied(404, f"This pool has no key {hide_secrets(key_id)!r}.") from None
            except KeyrotError as error:
                raise AccessDenied(409, str(error)) from None

        return await self._answer(request, change, changes=True)

    async def _answer(
        self,
        request: Request,
        work: Callable[[PoolReport], dict[str, Any]],
        changes: bool = False,
    ) -> Response:
        """Do *work* in a thread, and turn what it raises into an answer with a sentence."""
        try:
            session = await self._access.admit(request)
            if changes:
                self._allow_change(request, session)
            found = await anyio.to_thread.run_sync(
                lambda: work(self._open_source()), limiter=self._threads
            )
        except AccessDenied as refused:
            return error_response(refused.status, refused.sentence)
        except BadParameter as error:
            return error_response(400, str(error))
        except KeyrotError as error:
            return error_response(503, str(error))
        except Exception:
            handle_internal_error("ui")
            return error_response(500, "The request failed; the log of the service has more.")
        response = json_response(200, found)
        if self._actions and session.session_id:
            response.headers["X-CSRF-Token"] = session.csrf_token
        return response

    def _allow_change(self, request: Request, session: Session) -> None:
        if not self._actions:
            raise AccessDenied(
                403,
                "Actions are off: start with keyrot ui --actions, "
                "or mount keyrot_middleware.ui.app(actions=True, token=…).",
            )
        self._access.require_same_origin(request, session)

    def _open_source(self) -> PoolReport:
        if self._source is not None:
            return self._source
        pool = current_pool()
        if pool is None:
            self._report = None
            raise KeyrotError(
                "No pool is installed in this process: call keyrot_middleware.install() first."
            )
        if self._report is None or self._report[0] is not pool:
            # Kept, since one look at a large pool serves all requests of a second.
            self._report = pool, source_of(pool, check=partial(_check, pool))
        return self._report[1]


def _check(pool: Pool, key_id: str) -> str:
    if key_id not in pool.secrets.resolved:
        raise KeyrotError(f"key {key_id} has no value to check")
    keys = pool.configured
    for key in keys:
        if key.key_id == key_id:
            require_allowed_host(pool.allowed_origins, key.platform)
            check = check_key(pool.secrets, key_id, key.model, key.platform)
            return describe_check(key_id, check)
    raise KeyError(key_id)


def json_response(status: int, content: dict[str, Any]) -> Response:
    """Make an answer; escapes keep half a character from being an error of the encoder."""
    return Response(mask_keys(json.dumps(content)), status, media_type="application/json")


def error_response(status: int, sentence: str) -> Response:
    """Make the answer to a request that failed."""
    response = json_response(status, {"error": sentence})
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _text(request: Request, name: str) -> str:
    value = request.query_params.get(name, "").strip()
    if len(value) > MAX_TEXT:
        raise BadParameter(f"{name} has at most {MAX_TEXT} characters, found {len(value)}")
    return value


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1
    if not least <= value <= most:
        raise BadParameter(f"{name} is a number from {least} to {most:,}")
    return value
