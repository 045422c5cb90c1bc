"""Live sessions through the pool: Live, Live music and live Interactions.

A session is one streamed call. The key is chosen when the session opens; a refusal before it is
set up is judged by the failure table and the next key is tried. From then on nothing is repeated:
the lease is held until the websocket is closed or lost, and then settled with the tokens that the
server reported and with its close code. Who closes it does not matter, the program, the server or
the network, since all of them end in the connection of websocket.py.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import ContextVar
from inspect import signature
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.affinity import HANDLE, INTERACTION, is_certain
from ..core.commands import Failed, StreamEnd, StreamOpened
from ..core.failures import FailureFacts
from ..core.flow import Exhausted
from ..core.model import NO_USAGE, CallInfo, Lease
from ..errors import ConfigError, handle_internal_error
from ..hosts import host_from_url, is_clear_here, origin_from_url
from ..providers.gemini import GEMINI_API, KEY_HEADER, Gemini
from ..providers.gemini.bodies import add_name, read_body
from ..providers.gemini.replies import add_usage, parse_usage
from ..providers.keys import mask_keys
from ..runtime import required_project, required_tiers, workload
from ..runtime.held import Held
from ..runtime.runner import arun
from ..secrets import Secret
from ..state.base import State
from ..telemetry import observe
from .errors import facts_from_error, lost_connection
from .genai import has_foreign_key, option
from .no_key import why_no_key
from .patching import Args, Kwargs, Wrapped, Wrapper
from .pooled_calls import PooledCalls, is_key
from .redaction import Redacting

if TYPE_CHECKING:
    from websockets.exceptions import ConnectionClosed

_GEMINI = Gemini()
_USAGE = b'"usageMetadata"'
_NEW_HANDLE = b'"newHandle"'
_NORMAL = (1000, 1001)
"""Close codes of a session that ended as it should."""


class _SessionAccount:
    """What a session has used, and what ended it."""

    def __init__(self) -> None:
        self.usage = NO_USAGE
        self.names: tuple[str, ...] = ()
        self.error: Exception | None = None


_current: ContextVar[LiveConnection | None] = ContextVar("keyrot_live", default=None)
"""The session that is being opened."""
_KEY_IN_URL = re.compile(r"\?key=[^&]*$")


class SessionWatch:
    """Follows one websocket; does nothing: it is no session of the pool."""

    def refused(self, error: Exception) -> None:
        """Note why the handshake failed."""

    def received(self, message: str | bytes) -> None:
        """Read a message of the server."""

    async def closed(self, error: ConnectionClosed | None) -> None:
        """Settle the session, once: it is closed, or lost with *error*."""


class LiveConnection(SessionWatch, Held):
    """One websocket: the key of its handshake, and what is settled at its end."""

    def __init__(self, lease: Lease, calls: PooledCalls, client_key: str) -> None:
        self.value = calls.value(lease)
        """The key of the handshake; None: the client's own."""
        self.redact = calls.redact(client_key)
        self.dialed = False
        """A websocket was asked for."""
        self.account = _SessionAccount()
        self.session: Any = None
        """What the SDK has opened; None once the program has it."""
        self._lease = lease
        self._state: State = calls.pool.state
        self._settling: asyncio.Future[None] | None = None
        self._recording: set[asyncio.Future[None]] = set()

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage of the session, its newest handle and why it broke."""
        failed = Failed(_facts(error), error) if error is not None else None
        return StreamEnd(self.account.usage, self.account.names, failed)

    def refused(self, error: Exception) -> None:
        """Note why the handshake failed."""
        self.account.error = error

    def received(self, message: str | bytes) -> None:
        """Read the usage and the resumption handle of a message."""
        try:
            raw = message.encode() if isinstance(message, str) else message
            if _USAGE in raw or _NEW_HANDLE in raw:
                self._read(json.loads(raw))
        except Exception:
            handle_internal_error("live")

    async def closed(self, error: ConnectionClosed | None) -> None:
        """Settle the session, once.

        It is settled in a task of its own: whoever reads the session may be cancelled meanwhile.
        """
        if self._settling is None:
            if error is not None and not _is_normal(error):
                self.account.error = copy.copy(error)  # notes are not for the program's own
            if self.driver is None:
                return  # before the setup: the SDK raises, and the next key is tried
            self._settling = asyncio.ensure_future(self._settle_closed())
        await asyncio.shield(self._settling)

    async def _settle_closed(self) -> None:
        try:
            await asyncio.gather(*self._recording, return_exceptions=True)
            await self.ended(self.account.error)
        except Exception:
            handle_internal_error("live")
        except BaseException as raised:
            await self.interrupted(raised)
            raise

    def _read(self, message: Any) -> None:
        # Each count is of one turn, in which the model reads the conversation again: they add up.
        account = self.account
        if isinstance(message.get("usageMetadata"), dict):
            account.usage = add_usage(account.usage, parse_usage(message))
        update = message.get("sessionResumptionUpdate")
        handle = update.get("newHandle") if isinstance(update, dict) else None
        names: dict[str, None] = {}
        add_name(names, HANDLE, handle)
        if names:
            account.names = tuple(names)
            self._record_owner(account.names)

    def _record_owner(self, names: tuple[str, ...]) -> None:
        """Record whose a handle is, now: another process may resume the session at any time."""
        if self._state.is_local:
            self._state.set_owner(self._lease, names)
            return
        recording = asyncio.ensure_future(self._state.do(self._state.set_owner, self._lease, names))
        self._recording.add(recording)
        recording.add_done_callback(self._recorded)

    def _recorded(self, recording: asyncio.Future[None]) -> None:
        self._recording.discard(recording)
        if not recording.cancelled() and (error := recording.exception()) is not None:
            with suppress(Exception):
                raise error
            handle_internal_error("state")


def _is_normal(closed: Any) -> bool:
    """Return whether a connection was closed as it should be, or by us, whatever the code."""
    ours = not closed.rcvd_then_sent and closed.rcvd is not None and closed.rcvd == closed.sent
    return ours or getattr(closed.rcvd or closed.sent, "code", None) in _NORMAL


class _LiveCall(NamedTuple):
    """A session that goes through the pool."""

    client: Any
    """The SDK's api client."""
    info: CallInfo
    wait_limit_s: float


