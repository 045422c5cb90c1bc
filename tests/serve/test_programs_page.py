"""docs/serve.md says what `make clients` runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from keyrot_middleware import providers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text("utf-8")


def test_each_program_of_the_page_is_run_and_each_that_is_run_is_on_the_page() -> None:
    """So is each block: `make clients` takes what it runs from the page."""
    command = [sys.executable, ROOT / "tools" / "clients" / "run.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


@pytest.mark.parametrize("platform", ["gemini_api", "openai", "anthropic"])
def test_the_variable_of_each_provider_is_that_which_the_door_prints(platform: str) -> None:
    """Where the address differs, a reader who copies one of the two gets a 404."""
    provider = providers.of(platform)
    address = f"http://127.0.0.1:8789/{provider.name}{provider.base_url_path}"
    line = f"export {provider.base_url_variable}={address}\n"
    assert line in PAGE
