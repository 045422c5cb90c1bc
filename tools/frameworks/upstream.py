"""The service that the programs call, and their environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cases import Case, Fault, Pool
from google_front import GOOGLE, proxy_to
from support.certificate_authority import CertificateAuthority

from keyrot_middleware import POOL_KEY
from keyrot_middleware.testing import FakeGemini, Reply, Scripted

__all__ = ["Upstream", "serve"]

REPLIES: dict[Fault, Scripted] = {
    "spent": Reply.QUOTA_DAY,  # a minute's limit may end while a case runs
    "invalid": Reply.KEY_INVALID,
}
# Kept from this shell: how to reach the Python that runs it. A key of the user's must not leak in.
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Upstream:
    """A running service with the keys of one pool.

    Attributes:
        fake: The service; its answer to each key is set by the pool.
        environment: The whole environment of a program that calls it.
        values: The key values, which must not be printed.
        folder: An empty working directory, so that no `.env` or keys.json of the machine counts.
    """

    fake: FakeGemini
    environment: dict[str, str]
    values: tuple[str, ...]
    folder: Path

    def sent(self, pool: Pool) -> dict[str, int]:
        """Count the requests that came with each key."""
        return {key_id: self.fake.sent(key_id) for key_id in pool.keys}


@contextmanager
def serve(case: Case) -> Iterator[Upstream]:
    """Run the service as long as the block lasts."""
    with FakeGemini() as fake, TemporaryDirectory() as folder:
        fake.function_args({"city": "Paris"})
        fake.answer(case.framework.answer)
        keys = case.pool.keys.items()
        values = {key_id: add_key(fake, key_id, fault) for key_id, fault in keys}
        variables, own = case.framework.key_variables, POOL_KEY
        if case.pool.home:
            variables, own = (*variables, "GEMINI_API_KEY"), values[case.pool.home]
        authority = CertificateAuthority(Path(folder), GOOGLE)
        with proxy_to(int(fake.host.rpartition(":")[2]), authority.context()) as proxy:
            environment = environment_of(fake, values, Path(folder))
            environment |= dict.fromkeys(variables, own)
            environment |= {"HTTPS_PROXY": proxy, "SSL_CERT_FILE": str(authority.file)}
            environment["MODEL"] = case.framework.model
            yield Upstream(fake, environment, tuple(values.values()), Path(folder))


def add_key(fake: FakeGemini, key_id: str, fault: Fault) -> str:
    """Add a key and its answer to the service; return its value."""
    value = fake.add_key(key_id).value
    if reply := REPLIES.get(fault):
        fake.always(key_id, reply)
    return value


def environment_of(fake: FakeGemini, values: dict[str, str], folder: Path) -> dict[str, str]:
    """Write keys.json; return the environment: what a user sets, and the address of the service."""
    pool = [{"key_id": key_id, "priority": place} for place, key_id in enumerate(values)]
    (folder / "keys.json").write_text(json.dumps(pool))
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        **{f"GEMINI_KEY_{key_id}": value for key_id, value in values.items()},
        "GOOGLE_GEMINI_BASE_URL": fake.url,
        "GEMINI_API_BASE": f"{fake.url}/v1beta",
        "OPENAI_BASE_URL": f"{fake.url}/v1beta/openai/",
        "KEYROT_ALLOWED_HOSTS": f"{fake.host},{GOOGLE}",
        "HOME": str(folder),
    }
