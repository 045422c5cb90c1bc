"""`keyrot rotate`: a new value from its source into the key's store and into every process.

The old value stays valid until all of them send with the new one, so that no call fails. Values go
through stdin and stdout only: never into an argument, the environment of a command or a text.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from getpass import getpass
from secrets import token_hex

from .. import providers
from ..clients.key_check import check_key
from ..core.failures import BUSY
from ..core.model import Candidate
from ..core.wording import did_you_mean
from ..errors import KeyrotError, SecretError
from ..keys_file import KeySpec, good_time, with_expires
from ..providers.gemini import Gemini
from ..providers.keys import hide_secrets, mask_keys
from ..runtime.rotations import BEGUN_S, Rotation, add_rotation, read_processes, rotations
from ..secrets import Secret, SecretStore
from ..secrets.cache import SecretCache, SecretLocation
from ..secrets.stores import EnvStore, InlineStore, alone_with, open_secret_cache, write_file
from ..settings import KEY_PREFIX, Config, load
from ..state import State
from .status import open_configured

WAIT_S = 600.0
"""How long the processes may take."""
SILENT_S = 65.0
"""How long no process may be seen before there is none: each says once a minute that it runs."""
POLL_S = 1.0
UNDER_WAY_S = 5.0
"""For requests that a process sent just before it took the new value."""
COMMAND_S = 300.0
NAMED = 3
TRIES = 3
"""How often a date is asked for."""


def rotate(key_id: str, *, create: str = "", revoke: str = "", expires: str = "") -> None:
    """Give a key a new value, or go on with a rotation that was cut off.

    Args:
        key_id: The key.
        create: A command that prints the new value; "": it is read from stdin, or asked for.
        revoke: A command that gets the old value on stdin, once no process sends with it.
        expires: When the new value ends, a date or a time as in keys.json; "": as the store says,
            or as is answered where the key had a date.

    Raises:
        KeyrotError: That is not possible; it says what is in use, and how to go on.
    """
    try:
        ends = good_time(expires) if expires else None
    except ValueError as error:
        raise KeyrotError(f"--expires: {error}") from None
    config = load()
    keys = {key.key_id: key for key in config.keys}
    if key_id not in keys:
        named = repr(hide_secrets(key_id))
        raise KeyrotError(f"no key {named}; keys: {', '.join(keys)}.{did_you_mean(key_id, keys)}")
    state = open_configured(config)
    if state is None and revoke:
        raise KeyrotError(_NOT_SHARED)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    secrets = open_secret_cache(replace(config, keys=(keys[key_id],)))
    try:
        _Rotating(config, keys[key_id], state, secrets, create, revoke, ends).run()
    finally:
        secrets.close()
        if state is not None:
            state.close()


_NOT_SHARED = (
    "which processes send with a value is known in a shared state only: set KEYROT_STATE_URL, or "
    "leave out --revoke"
)
_IN_A_LIST = """\
the value of {key_id} stands in {listed} (environment or .env), where this command does not write.

To replace it there, change {listed} and restart the processes, which read it when they start. \
Then revoke the old value.

