"""Each store of this package has its page, its extra, and its row where an operator looks."""

import re
import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions

import pytest
from support.docs_blocks import ROOT

from keyrot_middleware.keys_file import BUILT_STORES
from keyrot_middleware.secrets.remote import OPENERS, RemoteStore

DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CLASSES = {
    one.scheme: one
    for one in RemoteStore.__subclasses__()
    if one.__module__ == RemoteStore.__module__  # others belong to tests
}


def row(page: str, heading: str, scheme: str) -> list[str]:
    """Return the cells of the row of a store in the table below a heading."""
    _, _, text = f"\n{(DOCS / page).read_text('utf-8')}".partition(f"\n{heading}\n")
    text = text.partition("\n## ")[0]
    (found,) = re.findall(rf"^\| `{scheme}` \|.*$", text, re.MULTILINE)
    return [cell.strip() for cell in found.strip("| ").split(" | ")]


@pytest.mark.parametrize("scheme", BUILT_STORES)
def test_a_store_has_a_row_of_its_own(scheme: str) -> None:
    """What it is and needs; and in the runbook what is wrong, and what to do then."""
    _, default, place, needs, guide = row("secrets.md", "# Secret stores", scheme)
    assert default
    assert place.startswith(f"`{scheme}://")
    assert needs == (f"extra `{scheme}`" if scheme in OPENERS else "-")
    _, reasons, do = row("runbook.md", "## When a secret store fails", scheme)
    assert "`" in reasons
    assert do
    if scheme in OPENERS:
        (page,) = re.findall(r"\((stores/\w+\.md)\)", guide)
        assert f"]({page})" in do


@pytest.mark.parametrize("scheme", OPENERS)
def test_the_reasons_in_the_runbook_are_those_of_the_table(scheme: str) -> None:
    """One list of all reasons is enough to keep true."""
    _, reasons, _ = row("runbook.md", "## When a secret store fails", scheme)
    table = (DOCS / "secrets.md").read_text("utf-8").partition("## When a store fails")[2]
    assert set(re.findall("`.+?`", reasons)) <= set(re.findall("`.+?`", table))


@pytest.mark.parametrize("scheme", OPENERS)
def test_a_store_over_the_network_has_a_page(scheme: str) -> None:
    """It is in the navigation, and says how to install it, set it, and read its errors."""
    guide = row("secrets.md", "# Secret stores", scheme)[-1]
    (name,) = re.findall(r"\((stores/\w+\.md)\)", guide)
    page = (DOCS / name).read_text("utf-8")
    assert f'"{name}"' in (ROOT / "zensical.toml").read_text("utf-8")
    assert f"pip install '.[{scheme}]'" in page
    assert f"SECRET_STORE_TYPE={scheme}" in page
    assert f"{scheme}://" in page
    assert "(../secrets.md#when-a-store-fails)" in page


@pytest.mark.parametrize("scheme", OPENERS)
def test_an_extra_has_the_libraries_of_a_store(scheme: str) -> None:
    """Each that it imports when it is opened; and the extra is one of `all`."""
    extras = PROJECT["optional-dependencies"]
    wanted = {re.match(r"[\w.-]+", one)[0] for one in extras[scheme]}  # type: ignore[index]
    distributions = packages_distributions()
    for library in CLASSES[scheme].libraries:
        import_module(library)
        top = library.partition(".")[0]
        assert wanted & {name.lower() for name in distributions[top]}, library
    assert scheme in re.findall(r"[\w-]+", extras["all"][0].partition("[")[2])


def test_every_class_of_a_store_can_be_opened() -> None:
    """One that is added to `remote.py` is in the list of openers, and among the schemes."""
    assert set(CLASSES) == set(OPENERS)
    assert {"env", "file", *OPENERS} == set(BUILT_STORES)
