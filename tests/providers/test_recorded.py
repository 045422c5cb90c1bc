"""Every recorded reply of a provider has the verdict, or the limits and tokens, that it reports."""

import json
from pathlib import Path
from typing import Any

import pytest

from keyrot_middleware import providers
from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.providers.base import Provider

NOW = 1_790_000_000.0
RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parent / "recorded.jsonl").read_text().splitlines()
    if "huggingface.co" not in line[:40]  # which no key of the pool is for
]
REFUSED = {
    "openai": [
        *("key_invalid", "bad_request", "key_invalid", "bad_request", "bad_request"),
        *("model_denied", "bad_request", "bad_request", "key_invalid", "key_invalid"),
        *("bad_request", "model_denied", "model_denied", "bad_request"),
    ],
    "anthropic": ["key_invalid", "bad_request", "model_not_found"],
    "mistral": ["key_invalid"],
    "azure-openai": ["key_invalid", "not_found", "not_found"],
    "cohere": ["key_invalid", "bad_request", *["model_not_found"] * 3],
    "deepseek": ["key_invalid", "bad_request", "bad_request"],
    "openrouter": ["key_invalid", "bad_request", "key_invalid"],
    "perplexity": ["key_invalid", "bad_request"],
    "groq": ["bad_request", "bad_request"],
}
"""The failure class of each refusal, in the order of the file."""
LIMITS = {
    "openai": [
        {"rpm": (5_000, 4_999), "tpm": (2_000_000, 1_999_235)},
        {"rpm": (400, 399), "tpm": (200_000, 199_993)},
        {"rpm": (5_000, 4_999), "tpm": (1_000_000, 999_997)},
        {"rpm": (5_000, 4_999), "tpm": (2_000_000, 1_999_984)},
        {"rpm": (3_000, 2_999)},
    ],
    "anthropic": [
        {"rpm": (1_000, 999), "tpm": (450_000, 450_000)},
        {"tpm": (2_000_000, 2_000_000)},
        {},
    ],
    "mistral": [
        {"rpm": (360, 359), "tpm": (200_000, 199_743)},
        {"rpm": (120, 118), "tpm": (1_500_000, 1_499_781)},
        {},
    ],
    "xai": [{"rpm": (1_800, 1_800), "tpm": (10_000_000, 10_000_000)}, *[{"rpm": (300, 300)}] * 3],
    "azure-openai": [
        {"rpm": (250, 249), "tpm": (250_000, 249_993)},
        {"rpm": (50, 49), "tpm": (50_000, 49_362)},
        {},
        {"rpm": (120, 119), "tpm": (120_000, 119_986)},
        {"rpm": (100, 99), "tpm": (100_000, 99_994)},
        *[{}] * 4,
    ],
    "cohere": [{"rpm": pair} for pair in ((20, 8), (100, 97), (10, 8), (100, 98), (40, 39))],
    "together": [{}, {}, {}],
    "groq": [{"rpd": (14_400, 14_397), "tpm": (30_000, 29_987)}],
}
"""The limits of each success and what is left of them, in the order of the file."""


def _provider(host: str) -> Provider:
    if host.endswith("azure.com"):
        return providers.of("azure-openai")
    every = (providers.of(name) for name in providers.platforms())
    return next(one for one in every if host in one.hosts)


def _of(name: str, *, refused: bool) -> list[dict[str, Any]]:
    return [
        reply
        for reply in RECORDED
        if _provider(reply["host"]).name == name and (reply["status"] >= 400) is refused
    ]


def test_each_recorded_reply_is_expected_here() -> None:
    """None is left out, and none is there twice."""
    assert len(RECORDED) == 69
    assert len(RECORDED) == sum(map(len, (*REFUSED.values(), *LIMITS.values())))


@pytest.mark.parametrize("name", REFUSED)
def test_a_recorded_refusal_has_its_class(name: str) -> None:
    """The class decides what cools down, and whether another key is tried."""
    provider = providers.of(name)
    found = []
    for reply in _of(name, refused=True):
        route = provider.route(reply["method"], f"https://{reply['host']}{reply['path']}")
        assert route is not None
        info = provider.read_request(route, {"model": reply["model"]})
        facts = FailureFacts(reply["status"], json.loads(reply["body"]), headers=reply["headers"])
        verdict = provider.classify(facts, info, NOW)
        found.append(verdict.failure)
        assert verdict.rejected is (verdict.failure == "key_invalid")
        assert verdict.rotate is (verdict.failure in ("key_invalid", "model_denied"))
    assert found == REFUSED[name]


@pytest.mark.parametrize("name", LIMITS)
def test_a_recorded_success_reports_its_limits(name: str) -> None:
    """What a value is, and what is left of it; a `retry-after` or a placeholder says nothing."""
    provider = providers.of(name)
    replies = _of(name, refused=False)
    found = [
        {one.limit: (one.of, one.left) for one in provider.read_limits(reply["headers"])}
        for reply in replies
    ]
    assert found == LIMITS[name]


@pytest.mark.parametrize(
    ("name", "number", "tokens"),
    [
        ("openai", 4, (37, 144)),
        ("anthropic", 0, (20, 13)),
        ("anthropic", 1, (222, 39)),
        ("mistral", 1, (81, 48)),
        ("groq", 0, (18, 70)),
        ("azure-openai", 4, (11, 203)),
        ("cohere", 0, (267, 66)),
        ("together", 0, (18, 35)),
    ],
)
def test_a_recorded_success_reports_its_tokens(
    name: str, number: int, tokens: tuple[int, int]
) -> None:
    """Input and output tokens, where the recording is whole."""
    provider, reply = providers.of(name), _of(name, refused=False)[number]
    route = provider.route(reply["method"], f"https://{reply['host']}{reply['path']}")
    assert route is not None
    usage, names = provider.read_reply(route, reply["body"], in_full=True)
    assert (usage.input_tokens, usage.output_tokens) == tokens
    assert names == ()
