"""Live sessions: what the service answers on a websocket, and when it closes it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from keyrot_middleware.testing.answers import get_field
from keyrot_middleware.testing.replies import Scripted
from keyrot_middleware.testing.request import FakeRequest, LoggedRequest

_NO_LOG = logging.Logger("fake-gemini", logging.CRITICAL)
"""A program that reads the log of websockets reads that of its own side only."""
_DATA = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)
MAX_REASON = 123
"""Bytes of a reason that fit into a close frame."""
_SILENCE = "AAAA"
"""Base64 of the audio that music is made of."""

Admit = Callable[[FakeRequest], tuple[FakeRequest, Scripted]]
Answer = Callable[[FakeRequest], dict[str, Any]]


class LiveSession:
    """One session, from its handshake on.

    Args:
        request: The handshake.
        script: The scripted reply to it, which may close it; or `Reply.OK`.
        admit: Judges the setup as a request of its own: by the model, the quota and what it names.
        answer: Returns a whole GenerateContentResponse to a turn.
        new_handle: Returns the name of a new point from which the session can be resumed.
        log: Changes the entry of the handshake in the log of requests.
        on_end: Called once, at its end.
    """

    _socket: WebSocket

    def __init__(
        self,
        request: FakeRequest,
        script: Scripted,
        *,
        admit: Admit,
        answer: Answer,
        new_handle: Callable[[], str],
        log: Callable[..., LoggedRequest],
        on_end: Callable[[], None],
    ) -> None:
        self._request = request
        self._script = script
        self._admit, self._answer, self._new_handle = admit, answer, new_handle
        self._log, self._on_end = log, on_end
        self._sent = 0
        self._contents: list[Any] = []
        """The turns so far, all of which the model reads again in each turn."""
        self._is_set_up = self._resumable = False

    def opened(self, socket: WebSocket) -> None:
        """Wait for the setup."""
        self._socket = socket

    def ended(self) -> None:
        """Count the session as over."""
        self._on_end()

    def received(self, message: Any) -> None:
        """Answer the setup, or a turn."""
        if self._is_set_up:
            self._turn(message)
            return
        self._is_set_up = True
        self._request, reply = self._admit(self._set_up(message))
        if not reply.answers:
            self._script = reply if reply.close else reply.as_close(1008)
        self._log(model=self._request.route.model, body=self._request.body, reply=self._script.name)
        self._after(self._script.delay_s, self._complete)

    def _set_up(self, message: Any) -> FakeRequest:
        """Return the setup as a request with a body."""
        setup = get_field(message, "setup") or message
        model = str(setup.get("model", "")).removeprefix("models/")
        self._resumable = get_field(setup, "sessionResumption") is not None
        return replace(
            self._request, route=replace(self._request.route, model=model), body=dict(setup)
        )

    def _complete(self) -> None:
        if self._script.after_chunks is None and not self._script.answers:
            self._fail()
        elif self._request.route.verb == "interactions.connect":
            self._send({"event_type": "interaction.created", "interaction": self._interaction()})
        else:
            self._socket.send({"setupComplete": {}})
            self._offer_handle()
            self._fail_in_time()

    def _turn(self, message: Any) -> None:
        verb = self._request.route.verb
        if verb == "bidiGenerateMusic":
            self._play(message)
        elif verb == "interactions.connect":
            self._interact(message)
        elif self._is_end_of_turn(message):
            self._speak()

    def _is_end_of_turn(self, message: Any) -> bool:
        """Add the content to the conversation; return whether the model is to answer it."""
        content = get_field(message, "clientContent")
        spoken = get_field(message, "realtimeInput") or {}
        tools = get_field(message, "toolResponse")
        if content is not None:
            self._contents += content.get("turns") or ()
            return bool(get_field(content, "turnComplete"))
        if tools is not None:
            parts = [{"functionResponse": r} for r in get_field(tools, "functionResponses") or ()]
            self._contents.append({"role": "user", "parts": parts})
            return True
        if text := spoken.get("text"):
            self._contents.append({"role": "user", "parts": [{"text": text}]})
        return bool(text or get_field(spoken, "audioStreamEnd") or "activityEnd" in spoken)

    def _speak(self) -> None:
        body = {**self._request.body, "contents": self._contents}
        whole = self._answer(replace(self._request, body=body))
        content = whole["candidates"][0]["content"]
        usage = whole["usageMetadata"]
        usage["responseTokenCount"] = usage.pop("candidatesTokenCount", 0)
        calls = [p["functionCall"] for p in content["parts"] if "functionCall" in p]
        self._contents.append(content)
        if calls:
            numbered = [{"id": f"call-{n}", **call} for n, call in enumerate(calls)]
            self._send({"toolCall": {"functionCalls": numbered}, "usageMetadata": usage})
        else:
            self._send({"serverContent": {"modelTurn": content}})
            self._send({"serverContent": {"turnComplete": True}, "usageMetadata": usage})
        self._offer_handle()

    def _offer_handle(self) -> None:
        if self._resumable:
            handle = self._new_handle()
            update = {"newHandle": handle, "resumable": True}
            self._send({"sessionResumptionUpdate": update})

    def _play(self, message: Any) -> None:
        if get_field(message, "playbackControl") == "PLAY":
            chunk = {"data": _SILENCE, "mimeType": "audio/pcm;rate=48000"}
            self._send({"serverContent": {"audioChunks": [chunk]}})

    def _interact(self, message: Any) -> None:
        kinds = [event.get("event_type") for event in message.get("events", [message])]
        if "interaction.complete" in kinds:
            self._send({"event_type": "interaction.completed", "interaction": self._interaction()})

    def _interaction(self) -> dict[str, Any]:
        return {
            "id": self._request.body.get("id", ""),
            "object": "interaction",
            "status": "completed",
            "created": "2026-01-01T00:00:00Z",
            "updated": "2026-01-01T00:00:00Z",
        }

    def _send(self, message: dict[str, Any]) -> None:
        if self._script.after_chunks is not None and self._sent >= self._script.after_chunks:
            return
        self._socket.send(message)
        self._sent += 1
        self._fail_in_time()

    def _fail_in_time(self) -> None:
        """End the session, if as many messages were sent as the script says."""
        script = self._script
        if script.after_chunks is not None and self._sent == script.after_chunks:
            self._fail()

    def _fail(self) -> None:
        script = self._script
        if script.close:
            self._log(status=script.close, reply=script.name)
            self._socket.close(script.close, close_reason(script, self._request))
        elif script.then == "end":
            self._socket.close(1000, "")
        else:
            self._socket.abort()

    def _after(self, delay_s: float, work: Callable[[], None]) -> None:
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, work)
        else:
            work()


class WebSocket(asyncio.Protocol):
    """One connection, from the bytes of its handshake on.

    Args:
        peer: Answers its messages.
        on_lost: Called once, when the connection is closed.
    """

    _transport: asyncio.Transport

    def __init__(self, peer: LiveSession, on_lost: Callable[[], None]) -> None:
        self._peer = peer
        self._on_lost = on_lost
        self._websocket = ServerProtocol(max_size=None, logger=_NO_LOG)
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP server makes no other
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the peer."""
        del exc
        self._peer.ended()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Answer the handshake, then pass each message on."""
        self._websocket.receive_data(data)
        for event in self._websocket.events_received():
            if isinstance(event, Request):
                self._websocket.send_response(self._websocket.accept(event))
                self._flush()
                self._peer.opened(self)
            elif isinstance(event, Frame) and event.opcode in _DATA:
                self._parts.append(bytes(event.data))
                if event.fin:
                    text, self._parts = b"".join(self._parts), []
                    self._peer.received(json.loads(text))
        self._flush()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message as Google does: JSON in a binary frame."""
        if not self._transport.is_closing():
            self._websocket.send_binary(json.dumps(message).encode())
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Close with a code and a reason, which is cut where a frame has no more room."""
        if not self._transport.is_closing():
            cut = reason.encode()[:MAX_REASON].decode(errors="ignore")
            self._websocket.send_close(code, cut)
            self._flush()

    def abort(self) -> None:
        """Drop the connection at once, without a close frame."""
        self._transport.abort()

    def _flush(self) -> None:
        for data in self._websocket.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()


def close_reason(reply: Scripted, request: FakeRequest) -> str:
    """Return the message of an error, as the reason of a close frame."""
    body = reply.body(request) if reply.body is not None else ""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return str(body["error"].get("message", ""))
    return body if isinstance(body, str) else json.dumps(body)


@contextmanager
def plain_websockets() -> Iterator[None]:
    """Let the SDK open Live sessions without TLS where a client's `base_url` is `http://…`.

    The SDK always asks for TLS, which `FakeGemini` does not speak. Make clients inside the `with`.

    Examples:
        >>> with FakeGemini() as gemini, plain_websockets():
        ...     client = genai.Client(api_key=gemini.add_key("a").value,
        ...                           http_options=gemini.http_options)
        ...     async with client.aio.live.connect(model=MODEL) as session: ...
    """
    from google.genai._api_client import BaseApiClient  # noqa: PLC0415 - only where Live is used

    address, tls = (
        BaseApiClient._websocket_base_url,
        vars(BaseApiClient)["_ensure_websocket_ssl_ctx"],
    )

    def plain_address(client: Any, *args: Any) -> str:
        found = address(client, *args)
        options = args[0] if args and args[0] else client._http_options
        is_plain = str(options.base_url).startswith("http://")
        return found.replace("wss://", "ws://", 1) if is_plain else found

    def no_tls(options: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not str(options.base_url).startswith("http://"):
            return dict(tls.__func__(options, *args, **kwargs))
        return {}

    BaseApiClient._websocket_base_url = plain_address  # type: ignore[method-assign, assignment]
    BaseApiClient._ensure_websocket_ssl_ctx = staticmethod(no_tls)  # type: ignore[method-assign]
    try:
        yield
    finally:
        BaseApiClient._websocket_base_url = address  # type: ignore[method-assign]
        BaseApiClient._ensure_websocket_ssl_ctx = tls  # type: ignore[method-assign]
