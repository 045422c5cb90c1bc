"""A pool over recorded traffic: an unchanged `genai.Client()`, no server, no key."""

import traceback
from typing import Any

import pytest
from google import genai
from google.genai.errors import ClientError
from support.cassette_scenarios import SCENARIOS, traffic, values_for

import keyrot_middleware

FAILOVERS = sorted(name for name in SCENARIOS if name.startswith("failover"))
SUSPENDED = sorted(name for name in SCENARIOS if name.startswith("suspended"))


def health() -> dict[str, dict[str, Any]]:
    return dict(keyrot_middleware.status()["keys"])


@pytest.mark.parametrize("name", FAILOVERS)
def test_an_exhausted_and_an_invalid_key_are_skipped(name: str, replay: Any) -> None:
    """Every call succeeds, and the bad keys are tried once: the cassette answers them once."""
    with replay(name) as (scenario, cassette):
        for _ in range(scenario.calls):
            assert "three" in scenario.program(genai.Client()).lower()
        assert traffic(cassette) == scenario.traffic
        assert cassette.play_counts == dict.fromkeys(range(len(scenario.traffic)), 1)


@pytest.mark.parametrize("name", FAILOVERS)
def test_each_key_has_the_state_of_its_answer(name: str, replay: Any) -> None:
    """The exhausted key is cooling down, the invalid one rejected, the good one available."""
    with replay(name) as (scenario, _):
        for _ in range(scenario.calls):
            scenario.program(genai.Client())
        spent, invalid, good = (health()[key] for key in scenario.names)
    assert (spent["active"], spent["in_cooldown"], spent["error_count"]) == (True, True, 1)
    assert spent["cooldown_until"] > "2026-01-01T12:30:30Z"
    assert (invalid["active"], invalid["error_count"]) == (False, 1)
    assert invalid["disabled_reason"]
    assert (good["active"], good["in_cooldown"]) == (True, False)
    assert (good["success_count"], good["error_count"]) == (scenario.calls, 0)


@pytest.mark.parametrize("name", SUSPENDED)
def test_the_key_that_google_echoes_is_not_shown(name, replay, caplog) -> None:
    """The body has the key again in a replay; the error, its response and logs do not show it."""
    value = values_for(["key_1"])["key_1"]
    caplog.set_level("DEBUG", logger="keyrot_middleware")
    with replay(name) as (scenario, cassette):
        with pytest.raises(ClientError) as caught:
            scenario.program(genai.Client())
        assert value in str(cassette.responses[0]["body"]["string"])
        assert cassette.play_counts == {0: 1}
        key = health()["key_1"]
    error = caught.value
    assert (error.code, error.status) == (403, "PERMISSION_DENIED")
    texts = [*traceback.format_exception(error), repr(vars(error)), repr(key), caplog.text]
    texts += [repr(vars(error.response)), str(getattr(error.response, "text", ""))]
    assert value not in "".join(texts)
    assert "has been suspended" in str(error)
    assert (key["active"], key["error_count"]) == (False, 1)
    assert key["disabled_reason"]
