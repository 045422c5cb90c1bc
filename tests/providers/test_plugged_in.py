"""Providers of other distributions, by entry points: one that works, and some that do not."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keyrot_middleware import providers
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
PlugIn = Callable[..., None]


@pytest.fixture
def plug_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlugIn]:
    """Return what makes a distribution of this name with these entry points."""

    def install(package: str, **points: str) -> None:
        info = here / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{providers.GROUP}]\n{lines}")
        monkeypatch.syspath_prepend(here)

    (here / "acme_api.py").write_text(MODULE)
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
