"""Secrets Manager by moto's server: names and ARNs, batches, versions, bytes, logins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from support.moto_server import RefusingServer, environ_for, moto_server
from support.store_servers.aws import AwsServer, deny
from support.stores import resolve_all, resolve_one

from keyrot_middleware.secrets.aws import open_aws


@pytest.fixture
def store_server(tmp_path: Path) -> Iterator[AwsServer]:
    """Start an empty Secrets Manager."""
    made = AwsServer(tmp_path)
    yield made
    made.close()


@pytest.fixture
def refusing() -> Iterator[Any]:
    """Start servers with scripted answers."""
    started: list[RefusingServer] = []

    def start(answers: Any) -> RefusingServer:
        started.append(RefusingServer(answers))
        return started[-1]

    yield start
    for server in started:
        server.close()


def test_five_hundred_secrets_take_25_requests(store_server: AwsServer) -> None:
    """Twenty are read in one request, and none on its own."""
    for number in range(500):
        store_server.server.write(f"team/{number}", f"FAKE-{number}")
    store, before = store_server.open(), store_server.requests()
    found = resolve_all(store, **{f"key_{n}": f"aws://team/{n}" for n in range(500)})
    assert found == {f"key_{n}": f"FAKE-{n}" for n in range(500)}
    assert store_server.server.targets[before:] == ["BatchGetSecretValue"] * 25


def test_one_secret_is_read_with_one_request(store_server: AwsServer) -> None:
    """However many keys are in it, under any fields, it takes one GetSecretValue."""
    store_server.put_many({f"key_{number}": f"FAKE-{number}" for number in range(30)})
    store, before = store_server.open(), store_server.requests()
    found = resolve_all(store, **{f"key_{n}": None for n in range(30)}, b="aws://keyrot#key_7")
    assert found["key_29"] == "FAKE-29"
    assert found["b"] == "FAKE-7"
    assert store_server.server.targets[before:] == ["GetSecretValue"]


def test_names_and_arns_lead_to_the_same_secret(store_server: AwsServer) -> None:
    """A name with slashes, an ARN and an ARN without its suffix are understood, also at once."""
    arn = store_server.server.write(
        "prod/team-a/gemini", json.dumps({"x": "FAKE-x", "y": "FAKE-y"})
    )
    short = arn[:-7]
    places = {"a": "aws://prod/team-a/gemini#x", "b": f"aws://{arn}#y", "c": f"aws://{short}#x"}
    store = store_server.open()
    assert resolve_all(store, **places) == {"a": "FAKE-x", "b": "FAKE-y", "c": "FAKE-x"}
    assert resolve_one(store, places["b"]) == "FAKE-y"
    assert resolve_one(store, places["c"]) == "FAKE-x"


def test_without_a_field_the_whole_secret_is_the_key(store_server: AwsServer) -> None:
    """A JSON object with a field named like the key works too; another one is an error."""
    store_server.server.write("plain", " FAKE-plain\n")
    store_server.server.write("object", json.dumps({"a": "FAKE-a", "other": "FAKE-b"}))
    store = store_server.open()
    assert resolve_one(store, "aws://plain") == "FAKE-plain"
    assert resolve_one(store, "aws://object") == "FAKE-a"
    assert resolve_one(store, "aws://object", "oter") == (
        "key oter: aws://object: the JSON object in it has no field oter; name the field after # "
        'in the key\'s place. Did you mean "other"?'
    )


def test_another_secret_may_hold_the_keys(store_server: AwsServer) -> None:
    """`KEYROT_AWS_SECRET` is its name, or its ARN."""
    arn = store_server.server.write("prod/pool", json.dumps({"a": "FAKE-a"}))
    assert resolve_one(store_server.open(KEYROT_AWS_SECRET="prod/pool")) == "FAKE-a"
    assert resolve_one(store_server.open(KEYROT_AWS_SECRET=arn)) == "FAKE-a"
    assert store_server.open(KEYROT_AWS_SECRET="prod/pool").place("a") == "aws://prod/pool#a"


def test_the_current_version_is_read(store_server: AwsServer) -> None:
    """A new version is read, and a staged one is not, alone and in a batch."""
    store_server.server.write("one", "FAKE-old")
    store_server.server.write("two", "FAKE-two")
    store = store_server.open()
    assert resolve_one(store, "aws://one") == "FAKE-old"
    store_server.server.write("one", "FAKE-new")
    store_server.server.admin.put_secret_value(
        SecretId="one", SecretString="FAKE-pending", VersionStages=["AWSPENDING"]
    )
    assert resolve_one(store, "aws://one") == "FAKE-new"
    assert resolve_all(store, a="aws://one", b="aws://two") == {"a": "FAKE-new", "b": "FAKE-two"}


def test_bytes_that_are_text_are_a_key(store_server: AwsServer) -> None:
    """Other bytes are an error of that key only, alone and in a batch."""
    store_server.server.write("text", b"\xef\xbb\xbfFAKE-text\r\n")
    store_server.server.write("binary", b"\xff\xfe\x00\x01")
    store = store_server.open()
    found = resolve_all(store, a="aws://text", b="aws://binary")
    assert found["a"] == "FAKE-text"
    assert found["b"].startswith("key b: aws://binary: it is binary, ")
    assert found["b"] == resolve_one(store, "aws://binary", "b")
    assert resolve_one(store, "aws://text") == "FAKE-text"


def test_a_missing_secret_is_the_error_of_its_keys_only(store_server: AwsServer) -> None:
    """In a batch, and alone."""
    store_server.server.write("there", "FAKE")
    store = store_server.open()
    found = resolve_all(store, a="aws://there", b="aws://not/there#x")
    assert found["a"] == "FAKE"
    assert found["b"].startswith("key b: aws://not/there#x: there is no such secret")
    assert found["b"] == resolve_one(store, "aws://not/there#x", "b")


@pytest.mark.parametrize("place", ["aws://", "aws://#x", "aws://name#", "aws://a b", "aws://ä#x"])
def test_an_invalid_reference_is_an_error_without_a_request(
    store_server: AwsServer, place: str
) -> None:
    """The error names what is allowed."""
    before = store_server.requests()
    assert resolve_one(store_server.open(), place).endswith(
        "allowed: aws://NAME#FIELD, aws://ARN#FIELD"
    )
    assert store_server.requests() == before


def test_where_batches_are_denied_each_secret_is_read_alone(
    refusing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and batches are not tried again."""

    def no_batches(target: str, sent: dict[str, Any]) -> tuple[int, Any]:
        if target == "BatchGetSecretValue":
            return deny(target, sent)
        return 200, {"SecretString": f"FAKE-{sent['SecretId']}"}

    server = refusing(no_batches)
    store = open_aws(environ_for(server.port))
    for _ in range(2):
        places = {f"key_{n}": f"aws://s{n}" for n in range(45)}
        assert resolve_all(store, **places) == {f"key_{n}": f"FAKE-s{n}" for n in range(45)}
    # One or, where three batches were in flight, a few.
    assert 1 <= server.targets.count("BatchGetSecretValue") <= 3
    assert server.targets.count("GetSecretValue") == 90
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 1
    assert "BatchGetSecretValue is denied" in lines[0]


