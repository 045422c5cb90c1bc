"""Secrets Manager as moto implements it, with our store in front."""

import json
from pathlib import Path
from typing import Any

from keyrot_middleware.secrets.remote import AwsStore
from support.moto_server import RefusingServer, moto_server, options_for
from support.servers import closed_port
from support.store_servers.base import OneSecretServer
from support.unreachable import SilentServer

UNPRIVILEGED = "arn:aws:sts::123456789012:assumed-role/nobody/session"


def deny(target: str, sent: dict[str, Any]) -> tuple[int, Any]:
    return 400, {
        "__type": "AccessDeniedException",
        "Message": f"User: {UNPRIVILEGED} is not authorized to perform: secretsmanager:{target} on "
        f"resource: {sent.get('SecretId', '*')} because no identity-based policy allows the "
        f"secretsmanager:{target} action",
    }


class AwsServer(OneSecretServer):
    """One JSON secret `keyrot` holds all keys that have no secret of their own."""

    default = "keyrot"
    scheme = "aws"

    def __init__(self, directory: Path) -> None:
        """Begin without any secret; nothing is written into *directory*."""
        super().__init__()
        self.server = moto_server()
        self.server.empty()
        self._ends: list[SilentServer | RefusingServer] = []

    def open(self, **options: str) -> AwsStore:
        return AwsStore(self.default, **options_for(self.server.port, **options))

    def write(self, name: str, text: str) -> None:
        self.server.write(name, text)

    def put_fields(self, name: str, fields: dict[str, str]) -> dict[str, str]:
        self.write(name, json.dumps(fields))
        return {field: f"aws://{name}#{field}" for field in fields}

    def denied(self) -> AwsStore:
        """Open a store whose identity may read nothing; moto refuses in another format."""
        refusing = RefusingServer(deny)
        self._ends.append(refusing)
        return AwsStore(self.default, **options_for(refusing.port))

    def down(self) -> AwsStore:
        return AwsStore(self.default, **options_for(closed_port()))

    def hanging(self) -> AwsStore:
        silent = SilentServer()
        self._ends.append(silent)
        return AwsStore(self.default, **options_for(silent.port))

    def requests(self) -> int:
        return len(self.server.targets)

    def close(self) -> None:
        for end in self._ends:
            end.close()
