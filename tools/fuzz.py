"""Run the property tests with random seeds until the time is over: ``make fuzz``.

``make test`` tries the same examples in the same order on every run, so that it only fails because
of a change. This command searches for new examples.

    FUZZ_S=300      no new round begins after so many seconds
    SEED=12345      one round with this seed, to repeat a failure

Arguments are passed on to pytest.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

USUAL_S = 300.0


def main() -> int:
    """Run rounds; stop at the first failure, and print how to repeat it."""
    given = os.environ.get("SEED")
    if given:
        return _round(int(given))
    until = time.monotonic() + float(os.environ.get("FUZZ_S") or USUAL_S)
    rounds = 0
    while time.monotonic() < until:
        seed = random.SystemRandom().randrange(2**32)
        if code := _round(seed):
            return code
        rounds += 1
    print(f"== {rounds} rounds, no failure", flush=True)
    return 0


def _round(seed: int) -> int:
    """Run every property test once; the seed decides examples, order and hashes."""
    print(f"== seed {seed}", flush=True)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-m", "hypothesis", "--hypothesis-profile=fuzz"),
        *(f"--hypothesis-seed={seed}", f"--randomly-seed={seed}", *sys.argv[1:]),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        print(f"== to repeat this failure: make fuzz SEED={seed}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
