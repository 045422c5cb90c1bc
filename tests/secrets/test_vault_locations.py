"""Secrets in a real OpenBao: KV 1 and 2, fields, and missing ones."""

from __future__ import annotations

from typing import Any

import pytest
from support.openbao import ROOT_TOKEN, OpenBao, policy, unique
from support.stores import resolve_all, resolve_one
from support.vault_proxy import Reply, vault_proxy

from keyrot_middleware.secrets import SecretStore
from keyrot_middleware.secrets.vault import open_vault

VALUE = "AIza" + "FAKE" + "p" * 31


def opened(bao: OpenBao, token: str = ROOT_TOKEN, **more: str) -> SecretStore:
    """Open a store with a token, root's by default."""
    return open_vault({"VAULT_ADDR": bao.url, "VAULT_TOKEN": token, **more})


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_kv_are_distinguished(bao: OpenBao, version: int) -> None:
    """A reference is the same for both, and least privilege is enough to read it."""
    mount = bao.mount(version)
    path = f"{mount}/data/team/a" if version == 2 else f"{mount}/team/a"
    bao.write(path, {"flash": VALUE, "pro": "second"})
    store = opened(bao, bao.token(bao.allow(policy(path))))
    refs = {"a": f"vault://{mount}/team/a#flash", "pro": f"vault://{mount}//team/a/"}
    before = len(bao.requested_paths())
    assert resolve_all(store, **refs) == {"a": VALUE, "pro": "second"}
    assert bao.requested_paths()[before:] == [
        "auth/token/lookup-self",
        f"sys/internal/ui/mounts/{mount}/team/a",
        path,
    ]


def test_500_keys_of_one_path_are_one_read(bao: OpenBao) -> None:
    """The path is read once, and after the first look-up nothing else is requested."""
    mount = bao.mount(2)
    values = {f"key_{number}": f"value-{number}" for number in range(500)}
    half = dict(list(values.items())[:250])
    bao.write(f"{mount}/data/keyrot", half)
    bao.patch(f"{mount}/data/keyrot", {k: v for k, v in values.items() if k not in half})
    store = opened(bao, KEYROT_VAULT_PLACE=f"{mount}/keyrot")
    nowhere = dict.fromkeys(values)
    assert resolve_all(store, **nowhere) == values
    before = len(bao.requested_paths())
    assert resolve_all(store, **nowhere) == values
    assert bao.requested_paths()[before:] == [f"{mount}/data/keyrot"]


def test_the_default_reference_is_secret_keyrot(bao: OpenBao) -> None:
    """A field with the key's id in `secret/keyrot`, unless a variable names another path."""
    key_id = unique("k").replace("-", "_")
    bao.write("secret/data/keyrot", {key_id: VALUE})
    store = opened(bao)
    assert resolve_one(store, key_id=key_id) == VALUE
    assert store.place("a") == "vault://secret/keyrot#a"  # type: ignore[attr-defined]
    other = opened(bao, KEYROT_VAULT_PLACE="vault://team/kv/keys")
    assert other.place("a") == "vault://team/kv/keys#a"  # type: ignore[attr-defined]


def test_mounts_may_be_nested_and_names_unusual(bao: OpenBao) -> None:
    """The server knows where the mount ends; blanks are percent-encoded or not."""
    mount = bao.mount(2, path=f"{unique('deep')}/er")
    bao.admin("POST", f"{mount}/data/a%20b/%C3%BC%3F", {"data": {"x#y": VALUE}})
    store = opened(bao)
    assert resolve_one(store, f"vault://{mount}/a%20b/%C3%BC%3F#x%23y") == VALUE
    assert resolve_one(store, f"vault://{mount}/a b/ü%3F#x#y") == VALUE


