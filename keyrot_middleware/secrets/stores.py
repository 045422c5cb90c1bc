"""How stores are opened, and those of this machine: settings, environment, `.env` and files.

Built-in stores are opened by name, others by entry point.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import TYPE_CHECKING

from dotenv import dotenv_values

from ..errors import ConfigError, MissingExtraError, SecretError
from ..keys_file import entry_point_stores
from ..settings import KEY_PREFIX, read_env_file
from .cache import START_TIMEOUT_S, SecretCache, SecretLocation
from .remote import CHANGED, OPENERS
from .secret import Secret, SecretStore

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from ..keys_file import KeySpec
    from ..settings import Config


def open_store(scheme: str, *, env_file: Path | None = None) -> SecretStore:
    """Open the secret store of a scheme.

    Args:
        scheme: One of ours, or of an entry point.
        env_file: The `.env` to read; None: the one in the working directory.

    Raises:
        ConfigError: A setting of it is wrong, its extra is not installed, or its entry point names
            nothing that works. A store of ours that is not reachable raises nothing.
    """
    found = _open(scheme, env_file or Path(".env").absolute())
    if isinstance(found, ConfigError):
        raise found
    return found


def _open(scheme: str, env_file: Path) -> SecretStore | ConfigError:
    """Return a store, or an error without frames: their local variables hold the environment."""
    try:
        if scheme == "env":
            return EnvStore(env_file)
        ours = open_file if scheme == "file" else OPENERS.get(scheme)
        opener = ours or entry_point_stores()[scheme].load()
        # The environment, over the variables of `.env` that begin with KEYROT_.
        in_file = read_env_safely(env_file).items()
        store: SecretStore = opener(
            {n: v for n, v in in_file if n.startswith("KEYROT_") and v} | os.environ
        )
    except ConfigError as error:
        return error.with_traceback(None)
    except Exception as error:
        if isinstance(error, ImportError) and scheme in OPENERS:
            package = (error.name or "its library").partition(".")[0]
            wanted_by = f"the secret store {scheme}"
            return MissingExtraError(wanted_by=wanted_by, package=package, extra=scheme)
        return ConfigError(f"the secret store {scheme} cannot be opened: {type(error).__name__}")
    return store


class Stores:
    """The stores of one pool; each is opened once, for its first key."""

    def __init__(self, env_file: Path) -> None:
        """Open no store yet."""
        self._env_file = env_file
        self._open: dict[str, SecretStore] = {}

    def locate(self, config: Config, *, at_start: bool = True) -> dict[str, SecretLocation]:
        """Return where the value of each key is kept, in the order of the pool.

        Args:
            config: It has the keys.
            at_start: A store may be opened that imports a library.

        Raises:
            ConfigError: A store that a key names does not exist or cannot be opened.
        """
        given = {k: Secret(v.get_secret_value()) for k, v in config.inline.items()}
        inline = InlineStore(given)
        default = config.settings.secret_store
        return {
            key.key_id: SecretLocation(inline, provider=key.provider)
            if key.key_id in given
            else self._location(key, default, at_start=at_start)
            for key in config.keys
        }

    def _location(self, key: KeySpec, default: str, *, at_start: bool) -> SecretLocation:
        scheme = key.secret.partition("://")[0] if key.secret else default
        if scheme not in self._open:
            if not at_start and scheme not in ("env", "file"):
                raise ConfigError(
                    f"key {key.key_id}: the secret store {scheme} is opened by install() only, "
                    "since nothing is imported while the program runs; restart it"
                )
            self._open[scheme] = open_store(scheme, env_file=self._env_file)
        return SecretLocation(self._open[scheme], key.secret, key.provider)


def read_env_safely(path: Path) -> dict[str, str | None]:
    """Read `.env`; empty if it cannot be read, which is reported when the settings are loaded."""
    try:
        return read_env_file(path)
    except (OSError, UnicodeDecodeError):
        return {}


class InlineStore:
    """Values of a setting (`GEMINI_API_KEYS`, an argument of install())."""

    scheme = "setting"
    instant = True
    fixed = True

    def __init__(self, values: Mapping[str, Secret]) -> None:
        self._values = dict(values)

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Return the values; places are ignored."""
        return {**self._values}


_PREFIXES = (KEY_PREFIX, "GEMINI_KEY_")
_PREVIOUS = "_PREVIOUS"
_SCHEME = "env://"


