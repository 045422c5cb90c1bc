"""The error for each failure of Secrets Manager and boto3, always without a value."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions as boto_errors
import pytest
from botocore.stub import Stubber
from support.moto_server import RefusingServer, environ_for
from support.store_servers.aws import UNPRIVILEGED, AwsServer, deny
from support.stores import all_output, resolve_all, resolve_one
from support.unreachable import SilentServer

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets import aws as aws_login
from keyrot_middleware.secrets.aws import AwsLogin, AwsStore, failure_from_error, open_aws
from keyrot_middleware.secrets.cloud import FailureReach

TOKEN = "FAKE-session-token-0123456789"


class Stubbed(AwsLogin):
    """A login whose client gives scripted answers, before and after a new login."""

    def __init__(self) -> None:
        super().__init__(environ_for(9, AWS_SESSION_TOKEN=TOKEN))
        self.forgotten = 0
        self.stub = Stubber(super().client())
        self.stub.activate()

    def forget(self) -> None:
        """Count, and keep the client."""
        self.forgotten += 1

    def refuse(self, code: str, message: str = "", times: int = 1) -> None:
        """Script a refusal of a single read."""
        for _ in range(times):
            self.stub.add_client_error("get_secret_value", code, message, 400)

    def give(self, value: str) -> None:
        """Script a value."""
        self.stub.add_response("get_secret_value", {"SecretString": value})


@pytest.fixture
def login() -> Stubbed:
    """Return a client without a server."""
    return Stubbed()


@pytest.fixture
def store_server(tmp_path: Path) -> Iterator[AwsServer]:
    """Start an empty Secrets Manager."""
    made = AwsServer(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ResourceNotFoundException", "there is no such secret in this region and account"),
        ("DecryptionFailure", "KMS does not decrypt it for these credentials"),
        ("InvalidRequestException", "is it scheduled for deletion?"),
        ("InvalidParameterException", "takes this for no name or ARN"),
        ("NeverHeardOf", "Secrets Manager refused (NeverHeardOf)"),
        ("<p>odd</p>", "Secrets Manager refused (unknown code)"),
    ],
)
def test_a_permanent_failure_is_not_retried(login: Stubbed, code: str, message: str) -> None:
    """The message has key, secret, reason and what to do."""
    login.refuse(code)
    text = resolve_one(AwsStore(login), "aws://prod/gemini#a")
    assert text.startswith("key a: aws://prod/gemini#a: ")
    assert message in text
    login.stub.assert_no_pending_responses()
    assert login.forgotten == 0


@pytest.mark.parametrize("code", ["AccessDeniedException", "AccessDenied", "403"])
def test_denied_names_place_and_identity(login: Stubbed, code: str) -> None:
    """The caller's ARN from AWS's answer, and the permission to add."""
    message = deny("GetSecretValue", {"SecretId": "prod/gemini"})[1]["Message"]
    login.refuse(code, message)
    text = resolve_one(AwsStore(login), "aws://prod/gemini#a")
    assert f"aws://prod/gemini#a: access denied to {UNPRIVILEGED}: allow secretsmanager:Get" in text
    login.refuse(code, "no")
    assert "access denied to these credentials: allow" in resolve_one(AwsStore(login), "aws://b")


def test_kms_refuses_with_access_denied_too(login: Stubbed) -> None:
    """So the message names kms:Decrypt."""
    login.refuse("AccessDeniedException", "Access to KMS is not allowed")
    assert "kms:Decrypt if it has a key of its own" in resolve_one(AwsStore(login))


@pytest.mark.parametrize(
    "code",
    [
        "ExpiredTokenException",
        "RequestExpired",
        "UnrecognizedClientException",
        "InvalidSignatureException",
    ],
)
def test_an_expired_login_is_renewed_once(login: Stubbed, code: str) -> None:
    """Then the value is there; where it is refused again, the error is reported."""
    login.refuse(code)
    login.give("FAKE-value")
    assert resolve_one(AwsStore(login), "aws://plain") == "FAKE-value"
    assert login.forgotten == 1
    login.refuse(code, times=2)
    text = resolve_one(AwsStore(login), "aws://plain")
    assert code in text
    assert login.forgotten == 3  # the refused one too, so that a later look-up logs in anew
    login.stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    "code", ["ThrottlingException", "InternalServiceError", "ServiceUnavailable"]
)
def test_a_busy_service_is_retried_once(login: Stubbed, code: str) -> None:
    """A moment later; the login stays."""
    login.refuse(code)
    login.give("FAKE-value")
    assert resolve_one(AwsStore(login), "aws://plain") == "FAKE-value"
    login.refuse(code, times=2)
    assert f"busy or failed ({code})" in resolve_one(AwsStore(login), "aws://plain")
    login.stub.assert_no_pending_responses()
    assert login.forgotten == 0


def test_a_server_error_of_no_known_code_counts_as_busy(login: Stubbed) -> None:
    """A proxy in front of the service answers 502 without AWS's code."""
    login.stub.add_client_error("get_secret_value", "502", "", 502)
    login.give("FAKE-value")
    assert resolve_one(AwsStore(login), "aws://plain") == "FAKE-value"