def test_a_mount_that_is_upgraded_is_noticed(bao: OpenBao) -> None:
    """Version 1 becomes version 2 meanwhile: the next look-up finds the secret at its new path."""
    mount = bao.mount(1)
    bao.write(f"{mount}/keyrot", {"a": "old"})
    store = opened(bao, KEYROT_VAULT_PLACE=f"{mount}/keyrot")
    assert resolve_one(store) == "old"
    bao.admin("DELETE", f"sys/mounts/{mount}")
    bao.mount(2, path=mount)
    bao.write(f"{mount}/data/keyrot", {"a": "new"})
    assert resolve_one(store) == "new"


def _only_secrets(handler: Any, body: bytes) -> Reply | None:
    """Be a proxy that denies questions about mounts."""
    return (403, b"{}", {}) if "/sys/" in handler.path else None


@pytest.mark.parametrize("version", [1, 2])
def test_where_mounts_may_not_be_listed_both_versions_are_tried(bao: OpenBao, version: int) -> None:
    """A gateway that hides `sys/` costs one request, once."""
    mount = bao.mount(version)
    path = f"{mount}/data/keyrot" if version == 2 else f"{mount}/keyrot"
    bao.write(path, {"a": VALUE})
    token = bao.token(bao.allow(policy(path)))
    with vault_proxy(_only_secrets, bao.url) as url:
        store = opened(bao, token, VAULT_ADDR=url, KEYROT_VAULT_PLACE=f"{mount}/keyrot")
        assert resolve_one(store) == VALUE
        before = len(bao.requested_paths())
        assert resolve_one(store) == VALUE
        assert bao.requested_paths()[before:] == [path]
        refused = resolve_one(store, f"vault://{unique('no')}/x#a")
        assert "its policy needs the capability read on" in refused
        assert "(KV version 2) or " in refused
        missing = opened(bao, VAULT_ADDR=url, KEYROT_VAULT_PLACE=f"{mount}/none")
        assert "there is no such secret" in resolve_one(missing)


def test_missing_secrets_have_different_errors(bao: OpenBao) -> None:
    """No secret, mount, KV or field, a deleted or destroyed version: each has its message."""
    mount = bao.mount(2)
    for name in ("full", "deleted", "destroyed", "bare"):
        bao.write(f"{mount}/data/{name}", {"flash_01": VALUE} if name != "bare" else {})
    bao.admin("DELETE", f"{mount}/data/deleted")
    bao.admin("PUT", f"{mount}/destroy/destroyed", {"versions": [1]})
    places = {
        f"vault://{mount}/none#x": f"there is no such secret ({mount}/data/none)",
        "vault://no-mount/x#x": "no secrets engine is mounted there (no-mount/data/x)",
        "vault://sys/health#x": "sys/ is a mount of the type system, and not kv",
        f"vault://{mount}/deleted#x": "its newest version, 1, was deleted; write it again",
        f"vault://{mount}/destroyed#x": "its newest version, 1, was destroyed; write it again",
        f"vault://{mount}/full#flash_02": "no such field; it has: flash_01. Did you mean",
        f"vault://{mount}/bare#x": "no such field; it has none at all",
        f"vault://{mount}/data/full#x": 'leave out "data/" after the mount',
    }
    found = resolve_all(opened(bao), **{f"k{n}": place for n, place in enumerate(places)})
    for number, (place, message) in enumerate(places.items()):
        text = found[f"k{number}"]
        assert text.startswith(f"key k{number}: {place}: ")
        assert message in text
        assert VALUE not in text


