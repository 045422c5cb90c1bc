"""docs/stores/aws.md can be followed: its commands lead to keys, its policy is enough."""

from __future__ import annotations

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
    """An account without a secret."""
    return AwsServer(tmp_path)


def lines() -> list[list[str]]:
    """List the commands of the page, in words."""
    code = "".join(block.code for block in blocks(PAGE) if block.language == "bash")
    return [shlex.split(line) for line in code.replace("\\\n", " ").splitlines()]


def examples() -> list[Any]:
    """Read the JSON of the page that has comments."""
    texts = [block.code for block in blocks(PAGE) if block.language == "jsonc"]
    return [json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)) for text in texts]


def run(server: MotoServer, words: list[str]) -> None:
    """Do what the aws command does: an operation's and a parameter's name, in lower case."""
    _, service, command, *flags = words
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
    """The secret is made, then replaced, by what the page says; each value is found at once."""
    keys, _ = examples()
    store, made = store_server.open(), 0
    for words in lines():
        if words[:2] == ["aws", "secretsmanager"]:
            made += 1
            values = {key_id: f"{value} {made}".replace(" ", "-") for key_id, value in keys.items()}
            (here / "pool.json").write_text(json.dumps(values))
            run(store_server.server, words)
            assert resolve_all(store, **dict.fromkeys(keys)) == values
    assert made == 2


def test_the_policy_allows_what_is_asked_and_nothing_else(
    store_server: AwsServer, here: Path
) -> None:
    """Of Secrets Manager, for one secret and for several; a role takes it as it is."""
    _, policy = examples()
    (here / "policy.json").write_text(json.dumps(policy))
    store_server.server.client("iam").create_role(
        RoleName="my-program", AssumeRolePolicyDocument="{}"
    )
    (given,) = (words for words in lines() if words[:2] == ["aws", "iam"])
    run(store_server.server, given)
    store_server.put("a", "FAKE-a")
    places = store_server.put_fields("other", {"b": "FAKE-b"})
    before = len(store_server.server.targets)
    resolve_all(store_server.open(), a=None)
    resolve_all(store_server.open(), a=None, **places)
    asked = {f"secretsmanager:{target}" for target in store_server.server.targets[before:]}
    assert asked == {s["Action"] for s in policy["Statement"]} - {"kms:Decrypt"}
    pattern = policy["Statement"][0]["Resource"].rpartition(":")[2].replace("?", ".")
    arn = store_server.server.admin.describe_secret(SecretId="keyrot")["ARN"]
    assert re.fullmatch(pattern, arn.rpartition(":")[2])
