"""Secrets in AWS Secrets Manager, read with boto3: docs/stores/aws.md."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import boto3.session
from botocore.config import Config
from botocore.exceptions import ClientError

from .remote import (
    CONNECT_TIMEOUT_S,
    MAX_CONCURRENCY,
    READ_TIMEOUT_S,
    RemoteStore,
    Unreadable,
    codes,
)

_LOGGERS = ("auth", "endpoint", "hooks", "parsers", "utils")
"""Of botocore; their DEBUG lines hold whole responses, signatures and session tokens."""


def open_aws(environ: Mapping[str, str]) -> AwsStore:
    """Open the store; boto3 takes its own settings from the environment."""
    return AwsStore(environ.get("KEYROT_AWS_SECRET") or "keyrot")


def _is_loggable(record: logging.LogRecord) -> bool:
    """Drop lines below WARNING in threads that read secrets; the program's own stay."""
    reading = threading.current_thread().name.startswith("keyrot-secrets")
    return record.levelno >= logging.WARNING or not reading


class AwsStore(RemoteStore):
    """Reads keys at `aws://NAME-or-ARN#field`; always the version AWSCURRENT."""

    scheme = "aws"

    def __init__(self, default: str, **options: Any) -> None:
        """*options*: more for boto3's client, such as `endpoint_url`."""
        super().__init__(default)
        self._options = options

    def connect(self) -> Any:
        """Return a function that returns the client of a region."""
        for name in _LOGGERS:
            logging.getLogger(f"botocore.{name}").addFilter(_is_loggable)
        session = boto3.session.Session()
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=MAX_CONCURRENCY,
        )

        @cache
        def client(region: str | None) -> Any:
            options = {**self._options, **({"region_name": region} if region else {})}
            return session.client("secretsmanager", config=config, **options)

        return client

    def read(self, client: Any, name: str) -> str | bytes:
        """Return the text or the bytes of a secret; an ARN names its region."""
        region = name.split(":")[3] if name.count(":") > 3 else None
        with self._lock:  # boto3 makes clients in one thread at a time
            regional = client(region)
        try:
            found = regional.get_secret_value(SecretId=name)
        except ClientError as error:
            raise Unreadable(codes(error.response.get("Error", {}).get("Code"))) from None
        stored: str | bytes = found.get("SecretString") or found.get("SecretBinary") or ""
        return stored