def test_one_bad_name_in_a_batch_does_not_hide_the_others(refusing: Any) -> None:
    """A batch that is refused as a whole is read one by one; the next one is a batch again."""

    def picky(target: str, sent: dict[str, Any]) -> tuple[int, Any]:
        names = sent.get("SecretIdList") or [sent["SecretId"]]
        if "odd-" in names:
            return 400, {"__type": "InvalidParameterException", "Message": "no"}
        if target == "GetSecretValue":
            return 200, {"SecretString": "FAKE"}
        return 200, {"SecretValues": [{"Name": n, "SecretString": "FAKE"} for n in names]}

    server = refusing(picky)
    store = open_aws(environ_for(server.port))
    found = resolve_all(store, a="aws://good", b="aws://odd-")
    assert found["a"] == "FAKE"
    assert found["b"].endswith("Secrets Manager takes this for no name or ARN")
    resolve_all(store, a="aws://good", b="aws://better")
    assert server.targets == ["BatchGetSecretValue", *["GetSecretValue"] * 2, "BatchGetSecretValue"]


def test_an_answer_of_several_pages_is_read_to_the_end(refusing: Any) -> None:
    """Also where a page has no secret; a secret on no page is an error."""

    def pages(_: str, sent: dict[str, Any]) -> tuple[int, Any]:
        assert sent["SecretIdList"] == ["one", "two", "three"]
        if "NextToken" not in sent:
            return 200, {"SecretValues": [], "NextToken": "1"}
        if sent["NextToken"] == "1":
            return 200, {"SecretValues": [_value("one", "FAKE-1")], "NextToken": "2"}
        return 200, {"SecretValues": [_value("two", "FAKE-2")]}

    store = open_aws(environ_for(refusing(pages).port))
    found = resolve_all(store, a="aws://one", b="aws://two", c="aws://three")
    assert (found["a"], found["b"]) == ("FAKE-1", "FAKE-2")
    assert found["c"].endswith("the store's answer does not mention it")


