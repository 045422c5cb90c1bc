"""Providers of other distributions, by entry points: one that works, and some that do not."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.json_server import JsonServer, Response
from support.plugged_in import write_distribution

from keyrot_middleware import providers
from keyrot_middleware.core.failures import CLASSES
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.settings import load

MODULE = """
from keyrot_middleware.providers import OpenAILike


class Acme(OpenAILike):
    name = platform = otel = "acme"
    title = "Acme"
    hosts = ("api.acme.example",)
    variables = ("ACME_API_KEY",)
"""
NAMES = "FIRST_RULES, LAST_RULES, Rule, of_billing, of_project, paced, rejected"
PlugIn = Callable[..., None]


@pytest.fixture
def plug_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlugIn]:
    """Return what makes a distribution of this name with these entry points."""

    def install(package: str, **points: str) -> None:
        write_distribution(here, package, providers.GROUP, **points)
        monkeypatch.syspath_prepend(here)

    (here / "acme_api.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "acme_words", raising=False)
    providers.plugged_in.cache_clear()
    yield install
    providers.plugged_in.cache_clear()


def test_a_provider_plugs_in_by_entry_point(plug_in: PlugIn, here: Path, monkeypatch) -> None:
    """Its keys are in its variable or in keys.json, and its hosts are served."""
    plug_in("acme-keyrot", acme="acme_api:Acme")
    monkeypatch.setenv("ACME_API_KEYS", "FAKE-one,FAKE-two")
    (here / "keys.json").write_text('[{"key_id": "a", "provider": "acme"}]')
    config = load(allowed_hosts="acme=https://gateway.example")
    assert [key.key_id for key in config.keys] == ["a", "acme_1", "acme_2"]
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ({"acme": "acme_missing:Acme"}, "loading it raises ModuleNotFoundError"),
        ({"acme": "acme_api:Other"}, "loading it raises AttributeError"),
        ({"acme": "builtins:dict"}, "its class is no Provider whose name and platform are acme"),
        ({"acme2": "acme_api:Acme"}, "its class is no Provider whose name and platform are acme2"),
    ],
)
def test_a_provider_that_cannot_be_used_is_left_out(
    points: dict[str, str], why: str, plug_in: PlugIn, here: Path
) -> None:
    """A program that does not use it gets a warning; a key of it is an error."""
    plug_in("acme-keyrot", **points)
    ((name, value),) = points.items()
    (warning,) = load().warnings
    assert f"the provider {name} of the package acme-keyrot (entry point {value})" in warning
    assert why in warning
    (here / "keys.json").write_text(f'[{{"key_id": "a", "provider": "{name}"}}]')
    with pytest.raises(ConfigError, match=f"key a, field provider: the provider {name} of the"):
        load()
    with pytest.raises(ConfigError, match=f"allowed_hosts.*the provider {name} of the"):
        load(keys=("FAKE-one",), allowed_hosts=f"{name}=https://gateway.example")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            'Rule("key_invald", (401,))',
            'no row defines its failure class "key_invald". Did you mean "key_invalid"?',
        ),
        (
            'of_billing("key_frozen"), of_billing("capacity")',
            'its failure class "capacity" implies PERSON, elsewhere MODEL|BUSY; give it another',
        ),
    ],
)
def test_a_provider_whose_words_are_unclear_is_left_out(
    row: str, why: str, plug_in: PlugIn, here: Path
) -> None:
    """A misspelt class would imply nothing; the warning has the nearest name."""
    table = f"{MODULE}    rules = (*FIRST_RULES, {row}, *LAST_RULES)\n"
    (here / "acme_words.py").write_text(table.replace("import ", f"import {NAMES}, "))
    plug_in("acme-keyrot", acme="acme_words:Acme")
    (warning,) = load().warnings
    assert f"(entry point acme_words:Acme) cannot be used: {why}" in warning
    assert "key_frozen" not in CLASSES


ROWS = """
    rules = (
        *FIRST_RULES,
        rejected("key_frozen", (401,), reasons=frozenset({"KEY_FROZEN"})),
        of_project("workspace_closed", (403,), reasons=frozenset({"WORKSPACE_CLOSED"})),
        paced("quota_week", reasons=frozenset({"WEEK_EXHAUSTED"})),
        Rule("model_not_found", (404,)),
        *LAST_RULES,
    )
