"""What a request costs in the door itself: the benchmark's exact counts, held."""

import asyncio
import os
from unittest import mock

import keyrot_middleware
from benchmarks import door_path
from keyrot_middleware.providers.gemini import Gemini
from keyrot_middleware.testing import FakeGemini


def test_the_door_adds_few_functions_to_the_path_of_a_call() -> None:
    """The rest is what any program's call by httpx goes through."""
    assert door_path.added()[0] <= door_path.MOST_ADDED


def test_a_request_is_routed_once() -> None:
    """By the door; what sends it takes the provider and the route from there."""
    asked = []

    def route(method, url):
        asked.append(url)
        return real(method, url)

    async def one_call():
        async with door_path.opened() as (door, name):
            await door_path.call(door, name)

    real = Gemini.route
    with FakeGemini() as fake:
        env = {
            "GEMINI_API_KEYS": fake.add_key("a").value,
            "KEYROT_STATE_URL": "memory://",
            "KEYROT_ALLOWED_HOSTS": fake.url,
        }
        with (
            mock.patch.dict(os.environ, env),
            mock.patch.object(Gemini, "route", staticmethod(route)),
        ):
            keyrot_middleware.install()
            try:
                asyncio.run(one_call())
            finally:
                keyrot_middleware.uninstall()
    assert asked == [f"{fake.url}{door_path.CALL}?alt=sse"]
