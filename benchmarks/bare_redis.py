"""The minimum cost of two requests to Redis: an empty script before a call, and one after it.

Sent by redis-py's own clients over one connection, both replies awaited. So this is the round trip
to the server, and nothing of the pool.
"""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio

from .calls import MODEL, PROMPT, AsyncCall, Call, Variant, client_of
from .server import Place

__all__ = ["bare_scripts"]

EMPTY = "return 1"


def bare_scripts(url: str) -> Variant:
    """Make the plain call with two empty scripts around it.

    Args:
        url: Of the server, `redis://host:port/0`.
    """

    def make_call(place: Place) -> Call:
        client = client_of(place)
        script = redis.Redis.from_url(url).register_script(EMPTY)

        def call() -> Any:
            script()
            response = client.models.generate_content(model=MODEL, contents=PROMPT)
            script()
            return response

        return call

    def make_async_call(place: Place) -> AsyncCall:
        client = client_of(place)
        script = redis.asyncio.Redis.from_url(url).register_script(EMPTY)

        async def call() -> Any:
            await script()
            response = await client.aio.models.generate_content(model=MODEL, contents=PROMPT)
            await script()
            return response

        return call

    return Variant(make_call=make_call, make_async_call=make_async_call)
