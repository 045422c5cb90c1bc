"""`keyrot rotate` writes a new value: into every store, and never over another one."""

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.openbao import policy
from support.store_servers.aws import AwsServer
from support.store_servers.azure import AzureServer
from support.store_servers.file import FileServer
from support.store_servers.gcp import GcpServer
from support.store_servers.vault import VaultServer
from support.stores import resolve_one

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.remote import open_vault
from keyrot_middleware.secrets.stores import EnvStore, open_file

OLD, NEW, THIRD = (Secret(f"FAKE-{name}-value") for name in ("old", "new", "third"))


class WritableVault(VaultServer):
    """Its role may write too."""

    def open(self):
        """Open a store that may write."""
        rules = policy(self._path).replace("read", 'read", "create", "update')
        return open_vault(self._environ(self.bao.role(self.bao.allow(rules))))


class WritableVault1(WritableVault):
    """An engine without versions."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.mount = self.bao.mount(1)
        self._path = f"{self.mount}/keyrot"

    def put(self, key_id: str, value: str) -> None:
        """Write all fields."""
        self.bao.write(self._path, {"other": "FAKE-other", key_id: value})


class EnvFile:
    """A `.env` file."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / ".env"

    def open(self) -> EnvStore:
        """Open the store."""
        return EnvStore(self.file)

    def put(self, key_id: str, value: str) -> None:
        """Write the file."""
        self.file.write_text(f"# keys\nexport GEMINI_KEY_{key_id}='{value}'  # mine\nX=y")

    def close(self) -> None:
        """Do nothing."""


SERVERS = [EnvFile, FileServer, WritableVault, WritableVault1, AwsServer, AzureServer, GcpServer]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    """Start a store server whose key `a` has the old value."""
    made = request.param(tmp_path)
    made.put("a", OLD.reveal())
    yield made
    made.close()


def test_a_value_is_replaced_and_found_again(server) -> None:
    """Another reader finds the new value; the one before is found where the store keeps it."""
    store = server.open()
    store.replace("a", None, OLD, NEW)
    assert resolve_one(server.open()) == NEW.reveal()
    before = None if type(server) is WritableVault1 else OLD
    assert store.previous("a", None, NEW) == before
    store.replace("a", None, NEW, THIRD)
    assert resolve_one(server.open()) == THIRD.reveal()
    assert store.previous("a", None, THIRD) == (None if before is None else NEW)


