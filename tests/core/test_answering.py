"""Whether a response names another model than its request."""

import pytest

from keyrot_middleware.core.answering import (
    MAX_LENGTH,
    Answered,
    answer_entry,
    is_other_model,
    read_answers,
)


@pytest.mark.parametrize(
    ("requested", "answered"),
    [
        ("gemini-2.5-flash", "gemini-3.5-flash-lite"),
        ("gemini-2.5-flash", "gemini-2.5-flash-lite"),
        ("gemini-2.5-flash", "gemini-2.5-flash-preview-09-2025"),
        ("gpt-4", "gpt-5"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18"),
        ("claude-opus-4", "claude-opus-4-1"),
        ("openai/gpt-5", "openai/gpt-5-mini"),
        ("gpt-3.5", "gpt-5.3"),
        ("deepseek-v3", "deepseek-v4"),
        ("openrouter/openai/gpt-5", "openai/gpt-5-mini"),
        ("<b>gpt-5</b>\n", "x"),
    ],
)
def test_another_model_is_news(requested: str, answered: str) -> None:
    """Another generation, another size, or a preview."""
    assert is_other_model(requested, answered)


@pytest.mark.parametrize(
    ("requested", "answered"),
    [
        ("gemini-2.5-flash", "gemini-2.5-flash"),
        ("gemini-2.5-flash", "gemini-2.5-flash-001"),
        ("gemini-2.5-flash", "models/gemini-2.5-flash"),
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
        ("claude-3-5-sonnet", "claude-3-5-sonnet@20240620"),
        ("grok-4", "grok-4-0709"),
        ("mistral-small-2506", "mistral-small"),
        ("openai/gpt-5:free", "gpt-5"),
        ("GPT-5", "gpt-5"),
        ("claude-opus-4-0", "claude-opus-4-20250514"),
        ("claude-3-5-haiku-20241022", "claude-3-5-haiku-latest"),
        ("anthropic/claude-3.7-sonnet", "claude-3-7-sonnet-20250219"),
        ("claude-sonnet-3.7", "claude-3-7-sonnet"),
        ("anthropic.claude-3-5-sonnet", "anthropic.claude-3-5-sonnet-20241022-v2:0"),
        ("gemini-flash-latest", "gemini-3.8-flash"),
        ("openrouter/auto", "anthropic/claude-opus-5"),
        ("openrouter/fusion", "anthropic/claude-opus-5"),
        ("tunedModels/my-model", "gemini-2.5-flash"),
        ("projects/p/locations/l/endpoints/123", "gemini-2.5-flash"),
        ("", "gemini-3.8-flash"),
        ("gemini-3.8-flash", ""),
        ("gemini-3.8-flash", None),
        ("gemini-3.8-flash", "x" * (MAX_LENGTH + 1)),
        ("x" * (MAX_LENGTH + 1), "gemini-3.8-flash"),
    ],
)
def test_the_same_model_in_other_words_is_none(requested: str, answered: str | None) -> None:
    """A version, a publisher, another order, an alias, one's own model; and what is no name."""
    assert not is_other_model(requested, answered)


def test_counts_of_answers_are_read_the_most_first() -> None:
    """What is no such count is skipped, as that of all that came too late."""
    counts = {answer_entry("p", "a", "b"): 2, answer_entry("p", "c", "d"): 3, "(other)": 9}
    assert read_answers(counts) == [Answered("p", "c", "d", 3), Answered("p", "a", "b", 2)]
