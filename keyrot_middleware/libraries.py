"""The libraries whose requests can go through a pool: the one table of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

Client = Literal["google-genai", "httpx", "httpx2", "requests", "aiohttp"]
CLIENTS: tuple[Client, ...] = get_args(Client)
"""As the setting `KEYROT_CLIENTS` names them."""
SDK: Final = "google-genai"
"""Google's SDK, which sends by the others."""
HTTPX: Final = ("httpx", "httpx2")
"""One library under two names: version 3 of the SDK sends by the second."""
MODULES: Mapping[Client, str] = {name: name.replace("-", ".") for name in CLIENTS}
"""As programs import them."""
