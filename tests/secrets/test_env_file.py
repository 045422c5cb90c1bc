"""The env store, and `.env`, which does not say where logins and data go."""

from pathlib import Path
from typing import Any

import pytest
from support.stores import resolve_one

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret, SecretStore, stores
from keyrot_middleware.secrets.stores import open_store
from keyrot_middleware.settings import load

pytestmark = pytest.mark.promise(number=5)


def write(here: Path, **variables: object) -> None:
    (here / ".env").write_text("".join(f"{n}={value}\n" for n, value in variables.items()))


def test_no_variable_of_this_machine_is_read_into_the_file(here, monkeypatch) -> None:
    """`${NAME}` stands for itself, in settings and in values of keys."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "FAKE-secret-of-the-shell")
    text = "${AWS_SECRET_ACCESS_KEY}"
    url = f"redis://{text}@127.0.0.1/0"
    write(here, KEYROT_STATE_URL=url, GEMINI_API_KEYS=f"FAKE-{text}", GEMINI_KEY_a=text)
    config = load()
    assert config.state_url == url
    assert config.inline["key_1"].get_secret_value() == f"FAKE-{text}"
    assert resolve_one(open_store("env")) == text
    write(here, KEYROT_STRATEGY=text)
    with pytest.raises(ValueError, match="KEYROT_STRATEGY") as caught:
        load()
    assert "FAKE" not in str(caught.value)


STORE_VARIABLES = (
    *("VAULT_ADDR", "VAULT_TOKEN", "AWS_ENDPOINT_URL", "AWS_CONFIG_FILE", "AZURE_KEY_VAULT_URL"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG", "CREDENTIALS_DIRECTORY"),
)


def test_the_file_says_not_where_logins_go(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store gets the environment, and only our own variables of `.env`."""
    write(here, **dict.fromkeys(STORE_VARIABLES, "x"), KEYROT_VAULT_PLACE="secret/app")
    opened: list[Any] = []
    monkeypatch.setitem(stores.OPENERS, "vault", opened.append)  # type: ignore[arg-type]  # a dict
    open_store("vault")
    (environ,) = opened
    assert set(environ).isdisjoint(STORE_VARIABLES)
    assert environ["KEYROT_VAULT_PLACE"] == "secret/app"


def test_alerts_are_not_read_from_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs of Apprise can start programs, read files, and send to anyone."""
    write(here, KEYROT_ALERTS="json://attacker.invalid/hook")
    found = load(keys=["FAKE-a"])
    assert found.settings.alerts == ()
    (text,) = found.warnings
    assert text.startswith(".env: KEYROT_ALERTS: not read from a file")
    assert "attacker" not in text
    monkeypatch.setenv("KEYROT_ALERTS", "json://127.0.0.1/hook")
    found = load(keys=["FAKE-a"])
    assert [url.get_secret_value() for url in found.settings.alerts] == ["json://127.0.0.1/hook"]
    assert found.warnings == ()


def look_up(store: SecretStore, key_id: str, ref: str | None = None) -> str:
    found = store.resolve({key_id: ref})[key_id]
    return found.reveal() if isinstance(found, Secret) else str(found)


def test_the_environment_beats_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is found in .env, then in the environment, which hides .env also when empty."""
    (here / ".env").write_text("GEMINI_KEY_a=from-file\n")
    store = open_store("env")
    assert look_up(store, "a") == "from-file"
    monkeypatch.setenv("GEMINI_KEY_a", " from-environment ")
    assert look_up(store, "a") == "from-environment"
    monkeypatch.setenv("GEMINI_KEY_a", "")
    assert look_up(store, "a") == "key a: the variable GEMINI_KEY_a is empty"


def test_a_reference_names_another_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`env://NAME` reads NAME, and a batch has an answer for each key."""
    monkeypatch.setenv("MINE", "value")
    found = open_store("env").resolve({"a": "env://MINE", "b": None})
    assert found["a"] == Secret("value")
    assert isinstance(found["b"], SecretError)


def test_a_name_in_another_case_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capitals are the usual mistake."""
    monkeypatch.setenv("GEMINI_KEY_FLASH_01", "value")
    text = look_up(open_store("env"), "flash_01")
    assert text.endswith("nor in .env (GEMINI_KEY_FLASH_01 is: case matters)")
