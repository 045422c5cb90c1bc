"""A program that forks, and whose two processes then send calls; prints their texts as JSON lines.

python -m support.fork_program MODE HOST before|after KEY...
"""

import json
import os
import sys

import keyrot_middleware
from support.http_modes import call

CALLS = 3
"""Of each process after the fork."""


def main(mode: str, host: str, fork: str, *keys: str) -> int:
    """Fork before the first call, or after it; return the child's exit code."""
    keyrot_middleware.install(keys=keys, allowed_hosts=(host,), strategy="fill", max_wait_s=0)
    if fork == "after":
        call[mode](f"http://{host}", "keyrot-pool", 1)
    child = os.fork()
    texts = call[mode](f"http://{host}", "keyrot-pool", CALLS)
    sys.stdout.write(json.dumps(texts) + "\n")
    sys.stdout.flush()
    if child == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
