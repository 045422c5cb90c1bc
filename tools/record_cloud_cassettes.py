"""Record the cassettes of AWS, Azure and Google: `python tools/record_cloud_cassettes.py [FOLDER]`.

Everything comes from the emulators of the tests, and every value in it is made up. A cassette is
replaced only if the store's answers are those of the scenario.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.cloud_cassettes import FOLDER, SCENARIOS, Scenario, one_by_one, recorder  # noqa: E402 - found by the line above
from support.fake_key_vault import UNPRIVILEGED  # noqa: E402
from support.fake_secret_manager import status  # noqa: E402
from support.json_server import Request, Response  # noqa: E402
from support.moto_server import RefusingServer, environ_for  # noqa: E402
from support.store_servers.aws import AwsServer, deny  # noqa: E402
from support.store_servers.azure import AzureServer  # noqa: E402
from support.store_servers.gcp import GcpServer  # noqa: E402

from keyrot_middleware.secrets import Secret, SecretStore  # noqa: E402
from keyrot_middleware.secrets.aws import open_aws  # noqa: E402

_SETTINGS = ("AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "REQUESTS_CA", "SSL_CERT", "CURL_CA")


def record_aws(folder: Path) -> list[str]:
    """Record the dialogues with Secrets Manager; return the problems."""
    return _record("aws", folder, _aws)


def record_azure(folder: Path) -> list[str]:
    """Record the dialogues with Key Vault; return the problems."""
    return _record("azure", folder, _azure)


def record_gcp(folder: Path) -> list[str]:
    """Record the dialogues with Secret Manager; return the problems."""
    return _record("gcp", folder, _gcp)


def main(arguments: list[str]) -> int:
    """Record all and return the exit code."""
    folder = Path(arguments[0]).resolve() if arguments else FOLDER
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        del os.environ[name]
    wrong = [text for record in (record_aws, record_azure, record_gcp) for text in record(folder)]
    print("\n".join(wrong) or f"{len(SCENARIOS)} dialogues recorded into {folder}")
    return int(bool(wrong))


def _record(scheme: str, folder: Path, served: Any) -> list[str]:
    mine = {name: one for name, one in SCENARIOS.items() if name.startswith(f"{scheme}/")}
    return [text for name, one in mine.items() if (text := _record_one(name, one, folder, served))]


def _record_one(name: str, scenario: Scenario, folder: Path, served: Any) -> str | None:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        new = Path(directory) / path.name
        with (
            served(scenario, Path(directory)) as store,
            one_by_one(),
            recorder("all").use_cassette(new),
        ):
            found = store.resolve(scenario.refs)
        for key_id, part in scenario.expected.items():
            answer = found[key_id]
            text = answer.reveal() if isinstance(answer, Secret) else str(answer)
            if part not in text:
                return f"{name}: {text}; its cassette was left as it was"
        path.write_text(new.read_text("utf-8"), "utf-8")
    return None


@contextmanager
def _aws(scenario: Scenario, directory: Path) -> Iterator[SecretStore]:
    store_server = AwsServer(directory)
    for name, text in scenario.stored.items():
        store_server.server.write(name, text)
    requests = iter(range(9))

    def answers(target: str, sent: dict[str, Any]) -> tuple[int, Any]:
        if scenario.identity == "denied":
            return deny(target, sent)
        if next(requests) == 0:
            return 400, {"__type": "ExpiredTokenException", "Message": "expired"}
        return 200, {"Name": sent["SecretId"], "SecretString": scenario.stored[sent["SecretId"]]}

    refusing = RefusingServer(answers)
    # moto denies in another format, and no credentials of its run out.
    port = store_server.server.port if scenario.identity == "reader" else refusing.port
    yield open_aws(environ_for(port))
    refusing.close()
    store_server.close()


@contextmanager
def _azure(scenario: Scenario, directory: Path) -> Iterator[SecretStore]:
    store_server = AzureServer(directory)
    for name, text in scenario.stored.items():
        store_server.vault.write(name, text)
    store_server.vault.odd = (
        _once(store_server.vault.challenge(), 3) if scenario.identity == "expired" else _never
    )
    yield store_server.open(UNPRIVILEGED) if scenario.identity == "denied" else store_server.open()
    store_server.close()


@contextmanager
def _gcp(scenario: Scenario, directory: Path) -> Iterator[SecretStore]:
    store_server = GcpServer(directory)
    for name, text in scenario.stored.items():
        store_server.manager.write(name, text)
    no = status(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
    store_server.manager.odd = _once(no, 1) if scenario.identity == "expired" else _never
    yield store_server.denied() if scenario.identity == "denied" else store_server.open()
    store_server.close()


def _never(_: Request) -> Response | None:
    return None


def _once(answer: Response, times: int) -> Any:
    """Refuse the first reads."""
    left = iter(range(times))

    def odd(request: Request) -> Response | None:
        is_read = "/secrets/" in request.path
        return answer if is_read and next(left, None) is not None else None

    return odd


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
