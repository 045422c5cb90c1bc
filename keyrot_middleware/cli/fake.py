"""`keyrot fake`: the fake Gemini API of keyrot_middleware.testing, run from a shell."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from ..core.model_names import CURRENT_MODEL, FREE_LIMITS
from ..core.text import did_you_mean, display, one_line
from ..errors import ConfigError, KeyrotError
from ..telemetry.logs import format_time
from ..testing import FakeGemini, LoggedRequest, Reply

_FREE = FREE_LIMITS[CURRENT_MODEL].rpm
DEFAULT_KEYS = (f"key_1={_FREE}", f"key_2={_FREE}", "key_3")
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:=(?:([1-9][0-9]{0,8})|([A-Za-z][A-Za-z0-9_]*)))?")
_REPLIES = {"REVOKED": "KEY_INVALID", "EXPIRED": "KEY_EXPIRED", "LEAKED": "KEY_LEAKED"}
"""What a key may be called, and the reply that it then gets."""
_PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_KEPT = 1_000
"""Requests that are kept to be printed; the rest of a burst is counted."""


class Key(NamedTuple):
    """A key of the command line."""

    key_id: str
    rpm: int | None
    reply: str | None
    """The name of the reply to all of its requests, if not the usual one."""


def fake(port: int, keys: Iterable[str], *, quiet: bool) -> int:
    """Serve until Ctrl-C, and print a line for each request.

    Args:
        port: Of 127.0.0.1; 0: any free one.
        keys: `ID`, `ID=RPM` or `ID=REPLY`, in any case, or `ID=revoked`; none: three keys, two
            of them with 5 requests a minute.
        quiet: Print no requests.

    Raises:
        ConfigError: A key is not written so.
        KeyrotError: The port cannot be used.
    """
    parsed = parse(list(keys) or DEFAULT_KEYS)
    gemini = FakeGemini(keep_log=_KEPT)
    for key_id, rpm, reply in parsed:
        tier = "paid" if rpm is None else "free"
        gemini.add_key(key_id, tier=tier, rpm=rpm, value=f"FAKE-{key_id}")  # type: ignore[arg-type]
        if reply is not None:
            gemini.always(key_id, Reply.all()[reply])
    try:
        gemini.start(port)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()  # that of the error has the address, too
        raise KeyrotError(
            f"port {port} of 127.0.0.1 cannot be used: {reason}; "
            "choose another with --port, or --port 0 for any that is free"
        ) from None
    try:
        _print_start(gemini, parsed)
        _serve(gemini, quiet=quiet)
    except KeyboardInterrupt:
        print(flush=True)
    finally:
        gemini.stop()
    return 0


def parse(keys: Iterable[str]) -> list[Key]:
    """Return the keys of the command line.

    Raises:
        ConfigError: One is wrong.
    """
    parsed: dict[str, Key] = {}
    for text in keys:
        match = _KEY.fullmatch(text)
        if match is None:
            allowed = "ID, ID=RPM or ID=REPLY, such as free_1, free_1=5 or bad_1=revoked"
            raise ConfigError(f"--key: found {display(text)}; allowed: {allowed}")
        name, rpm, reply = match.groups()
        if reply is not None:
            replies = Reply.all()
            known = _REPLIES.get(reply.upper(), reply.upper())
            if known not in replies:
                hint = did_you_mean(reply, (*replies, *_REPLIES))
                raise ConfigError(f"--key: no reply {reply}; docs/testing.md has them.{hint}")
            reply = known
        if name in parsed:
            raise ConfigError(f"--key: {name} was given twice; give each key an id of its own")
        parsed[name] = Key(name, int(rpm) if rpm else None, reply)
    return list(parsed.values())


def _print_start(gemini: FakeGemini, keys: list[Key]) -> None:
    print(
        f"Fake Gemini API on {gemini.url}. It needs no real key and no network. Ctrl-C ends it.\n"
    )
    width = max(len(key.key_id) for key in keys)
    for key_id, rpm, reply in keys:
        limit = "no limit" if rpm is None else f"limit of {rpm} a minute, then a 429"
        print(f"  {key_id:{width}}  {limit if reply is None else f'always {reply}'}")
    print(f"\nModel: {CURRENT_MODEL}, or any other of Google's.")
    print(f"OpenAI's protocol: {gemini.url}/v1beta/openai/")
    print("\nIn the terminal of your program:\n")
    print(f"export GOOGLE_GEMINI_BASE_URL={gemini.url}")
    print(f"export KEYROT_ALLOWED_HOSTS={gemini.host}")
    print(f"export GEMINI_API_KEYS={','.join(gemini.key(key.key_id).value for key in keys)}")
    if any(os.environ.get(name) for name in _PROXIES):
        print("export NO_PROXY=127.0.0.1")
    print("keyrot run app.py\n")
    if [key.key_id for key in keys] != [f"key_{number}" for number in range(1, len(keys) + 1)]:
        print("In your pool they are called key_1, key_2, … in this order.\n")
    sys.stdout.flush()


def _serve(gemini: FakeGemini, *, quiet: bool) -> None:
    while quiet:
        time.sleep(3600)
    printed = 0
    while True:
        if not gemini.wait_for(printed + 1, timeout=0.5):
            continue
        total, log = gemini.count(), gemini.log
        new = min(total - printed, len(log))
        if total - printed > new:
            print(f"… {total - printed - new} more requests")
        for request in log[len(log) - new :]:
            print(_line(request))
        sys.stdout.flush()
        printed = total


def _line(request: LoggedRequest) -> str:
    key, model = request.key or "unknown key", request.model or request.path
    status = "no response" if request.status == 0 else str(request.status)
    reply = "" if request.reply == "OK" else f" {request.reply}"
    return one_line(f"{format_time(request.at)}  {key}  {model} {request.verb}  {status}{reply}")
