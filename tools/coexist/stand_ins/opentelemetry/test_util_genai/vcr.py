"""The tests' settings for their recordings; a pytest plugin beside pytest-vcr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Response = dict[str, Any]


def scrub_response_headers_overwrite(values: dict[str, str]) -> Callable[[Response], Response]:
    """Return a hook that sets headers of a recorded response."""

    def overwrite(response: Response) -> Response:
        names = {name.lower(): name for name in response["headers"]}
        for name, value in values.items():
            response["headers"][names.get(name.lower(), name)] = [value]
        return response

    return overwrite
