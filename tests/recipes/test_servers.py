"""docs/recipes/servers.md: every worker of uvicorn and gunicorn has the pool."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.recipes import Recipe, get

from keyrot_middleware.testing import Reply

WHO_ANSWERS = "f\"{__import__('os').getpid()} {response.text}\""
MOST = 60
"""Requests until each of three workers has answered; a busy machine may leave one of them out."""
COMMANDS = {
    "uvicorn": ("-m", "uvicorn", "--workers", "3", "--port", "{port}", "app:app"),
    "gunicorn": ("-m", "gunicorn", "--workers", "3", "--bind", "127.0.0.1:{port}", "wsgi:app"),
    "gunicorn preload": (
        *("-m", "gunicorn", "--workers", "3", "--preload", "--bind", "127.0.0.1:{port}"),
        "wsgi:app",
    ),
}


@pytest.mark.parametrize("args", COMMANDS.values(), ids=COMMANDS.keys())
def test_every_worker_has_the_pool(recipe: Recipe, port: int, args: tuple[str, ...]) -> None:
    """Three processes answer with a key of one pool, and the exhausted key is tried once."""
    recipe.keys("A", "B")
    recipe.share()
    recipe.write("servers.md")
    for name in ("app.py", "wsgi.py"):  # the recipe's own application, with who answers
        path = recipe.folder / name
        path.write_text(path.read_text().replace("response.text", WHO_ANSWERS))
    recipe.gemini.always("A", Reply.QUOTA_DAY)
    command = [word.format(port=port) for word in args]
    with recipe.running("-m", "keyrot_middleware", "run", *command) as log:
        pids = set()
        for _ in range(MOST):
            status, text, _ = get(f"http://127.0.0.1:{port}/")
            assert status == 200, log.read_text()
            pid, _, answer = text.partition(" ")
            assert answer == "ok from B"
            pids.add(pid)
            if len(pids) == 3:
                break
        assert len(pids) >= 2, log.read_text()
    assert recipe.gemini.sent("A") == 1


@pytest.mark.parametrize("more", [(), ("--preload",)], ids=["", "preload"])
def test_four_workers_share_a_limit_in_a_file(recipe, port, more) -> None:
    """Limit 20: of forty requests twenty are sent, whichever worker has them."""
    value = recipe.gemini.add_key("A", tier="paid").value
    keys = [{"key_id": "a", "rpd": 20}]
    (recipe.folder / "keys.json").write_text(json.dumps(keys))
    recipe.env |= {"GEMINI_KEY_a": value, "KEYROT_MAX_WAIT_S": "0"}
    recipe.env |= {"KEYROT_STATE_URL": "sqlite", "KEYROT_POOL": "my-service"}
    recipe.write("servers.md")
    command = ("-m", "gunicorn", "--workers", "4", *more, "--bind", f"127.0.0.1:{port}", "wsgi:app")
    with recipe.running("-m", "keyrot_middleware", "run", *command) as log:
        first = get(f"http://127.0.0.1:{port}/")
        with ThreadPoolExecutor(8) as threads:
            found = [first, *threads.map(get, [f"http://127.0.0.1:{port}/"] * 39)]
        codes = [status for status, _, _ in found]
        assert (codes.count(200), codes.count(500)) == (20, 20), log.read_text()
    assert recipe.gemini.sent("A") == 20
    assert Path(recipe.folder, ".local/state/keyrot/my-service.sqlite3").exists()
