"""The list of quotas of Cloud Quotas: which of them are limits of a project's calls."""

from typing import Any

import pytest

from keyrot_middleware.core.model import Limits
from keyrot_middleware.providers.gemini.errors import listed_limits

RPM, RPD = (f"GenerateRequestsPer{name}PerProjectPerModel" for name in ("Minute", "Day"))
TPM = "GenerateContentPaidTierInputTokensPerModelPerMinute"
FREE_TPM = "GenerateContentInputTokensPerModelPerMinute-FreeTier"


def info(quota_id: str, value: Any, model: str = "m", **more: Any) -> dict[str, Any]:
    interval = "day" if "PerDay" in quota_id else "minute"
    one = {"dimensions": {"model": model}, "details": {"value": value}}
    return {"quotaId": quota_id, "refreshInterval": interval, "dimensionsInfos": [one], **more}


BOTH = [
    *(info(f"{RPM}-FreeTier", "5"), info(f"{RPD}-FreeTier", "20"), info(FREE_TPM, "250000")),
    *(info(RPM, "1000"), info(RPD, "10000"), info(TPM, "1000000")),
]
NUMBERED = [
    *BOTH,
    *(info(f"{RPM}-PaidTier2", "2000"), info(f"{TPM}-PaidTier2", "3000000")),
    *(info(f"{RPM}-PaidTier3", "20000"), info(f"{RPD}-PaidTier3", "-1")),
]


@pytest.mark.parametrize(
    ("tier", "infos", "limits"),
    [
        ("free", BOTH, Limits(5, 250_000, 20)),
        ("paid", BOTH, Limits(1_000, 1_000_000, 10_000)),
        ("tier3", BOTH, Limits(1_000, 1_000_000, 10_000)),
        ("free", NUMBERED, Limits(5, 250_000, 20)),
        ("tier1", NUMBERED, Limits(1_000, 1_000_000, 10_000)),
        ("tier2", NUMBERED, Limits(2_000, 3_000_000, 10_000)),
        ("tier3", NUMBERED, Limits(20_000, 1_000_000, None)),
        ("paid", NUMBERED, Limits(20_000, 3_000_000, None)),
    ],
)
def test_the_tier_of_a_key_chooses(tier: str, infos: list[Any], limits: Limits) -> None:
    """A tier's own quota before that of all paid ones; without a limit it has none."""
    assert listed_limits(infos, tier) == {"m": limits}


def test_embeddings_have_limits_of_their_own() -> None:
    """The smallest of two for one window."""
    name = "EmbedContentRequestsPerMinutePerUserPerProjectPerModel-FreeTier"
    infos = [info(name, "100", "e"), info(name.replace("PerUser", ""), 90, "models/e")]
    assert listed_limits(infos, "free") == {"e": Limits(rpm=90)}


@pytest.mark.parametrize(
    "infos",
    [
        None,
        "quota",
        {"a": 1},
        [None, 1, [], {}],
        [info(RPM, "-1")],
        [info(RPM, "0"), info(RPD, None), info(TPM, "many")],
        [info(RPM, "5", dimensionsInfos=[{"details": {"value": "5"}}])],
        [info(RPM, "5", dimensionsInfos=[{"dimensions": {"model": "m"}, "details": "5"}, 7])],
        [info(RPM, "5", dimensionsInfos=[{"dimensions": {"model": "m", "region": "eu"}}])],
        [info(RPM, "5", refreshInterval="second"), info(RPM, "5", refreshInterval=None)],
        [info("BatchEnqueuedRequestsPerDayPerProjectPerModel", "5")],
        [info("CountTokensRequestsPerMinutePerProjectPerModel", "5")],
        [info("GenerateRequestsPerMinutePerProject", "5")],
        [info(RPM, "5") | {"quotaId": 7}],
    ],
)
def test_nothing_else_is_a_limit(infos: Any) -> None:
    """Unlimited, zero, of other calls, in other dimensions, or no quota at all."""
    assert listed_limits(infos, "tier1") == {}
