"""The recipes of docs/recipes, run against the real frameworks: `make recipes`.

The frameworks are in a virtual environment of their own; without one, its recipe is skipped.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.recipes import Recipe
from support.servers import free_port

from keyrot_middleware.testing import FakeGemini

NEEDED = {
    "test_fastapi.py": ("fastapi", "uvicorn"),
    "test_django.py": ("django",),
    "test_task_queues.py": ("celery", "dramatiq", "rq"),
    "test_servers.py": ("gunicorn", "uvicorn"),
    "test_notebooks.py": ("nbclient", "ipykernel", "streamlit"),
    "test_retries.py": ("tenacity", "strands", "langextract"),
}


@pytest.fixture(autouse=True)
def needs_its_frameworks(request: pytest.FixtureRequest) -> None:
    if not all(find_spec(one) for one in NEEDED[request.path.name]):
        pytest.skip("no framework of that recipe here (make recipes)")


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Recipe]:
    """Run a fake service, and a directory for the files of a recipe."""
    with FakeGemini() as gemini:
        yield Recipe(tmp_path, gemini)


@pytest.fixture
def port() -> int:
    return free_port()