class EnvStore:
    """Reads keys from `KEYROT_KEY_<key_id>` or `GEMINI_KEY_<key_id>`, or where `env://NAME` says.

    The environment beats `.env`, and an empty variable hides the one in `.env`.
    """

    scheme = "env"
    instant = True

    def __init__(self, env_file: Path | None = None) -> None:
        """*env_file* need not exist; None: `.env` in the working directory."""
        self._env_file = env_file or Path(".env").absolute()

    @property
    def fixed(self) -> bool:
        """Whether values never change: the environment does not, `.env` may."""
        return not self._env_file.exists()

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{_SCHEME}{_name(key_id, None, read_env_safely(self._env_file))}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up; `.env` is read once."""
        in_file = read_env_safely(self._env_file)
        return {key_id: _find(key_id, ref, in_file) for key_id, ref in refs.items()}

    def replace(self, key_id: str, ref: str | None, old: Secret, new: Secret) -> None:
        """Write *new* for *old* into `.env`, which keeps *old* as the variable `NAME_PREVIOUS`.

        Raises:
            SecretError: That is not possible, or the file has another value meanwhile.
        """
        name = self.require_in_file(key_id, ref)
        with alone_with(self._env_file, key_id) as file:
            if read_env_file(file).get(name) != old.reveal():
                raise SecretError(f"key {key_id}: .env: {CHANGED}")
            text = _edited(file, {name + _PREVIOUS: old, name: new})
            if not text:
                raise SecretError(f"key {key_id}: .env: the line of {name} cannot be replaced")
            write_file(file, text)

    def require_in_file(self, key_id: str, ref: str | None) -> str:
        """Return the variable of a key, which can be written.

        Raises:
            SecretError: The environment has it, which beats `.env`.
        """
        name = _name(key_id, ref, read_env_safely(self._env_file))
        if name in os.environ:
            why = "is set in the environment, which a process keeps; set it in .env instead"
            raise SecretError(f"key {key_id}: the variable {name} {why}")
        return name

    def previous(self, key_id: str, ref: str | None, current: Secret) -> Secret | None:
        """Return the value of `NAME_PREVIOUS`."""
        in_file = read_env_safely(self._env_file)
        found = in_file.get(_name(key_id, ref, in_file) + _PREVIOUS)
        return Secret(found) if found and found != current.reveal() else None


def _name(key_id: str, ref: str | None, in_file: Mapping[str, str | None]) -> str:
    """Return the variable of a key: where it names none the one that is set, or the last."""
    if ref:
        return ref.removeprefix(_SCHEME)
    names = [f"{prefix}{key_id}" for prefix in _PREFIXES]
    return next((one for one in names if one in os.environ or one in in_file), names[-1])


def _edited(file: Path, values: Mapping[str, Secret]) -> Secret:
    """Return the text of a `.env` with these values; empty if anything else in it would change.

    It is made in memory: `dotenv.set_key` writes a file for each value, in which it stays where the
    process is killed, and takes the owner from the file.
    """
    text = file.read_text("utf-8")
    wanted = dotenv_values(stream=io.StringIO(text), interpolate=False)
    for name, value in values.items():
        wanted[name] = f"{value.reveal()!s}"
        line = rf"(?m)^([^\S\n]*(?:export\s+)?{re.escape(name)})[^\S\n]*=.*$"
        text, count = re.subn(line, lambda found: f"{found[1]}={wanted[name]}", text)  # noqa: B023
        text = text if count else f"{text.rstrip()}\n{name}={wanted[name]}"
    edited = dotenv_values(stream=io.StringIO(text), interpolate=False)
    return Secret(text if edited == wanted else "")


def _find(key_id: str, ref: str | None, in_file: Mapping[str, str | None]) -> Secret | SecretError:
    name = _name(key_id, ref, in_file)
    value = os.environ.get(name, in_file.get(name))
    if value is not None:
        return Secret(value) or SecretError(f"key {key_id}: the variable {name} is empty")
    other = next((one for one in (*os.environ, *in_file) if one.lower() == name.lower()), None)
    hint = f" ({other} is: case matters)" if other else ""
    text = f"the variable {name} is set neither in the environment nor in .env{hint}"
    return SecretError(f"key {key_id}: {text}")


# Files: Docker, Kubernetes and systemd mount secrets as a directory with one file each ----------


_FILE_SCHEME = "file://"
_DIRECTORY = Path("/run/secrets")
"""Where Docker and Podman mount secrets."""
_MAX_SIZE = 64 * 1024
"""Bytes; a key has about fifty, so a larger file is a mistake."""


def open_file(environ: Mapping[str, str]) -> FileStore:
    """Open the store for systemd's CREDENTIALS_DIRECTORY, else for /run/secrets."""
    return FileStore(Path(environ.get("CREDENTIALS_DIRECTORY") or _DIRECTORY))


