"""A stand-in for the Gemini API on loopback, so that the SDK's recorded tests send real requests.

It has one answer, with the common fields of every method of a model. Two keys of the pool never
work here: the day of one is exhausted, one is revoked; so a pool has to rotate.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SPENT, REVOKED, HOME = "FAKE-key-01-spent", "FAKE-key-02-revoked", "FAKE-key-of-the-client"
GOOD = ("FAKE-key-03-good", "FAKE-key-04-good", "FAKE-key-05-good")

ANSWER = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "{}"}]}, "finishReason": "STOP"},
    ],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1, "totalTokenCount": 4},
    "modelVersion": "stand-in",
    "responseId": "stand-in",
    "totalTokens": 3,
    "embeddings": [{"values": [0.25, 0.5]}],
    "models": [{"name": "models/stand-in"}],
    "name": "models/stand-in",
}
_QUOTA = "type.googleapis.com/google.rpc.QuotaFailure"
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
REFUSALS: dict[str, dict[str, Any]] = {
    SPENT: {
        "code": 429,
        "status": "RESOURCE_EXHAUSTED",
        "message": "You exceeded your current quota.",
        "details": [
            {
                "@type": _QUOTA,
                "violations": [
                    {"quotaId": "GenerateRequestsPerDayPerProjectPerModel", "quotaValue": "50"},
                ],
            },
        ],
    },
    REVOKED: {
        "code": 400,
        "status": "INVALID_ARGUMENT",
        "message": "API key not valid. Please pass a valid API key.",
        "details": [
            {
                "@type": _ERROR_INFO,
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
            },
        ],
    },
}


def start() -> str:
    """Start the server in a daemon thread and return its ``host:port``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    """Answer depending on the key only."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        """Read the request completely, so that the connection can be reused, and answer it."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        refusal = REFUSALS.get(self.headers.get("x-goog-api-key", ""))
        body = json.dumps({"error": refusal} if refusal else ANSWER)
        stream = "alt=sse" in self.path and not refusal
        payload = (f"data: {body}\n\n" if stream else body).encode()
        self.send_response(refusal["code"] if refusal else 200)
        self.send_header("Content-Type", "text/event-stream" if stream else "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - http.server's names

    def log_message(self, *args: Any) -> None:
        """Log nothing: the output is pytest's."""
