"""Model fallback: where no key can serve a model, the same request goes to the next one."""

import logging
import warnings
from typing import Any

import pytest
from google import genai
from google.genai import types
from support.modes import MODES, ask, calls, spread

import keyrot_middleware
from keyrot_middleware import KeyrotWarning
from keyrot_middleware.testing import Reply

PRO, FLASH, LITE = "gemini-2.5-pro", "gemini-2.5-flash", "gemini-2.5-flash-lite"
CHAIN = f"{PRO}>{FLASH}"


def models(gemini) -> list[str]:
    return [entry.model for entry in gemini.log]


@pytest.fixture
def pro_is_limited(gemini, pool) -> Any:
    def install(**settings: Any) -> None:
        pool("A", "B", **{"fallback_models": CHAIN, "max_wait_s": 0, **settings})
        for label in ("A", "B"):
            gemini.limit(f"project-{label}", PRO, rpd=0)
            gemini.spend(label, PRO)

    return install


@pytest.mark.parametrize("mode", MODES)
def test_a_limited_model_is_replaced(mode, gemini, pro_is_limited, connect, caplog) -> None:
    """Each key is asked once for the first model; the second answers, and the log says so."""
    caplog.set_level(logging.INFO, "keyrot_middleware")
    pro_is_limited()
    texts = calls(mode, connect(), 5, model=PRO)
    assert all(str(text).startswith("ok from ") for text in texts)
    assert models(gemini).count(PRO) == 2
    assert models(gemini).count(FLASH) == 5
    lines = [r.getMessage() for r in caplog.records if "stands in" in r.getMessage()]
    assert [FLASH in line and PRO in line for line in lines] == [True] * 5


def test_only_the_path_differs(gemini, pro_is_limited, connect) -> None:
    """The body is the same, the response names the model that served it."""
    pro_is_limited()
    config = types.GenerateContentConfig(
        system_instruction="be brief", temperature=0.5, http_options={"extra_body": {"labels": {}}}
    )
    answer = connect().models.generate_content(model=PRO, contents="hello", config=config)
    assert isinstance(answer, types.GenerateContentResponse)
    assert answer.model_version == FLASH
    bodies = [entry.body for entry in gemini.log]
    assert len(bodies) == 3
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["systemInstruction"]


@pytest.mark.parametrize("mode", MODES)
def test_thought_signatures_stay_with_their_model(mode, gemini, pool, connect) -> None:
    """Another model refuses them; a note says why none was asked."""
    pool("A", fallback_models=CHAIN, max_wait_s=0)
    gemini.script("A", Reply.QUOTA_MINUTE)
    contents = [{"role": "model", "parts": [{"text": "x", "thought_signature": b"signed"}]}]
    contents += [{"role": "user", "parts": [{"text": "y"}]}]
    with pytest.raises(genai.errors.ClientError, match="429") as failed:
        ask(mode, connect(), model=PRO, contents=contents)
    assert models(gemini) == [PRO]
    assert failed.value.__notes__[-1].startswith(f"keyrot: this request stays with {PRO}, since")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("session", [None, "user 1"])
def test_a_conversation_that_fell_back_stays_with_that_model(
    session, mode, gemini, pool, connect, clock
) -> None:
    """While its contents carry signatures, of a session or with `sticky`; for an hour."""
    strategy = "spread" if session else "sticky"
    pool("A", fallback_models=CHAIN, max_wait_s=0, strategy=strategy)
    gemini.script("A", Reply.QUOTA_MINUTE)
    begun = [{"role": "user", "parts": [{"text": "x"}]}]
    part = {"text": "y", "thought_signature": b"signed"}
    signed = [*begun, {"role": "model", "parts": [part]}, *begun]
    client = connect()

    def say(contents: Any) -> None:
        with keyrot_middleware.workload("chat", session=session):
            ask(mode, client, model=PRO, contents=contents)
        keyrot_middleware.reset("A")

    for contents in (begun, signed, signed):
        say(contents)
    assert models(gemini) == [PRO, FLASH, FLASH, FLASH]
    say(begun)
    say(signed)
    assert models(gemini)[4:] == [PRO, PRO]
    gemini.script("A", Reply.QUOTA_MINUTE)
    say(begun)
    clock.sleep(3_601)
    say(signed)
    assert models(gemini)[6:] == [PRO, FLASH, PRO]


# Models that Google does not have ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "missing", "then", "asked"),
    spread(
        MODES,
        [
            (PRO, f"requests go on to {FLASH}", (PRO, FLASH)),
            (FLASH, f"requests go on to {LITE}", (PRO, FLASH, LITE)),
        ],
    ),
)
def test_a_missing_model_is_named_once(missing, then, asked, mode, gemini, pool, connect) -> None:
    """Misspelt or retired: the warning quotes Gemini, and the next model answers."""
    pool("A", fallback_models=f"{PRO}>{FLASH}>{LITE}", max_wait_s=0)
    gemini.remove_model(missing)
    client = connect()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            if missing == FLASH:
                gemini.script("A", Reply.CAPACITY)
            assert ask(mode, client, model=PRO) == "ok from A"
            keyrot_middleware.reset("A")
    assert models(gemini) == [*asked] * 2
    (text,) = [str(one.message) for one in found if one.category is KeyrotWarning]
    assert text.startswith(
        f"KEYROT_FALLBACK_MODELS: the API has no model {missing}, and {then}; Gemini "
        f"answers 404: models/{missing} is not found for API version "
    )
