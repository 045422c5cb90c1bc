"""docs/stores/aws.md works: its commands lead to keys, its policy is sufficient."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name
from support.docs_blocks import ROOT, blocks
from support.moto_server import MotoServer
from support.store_servers.aws import AwsServer
from support.stores import resolve_all

PAGE = ROOT / "docs" / "stores" / "aws.md"


@pytest.fixture
def store_server(tmp_path: Path) -> AwsServer:
    return AwsServer(tmp_path)


def lines() -> list[list[str]]:
    code = "".join(block.code for block in blocks(PAGE) if block.language == "bash")
    return [shlex.split(line) for line in code.replace("\\\n", " ").splitlines()]


def examples() -> list[Any]:
    texts = [block.code for block in blocks(PAGE) if block.language == "jsonc"]
    return [json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)) for text in texts]


def run(server: MotoServer, args: list[str]) -> None:
    _, service, command, *flags = args
    client = server.client(service)
    model = client.meta.service_model
    (operation,) = (name for name in model.operation_names if xform_name(name, "-") == command)
    members = model.operation_model(operation).input_shape.members
    names = {f"--{xform_name(member, '-')}": member for member in members}
    given = {names[flag]: value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    for name, value in given.items():
        if value.startswith("file://"):
            given[name] = Path(value.removeprefix("file://")).read_text("utf-8")
    getattr(client, xform_name(operation))(**given)


def test_the_commands_lead_to_keys_that_are_found(store_server: AwsServer, here: Path) -> None:
    """The page's commands create the secret, then replace it; each value is found at once."""
    keys, _ = examples()
    store, made = store_server.open(), 0
    for args in lines():
        if args[:2] == ["aws", "secretsmanager"]:
            made += 1
            values = {key_id: f"{value} {made}".replace(" ", "-") for key_id, value in keys.items()}
            (here / "pool.json").write_text(json.dumps(values))
            run(store_server.server, args)
            assert resolve_all(store, **dict.fromkeys(keys)) == values
    assert made == 2
