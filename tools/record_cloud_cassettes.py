"""Record the cassettes of AWS, Azure and Google: `python tools/record_cloud_cassettes.py [FOLDER]`.

Everything comes from the emulators of the tests, and every value in it is made up. A cassette is
replaced only if the store's answers were what the scenario says.
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
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "secrets")]

from cloud_tapes import FOLDER, SCENARIOS, Scenario, one_by_one, recorder  # noqa: E402 - found by the line above
from house_aws import AwsHouse, deny  # noqa: E402
from house_azure import AzureHouse  # noqa: E402
from house_gcp import GcpHouse  # noqa: E402
from json_server import Asked, Told  # noqa: E402
from keyvault import NOBODY  # noqa: E402
from moto_server import Refusing, environ_for  # noqa: E402
from secret_manager import status  # noqa: E402

from keyrot_middleware.secrets import Secret, SecretStore  # noqa: E402
from keyrot_middleware.secrets.aws import open_aws  # noqa: E402

_SETTINGS = ("AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "REQUESTS_CA", "SSL_CERT", "CURL_CA")


def record_aws(folder: Path) -> list[str]:
    """Record the dialogues with Secrets Manager; return what went wrong."""
    return _record("aws", folder, _aws)


def record_azure(folder: Path) -> list[str]:
    """Record the dialogues with Key Vault; return what went wrong."""
    return _record("azure", folder, _azure)


def record_gcp(folder: Path) -> list[str]:
    """Record the dialogues with Secret Manager; return what went wrong."""
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
    house = AwsHouse(directory)
    for name, text in scenario.stored.items():
        house.server.write(name, text)
    asked = iter(range(9))

    def answers(target: str, sent: dict[str, Any]) -> tuple[int, Any]:
        if scenario.who == "nobody":
            return deny(target, sent)
        if next(asked) == 0:
            return 400, {"__type": "ExpiredTokenException", "Message": "expired"}
        return 200, {"Name": sent["SecretId"], "SecretString": scenario.stored[sent["SecretId"]]}

    refusing = Refusing(answers)
    # moto denies in another format, and no credentials of its run out.
    port = house.server.port if scenario.who == "reader" else refusing.port
    yield open_aws(environ_for(port))
    refusing.close()
    house.close()


@contextmanager
def _azure(scenario: Scenario, directory: Path) -> Iterator[SecretStore]:
    house = AzureHouse(directory)
    for name, text in scenario.stored.items():
        house.vault.write(name, text)
    house.vault.odd = _once(house.vault.challenge(), 3) if scenario.who == "expired" else _never
    yield house.open(NOBODY) if scenario.who == "nobody" else house.open()
    house.close()


@contextmanager
def _gcp(scenario: Scenario, directory: Path) -> Iterator[SecretStore]:
    house = GcpHouse(directory)
    for name, text in scenario.stored.items():
        house.manager.write(name, text)
    no = status(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
    house.manager.odd = _once(no, 1) if scenario.who == "expired" else _never
    yield house.denied() if scenario.who == "nobody" else house.open()
    house.close()


def _never(_: Asked) -> Told | None:
    return None


def _once(answer: Told, times: int) -> Any:
    """Refuse the first reads."""
    left = iter(range(times))

    def odd(asked: Asked) -> Told | None:
        is_read = "/secrets/" in asked.path
        return answer if is_read and next(left, None) is not None else None

    return odd


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
