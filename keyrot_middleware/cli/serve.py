"""`keyrot serve`: the pool for programs that are not Python."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._install import install, uninstall
from ..core.text import one_line
from ..errors import KeyrotError, MissingExtraError
from ..monitoring.report import source_of
from ..providers.openai import OpenAI
from ..runtime import current_pool
from ..settings import IN_FILE, Config, load

try:
    import httpx
    import uvicorn

    from ..serve import Door
    from ..serve.access import Access
    from .ui import QUIET, listen, read_token
except ImportError:
    raise MissingExtraError(wanted_by="keyrot serve", package="uvicorn", extra="serve") from None

_STOP_S = 30
"""How long requests in flight may take when it is stopped."""


def serve(*, host: str, port: int, token_file: Path | None) -> int:
    """Forward requests until SIGTERM or Ctrl-C.

    Args:
        host: Where to listen; any but loopback needs a token.
        port: 0: any free one.
        token_file: Holds what programs send as their key; None: anything but a real key.

    Raises:
        KeyrotError: An option or a setting is wrong.
    """
    token = read_token(host, token_file)
    # A file by default, so that the Python programs of this host share its counts.
    chosen: Any = {} if "state_url" in load().sources else {"state_url": IN_FILE}
    config = load(**chosen)
    # The program's own timeout ends a call sooner; a provider may be silent for an hour at most.
    timeout, limits = httpx.Timeout(3_600.0, connect=30.0), httpx.Limits(max_connections=None)
    with listen(host, port) as listener:
        install(**chosen)
        # uvicorn ends on SIGTERM when the last request has, and then sends it again.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if (pool := current_pool()) is None:
            raise KeyrotError("there is no key to serve with; keyrot check shows what is found")
        client = httpx.AsyncClient(timeout=timeout, limits=limits)
        door = Door(config, Access(host, token), client, source_of(pool))
        _announce(door, config, *listener.getsockname()[:2])
        options = uvicorn.Config(door, http="h11", timeout_graceful_shutdown=_STOP_S, **QUIET)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(options).run(sockets=[listener])
        uninstall()
    return 0


def _announce(door: Door, config: Config, host: str, port: int) -> None:
    """Print what each client needs, and a request that works."""
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"keyrot serve: pool {one_line(config.settings.pool)}, {len(config.keys)} keys")
    for name, (provider, _) in door.upstream.items():
        prefix = "/v1" if isinstance(provider, OpenAI) else ""
        print(f"{provider.base_url_variable or provider.title}={address}/{name}{prefix}")
    first, (provider, _) = next(iter(door.upstream.items()))
    asked = provider.check_url_path(provider.check_model)
    body = f" -d '{json.dumps(provider.check_body)}'" if provider.check_body else ""
    print(f"Try: curl {address}/{first}{asked} -H 'content-type: application/json'{body}")
    print("API key of each program: the token; without one, any text. Ctrl-C ends it", flush=True)
