"""docs/recipes/fastapi.md, served by uvicorn."""

import json

from support.recipes import Recipe, get

from keyrot_middleware.testing import Reply


def test_the_application_answers_is_healthy_and_sets_retry_after(recipe: Recipe, port: int) -> None:
    """A failed key is replaced by another; without one the client gets a 429 with Retry-After."""
    recipe.keys("A", "B")
    recipe.write("fastapi.md")
    recipe.gemini.script("A", Reply.QUOTA_DAY)
    base = f"http://127.0.0.1:{port}"
    with recipe.running("-m", "uvicorn", "main:app", "--port", str(port)) as log:
        status, text, _ = get(f"{base}/summary?text=hi")
        assert (status, json.loads(text)) == (200, {"summary": "ok from B"}), log.read_text()
        status, text, _ = get(f"{base}/healthz")
        assert (status, json.loads(text)) == (200, {"keys": 2, "available": 1})
        recipe.gemini.script("B", Reply.QUOTA_DAY)
        for _ in range(2):  # the call that finds it out, and the next one
            status, text, headers = get(f"{base}/summary?text=hi")
            assert status == 429, log.read_text()
            assert 0 < int(headers["retry-after"]) <= 86_400
        assert get(f"{base}/healthz")[0] == 200


def test_it_is_unhealthy_when_every_key_is_rejected(recipe: Recipe, port: int) -> None:
    """Only then an operator must act: /healthz is a 503, and so is the answer to a client."""
    recipe.keys("A")
    recipe.write("fastapi.md")
    recipe.gemini.always_any(Reply.KEY_INVALID)
    base = f"http://127.0.0.1:{port}"
    with recipe.running("-m", "uvicorn", "main:app", "--port", str(port)) as log:
        assert get(f"{base}/healthz")[0] == 200
        for _ in range(2):
            assert get(f"{base}/summary?text=hi")[0] == 503, log.read_text()
        assert get(f"{base}/healthz")[0] == 503