To rotate without a restart in future, give the key a place of its own: {entry} in the list of \
keys.json, its value as {variable} in .env, in a file or in a secret store, and no longer in \
{listed}. docs/rotate.md says more."""


@dataclass(slots=True)
class _Rotating:
    """One key, and how it is rotated."""

    config: Config
    key: KeySpec
    state: State | None
    secrets: SecretCache
    create: str
    revoke: str
    expires: str | None
    """When the new value ends; None: that is not known yet."""

    def run(self) -> None:
        key_id = self.key.key_id
        store, ref, _ = self.secrets.locations[key_id]
        write, previous = getattr(store, "replace", None), getattr(store, "previous", None)
        if write is None or previous is None:
            raise KeyrotError(self._cannot_be_written(store))
        if key_id not in self.secrets.resolved:
            raise KeyrotError(f"no value to replace: {self.secrets.unresolved.get(key_id)}")
        current = self.secrets.value(key_id)
        rotation = self._unfinished(current)
        if rotation is not None:
            _say(f"going on with the rotation of {_time(rotation.at)}; no new value is taken")
            rotation = rotation._replace(at=time.time(), step="begun")
            self._finish(rotation, previous(key_id, ref, current))
            return
        if isinstance(store, EnvStore):
            store.require_in_file(key_id, ref)  # before a value is asked for, or made
        new = self._take()
        made = f"delete what --create made, #{new.fingerprint}"
        try:
            self._check(current, new)
            self._ask_end(store, ref)
            self._unfinished(current)  # another command may have begun one meanwhile
        except BaseException:
            if self.create:
                _say(f"nothing was stored: {made}")
            raise
        fingerprints = current.fingerprint, new.fingerprint
        rotation = Rotation(token_hex(6), key_id, *fingerprints, time.time(), "begun")
        try:
            self._add(rotation)
            write(key_id, ref, current, new)
        except KeyrotError:
            self._add(rotation._replace(step="cut off"))
            if self.create:
                _say(f"if the store does not have it, {made}")
            raise
        except BaseException:
            self._cut_off(rotation)
            raise
        place = getattr(store, "place", lambda _: store.scheme)(key_id)
        _say(f"the new value #{rotation.new} is in {ref or place}")
        self._note_end(store, ref)
        self._finish(rotation, current)

    def _ask_end(self, store: SecretStore, ref: str | None) -> None:
        """Ask when the new value ends, where the old one had a date and nothing else says it."""
        key_id = self.key.key_id
        if self.expires or not self.key.expires or _end_in(store, key_id, ref):
            return
        if self.create or not is_asked():
            return
        for _ in range(TRIES):
            text = input(f"New value of {key_id} ends on, such as 2027-03-01 (empty: no date): ")
            try:
                self.expires = good_time(text.strip()) if text.strip() else None
            except ValueError as error:
                _say(str(error))
            else:
                return

    def _note_end(self, store: SecretStore, ref: str | None) -> None:
        """Write into keys.json when the new value ends; the date of the old one does not stay."""
        key_id, path = self.key.key_id, self.config.keys_file
        expires = self.expires or _end_in(store, key_id, ref)
        if expires == self.key.expires:
            return
        if path is None:  # it is one of a list
            _say(
                f'it ends on {expires}: "expires" is a field of keys.json, which this key is not in'
            )
            return
        try:
            with alone_with(path, key_id) as file:
                # In bytes: the ends of its lines, and a mark of the byte order, stay as they are.
                text = with_expires(file.read_bytes().decode(), key_id, expires)
                if text is not None:
                    write_file(file, Secret(text))  # with one line end
            problem = "it has another form than this command writes" if text is None else ""
        except SecretError as error:
            problem = str(error)
        what = f'"expires": "{expires}"' if expires else 'no "expires"'
        if problem:
            _say(f"keys.json was not changed ({problem}); give key {key_id} {what} there")
        else:
            _say(f"keys.json says {what} of key {key_id}")

    def _cannot_be_written(self, store: SecretStore) -> str:
        """Say where the value is, and how it is replaced there."""
        key_id, provider = self.key.key_id, providers.of(self.key.service)
        if not isinstance(store, InlineStore):
            return (
                f"key {key_id}: the secret store {store.scheme} lacks replace() and previous(), so "
                "this command does not write into it. Store the new value there yourself, and "
                f"revoke the old one {self._when_taken(store)}"
            )
        entry, listed = {"key_id": key_id}, "GEMINI_API_KEYS"
        variable = f"GEMINI_KEY_{key_id}"
        if provider.name != Gemini.name:
            entry["provider"], variable = provider.name, f"{KEY_PREFIX}{key_id}"
            listed = " or ".join(f"{name}S" for name in provider.variables)
        values = {"key_id": key_id, "listed": listed, "variable": variable}
        return _IN_A_LIST.format(entry=json.dumps(entry), **values)

    def _when_taken(self, store: SecretStore) -> str:
        """Say when all processes have looked a new value up."""
        ttl_s = 0.0 if getattr(store, "fixed", False) else self.config.settings.secrets_ttl_s
        when = f"in {ttl_s + 60:g} s, when all" if ttl_s > 0 else "after a restart of all"
        return f"{when} processes have looked the new one up."

    def _unfinished(self, current: Secret) -> Rotation | None:
        """Return the rotation that gave the key its value and has not ended."""
        for one in rotations(self.state) if self.state else ():
            if one.key_id != self.key.key_id:
                continue
            if one.is_under_way(time.time()):
                raise KeyrotError(
                    f"another rotation of key {one.key_id} is under way since {_time(one.at)}; "
                    f"if it was killed, run this again at {_time(one.at + BEGUN_S)}"
                )
            if one.step == "done" or one.new == current.fingerprint:
                return None if one.step == "done" else one
        return None

    def _take(self) -> Secret:
        """Return the new value: pasted, from a file with any line ends, or in quotes."""
        key_id = self.key.key_id
        if self.create:
            text = self._command(self.create)
        elif is_asked():
            text = getpass(f"New value of {key_id}: ")
        else:
            text = sys.stdin.buffer.read().decode("utf-8-sig", errors="replace")
        return _unquoted(text)

    def _check(self, current: Secret, new: Secret) -> None:
        """Send one request with a value.

        Raises:
            KeyrotError: It is no key of the provider's, does not work, or is in use.
        """
        key_id = self.key.key_id
        users = {key_id: current.fingerprint}
        for one in self._known():
            users.setdefault(one.key_id, one.fingerprint)
        for user, fingerprint in users.items():
            if fingerprint == new.fingerprint:
                raise KeyrotError(f"nothing was changed: key {user} has that value")
        place = SecretLocation(InlineStore({key_id: new}), provider=self.key.provider)
        held = SecretCache({key_id: place})
        if problem := held.unresolved.get(key_id):
            raise KeyrotError(f"nothing was changed: {problem}")
        checked = check_key(held, key_id, self.key.model, self.key.service, self.config.allowed)
        text = checked.describe(key_id)
        if not checked.ok and checked.failure not in BUSY:
            raise KeyrotError(f"nothing was changed: with the new value {text}")
        _say(f"with the new value {text}")

    def _finish(self, rotation: Rotation, old: Secret | None) -> None:
        """Wait for the processes, and revoke the old value."""
        by_hand = f"Revoke the old value #{rotation.old} of key {rotation.key_id} at its provider"
        if self.state is None:
            store = self.secrets.locations[rotation.key_id].store
            print(f"{by_hand} {self._when_taken(store)}")
            return
        try:
            self._add(rotation)
            self._wait(self.state, rotation)
            if self.revoke:
                self._revoke(rotation, old)
        except BaseException:
            self._cut_off(rotation)
            raise
        self._add(rotation._replace(step="done"))
        print(f"key {rotation.key_id} is rotated." if self.revoke else f"{by_hand} now.")

    def _revoke(self, rotation: Rotation, old: Secret | None) -> None:
        if old is None or old.fingerprint != rotation.old:
            raise KeyrotError("the store no longer has the old value; leave out --revoke")
        if not any(one.fingerprint for one in self._known()):
            raise KeyrotError("no process has used this pool: see KEYROT_STATE_URL, KEYROT_POOL")
        time.sleep(UNDER_WAY_S)
        self._command(self.revoke, old)
        _say(f"--revoke has revoked the old value #{rotation.old}")

    def _wait(self, state: State, rotation: Rotation) -> None:
        until, said = time.monotonic() + WAIT_S, ""
        while True:
            processes, waiting = read_processes(state, rotation, time.time())
            count = f"{len(processes) - len(waiting)} of {len(processes)}"
            text = f"{count} processes of the pool send with the new value"
            if waiting:
                text += f"; waiting for {', '.join(sorted(waiting)[:NAMED])}"
            if text != said:
                _say(text)
            said = text
            now = time.monotonic()
            if not waiting and (processes or now > until - WAIT_S + SILENT_S):
                return
            if now > until:
                raise KeyrotError(f"gave up after {WAIT_S / 60:g} minutes")
            time.sleep(POLL_S)

    def _known(self) -> list[Candidate]:
        """Return the keys with the values that processes have."""
        return self.state.with_values(self.config.candidates) if self.state else []

    def _add(self, rotation: Rotation) -> None:
        if self.state is not None:
            add_rotation(self.state, rotation)

    def _cut_off(self, rotation: Rotation) -> None:
        with suppress(Exception):
            self._add(rotation._replace(step="cut off"))
        again = f"keyrot rotate {rotation.key_id}"
        _say(
            f"cut off: the old value #{rotation.old} is not revoked. "
            f"To go on: {again}{' --revoke …' if self.revoke else ''}"
        )

    def _command(self, command: str, given: Secret | None = None) -> str:
        """Run a command of the user's; return what it printed.

        Raises:
            KeyrotError: It failed, or takes too long.
        """
        every = map(providers.of, providers.platforms())
        hidden = {name + end for one in every for name in one.variables for end in ("", "S")}
        hidden |= {(key.secret or "").removeprefix("env://") for key in self.config.keys}
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in hidden and not name.startswith(("KEYROT_KEY_", "GEMINI_KEY_"))
        }
        try:
            done = subprocess.run(  # noqa: S602 - it is a line for the shell
                command,
                shell=True,
                input=None if given is None else f"{given.reveal()!s}\n",
                env=kept | {"ROTATE_KEY_ID": self.key.key_id},
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise KeyrotError(f"the command took longer than {COMMAND_S:g} s") from None
        shown = mask_keys(done.stderr if given is None else done.stdout + done.stderr)
        print((given or _unquoted(done.stdout)).hide_in(shown), end="", file=sys.stderr)
        if done.returncode:
            raise KeyrotError(f"the command failed with exit code {done.returncode}")
        return done.stdout


def is_asked() -> bool:
    """Return whether a person is at the terminal."""
    return sys.stdin.isatty()


def _end_in(store: SecretStore, key_id: str, ref: str | None) -> str | None:
    """Return when a store says that the value of a key ends, as keys.json has it."""
    ends_at = getattr(store, "ends_at", None)
    at: datetime | None = None if ends_at is None else ends_at(key_id, ref)
    return None if at is None else f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _unquoted(text: str) -> Secret:
    return Secret(text.strip().strip("'\""))


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S} UTC"


def _say(text: str) -> None:
    print(f"{_time(time.time())}  {text}", flush=True)