END = datetime(2027, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("how", ["expireTime", "nextRotationTime"])
def test_a_store_says_when_a_value_ends(how: str, tmp_path: Path) -> None:
    """Key Vault by the expiry of the version, Secret Manager by that of the secret or its rotation;
    the others say nothing."""
    azure, gcp, other = AzureServer(tmp_path), GcpServer(tmp_path), FileServer(tmp_path)
    try:
        for server in (azure, gcp, other):
            server.put("a", OLD.reveal())
        azure.vault.expires["a"] = int(END.timestamp())
        at = "2027-03-01T12:00:00Z"
        ends = {how: at} if how == "expireTime" else {"rotation": {how: at}}
        gcp.manager.described["keyrot"] = ends
        assert [one.open().ends_at("a", None) for one in (azure, gcp)] == [END, END]
        assert getattr(other.open(), "ends_at", None) is None
    finally:
        for server in (azure, gcp, other):
            server.close()


def test_aws_says_when_a_secret_is_rotated_next(tmp_path: Path) -> None:
    """And what a login may not read, or a server does not say, is not known."""
    server = AwsServer(tmp_path)
    try:
        server.put("a", OLD.reveal())
        assert server.open().ends_at("a", None) is None
        assert server.denied().ends_at("a", None) is None
        store = server.open()
        rules = {"AutomaticallyAfterDays": 30}
        store._call(store.connect(), "keyrot", "rotate_secret", RotationRules=rules)
        found = store.ends_at("a", None)
    finally:
        server.close()
    assert found is not None
    assert timedelta(days=28) < found - datetime.now(UTC) < timedelta(days=32)


def test_a_value_that_changed_meanwhile_stays(server) -> None:
    """The error says so, and shows no value."""
    store = server.open()
    server.put("a", THIRD.reveal())
    with pytest.raises(SecretError, match="another value meanwhile") as caught:
        store.replace("a", None, OLD, NEW)
    assert "FAKE-" not in str(caught.value)
    assert resolve_one(server.open()) == THIRD.reveal()


def test_of_two_writes_at_once_one_wins(tmp_path: Path) -> None:
    """Vault compares the version: also between the look and the write."""
    server = WritableVault(tmp_path)
    server.put("a", OLD.reveal())
    store = server.open()
    read = store.read

    def late(*args):
        found = read(*args)
        server.put("a", THIRD.reveal())
        return found

    store.read = late
    with pytest.raises(SecretError, match="InvalidRequest"):
        store.replace("a", None, OLD, NEW)
    assert resolve_one(server.open()) == THIRD.reveal()
    server.close()


def test_other_fields_and_lines_stay_as_they_are(tmp_path: Path) -> None:
    """Comments, order and mode of a file; other fields of a secret."""
    file = tmp_path / ".env"
    file.write_text("# k\nB=c\nGEMINI_KEY_a = 'FAKE-old-value'  # mine\n")
    file.chmod(0o640)
    EnvStore(file).replace("a", None, OLD, NEW)
    assert file.read_text() == (
        "# k\nB=c\nGEMINI_KEY_a=FAKE-new-value\nGEMINI_KEY_a_PREVIOUS=FAKE-old-value\n"
    )
    assert file.stat().st_mode & 0o777 == 0o640
    server = AwsServer(tmp_path)
    ref = server.put_fields("team", {"x": OLD.reveal(), "y": "FAKE-y"})["x"]
    server.open().replace("a", ref, OLD, NEW)
    assert resolve_one(server.open(), "aws://team#y") == "FAKE-y"


@pytest.mark.parametrize("ref", [None, "env://MY_KEY"])
def test_a_variable_of_the_environment_is_no_place_for_a_new_value(
    ref, tmp_path: Path, monkeypatch
) -> None:
    """Processes keep theirs, whatever is in .env."""
    name = "MY_KEY" if ref else "GEMINI_KEY_a"
    file = tmp_path / ".env"
    file.write_text(f"{name}=FAKE-old-value\n")
    monkeypatch.setenv(name, OLD.reveal())
    with pytest.raises(SecretError, match=r"set it in \.env instead"):
        EnvStore(file).replace("a", ref, OLD, NEW)
    assert file.read_text() == f"{name}=FAKE-old-value\n"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    """As Kubernetes and Docker mount secrets; nothing is left behind."""
    (tmp_path / "a").write_text("FAKE-old-value")
    store = open_file({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    (tmp_path / "a.previous").mkdir()
    with pytest.raises(SecretError, match=r"IsADirectoryError|PermissionError"):
        store.replace("a", None, OLD, NEW)
    assert sorted(os.listdir(tmp_path)) == ["a", "a.previous"]
    assert resolve_one(store) == OLD.reveal()


def test_two_keys_of_one_file_are_replaced_at_once(tmp_path: Path) -> None:
    """Each keeps what the other wrote."""
    file = tmp_path / ".env"
    names = [f"k{n}" for n in range(12)]
    file.write_text("".join(f"GEMINI_KEY_{name}=FAKE-{name}-old\n" for name in names))

    def work(name: str) -> None:
        EnvStore(file).replace(name, None, Secret(f"FAKE-{name}-old"), Secret(f"FAKE-{name}-new"))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [resolve_one(EnvStore(file), key_id=name) for name in names] == [
        f"FAKE-{name}-new" for name in names
    ]