class FileStore:
    """Reads keys from files: `<directory>/<key_id>`, or the one that `file:///path` names.

    Each look-up reads the file again. Links are followed, as Kubernetes uses them. Whitespace
    around a value is removed.
    """

    scheme = "file"

    def __init__(self, directory: Path) -> None:
        """Read nothing yet."""
        self._directory = directory

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{_FILE_SCHEME}{self._directory / key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Read the files."""
        return {key_id: self._find(key_id, ref) for key_id, ref in refs.items()}

    def replace(self, key_id: str, ref: str | None, old: Secret, new: Secret) -> None:
        """Write *new* for *old*, which is kept in a file beside it.

        Raises:
            SecretError: That is not possible, or the file has another value meanwhile.
        """
        with alone_with(self._path(key_id, ref), key_id) as path:
            if self._find(key_id, ref) != old:
                raise SecretError(f"key {key_id}: the file {path}: {CHANGED}")
            write_file(_beside(path), old)
            write_file(path, new)

    def previous(self, key_id: str, ref: str | None, current: Secret) -> Secret | None:
        """Return the value in the file beside the key's."""
        path = _beside(self._path(key_id, ref))
        found = self._find(key_id, f"{_FILE_SCHEME}{path}") if path.exists() else None
        return found if isinstance(found, Secret) and found != current else None

    def _path(self, key_id: str, ref: str | None) -> Path:
        return Path((ref or self.place(key_id)).removeprefix(_FILE_SCHEME))

    def _find(self, key_id: str, ref: str | None) -> Secret | SecretError:
        path = self._path(key_id, ref)
        try:
            if path.exists() and not path.is_file():
                why = "no regular file"  # reading a pipe or a device may never end
            elif path.stat().st_size > _MAX_SIZE:
                why = f"larger than {_MAX_SIZE} bytes"
            else:
                return Secret(path.read_bytes().decode("utf-8-sig"))
        except (OSError, ValueError) as error:
            why = type(error).__name__
        return SecretError(f"key {key_id}: the file {path}: {why}")


def _beside(path: Path) -> Path:
    return path.resolve().with_name(f"{path.name}.previous")


@contextmanager
def alone_with(path: Path, key_id: str) -> Iterator[Path]:
    """Let one process change a file at a time.

    Raises:
        SecretError: It cannot be read or written.
    """
    path, folder = path.resolve(), None
    try:
        if sys.platform != "win32":
            folder = os.open(path.parent, os.O_RDONLY)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield path
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"key {key_id}: the file {path}: {type(error).__name__}") from None
    finally:
        if folder is not None:
            os.close(folder)


def write_file(path: Path, content: Secret) -> None:
    """Replace a file at once, with the owner and mode that it has, or for its owner alone."""
    handle, written = mkstemp(dir=path.parent)
    try:
        with open(handle, "wb") as file:
            if path.exists():
                like = path.stat()
                os.chmod(written, like.st_mode & 0o7777)
                if sys.platform != "win32":
                    os.chown(written, like.st_uid, like.st_gid)
            file.write(f"{content.reveal()!s}\n".encode())
        os.replace(written, path)
    finally:
        Path(written).unlink(missing_ok=True)


def open_secret_cache(
    config: Config, stores: Stores | None = None, start_timeout_s: float = START_TIMEOUT_S
) -> SecretCache:
    """Open the stores that the keys name, and look all keys up, within so many seconds.

    Raises:
        ConfigError: A store does not exist or cannot be opened. Missing values raise nothing.
    """
    stores = stores or Stores(config.env_file)
    return SecretCache(
        stores.locate(config),
        optional=config.last_resorts,
        ttl_s=config.settings.secrets_ttl_s,
        start_timeout_s=start_timeout_s,
    )
