"""`keyrot serve`: the pool for programs that are not Python."""

from __future__ import annotations

import json
import logging
import re
import shlex
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._install import install, uninstall
from ..core.wording import one_line, plural
from ..errors import ConfigError, KeyrotError, MissingExtraError
from ..monitoring.report import source_of
from ..providers.base import Route
from ..runtime import current_pool
from ..runtime.pool import Pool
from ..settings import IN_FILE, Config, load
from ..telemetry.logs import log_to_stderr
from ..ui import HOW_TO_MAKE

try:
    from ..serve import Door, upstream_of
    from ..serve.access import DoorAccess
    from ..serve.call_headers import DetailsObserver
    from ..serve.server import run, run_workers
    from .ui import QUIET, listen, read_token
except ImportError:
    raise MissingExtraError(wanted_by="keyrot serve", package="uvicorn", extra="serve") from None

_QUIET = {**QUIET, "log_level": "critical", "ws": "auto"}
"""The door answers and logs what fails; that a reply was cut is no error of the app. It refuses
websockets itself, where a library for them is installed."""
_TOKEN = re.compile(r"""(?!["'])[!-~]+(?<!["'])""")
_NO_KEY = (
    "there is no key to serve with: set GEMINI_API_KEYS, OPENAI_API_KEYS or that of another "
    "provider, or write keys.json; keyrot check shows what is found"
)


def serve(
    *, host: str, port: int, token_file: Path | None, workers: int, details: bool = True
) -> int:
    """Forward requests until SIGTERM or Ctrl-C.

    Args:
        host: Where to listen; any but loopback needs a token.
        port: 0: any free one.
        token_file: Holds what programs send as their key; None: anything but a real key.
        workers: The processes that serve; more than one need a shared state.
        details: Say in each reply which key was used, and at /status what is left.

    Returns:
        0; or the exit code of a worker that has ended by itself.

    Raises:
        KeyrotError: An option or a setting is wrong.
    """
    token = read_token(host, token_file)
    if token is not None and _TOKEN.fullmatch(token) is None:
        raise ConfigError(
            f"--token-file {token_file}: a token has no spaces, no quotes at its ends, and no "
            f"letters but ASCII: programs send it as their API key; {HOW_TO_MAKE} > {token_file}"
        )
    # A file by default, so that the Python programs of this host share its counts.
    chosen = {} if "state_url" in load().sources else {"state_url": IN_FILE}
    config = load(**chosen)
    if not config.settings.enabled:
        raise KeyrotError("ENABLE_KEY_ROTATION switches the pool off: there is nothing to serve")
    if not config.keys:
        raise KeyrotError(_NO_KEY)
    if workers > 1 and config.state_url == "memory://":
        raise ConfigError(
            f"--workers {workers} needs a shared state: with {config.state_variable}=memory:// "
            "each process would count for itself, and send more than the limits allow; unset it, "
            "or set it to sqlite or redis://…"
        )
    if not upstream_of(config):
        raise KeyrotError("all keys are for Vertex AI in express mode, which is not served")
    # KeyboardInterrupt: a signal that has ended it, or came before it served.
    with (
        listen(host, port) as listener,
        log_to_stderr(logging.WARNING),
        suppress(KeyboardInterrupt),
    ):
        pool = _install(chosen)
        _announce(config, pool, listener, token_file)
        if workers > 1:
            uninstall()
            given = chosen, host, token, details
            return run_workers(workers, _work, *given, listener=listener)
        _serve(config, pool, host, token, listener, details=details)
    uninstall()
    return 0


def _work(
    chosen: Mapping[str, Any],
    host: str,
    token: str | None,
    details: bool,
    listener: socket.socket,
) -> None:
    """Serve in a process of its own."""
    with log_to_stderr(logging.WARNING), suppress(KeyboardInterrupt):
        logging.disable(logging.ERROR)  # the first process has logged what is wrong
        try:
            pool = _install(chosen)
        except KeyrotError as error:
            print(f"keyrot: {error}", file=sys.stderr)
            sys.exit(1)
        logging.disable(logging.NOTSET)
        _serve(load(**chosen), pool, host, token, listener, details=details)
    uninstall()


def _install(chosen: Mapping[str, Any]) -> Pool:
    uninstall()  # that of opentelemetry-instrument, which counts in memory
    install(**chosen)
    if (pool := current_pool()) is None:
        raise KeyrotError(_NO_KEY)
    return pool


def _serve(
    config: Config,
    pool: Pool,
    host: str,
    token: str | None,
    listener: socket.socket,
    *,
    details: bool,
) -> None:
    """Serve in this process until a signal ends it, with KeyboardInterrupt."""
    if details:
        pool.observers = (*pool.observers, DetailsObserver())
    door = Door(config, DoorAccess(host, token), source_of(pool), has_details=details)
    run(door, listener, **_QUIET)


def _announce(config: Config, pool: Pool, listener: socket.socket, token_file: Path | None) -> None:
    """Print what each client needs, and a request that works."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    count, missing = len(pool.selector.keys), len(pool.secrets.unresolved)
    without = f", and {missing:,} without a value" if missing else ""
    print(f"keyrot serve: pool {one_line(pool.name)}, {plural(count, 'key')}{without}")
    upstream = upstream_of(config)
    for name, (provider, _) in upstream.items():
        variable = provider.base_url_variable or provider.title
        print(f"{variable}={address}/{name}{provider.base_url_path}")
    first, (provider, _) = next(iter(upstream.items()))
    asked = provider.check_url_path(provider.check_model)
    body = f" -d '{json.dumps(provider.check_body)}'" if provider.check_body else ""
    token = ""
    if token_file is not None:
        name, text = provider.key_field(Route(""), f"$(cat {shlex.quote(str(token_file))})")
        token = f' -H "{name}: {text}"'
    print(f"Try: curl {address}/{first}{asked} -H 'content-type: application/json'{token}{body}")
    key = "any text, such as keyrot-pool" if token_file is None else f"the token in {token_file}"
    print(f"API key of each program: {key}. Ctrl-C ends it", flush=True)
