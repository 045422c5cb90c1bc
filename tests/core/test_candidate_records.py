"""The name under which a key's records are kept: it depends on the value."""

from __future__ import annotations

from support.candidates import list_candidates
from support.pool import key

from keyrot_middleware.core.ledger import Configured, Ledger, Records
from keyrot_middleware.core.model import RetryPolicy, project_label, project_name
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.keys_file import KeySpec


def test_a_key_without_a_project_is_another_project_with_another_value() -> None:
    """And another billing account; its labels stay as they are."""
    spec = KeySpec(key_id="one").candidate
    old, new = spec.with_value("01234567"), spec.with_value("01234567").with_value("89abcdef")
    assert (spec.record, old.record, new.record) == ("one", "one@01234567", "one@89abcdef")
    assert (old.project, new.project) == ("key:one@01234567", "key:one@89abcdef")
    assert new.billing_account == "project:key:one@89abcdef"
    assert {project_label(k.project) for k in (spec, old, new)} == {"key:one"}
    assert new.with_value("") == spec
    assert (spec.fingerprint, new.fingerprint) == ("", "89abcdef")
    assert (project_name(new.project), project_name("p")) == (None, "p")


def test_a_named_project_keeps_its_records_with_every_value() -> None:
    """Its keys share one quota, whatever their values are."""
    spec = KeySpec(key_id="one", project="web", billing_account="acme").candidate
    bound = spec.with_value("01234567")
    assert (bound.project, bound.billing_account) == ("web", "acme")
    assert project_label("web@home") == "web@home"


def test_a_selector_replaces_a_key_whose_value_changed() -> None:
    """It keeps its position, also in calls under way."""
    selector = Selector([key("a"), key("b")], "fill")
    selector.update([key("a").with_value("01234567"), key("b")])
    assert list_candidates(selector) == ["a", "b"]
    assert selector.keys["a"].record == "a@01234567"
    assert selector.find_project_keys("a")[0] is selector.keys["a"]


def test_a_key_has_the_value_that_processes_use() -> None:
    """Of a key that none uses, no value is known."""
    records = Records(configured={"one": Configured(fingerprint="01234567")})
    one, two = (KeySpec(key_id=name).candidate for name in ("one", "two"))
    found = Ledger(records, RetryPolicy()).with_values([one, two])
    assert found == [one.with_value("01234567"), two]