def _value(name: str, text: str) -> dict[str, str]:
    arn = f"arn:aws:secretsmanager:eu-central-1:123456789012:secret:{name}-AbCdEf"
    return {"Name": name, "ARN": arn, "SecretString": text}


def test_an_arn_is_requested_in_its_own_region(store_server: AwsServer) -> None:
    """Also where no region is set; a bare name is then an error that explains it."""
    session = boto3.session.Session("FAKEACCESSKEY", "FAKE", region_name="us-east-1")
    there = session.client("secretsmanager", endpoint_url=f"http://127.0.0.1:{moto_server().port}")
    arn = there.create_secret(Name="far/away", SecretString="FAKE-far")["ARN"]
    store_server.put("b", "FAKE-near")
    try:
        assert resolve_all(store_server.open(), a=f"aws://{arn}", b=None) == {
            "a": "FAKE-far",
            "b": "FAKE-near",
        }
        found = resolve_all(store_server.open(AWS_REGION=""), a=f"aws://{arn}", b=None)
        assert found["a"] == "FAKE-far"
        assert found["b"].endswith("no AWS region is set: set AWS_REGION, or write the ARN")
    finally:
        there.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)


def test_a_profile_that_only_env_names_is_used(store_server: AwsServer, tmp_path: Path) -> None:
    """`.env` may have boto3's variables: profile, files, region, endpoint."""
    store_server.put("a", "FAKE-a")
    file = tmp_path / "credentials"
    file.write_text("[mine]\naws_access_key_id = FAKEMINE\naws_secret_access_key = FAKE-s\n")
    environ = environ_for(store_server.server.port, AWS_PROFILE="mine", AWS_ACCESS_KEY_ID="")
    environ |= {"AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_REGION": ""}
    environ |= {"AWS_DEFAULT_REGION": "eu-central-1"}
    environ |= {"AWS_ENDPOINT_URL_SECRETS_MANAGER": environ.pop("AWS_ENDPOINT_URL")}
    assert resolve_one(open_aws(environ)) == "FAKE-a"
    text = resolve_one(open_aws({**environ, "AWS_PROFILE": "other"}))
    assert text.endswith("AWS_PROFILE names a profile that ~/.aws does not have")


def test_credentials_that_appear_later_are_found(
    store_server: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without a login at first gets one at a later look-up, without a restart."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store_server.put("a", "FAKE-a")
    file = tmp_path / "credentials"
    environ = environ_for(store_server.server.port, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    store = open_aws({**environ, "AWS_SHARED_CREDENTIALS_FILE": str(file)})
    assert "no AWS credentials were found" in resolve_one(store)
    file.write_text("[default]\naws_access_key_id = FAKEMINE\naws_secret_access_key = FAKE-s\n")
    assert resolve_one(store) == "FAKE-a"