def test_new_credentials_in_a_file_are_read_at_the_second_try(tmp_path: Path) -> None:
    """A new login repeats the whole chain, so a renewed profile works."""
    file = tmp_path / "credentials"
    profile = "[default]\naws_access_key_id = {}\naws_secret_access_key = FAKE-s\n"

    def by_key(target: str, _: dict[str, Any]) -> tuple[int, Any]:
        if len(server.targets) == 1:
            file.write_text(profile.format("FAKENEW"))
            return 400, {"__type": "ExpiredTokenException", "Message": "expired"}
        return 200, {"SecretString": "FAKE-value"}

    server = RefusingServer(by_key)
    file.write_text(profile.format("FAKEOLD"))
    environ = environ_for(server.port, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    login = AwsLogin({**environ, "AWS_SHARED_CREDENTIALS_FILE": str(file)})
    assert resolve_one(AwsStore(login), "aws://plain") == "FAKE-value"
    signer: Any = login.client()._request_signer
    assert signer._credentials.access_key == "FAKENEW"
    server.close()


@pytest.mark.parametrize(
    ("error", "reach", "message"),
    [
        (
            boto_errors.NoCredentialsError(),
            FailureReach.LOGIN,
            "no AWS credentials were found: set",
        ),
        (
            boto_errors.PartialCredentialsError(provider="env", cred_var="X"),
            FailureReach.LOGIN,
            "half of the AWS credentials",
        ),
        (
            boto_errors.CredentialRetrievalError(provider="p", error_msg=TOKEN),
            FailureReach.LOGIN,
            "(CredentialRetrievalError): log in again (aws sso login)",
        ),
        (boto_errors.UnauthorizedSSOTokenError(), FailureReach.LOGIN, "aws sso login"),
        (boto_errors.NoRegionError(), FailureReach.STORE, "set AWS_REGION"),
        (
            boto_errors.EndpointConnectionError(endpoint_url="u"),
            FailureReach.STORE,
            "cannot be reached",
        ),
        (
            boto_errors.ConnectTimeoutError(endpoint_url="u"),
            FailureReach.STORE,
            "cannot be reached",
        ),
        (boto_errors.ProxyConnectionError(proxy_url="u"), FailureReach.STORE, "cannot be reached"),
        (
            boto_errors.ConnectionClosedError(endpoint_url="u"),
            FailureReach.REQUEST,
            "cannot be reached",
        ),
        (
            boto_errors.SSLError(endpoint_url="u", error=TOKEN),
            FailureReach.STORE,
            "set AWS_CA_BUNDLE",
        ),
        (RuntimeError(TOKEN), FailureReach.SECRET, "reading it failed with RuntimeError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failures_before_an_answer_have_messages_of_their_own(
    error: Exception, reach: FailureReach, message: str
) -> None:
    """By class, and without the text, which a credential helper may have written."""
    failure = failure_from_error(error)
    assert failure.reach is reach
    assert message in failure.message
    assert TOKEN not in failure.message


def test_a_store_that_hangs_is_given_up_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One time limit for 500 secrets, not one for each batch of them."""
    assert aws_login.READ_TIMEOUT_S <= 5
    monkeypatch.setattr(aws_login, "READ_TIMEOUT_S", 1.0)
    silent = SilentServer()
    store = open_aws(environ_for(silent.port))
    began = time.monotonic()
    found = resolve_all(store, **{f"key_{n}": f"aws://s{n}" for n in range(500)})
    assert time.monotonic() - began < 30
    assert all("cannot be reached (ReadTimeoutError)" in text for text in found.values())
    silent.close()


def test_an_endpoint_that_is_no_url_is_an_error(store_server: AwsServer) -> None:
    """And no other endpoint is guessed."""
    assert resolve_one(store_server.open(AWS_ENDPOINT_URL="nonsense")).endswith(
        "AWS_ENDPOINT_URL is no URL"
    )


def test_without_boto3_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the store is opened, as an error of the configuration."""
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(ConfigError, match=r"pip install 'keyrot-middleware\[aws\]'") as caught:
        open_aws({})
    assert caught.value.__cause__ is None


def test_no_value_and_no_token_is_in_anything_but_the_answer(
    store_server: AwsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the library's DEBUG lines either, which hold whole answers."""
    caplog.set_level(logging.DEBUG)
    store_server.put("a", "FAKE-value-a")
    store_server.server.write("other", "FAKE-value-b")
    refs: dict[str, str | None] = {"a": None, "b": "aws://other", "c": "aws://none"}
    stores = [
        store_server.open(AWS_SESSION_TOKEN=TOKEN),
        store_server.denied(),
        store_server.down(),
    ]
    assert stores[0].resolve(refs)["b"] == Secret("FAKE-value-b")
    printed = all_output(stores, refs) + caplog.text
    assert [s for s in ("FAKE-value", TOKEN, "FAKE-secret-access-key") if s in printed] == []


def test_the_programs_own_use_of_boto3_still_logs(
    store_server: AwsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Only log lines written while we read are dropped."""
    store_server.open()
    caplog.set_level(logging.DEBUG, "botocore.parsers")
    store_server.server.admin.list_secrets()
    assert "Response body" in caplog.text
