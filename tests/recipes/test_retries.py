"""docs/recipes/retries.md: each wait is done by one of the two, the pool or the library."""

import pytest
from support.recipes import Recipe

from keyrot_middleware.testing import Reply

EXTRACTION = '{"extractions": [{"person": "Grace", "person_attributes": {}}]}'


def exhausted_for(seconds: int) -> object:
    info = {
        "@type": "type.googleapis.com/google.rpc.RetryInfo",
        "retryDelay": f"{seconds}s",
    }
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow", "details": [info]}
    return Reply.custom(429, {"error": error})


def test_tenacity_waits_until_the_pools_retry_time(recipe: Recipe) -> None:
    """The only key is exhausted for two seconds: tenacity waits, and the second send succeeds."""
    recipe.keys("A")
    recipe.write("retries.md")
    code = (recipe.folder / "with_tenacity.py").read_text()
    before = "try:\n    ask.__wrapped__('first')\nexcept genai.errors.APIError as error:\n"
    code = code.replace('print(ask("', f'{before}    print(error.code)\nprint(ask("')
    (recipe.folder / "with_tenacity.py").write_text(code)
    recipe.gemini.script("A", exhausted_for(2))
    assert recipe.python("with_tenacity.py").split("\n")[:2] == ["429", "ok from A"]
    assert recipe.gemini.sent("A") == 2


@pytest.mark.parametrize("name", ["with_strands.py", "with_langextract.py"])
def test_the_pool_waits_for_the_library(recipe: Recipe, name: str) -> None:
    """Of two keys one is invalid and one is exhausted for two seconds: the library sees neither."""
    recipe.keys("A", "B")
    recipe.write("retries.md")
    recipe.gemini.script("A", Reply.KEY_INVALID)
    recipe.gemini.script("B", exhausted_for(2))
    if name == "with_langextract.py":
        recipe.gemini.answer(EXTRACTION)
    printed = recipe.python(name)
    assert ("Grace" if name == "with_langextract.py" else "ok from B") in printed
    assert [recipe.gemini.sent("A"), recipe.gemini.sent("B")] == [1, 2]
