"""Verbs on files, cached contents, batches and operations."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from keyrot_middleware.testing.answers import pick
from keyrot_middleware.testing.error_bodies import plain
from keyrot_middleware.testing.replies import Reply, Scripted
from keyrot_middleware.testing.request import FakeRequest
from keyrot_middleware.testing.routes import page
from keyrot_middleware.testing.server import HttpRequest
from keyrot_middleware.testing.stored import StoredThings, Upload, stamp

__all__ = ["StoredVerbs"]

_FILE_LIFE_S = 48 * 3600
_CACHE_LIFE_S = 3600
_ENTITY_GONE = Scripted(404, plain(404, "NOT_FOUND", "Requested entity was not found."))
_DENIED = {"files": Reply.FILE_DENIED, "cachedContents": Reply.CACHE_DENIED}


class StoredVerbs:
    """Answers for stored things.

    Args:
        things: Where they are kept.
        url: Says the service's address, which uploads and file URIs begin with.
    """

    def __init__(self, things: StoredThings, url: Callable[[], str]) -> None:
        self._things = things
        self._url = url

    def answer(self, asked: FakeRequest, request: HttpRequest) -> Any:
        """Return a verb's JSON value, or a `Scripted` if it is an error or needs headers."""
        collection, _, verb = asked.route.verb.partition(".")
        if collection == "upload":
            upload = self._upload_start if verb == "start" else self._chunk
            return upload(asked, request)
        if asked.route.verb == "download" or verb == "download":
            return self._download(asked)
        if verb == "create":
            return self._create(collection, asked)
        return self._on_one(collection, verb, asked)

    def _on_one(self, collection: str, verb: str, asked: FakeRequest) -> Any:
        project, name = _project(asked), asked.route.name
        if verb == "list":
            field = "operations" if collection == "batches" else collection
            return page(field, self._things.of(collection, project), asked.route.query)
        thing = self._things.get(name, project)
        if thing is None:
            return _DENIED.get(collection, _ENTITY_GONE)
        if verb == "delete":
            self._things.delete(name, project)
            return {}
        if verb == "patch":
            thing |= asked.body
        if verb == "cancel":
            thing["metadata"]["state"] = "BATCH_STATE_CANCELLED"
            return {}
        return thing

    def _create(self, collection: str, asked: FakeRequest) -> Any:
        if collection == "cachedContents":
            return self._create_cache(asked)
        if collection == "batches":
            return self._create_batch(asked)
        return _ENTITY_GONE

    def _create_cache(self, asked: FakeRequest) -> Any:
        if asked.free:
            return Reply.CACHE_STORAGE  # The free tier stores no tokens (GEMINI.md A1).
        ttl = str(asked.body.get("ttl", f"{_CACHE_LIFE_S}s")).rstrip("s")
        name = self._things.new_name("cachedContents")
        value = {
            "name": name,
            "model": asked.body.get("model", ""),
            "displayName": pick(asked.body, "displayName") or "",
            "createTime": stamp(asked.now),
            "updateTime": stamp(asked.now),
            "expireTime": stamp(asked.now + float(ttl)),
            "usageMetadata": {"totalTokenCount": asked.tokens},
        }
        self._things.put(name, _project(asked), value)
        return value

    def _create_batch(self, asked: FakeRequest) -> dict[str, Any]:
        name = self._things.new_name("batches")
        metadata = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "model": f"models/{asked.route.model}",
            "displayName": pick(asked.body.get("batch"), "displayName") or "",
            "name": name,
            "state": "BATCH_STATE_PENDING",
            "createTime": stamp(asked.now),
            "updateTime": stamp(asked.now),
        }
        value = {"name": name, "metadata": metadata}
        self._things.put(name, _project(asked), value)
        return value

    def operation(self, asked: FakeRequest) -> dict[str, Any]:
        """Begin a long-running operation of a model, done when it is next looked at."""
        name = f"models/{asked.route.model}/{self._things.new_name('operations')}"
        done = {"name": name, "done": True, "response": {}}
        self._things.put(name, _project(asked), done)
        return {"name": name}

    def _upload_start(self, asked: FakeRequest, request: HttpRequest) -> Scripted:
        mime = request.value("x-goog-upload-header-content-type") or "application/octet-stream"
        file = asked.body.get("file") or {}
        upload_id = self._things.begin(Upload(_project(asked), asked.label, file, mime))
        version = asked.route.version or "v1beta"
        where = f"{self._url()}/upload/{version}/files?upload_id={upload_id}"
        headers = {
            "X-Goog-Upload-Status": "active",
            "X-Goog-Upload-URL": f"{where}&upload_protocol=resumable",
            "X-Goog-Upload-Chunk-Granularity": "262144",
        }
        return Reply.custom(200, b"", headers=headers, content_type="text/plain; charset=utf-8")

    def _chunk(self, asked: FakeRequest, request: HttpRequest) -> Scripted:
        upload_id = asked.route.query["upload_id"]
        upload = self._things.upload(upload_id)
        if upload is None:
            return _ENTITY_GONE
        upload.data += request.body
        if "finalize" not in request.value("x-goog-upload-command"):
            return Reply.custom(200, b"", headers={"X-Goog-Upload-Status": "active"})
        self._things.finish(upload_id)
        file = self._finished(upload, asked)
        return Reply.custom(200, {"file": file}, headers={"X-Goog-Upload-Status": "final"})

    def _finished(self, upload: Upload, asked: FakeRequest) -> dict[str, Any]:
        name = upload.file.get("name") or self._things.new_name("files")
        digest = hashlib.sha256(upload.data).hexdigest().encode()
        version = asked.route.version or "v1beta"
        value = {
            "name": name,
            "displayName": pick(upload.file, "displayName") or "",
            "mimeType": upload.mime,
            "sizeBytes": str(len(upload.data)),
            "createTime": stamp(asked.now),
            "updateTime": stamp(asked.now),
            "expirationTime": stamp(asked.now + _FILE_LIFE_S),
            "sha256Hash": base64.b64encode(digest).decode(),
            "uri": f"{self._url()}/{version}/{name}",
            "state": "ACTIVE",
            "source": "UPLOADED",
        }
        self._things.put(name, upload.project, value, bytes(upload.data))
        return value

    def _download(self, asked: FakeRequest) -> Scripted:
        name = asked.route.name.partition(":")[0]
        data = self._things.data(name)
        if data is None or self._things.get(name, _project(asked)) is None:
            return Reply.FILE_DENIED
        return Reply.custom(200, data, content_type="application/octet-stream")


def _project(asked: FakeRequest) -> str:
    return asked.key.project if asked.key else ""
