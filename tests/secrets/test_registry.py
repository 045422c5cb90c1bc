"""The known stores, how they are opened, and the errors for the others."""

import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from support import stores

from keyrot_middleware.errors import ConfigError, MissingExtraError
from keyrot_middleware.keys_file import BUILT_STORES
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.remote import OPENERS
from keyrot_middleware.secrets.stores import open_secret_cache, open_store
from keyrot_middleware.settings import load


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*schemes: str) -> None:
        folder = tmp_path / "site"
        folder.mkdir()
        monkeypatch.syspath_prepend(stores.plug_in(folder, *schemes))
        stores.OPENED.clear()

    return install


def test_a_store_plugs_in_by_entry_point(plug_in, here, monkeypatch) -> None:
    """Its name is a scheme in settings and in keys.json, and it gets our variables of .env."""
    plug_in("safe")
    (here / ".env").write_text("KEYROT_ONE=file\nKEYROT_TWO=file\nONE=file\n")
    monkeypatch.setenv("KEYROT_TWO", "environment")
    (here / "keys.json").write_text(
        '[{"key_id": "a"}, {"key_id": "b", "secret": "safe://box"}, {"key_id": "missing"}]'
    )
    cache = open_secret_cache(load(secret_store="safe"))
    assert cache.value("a") == Secret("FAKE-a-of-default")
    assert cache.value("b") == Secret("FAKE-b-of-safe://box")
    assert cache.unresolved["missing"] == "key missing: not in the safe"
    (environ,) = stores.OPENED
    assert (environ["KEYROT_ONE"], environ["KEYROT_TWO"]) == ("file", "environment")
    assert "ONE" not in environ


def test_our_stores_cannot_be_replaced(plug_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point with the name of one of our stores is not loaded."""
    monkeypatch.setattr(stores, "open_env", stores.open_safe, raising=False)
    plug_in("env")
    open_store("env")
    assert stores.OPENED == []


@pytest.mark.parametrize(
    ("scheme", "error"),
    [
        ("broken", "ConnectionRefusedError"),
        ("flawed", "AttributeError"),
        ("nothing", "AttributeError"),
    ],
)
def test_an_opener_that_raises_is_an_error_without_its_text(
    plug_in, monkeypatch, scheme, error
) -> None:
    """Stores connect at the first look-up."""
    monkeypatch.setenv("SAFE_TOKEN", "FAKE-token")
    plug_in(scheme)
    with pytest.raises(ConfigError) as caught:
        open_store(scheme)
    assert str(caught.value) == f"the secret store {scheme} cannot be opened: {error}"
    assert caught.value.__context__ is None


@pytest.mark.parametrize("scheme", sorted(set(BUILT_STORES) - {"env", "file"}))
def test_a_missing_extra_is_an_error_with_the_pip_line(scheme, monkeypatch) -> None:
    """Whether the library is missing at import or on opening, the pip line is the same."""

    def opener(environ: Any) -> Any:
        import no_such_library  # noqa: F401

    monkeypatch.setitem(OPENERS, scheme, opener)  # type: ignore[arg-type]  # a dict
    with pytest.raises(MissingExtraError) as caught:
        open_store(scheme)
    assert isinstance(caught.value, ConfigError)
    assert f"pip install '.[{scheme}]'" in str(caught.value)
    assert "'no_such_library'" in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("scheme", "wrong"),
    [
        ("vault", {"VAULT_ADDR": "nowhere"}),
        ("azure", {"AZURE_KEY_VAULT_URL": "nowhere"}),
        ("gcp", {"CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": "nowhere"}),
        ("aws", {}),
    ],
)
def test_an_error_has_no_frame_that_holds_the_environment(scheme, wrong, monkeypatch) -> None:
    """Error reporters show local variables, which may hold values and logins."""
    hidden = {"GEMINI_KEY_a": "FAKE-value", "VAULT_TOKEN": "FAKE-token", **wrong}
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    if not wrong:
        monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError) as caught:
        open_store(scheme)
    error: BaseException = caught.value
    assert error.__context__ is error.__cause__ is None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if frame.f_code.co_filename != __file__]
    assert ours
    assert not any("FAKE-" in repr(frame.f_locals) for frame in ours)
