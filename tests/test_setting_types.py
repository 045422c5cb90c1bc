"""Arguments of install(): every setting is typed, and a wrong type is an error that names it."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest

from keyrot_middleware.config import load
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.settings import ARGUMENTS, SettingArguments

WRONG: tuple[Any, ...] = (3, True, 1.5, b"x", object(), [3], {"a": 1}, (None,), {1}, "\ud800")
"""Of these each setting takes at most numbers, booleans or text."""


def test_the_typed_arguments_are_the_settings() -> None:
    """No setting is missing, and none is superfluous."""
    assert tuple(sorted(get_type_hints(SettingArguments))) == tuple(sorted(ARGUMENTS))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_wrong_type_is_a_config_error(name: str) -> None:
    """Any value is accepted or refused by name; `strategy=3` was an AttributeError."""
    for value in WRONG:
        try:
            load(**{name: value})
        except ConfigError as error:
            assert f"install({name}=…)" in str(error), value


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"strategy": 3}, "install(strategy=…): found 3; allowed: spread, fill, sticky."),
        ({"tracing": True}, "install(tracing=…): found true; allowed: off, otlp."),
        ({"max_retries": True}, "install(max_retries=…): found true; allowed: a whole number"),
        ({"max_wait_s": "soon"}, 'install(max_wait_s=…): found "soon"; allowed: seconds'),
        ({"pool": b"name"}, "install(pool=…): found a value of type bytes; allowed: up to 64"),
    ],
)
def test_the_error_for_a_wrong_type_names_what_is_allowed(given: dict[str, Any], text: str) -> None:
    """Also where Python would accept it as another type, for example True as 1."""
    with pytest.raises(ConfigError) as raised:
        load(**given)
    assert str(raised.value).startswith(text)
