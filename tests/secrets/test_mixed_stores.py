"""One keys.json with keys in several stores, each on a real server: `keyrot check --live`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.fake_secret_manager import PROJECT, READER
from support.moto_server import options_for
from support.openbao import OpenBao, policy
from support.store_servers.aws import AwsServer
from support.store_servers.gcp import GcpServer

from keyrot_middleware.testing import FakeGemini, Reply

PLACES = {
    "vault": "vault://secret/team-a#flash_01",
    "aws": "aws://prod/gemini#pro_01",
    "gcp": f"gcp://{PROJECT}/secret",
    "env": "env://NAME",
    "denied": "vault://secret/team-b#flash_01",
    "missing": "aws://prod/none#pro_01",
}


def aws_environ(port: int) -> dict[str, str]:
    """Return the variables of boto3 that lead to a port of this machine."""
    names = {"endpoint_url": "AWS_ENDPOINT_URL", "region_name": "AWS_DEFAULT_REGION"}
    return {names.get(name, name.upper()): value for name, value in options_for(port).items()}


@pytest.fixture
def stores(here: Path, gemini: FakeGemini, bao: OpenBao) -> Iterator[dict[str, str]]:
    """Put one key into each store; return the environment that leads there."""
    value = {key_id: gemini.add_key(key_id, tier="paid").value for key_id in PLACES}
    with ExitStack() as stack:
        aws, gcp = (stack.enter_context(closing(kind(here))) for kind in (AwsServer, GcpServer))
        bao.write("secret/data/team-a", {"flash_01": value["vault"]})
        aws.server.write("prod/gemini", json.dumps({"pro_01": value["aws"]}))
        gcp.manager.write("secret", value["gcp"])
        yield {
            **bao.role(bao.allow(policy("secret/data/team-a"))),
            **aws_environ(aws.server.port),
            "GOOGLE_APPLICATION_CREDENTIALS": str(gcp.manager.credentials(READER)),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": gcp.manager.url,
            "NAME": value["env"],
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
        }


def test_check_reports_where_each_key_is_and_whether_google_accepts_it(
    stores, here, gemini
) -> None:
    """Store, reference, and whether it resolved; with --live, the result of a request; no value."""
    gemini.always("aws", Reply.KEY_LEAKED)
    entries = [{"key_id": key_id, "secret": place} for key_id, place in PLACES.items()]
    (here / "keys.json").write_text(json.dumps(entries))
    done = subprocess.run(
        [sys.executable, "-m", "keyrot_middleware", "check", "--live", "--json"],
        env={"PATH": os.environ["PATH"], "HOME": str(here), **stores},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "AIza" not in done.stdout + done.stderr
    keys = {key["key_id"]: key for key in json.loads(done.stdout)["keys"]}
    assert {key_id: key["secret"] for key_id, key in keys.items()} == PLACES
    stores_of = {key_id: key["store"] for key_id, key in keys.items()}
    assert stores_of == {key_id: place.partition(":")[0] for key_id, place in PLACES.items()}
    live = {key_id: key["live"] for key_id, key in keys.items() if key["resolved"]}
    assert {key_id: one["failure"] for key_id, one in live.items()} == {
        "vault": None,
        "aws": "key_leaked",
        "gcp": None,
        "env": None,
    }
    assert keys["denied"]["problem"].endswith(": Forbidden")
    assert keys["missing"]["problem"].endswith(": ResourceNotFoundException")
    assert done.returncode == 1
