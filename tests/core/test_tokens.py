"""How responses adjust the estimate of input tokens."""

from keyrot_middleware.core.counting import TokenScale


def test_a_model_is_taken_at_the_estimate_until_its_responses_are_known() -> None:
    """The next reservation is scaled by what was counted; another model is not."""
    scale = TokenScale()
    assert scale.scaled("m", 123) == 123
    for estimate, true in ((0, 10), (10, 0)):
        scale.learn("m", estimate, true)
    assert scale.scaled("m", 123) == 123
    scale.learn("m", 1_000, 3_000)
    assert (scale.scaled("m", 10), scale.scaled("other", 10)) == (30, 10)
    for _ in range(200):
        scale.learn("m", 1_000, 500)
    assert 50 <= scale.scaled("m", 100) <= 51


def test_what_a_tool_adds_to_a_short_prompt_does_not_multiply_long_ones() -> None:
    scale = TokenScale()
    scale.learn("m", 100_000, 110_000)
    scale.learn("m", 20, 5_000)
    assert scale.scaled("m", 100_000) < 120_000


def test_the_number_of_models_is_bounded() -> None:
    scale = TokenScale()
    for number in range(1_000):
        scale.learn(f"m{number}", 1_000, 2_000)
    assert len(scale._sums) <= 256
