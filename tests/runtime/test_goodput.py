"""Three minutes of callers without pause, against a server that counts minutes of the clock."""

import pytest
from support.simulation import simulate

from keyrot_middleware.testing import Limits


@pytest.mark.parametrize("known", [True, False], ids=["configured", "learned"])
@pytest.mark.parametrize("limits", [Limits(rpm=10), Limits(tpm=1_000)], ids=["rpm", "tpm"])
def test_the_pool_gets_what_the_server_allows(limits: Limits, known: bool) -> None:
    """Every possible request is served, no call fails, and few requests are refused."""
    found = simulate(limits, known=known, callers=8, start_s=10.0)
    assert (found.share, found.failed) == (1.0, 0)
    # To learn a limit costs a 429 for each call that is in flight then.
    assert sum(found.refused.values()) <= (0 if known else 3 * 5)


def test_many_callers_fail_no_call() -> None:
    found = simulate(Limits(rpm=10), callers=16)
    assert (found.failed, found.share >= 0.85) == (0, True)
    assert found.longest_s < 65