"""
PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import requests
import keyrot_middleware
from keyrot_middleware.core import chains, judgement, selection
from keyrot_middleware.core.failures import BUSY

url, state = sys.argv[1:]
keyrot_middleware.install(allowed_hosts=f"acme={url}", state_url=state, max_wait_s=0)
reply = requests.post(
    f"{url}/v1/chat/completions",
    json={"model": "m", "messages": []},
    headers={"authorization": "Bearer keyrot-pool"},
)
keys = keyrot_middleware.status()["keys"].values()
((how, ends_by, said),) = {(key["state"], key["ends_by"], key["sentence"]) for key in keys}
print(json.dumps([reply.status_code, how, ends_by, said]))
assert "quota_week" in BUSY and "quota_week" in chains.ABOUT_THE_MODEL
assert "workspace_closed" in judgement._BY_PERSON
assert "rpm" not in selection._NEVER_SKIPPED
"""


@pytest.mark.parametrize(
    ("code", "word", "expected"),
    [
        (
            *(401, "KEY_FROZEN"),
            [
                401,
                "rejected",
                "person",
                'Acme rejects the key (key_frozen: "No."); replace its value',
            ],
        ),
        (
            *(403, "WORKSPACE_CLOSED"),
            [
                429,
                "cooling_down",
                "person",
                'Acme refuses project web/acme (workspace_closed: "No.")',
            ],
        ),
    ],
)
def test_a_class_of_its_own_means_what_its_row_says(
    code: int, word: str, expected: list[str | int], plug_in: PlugIn, here: Path
) -> None:
    """In the process that met it, and in another one that shares its state and sends nothing."""
    names = MODULE.replace("import ", f"import {NAMES}, ")
    (here / "acme_words.py").write_text(f"{names}{ROWS}")
    plug_in("acme-keyrot", acme="acme_words:Acme")
    (here / "keys.json").write_text(
        json.dumps([{"key_id": i, "provider": "acme", "project": "web"} for i in ("a", "b")])
    )
    body = {"error": {"message": "No.", "type": word}}
    sent = []
    with JsonServer(lambda _: Response(code, body)) as server:
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, server.url, f"sqlite://{here}/acme.db"],
                check=False,
                env={**os.environ, "KEYROT_KEY_a": "FAKE-one", "KEYROT_KEY_b": "FAKE-two"},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout) == expected
            sent.append(len(server.requests))
    assert 1 <= sent[0] == sent[1] <= 2


def test_a_name_that_two_packages_have_is_none_of_theirs(plug_in: PlugIn, here: Path) -> None:
    """The warning names both of them."""
    plug_in("acme-keyrot", acme="acme_api:Acme")
    plug_in("other-keyrot", acme="acme_api:Acme")
    (warning,) = load().warnings
    assert "the provider acme of the packages acme-keyrot, other-keyrot" in warning
    (here / "keys.json").write_text('[{"key_id": "a", "provider": "acme"}]')
    with pytest.raises(ConfigError, match="another provider has this name"):
        load()


def test_our_providers_cannot_be_replaced(plug_in: PlugIn, monkeypatch) -> None:
    """An entry point with the name of one is left out, and its keys are in the pool once."""
    plug_in("acme-keyrot", openai="acme_api:Acme", gemini="acme_api:Acme")
    monkeypatch.setenv("OPENAI_API_KEYS", "FAKE-one,FAKE-two")
    config = load()
    assert [key.key_id for key in config.keys] == ["openai_1", "openai_2"]
    assert len(config.warnings) == 2


def test_what_a_provider_needs_is_in_one_public_place() -> None:
    """docs/providers.md names all of it, and its example imports it from nowhere else."""
    page = (Path(__file__).parents[2] / "docs" / "providers.md").read_text("utf-8")
    text = page.partition("## A provider of your own")[2].partition("\n## ")[0]
    imports = re.findall(r"^from (\S+) import (.+)$", text, re.MULTILINE)
    assert {module for module, _ in imports} == {"keyrot_middleware.providers"}
    imported = {name for _, names in imports for name in names.split(", ")}
    assert imported <= set(providers.__all__) <= set(re.findall(r"\w+", text))
    assert all(hasattr(providers, name) for name in providers.__all__)
