"""A real Prometheus that reads programs of this machine, and its query API."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from support.servers import free_port, wait_for

BINARY = shutil.which("prometheus")
_open = build_opener(ProxyHandler({})).open


def read(url: str) -> bytes:
    with _open(url, timeout=5) as response:
        found: bytes = response.read()
        return found


class Prometheus:
    def __init__(self, config: str) -> None:
        """Start it with the text of a prometheus.yml, and wait until it is ready."""
        assert BINARY is not None
        self._directory = tempfile.mkdtemp(prefix="keyrot-prometheus-")
        file = Path(self._directory) / "prometheus.yml"
        file.write_text(config, "utf-8")
        self.url = f"http://127.0.0.1:{free_port()}"
        address = self.url.removeprefix("http://")
        parameters = [
            f"--config.file={file}",
            f"--storage.tsdb.path={self._directory}/data",
            f"--web.listen-address={address}",
            "--log.level=error",
        ]
        self._process = subprocess.Popen([BINARY, *parameters], cwd=self._directory)
        wait_for(self._is_ready)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(60)
        shutil.rmtree(self._directory, ignore_errors=True)

    def get(self, path: str, **parameters: str) -> Any:
        answer = json.loads(read(f"{self.url}/api/v1/{path}?{urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def by(self, expression: str, *labels: str) -> dict[Any, float]:
        rows = self.query(expression)
        names: Sequence[str] = labels
        keys = (tuple(row["metric"].get(name, "") for name in names) for row in rows)
        values = (float(row["value"][1]) for row in rows)
        return {k[0] if len(k) == 1 else k: v for k, v in zip(keys, values, strict=True)}

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, "prometheus has ended"
        try:
            return bool(read(f"{self.url}/-/ready"))
        except URLError:
            return False
