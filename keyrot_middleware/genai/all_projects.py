"""Lists over all projects of a pool, inside `all_projects()`, by the SDK's own pager.

A list shows one project. Here the request for its first page goes to the first project, and where
a project's last page ends, a page token of ours leads to the next project: `keyrot:<project>:
<fetched>:<token>`. The SDK sends it back like any page token, and it is taken apart again, maybe
in another process: what it names as fetched is known in one process alone.

The SDK's pager fails on an empty page in the middle of a list. So the first page of the next
project is fetched before a token leads to it, and empty pages are passed over.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Generator
from contextvars import ContextVar
from secrets import token_hex
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from ..core.flow import CallState
from ..core.model import CallInfo, Candidate, project_label
from ..core.usage import parse_object
from ..errors import warn_safely
from ..runtime.pool import Pool
from ..state.memory import BoundedDict
from .pool_exhausted import key_pool_exhausted

__all__ = ["PageRequest", "ProjectLists", "in_all_projects", "is_unavailable"]

in_all_projects: ContextVar[bool] = ContextVar("keyrot_all_projects", default=False)

_log = logging.getLogger("keyrot_middleware")

_PREFIX = "keyrot:"
_OURS = re.compile(_PREFIX + r"(\d{1,9}):([0-9a-f]*):(.*)", re.ASCII | re.DOTALL)
_TOKEN = ("pageToken", "page_token")
_KEPT = 100
"""Pages that were fetched ahead; the oldest is fetched again."""


class PageRequest(NamedTuple):
    """A page to fetch. The reply is the response, or the error of an unavailable project."""

    path: str
    keys: tuple[Candidate, ...]
    """Of the project."""


_Pages = Generator[PageRequest, Any, Any]


class _Page(NamedTuple):
    """A page with items, and where it is from."""

    response: Any
    project: int
    token: str
    """Google's own, for the next page of the same project."""


class ProjectLists:
    """The lists of one pool over its projects."""

    def __init__(self, pool: Pool) -> None:
        """Serve a pool."""
        self._pool = pool
        self._ahead: BoundedDict[_Page] = BoundedDict(_KEPT)

    @staticmethod
    def is_list(info: CallInfo, path: str) -> bool:
        """Return whether a request is for a list of stored resources over all projects."""
        if not info.bound_to_owner:
            return False
        if _token_of(path).startswith(_PREFIX):  # also where the context has ended meanwhile
            return True
        return in_all_projects.get() and len(info.resources) == bool(_token_of(path))

    def pages(self, info: CallInfo, path: str) -> _Pages:
        """Return the response to a list request, with the token of the page that follows.

        Raises:
            BaseException: The last error, if no project is available.
        """
        projects = list(self._pool.selector.projects(info).values())
        token = _token_of(path)
        ours = _OURS.fullmatch(token)
        if not projects or (token and ours is None):  # begun elsewhere
            return (yield PageRequest(path, ()))
        fetched, project = "", 0
        if ours is not None:
            number, fetched, token = ours.groups()
            project = min(int(number), len(projects) - 1)  # keys may have left the pool
        page = self._ahead.pop(fetched, None) if fetched else None
        if page is None:
            page = yield from _next_page(projects, path, project, token)
        if not isinstance(page, _Page):
            return page  # the last one of an empty list
        follows = f"{_PREFIX}{page.project}::{page.token}" if page.token else ""
        if not follows:
            ahead = yield from _next_page(projects, path, page.project + 1, "", must_answer=False)
            if isinstance(ahead, _Page):
                key = token_hex(8)
                self._ahead[key] = ahead
                follows = f"{_PREFIX}{ahead.project}:{key}:"
        return _with_token(page.response, follows)


def _next_page(
    projects: list[tuple[Candidate, ...]],
    path: str,
    project: int,
    token: str,
    *,
    must_answer: bool = True,
) -> Generator[PageRequest, Any, Any]:
    """Return the first page with items from *project* and *token* on; else the last response.

    A project that is not available is skipped with a warning.

    Raises:
        BaseException: No project is available, and one of them must be.
    """
    response: Any = None
    error: BaseException | None = None
    while project < len(projects):
        keys = projects[project]
        reply = yield PageRequest(_with_page(path, token), keys)
        if isinstance(reply, BaseException):
            error, token = reply, ""
            _warn_of_skipped(keys, reply)
        else:
            response, body = reply, parse_object(getattr(reply, "body", None))
            token = str(body.get("nextPageToken") or "")
            if any(isinstance(items, list) and items for items in body.values()):
                return _Page(response, project, token)
        project += not token
    if response is None and error is not None and must_answer:
        raise error
    return response


def is_unavailable(call: CallState, error: BaseException) -> bool:
    """Return whether a call failed because no key of its project is available."""
    if isinstance(error, key_pool_exhausted()):
        return True
    return bool(call.attempts) and call.attempts[-1].verdict.rotate


def _warn_of_skipped(keys: tuple[Candidate, ...], error: BaseException) -> None:
    """Warn that a project is missing in a list; the warning cannot fail the call."""
    ids = ", ".join(key.key_id for key in keys[:3]) + (", …" if len(keys) > 3 else "")
    reasons = getattr(error, "reasons", None)
    why = "; ".join(reasons.values()) if reasons else str(getattr(error, "message", error))
    text = (
        f"all_projects(): the list is without project {project_label(keys[0].project)} (keys "
        f"{ids}), none of whose keys is available: {why}"
    )
    _log.warning("%s", text)
    warn_safely(text)


def _token_of(path: str) -> str:
    pairs = parse_qsl(path.partition("?")[2])
    return next((value for name, value in pairs if name in _TOKEN), "")


def _with_page(path: str, token: str) -> str:
    """Return the path of a list with another page token; empty: of its first page."""
    base, _, query = path.partition("?")
    pairs = [(name, value) for name, value in parse_qsl(query) if name not in _TOKEN]
    pairs += [("pageToken", token)] if token else []
    return f"{base}?{urlencode(pairs)}" if pairs else base


def _with_token(response: Any, token: str) -> Any:
    """Return a response with the token of the page that follows; empty: none does."""
    body = parse_object(response.body)
    body.pop("nextPageToken", None)
    if token:
        body["nextPageToken"] = token
    return response.model_copy(update={"body": json.dumps(body)})
