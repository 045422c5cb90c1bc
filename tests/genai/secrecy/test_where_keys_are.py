"""A key is carried as a Secret: no tuple, list, dict or attribute of ours has it in plain text."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType, ModuleType
from typing import Any

import pytest
from support.interactions import SDK_WARNINGS
from support.raw_server import answer
from support.scenes import SURFACES, error_of, surfaces

import keyrot_middleware
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.secrets import Secret

pytestmark = [*SDK_WARNINGS, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def reached(*roots: Any) -> Iterator[Any]:
    """Yield all that an object reaches, without modules, classes and the inside of secrets."""
    modules = {id(vars(module)) for module in [*sys.modules.values()] if module is not None}
    seen: set[int] = set()
    found = list(roots)
    while found:
        one = found.pop()
        if id(one) in seen or id(one) in modules:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, FunctionType):
            found += [cell.cell_contents for cell in one.__closure__ or () if cell]
        elif not isinstance(one, Secret | ModuleType | type | threading.Thread | FrameType):
            found += gc.get_referents(one)


def test_the_pool_holds_no_plain_value(gemini, pool, connect) -> None:
    """Neither at rest, nor for a key that an SDK's client, a manager or a lease has."""
    pool("A", {"key_id": "odd", "project": "p"}, max_wait_s=0)
    values = {gemini.key(label).value for label in ("A", "odd")}
    manager = keyrot_middleware.get_key_manager()
    selected = manager.select_key("gemini-2.5-flash")
    client = connect()
    surfaces(client)["sync"]()
    with manager.lease("gemini-2.5-flash") as leased:
        assert {selected.api_key, leased.api_key} <= values
        everything = reached(current_pool(), manager, selected, leased)
        assert [one for one in everything if isinstance(one, str) and one in values] == []
    manager.report_success(selected.key_id)
    for key in (selected, leased):
        with pytest.raises(TypeError):
            pickle.dumps(key)


@pytest.mark.parametrize("surface", [name for name in SURFACES if name != "async upload"])
def test_no_frame_of_ours_holds_a_plain_value_while_it_is_sent(surface, scene) -> None:
    """A log of Sentry's with `attach_stacktrace`, or a debugger, shows the frames that run."""
    shown: list[str] = []
    caller = threading.get_ident()

    def talk(connection: Any, value: str) -> None:
        frame: FrameType | None = sys._current_frames()[caller]
        while frame is not None:
            if "/keyrot_middleware/" in frame.f_code.co_filename:
                shown.extend(texts(frame.f_locals))
            frame = frame.f_back
        connection.sendall(answer(error_of(value)))

    server = scene.serve(talk)
    client = scene.client(server.url)
    with pytest.raises(Exception, match="suspended"):
        surfaces(client)[surface]()
    assert surface.startswith(("async", "interaction async")) or shown
    assert server.keys
    assert [text for text in shown for key in server.keys if key in text] == []


def texts(value: Any, depth: int = 4) -> Iterator[str]:
    yield repr(value)
    if depth and isinstance(value, dict):
        for item in value.values():
            yield from texts(item, depth - 1)
    elif depth and isinstance(value, tuple | list):
        for item in value:
            yield from texts(item, depth - 1)


HIDING: dict[str, Callable[[Secret], str]] = {
    "repr": repr,
    "str": str,
    "format": "{:>9}".format,
    "repr of the text": lambda secret: repr(secret.reveal()),
    "repr of a part": lambda secret: repr(secret.reveal()[:9]),
    "in a list": lambda secret: repr([secret, secret.reveal()]),
}


@pytest.mark.parametrize("way", HIDING)
def test_a_secret_shows_nothing(way) -> None:
    """Only `reveal()` gives the text, which is masked in turn where a reporter shows it."""
    secret = Secret("FAKE-value")
    assert "FAKE" not in HIDING[way](secret)
    assert f"{secret.reveal()}" == secret.reveal() == "FAKE-value"


@pytest.mark.parametrize("look", [iter, vars, len, pickle.dumps, dataclasses.asdict])
def test_a_secret_has_no_parts(look) -> None:
    with pytest.raises(TypeError):
        look(Secret("FAKE-value"))
