"""The Lua scripts: their constants are those of Python."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from keyrot_middleware.core import windows
from keyrot_middleware.state.redis.scripts import LEARNED, QUOTA, script

LUA = files("keyrot_middleware.state") / "lua"
NAMES = sorted(
    file.name.removesuffix(".lua") for file in LUA.iterdir() if file.name != "shared.lua"
)


def defined(text: str) -> dict[str, str]:
    """Return the constants that the first line of a script defines."""
    found = re.match(r"local (.*) = (.*)\n", text)
    assert found is not None
    return dict(zip(found[1].split(", "), found[2].split(", "), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_scripts_have_the_constants_of_python(name: str) -> None:
    """Times, and the positions of a record's fields, are written down once."""
    constants = defined(script(name).text)
    assert float(constants["PROBE_S"]) == windows.PROBE_S
    assert float(constants["GUARD_S"]) == windows.GUARD_S
    numbers = [int(constants[field.upper()]) for field in (*QUOTA, *LEARNED)]
    assert numbers == list(range(1, len(numbers) + 1))
    _, _, rest = script(name).text.partition("\n")
    again = re.findall(r"^local ([A-Z_, ]+?) =", rest, re.MULTILINE)
    assert not set(constants) & {word for names in again for word in names.split(", ")}
