"""Doors that are ended after the test."""

from collections.abc import Callable, Iterator

import pytest
from door import Door


@pytest.fixture
def door(clean_environment: None) -> Iterator[Callable[..., Door]]:
    running: list[Door] = []

    def start(*options: str, before: str = "", **env: str | None) -> Door:
        running.append(Door(*options, before=before, **env))
        return running[-1]

    yield start
    for one in running:
        one.end()
