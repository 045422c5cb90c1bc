"""What error reporters record of an exception: the variables of every frame, and every text."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from traceback import TracebackException, walk_tb
from typing import Any

import sentry_sdk
from rich.traceback import Traceback
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from sentry_sdk.utils import event_from_exception

from support.key_search import texts_of

_DEEPEST = 6


class _Kept(Transport):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def capture_envelope(self, envelope: Envelope) -> None:
        self.text += envelope.serialize().decode()


def recorded(error: BaseException) -> dict[str, str]:
    """Return what each reporter records of an exception, by its name."""
    plain = TracebackException.from_exception(error, capture_locals=True)
    return {
        "sentry": sentry(error),
        "rich": rich(error),
        "traceback": "".join(plain.format()),
        "texts": "\n".join(texts_of(error)),
        "variables": "\n".join(_variables(error)),
    }


def sent_to_sentry() -> Any:
    """Return what a program with Sentry's defaults would send it."""
    ended = subprocess.run(
        [sys.executable, "-m", "support.sentry_program"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=900,  # a busy machine needs eight minutes
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2_000:]
    return json.loads(ended.stdout)


def sentry(error: BaseException) -> str:
    """Return the event that Sentry sends with its defaults, as JSON."""
    kept = _Kept()
    client = sentry_sdk.Client(
        "http://FAKE@127.0.0.1:9/1",
        transport=kept,
        default_integrations=False,  # which patch the process for good
        auto_enabling_integrations=False,
    )
    event, hint = event_from_exception(error, client_options=client.options)
    client.capture_event(event, hint)
    client.close()
    assert '"vars"' in kept.text
    return kept.text


def rich(error: BaseException) -> str:
    """Return what rich shows, without the source around it, which takes it half a second."""
    trace = Traceback.extract(
        type(error),
        error,
        error.__traceback__,
        show_locals=True,
        locals_max_length=1_000,
        locals_max_string=20_000,
    )
    shown = [
        f"{stack.exc_type}: {stack.exc_value} {getattr(stack, 'notes', ())}"  # rich 14 has them
        for stack in trace.stacks
    ]
    for frame in (frame for stack in trace.stacks for frame in stack.frames):
        shown += [f"{name} = {node.render()}" for name, node in (frame.locals or {}).items()]
    return "\n".join(shown)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes *and* contexts, and the members of groups."""
    links: list[BaseException | None] = [error]
    seen: set[int] = set()
    for link in links:
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        links += (link.__cause__, link.__context__, *getattr(link, "exceptions", ()))


def _variables(error: BaseException) -> Iterator[str]:
    """Show the variables of every frame that is not a test's, item by item, and slot by slot."""
    for link in chain(error):
        for frame, _ in walk_tb(link.__traceback__):
            if "/tests/" not in frame.f_code.co_filename:
                where = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
                for name, value in frame.f_locals.items():
                    for text in _flat(value):
                        yield f"{where} {name}: {text}"


def _flat(value: Any, depth: int = 0) -> Iterator[str]:
    yield repr(value)
    if isinstance(value, bytes | bytearray | memoryview):
        yield bytes(value).decode("latin-1")
    if depth == _DEEPEST or isinstance(value, str | bytes | bytearray):
        return
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(name, depth + 1)
            yield from _flat(item, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _flat(item, depth + 1)
    elif type(value).__module__.startswith("keyrot_middleware"):
        with_state = getattr(value, "__dict__", None)
        if with_state:
            yield json.dumps(with_state, default=repr)
