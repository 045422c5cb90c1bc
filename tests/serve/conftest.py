"""Doors that are ended after the test."""

from collections.abc import Callable, Iterator

import pytest
from door import Door


@pytest.fixture
def door(clean_environment: None) -> Iterator[Callable[..., Door]]:
    running: list[Door] = []

    def start(*options: str, **env: str) -> Door:
        running.append(Door(*options, **env))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
