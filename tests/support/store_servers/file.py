"""The file store's server: a directory as an orchestrator mounts it."""

import os
from pathlib import Path

from keyrot_middleware.secrets import SecretStore
from keyrot_middleware.secrets.stores import open_file


class FileServer:
    scheme = "file"
    lacks = frozenset({"requests"} | ({"denied"} if os.geteuid() == 0 else set()))
    """Root may read every file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "mounted"
        self._folder.mkdir()
        self._nowhere = folder / "not mounted"
        self._pipes = folder / "pipes"

    def open(self) -> SecretStore:
        return open_file({"CREDENTIALS_DIRECTORY": str(self._folder)})

    def put(self, key_id: str, value: str | bytes) -> None:
        """Write the key's file, with the trailing newline that editors leave."""
        data = value if isinstance(value, bytes) else f"{value}\n".encode()
        (self._folder / key_id).write_bytes(data)

    def put_fields(self, name: str, fields: dict[str, str]) -> dict[str, str]:
        """Write a file for each field, in a directory of that name."""
        folder = self._folder / name
        folder.mkdir()
        for field, value in fields.items():
            (folder / field).write_text(value)
        return {field: f"file://{folder / field}" for field in fields}

    def remove(self, key_id: str) -> None:
        (self._folder / key_id).unlink()

    def denied(self) -> SecretStore:
        self._folder.chmod(0)
        return self.open()

    def down(self) -> SecretStore:
        return open_file({"CREDENTIALS_DIRECTORY": str(self._nowhere)})

    def hanging(self) -> SecretStore:
        """Open a store whose file for key `a` is a pipe without a writer."""
        self._pipes.mkdir()
        os.mkfifo(self._pipes / "a")
        return open_file({"CREDENTIALS_DIRECTORY": str(self._pipes)})

    def close(self) -> None:
        """Restore the permissions, so that the directory can be removed."""
        self._folder.chmod(0o700)