def test_only_names_of_fields_are_shown_and_not_all_of_hundreds(bao: OpenBao) -> None:
    """Ten names and how many more; a name that is a key itself is masked."""
    mount = bao.mount(2)
    fields = {f"key_{number:03}": f"value-{number}" for number in range(99)}
    bao.write(f"{mount}/data/keyrot", {**fields, VALUE: "x"})
    text = resolve_one(opened(bao, KEYROT_VAULT_PLACE=f"{mount}/keyrot"), key_id="kay_01")
    assert "AIza…[redacted], key_000, " in text
    assert "key_008, and 90 more." in text
    assert "value" not in text
    assert VALUE not in text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "its value is empty"),
        ("  ", "its value is empty"),
        (12345678, "its value is a number; allowed: a text"),
        (True, "its value is true or false"),
        (None, "its value is null"),
        (["AIza-in-a-list"], "its value is a list"),
        ({"key": "AIza-in-an-object"}, "its value is an object"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_value_that_is_no_text_is_an_error(
    bao: OpenBao, version: int, value: object, message: str
) -> None:
    """The error has its type, and not the value."""
    mount = bao.mount(version)
    bao.write(f"{mount}/data/k" if version == 2 else f"{mount}/k", {"a": value})
    text = resolve_one(opened(bao), f"vault://{mount}/k#a")
    assert text.endswith(f": {message}") or message in text
    assert "12345678" not in text
    assert "AIza-in" not in text


@pytest.mark.parametrize(
    "place",
    ["vault://", "vault://secret", "vault://secret#a", "vault://a/../sys/x#y", "vault:///#"],
)
def test_an_invalid_reference_is_an_error_without_a_request(bao: OpenBao, place: str) -> None:
    """Such a key costs no request, and the others are found."""
    before = len(bao.requested_paths())
    text = resolve_one(opened(bao), place)
    assert text == (
        f'key a: found the place "{place}"; allowed: vault://MOUNT/path/of/secret#field'
    )
    assert bao.requested_paths()[before:] == []


def test_the_error_for_a_policy_of_the_wrong_version_has_the_right_path(bao: OpenBao) -> None:
    """The usual mistake: a policy on `secret/keyrot` where version 2 has `secret/data/keyrot`."""
    mount = bao.mount(2)
    bao.write(f"{mount}/data/keyrot", {"a": VALUE})
    token = bao.token(bao.allow(policy(f"{mount}/keyrot")))
    text = resolve_one(opened(bao, token, KEYROT_VAULT_PLACE=f"{mount}/keyrot"))
    assert f'path "{mount}/data/keyrot" {{ capabilities = ["read"] }}' in text
    assert "the token in VAULT_TOKEN (accessor " in text
    assert token not in text


def test_one_denied_path_costs_the_others_nothing(bao: OpenBao) -> None:
    """Each path has an answer of its own."""
    mount = bao.mount(2)
    for name in ("mine", "theirs"):
        bao.write(f"{mount}/data/{name}", {"x": VALUE})
    store = opened(bao, bao.token(bao.allow(policy(f"{mount}/data/mine"))))
    found = resolve_all(store, a=f"vault://{mount}/theirs#x", b=f"vault://{mount}/mine#x")
    assert "denies the token in VAULT_TOKEN" in found["a"]
    assert found["b"] == VALUE


def test_a_changed_value_is_read_at_the_next_look_up(bao: OpenBao) -> None:
    """A store caches nothing between look-ups."""
    mount = bao.mount(2)
    store = opened(bao, KEYROT_VAULT_PLACE=f"{mount}/keyrot")
    for value in ("first", "second"):
        bao.write(f"{mount}/data/keyrot", {"a": f" {value}\n"})
        assert resolve_one(store) == value


def test_namespaces(bao: OpenBao) -> None:
    """VAULT_NAMESPACE is where login and secrets are; a wrong one is named in the error."""
    space = unique("team")
    bao.admin("POST", f"sys/namespaces/{space}")
    mount = bao.mount(2, namespace=space)
    bao.write(f"{mount}/data/keyrot", {"a": VALUE}, namespace=space)
    rules = bao.allow(policy(f"{mount}/data/keyrot"), namespace=space)
    token = bao.token(rules, namespace=space)
    place = {"KEYROT_VAULT_PLACE": f"{mount}/keyrot"}
    assert resolve_one(opened(bao, token, VAULT_NAMESPACE=f"{space}/", **place)) == VALUE
    assert "denies the token in VAULT_TOKEN" in resolve_one(opened(bao, token, **place))
    text = resolve_one(opened(bao, token, VAULT_NAMESPACE="none", **place))
    assert "namespace none: namespace not found; is VAULT_NAMESPACE right?" in text