def wrappers(calls: PooledCalls | None) -> dict[tuple[str, str], Wrapper]:
    """Return the wrapper of each method that opens a Live session."""
    of, interactions = _Sessions(calls), "google.genai._interactions_websocket"
    dial: dict[tuple[str, str], Wrapper] = {
        ("google.genai.live", "ws_connect"): of.dial,
        ("google.genai.live_music", "connect"): of.dial,
        (interactions, "ws_connect"): of.dial,
    }
    if calls is None:
        return dial
    return {
        **dial,
        ("google.genai.live", "AsyncLive.connect"): of.connect,
        ("google.genai.live_music", "AsyncLiveMusic.connect"): of.connect_music,
        (interactions, "InteractionWebSocketConnectionContext._open"): of.open_interaction,
    }


class _Sessions:
    """Opens Live sessions with keys of the pool."""

    def __init__(self, calls: PooledCalls | None) -> None:
        """Serve a pool; None where no key was found at all."""
        self._calls = calls

    def connect(self, wrapped: Wrapped, live: Any, args: Args, kwargs: Kwargs) -> Any:
        """Wrap `AsyncLive.connect`."""
        return self._connect("bidiGenerateContent", wrapped, live, args, kwargs)

    def connect_music(self, wrapped: Wrapped, music: Any, args: Args, kwargs: Kwargs) -> Any:
        """Wrap `AsyncLiveMusic.connect`."""
        return self._connect("bidiGenerateMusic", wrapped, music, args, kwargs)

    def _connect(self, verb: str, wrapped: Wrapped, live: Any, args: Args, kwargs: Kwargs) -> Any:
        manager = wrapped(*args, **kwargs)  # raises for wrong arguments, and opens nothing yet
        try:
            model, config = str(kwargs["model"]), kwargs.get("config")
            names = read_body({"model": model, "config": _plain(config)})[1]
            options = option(config, "http_options") if config is not None else None
            pooled = self._read_call(live._api_client, verb, model, names, options)
        except Exception:
            handle_internal_error("live")
            return manager
        if pooled is None:
            return manager
        return _Session(self, lambda: wrapped(*args, **kwargs), pooled)

    def dial(self, wrapped: Wrapped, _module: object, args: Args, kwargs: Kwargs) -> Any:
        """Wrap what Live calls to connect.

        Raises:
            ConfigError: The pool's key would go to a host that may not have it.
        """
        uri = args[0] if args else kwargs.pop("uri")
        name = "additional_headers" if "additional_headers" in kwargs else "extra_headers"
        headers = dict(kwargs.get(name) or {})
        live = _current.get()
        if live is not None and live.dialed:
            live = None
        if live is not None:
            live.dialed = True
        value = live.value if live is not None else None
        given = next((text for key, text in headers.items() if key.lower() == KEY_HEADER), "")
        if value is None and not is_key(given) and given:
            value = self._home()
        origin = None
        if value is not None and self._calls is not None:
            origin = origin_from_url(uri)
            if origin not in self._calls.allowed[GEMINI_API]:
                raise ConfigError(
                    f"no key of the pool may go to {origin or uri}: it is not in "
                    "KEYROT_ALLOWED_HOSTS"
                )
            bearer = ["Bearer", *given.split()]
            kwargs[name] = {
                key: text
                for key, text in headers.items()
                if key.lower() not in (KEY_HEADER, *_GEMINI.account_headers)
                and text.split() != bearer
            } | {KEY_HEADER: value.reveal()}
            if is_clear_here(uri) and "proxy" in signature(wrapped).parameters:
                kwargs["proxy"] = None  # one of the environment would get the key in clear
            # SDK 1.x names the key in the address as well, where logs and errors would show it.
            uri = _KEY_IN_URL.sub("", uri)
        if self._calls is not None and (value is not None or live is not None):
            from .websocket import guarded  # noqa: PLC0415 - it needs websockets, as Live does

            redact = live.redact if live is not None else self._calls.redact("")
            watch = live or SessionWatch()
            kwargs |= guarded(kwargs, origin, value or Secret(given), redact, watch)
        return wrapped(uri, *args[1:], **kwargs)

    def _home(self) -> Secret:
        """Return the key that takes the place of a placeholder.

        Raises:
            APIError: There is none.
        """
        home = None
        if self._calls is not None:
            asked = (required_tiers.get(), required_project.get())
            home = self._calls.pool.home_value(GEMINI_API, *asked)
        if home is None:
            error = sys.modules["google.genai.errors"].ClientError
            raise error(401, _GEMINI.error_body(401, f"keyrot: {_GEMINI.no_key}"), None)
        return home

    async def open_interaction(
        self, wrapped: Wrapped, context: Any, args: Args, kwargs: Kwargs
    ) -> Any:
        """Wrap `InteractionWebSocketConnectionContext._open`: an interaction has an owner."""
        pooled = None
        try:
            if context._session is None:
                names: dict[str, None] = {}
                add_name(names, INTERACTION, context._interaction_id)
                options = {"headers": dict(context._extra_headers or {})}
                client = context._api_client
                pooled = self._read_call(client, "interactions.connect", "", tuple(names), options)
        except Exception:
            handle_internal_error("live")
        if pooled is None:
            return await wrapped(*args, **kwargs)
        return await self.open(lambda: wrapped(*args, **kwargs), pooled)

    def _read_call(
        self, client: Any, verb: str, model: str, names: tuple[str, ...], options: object
    ) -> _LiveCall | None:
        """Return a session for the pool; None if it passes through."""
        if client.vertexai or self._calls is None:
            return None
        base_url = option(options, "base_url") or client._http_options.base_url or ""
        headers = (client._http_options.headers, option(options, "headers"))
        key = client.api_key or ""
        foreign = any(has_foreign_key(some, key) for some in headers)
        if foreign or not self._calls.serves(key, base_url):
            return None
        info = CallInfo(
            model=mask_keys(model.removeprefix("models/")),
            verb=verb,
            requests=1 if model else 0,
            stream=True,
            bound_to_owner=any(map(is_certain, names)),
            resources=names,
            workload=workload.get(),
            host=host_from_url(base_url),
            counts_in_quota=bool(model),
        )
        timeout = client._http_options.timeout
        return _LiveCall(client, info, timeout / 1000 if timeout else inf)

    async def open(self, enter: Callable[[], Awaitable[object]], pooled: _LiveCall) -> Any:
        """Open a session with the first key that can; return what *enter* does.

        Args:
            enter: Lets the SDK open the websocket and set the session up. It is kept as long as
                the session, so it must not hold it: one that the program drops would stay open.
            pooled: The call.
        """
        calls, info, key = self._calls, pooled.info, pooled.client.api_key or ""
        assert calls is not None  # noqa: S101 - narrows the type

        async def send(lease: Lease) -> StreamOpened | Failed:
            connection = LiveConnection(lease, calls, key)
            token = _current.set(connection)
            try:
                with Redacting(connection.redact):
                    connection.session = await enter()
            except Exception as error:
                if not connection.dialed:
                    raise  # the SDK refuses the arguments
                return Failed(_facts(connection.account.error or error), error)
            finally:
                _current.reset(token)
            return StreamOpened(connection)

        def no_key(why: Exhausted) -> BaseException:
            from .exhausted import exhausted  # noqa: PLC0415 - it imports the SDK

            return exhausted(
                why_no_key(calls.pool, why, _GEMINI),
                why.last,
                getattr(why, "__notes__", ()),
            )

        call = calls.call_state(info, key, pooled.wait_limit_s)
        observer = observe(calls.pool.observers, info, handle_internal_error)
        connection: LiveConnection = await arun(calls.pool, call, send, no_key, observer)
        session, connection.session = connection.session, None
        return session


_Manager = AbstractAsyncContextManager[object]


class _Session(AbstractAsyncContextManager[Any]):
    """Opens a session with a key of the pool, and closes it.

    No async generator: a loop that ends closes that of the SDK, and would close ours beside it.
    """

    def __init__(
        self,
        wrappers: _Sessions,
        connect: Callable[[], _Manager],
        pooled: _LiveCall,
    ) -> None:
        self._wrappers = wrappers
        self._connect = connect
        self._pooled = pooled
        self._manager: _Manager

    async def __aenter__(self) -> Any:
        connect = self._connect

        async def enter() -> tuple[object, object]:
            manager = connect()
            return manager, await manager.__aenter__()

        self._manager, session = await self._wrappers.open(enter, self._pooled)
        return session

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._manager.__aexit__(*error)


def _facts(error: BaseException) -> FailureFacts:
    """Read the facts of an error of a session: of its handshake, its setup or its end."""
    return facts_from_error(error, str) or lost_connection(error)


def _plain(value: Any) -> object:
    """Return a config as JSON has it, as far as it can name stored resources."""
    if hasattr(value, "model_dump") and not isinstance(value, type):
        value = {name: getattr(value, name) for name in value.model_fields_set}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str) else None
