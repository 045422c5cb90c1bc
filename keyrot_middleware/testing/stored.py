"""Files, cached contents, batches, operations and interactions; each belongs to one project."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from keyrot_middleware.testing.answers import get_field
from keyrot_middleware.testing.error_bodies import plain
from keyrot_middleware.testing.models import list_page
from keyrot_middleware.testing.replies import Reply, Scripted
from keyrot_middleware.testing.request import FakeRequest
from keyrot_middleware.testing.server import HttpRequest

__all__ = ["ResourceApi", "StoredResources", "resource_names", "unknown_interaction"]

_NAME = re.compile(r"(?:^|/)((?:files|cachedContents)/[A-Za-z0-9_-]+)(?::|$)")
# The fields in which a request names a resource, in both of the SDK's spellings.
_NAMING = frozenset(
    {"fileUri", "file_uri", "fileName", "file_name", "uri", "cachedContent", "cached_content"}
)


@dataclass(slots=True)
class _Resource:
    project: str
    value: dict[str, Any]
    data: bytes = b""


@dataclass(slots=True)
class Upload:
    """A resumable upload in progress.

    Attributes:
        project: The owner of the file.
        label: The label of the key that started it.
        file: The file's metadata.
        mime: The media type.
        data: The bytes so far.
    """

    project: str
    label: str
    file: dict[str, Any]
    mime: str
    data: bytearray = field(default_factory=bytearray)


def timestamp(now: float) -> str:
    """Format epoch seconds as Google's JSON does."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def resource_names(value: Any) -> Iterator[str]:
    """Yield the `files/…` and `cachedContents/…` that a request body names."""
    if isinstance(value, list):
        for item in value:
            yield from resource_names(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in _NAMING and isinstance(inner, str):
                if found := _NAME.search(inner):
                    yield found[1]
            else:
                yield from resource_names(inner)


class StoredResources:
    """Resources by name, each with its project; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resources: dict[str, _Resource] = {}
        self._uploads: dict[str, Upload] = {}

    def new_name(self, collection: str) -> str:
        """Return an unused name."""
        return f"{collection}/{secrets.token_hex(20 if collection == 'cachedContents' else 6)}"

    def put(self, name: str, project: str, value: dict[str, Any], data: bytes = b"") -> None:
        """Store a resource of a project."""
        with self._lock:
            self._resources[name] = _Resource(project, value, data)

    def get(self, name: str, project: str) -> dict[str, Any] | None:
        """Return a resource; None if it does not exist or belongs to another project."""
        with self._lock:
            resource = self._resources.get(name)
            return resource.value if resource and resource.project == project else None

    def data(self, name: str) -> bytes | None:
        """Return a file's bytes, or None."""
        with self._lock:
            resource = self._resources.get(name)
            return resource.data if resource else None

    def value(self, name: str) -> dict[str, Any]:
        """Return a resource of any project.

        Raises:
            KeyError: If there is none.
        """
        with self._lock:
            return self._resources[name].value

    def project(self, name: str) -> str:
        """Return the project of a resource.

        Raises:
            KeyError: If there is none.
        """
        with self._lock:
            return self._resources[name].project

    def is_foreign(self, name: str, project: str) -> bool:
        """Return whether a resource exists and belongs to another project."""
        with self._lock:
            resource = self._resources.get(name)
            return resource is not None and resource.project != project

    def delete(self, name: str, project: str) -> bool:
        """Delete a resource; return False if the project does not have it."""
        with self._lock:
            resource = self._resources.get(name)
            if resource is None or resource.project != project:
                return False
            del self._resources[name]
            return True

    def of(self, collection: str, project: str) -> list[dict[str, Any]]:
        """Return a project's resources of one collection, oldest first."""
        with self._lock:
            return [
                resource.value
                for name, resource in self._resources.items()
                if resource.project == project and name.startswith(f"{collection}/")
            ]

    def begin(self, upload: Upload) -> str:
        """Start an upload; return its id."""
        with self._lock:
            upload_id = secrets.token_urlsafe(24)
            self._uploads[upload_id] = upload
            return upload_id

    def upload(self, upload_id: str) -> Upload | None:
        """Return an unfinished upload, or None."""
        with self._lock:
            return self._uploads.get(upload_id)

    def finish(self, upload_id: str) -> None:
        """Remove an upload."""
        with self._lock:
            self._uploads.pop(upload_id, None)


_FILE_LIFE_S = 48 * 3600
_CACHE_LIFE_S = 3600
_ENTITY_GONE = Scripted(404, plain(404, "NOT_FOUND", "Requested entity was not found."))
_DENIED = {"files": Reply.FILE_DENIED, "cachedContents": Reply.CACHE_DENIED}
_BATCHES_FULL = Scripted(
    429, plain(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).")
)
_PENDING = frozenset({"BATCH_STATE_PENDING", "BATCH_STATE_RUNNING"})


_NAMED_BY_ID = frozenset(
    {"agents", "credentials", "environments", "triggers", "voices", "webhooks"}
)
_RESULT = ("outputs", "steps", "usage")


def unknown_interaction(name: str) -> Scripted:
    """Return the reply about an interaction that the project does not have."""
    return Scripted(404, plain(404, "NOT_FOUND", f"Interaction {name} not found."))


def _pop(value: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value.pop(name) for name in names}


class ResourceApi:
    """The verbs of resources.

    Args:
        resources: The store.
        url: Returns the service's address, the prefix of upload and file URIs.
    """

    def __init__(self, resources: StoredResources, url: Callable[[], str]) -> None:
        self._resources = resources
        self._url = url
        self.holds_operations = False
        """New operations are pending until they are finished; else until the next read."""
        self.max_batches: dict[str, int] = {}
        """How many batches may be pending at once, by project."""
        self._results: dict[str, dict[str, Any]] = {}
        """What interactions in the background come to."""

    def add_file(self, project: str, data: bytes, name: str, now: float) -> str:
        """Store a generated file of a project; return its name."""
        name = name or self._resources.new_name("files")
        value = {
            "name": name,
            "mimeType": "application/octet-stream",
            "sizeBytes": str(len(data)),
            "createTime": timestamp(now),
            "uri": f"{self._url()}/v1beta/{name}",
            "downloadUri": f"{self._url()}/v1beta/{name}:download?alt=media",
            "state": "ACTIVE",
            "source": "GENERATED",
        }
        self._resources.put(name, project, value, data)
        return name

    def set_batch(self, name: str, state: str) -> None:
        """Put a batch into a state.

        Raises:
            KeyError: If there is no such batch.
        """
        batch = self._resources.value(name)
        batch["metadata"]["state"] = f"BATCH_STATE_{state}"
        batch["done"] = batch["metadata"]["state"] not in _PENDING

    def finish_operation(self, name: str, data: bytes, now: float) -> str:
        """End an operation with a video; return the name of the video's file.

        Raises:
            KeyError: If there is no such operation.
        """
        operation = self._resources.value(name)
        file = self.add_file(self._resources.project(name), data, "", now)
        uri = f"{self._url()}/v1beta/{file}:download?alt=media"
        samples = {"generatedSamples": [{"video": {"uri": uri}}]}
        operation |= {"done": True, "response": {"generateVideoResponse": samples}}
        return file

    def answer(self, request: FakeRequest, http: HttpRequest) -> Any:
        """Return a verb's JSON value, or a `Scripted` if it is an error or needs headers."""
        collection, _, verb = request.route.verb.partition(".")
        if collection == "upload":
            upload = self._upload_start if verb == "start" else self._chunk
            return upload(request, http)
        if request.route.verb == "download" or verb == "download":
            return self._download(request)
        if verb == "create":
            return self._create(collection, request)
        return self._on_one(collection, verb, request)

    def _on_one(self, collection: str, verb: str, request: FakeRequest) -> Any:
        project, name = _project(request), request.route.name
        if verb == "list":
            field = "operations" if collection == "batches" else collection
            return list_page(field, self._resources.of(collection, project), request.route.query)
        resource = self._resources.get(name, project)
        if resource is None and collection == "interactions":
            return unknown_interaction(name.partition("/")[2])
        if resource is None:
            return _DENIED.get(collection, _ENTITY_GONE)
        if verb == "delete":
            self._resources.delete(name, project)
            return {}
        if verb == "patch":
            resource |= request.body
        if verb == "cancel" and collection == "interactions":
            resource["status"] = "cancelled"
        elif verb == "cancel":
            self.set_batch(name, "CANCELLED")
            return {}
        if resource.get("status") == "in_progress":  # of a background interaction: done when polled
            resource |= self._results.pop(name)
        return resource

    def _create(self, collection: str, request: FakeRequest) -> Any:
        if collection == "cachedContents":
            return self._create_cache(request)
        if collection == "batches":
            return self._create_batch(request)
        if collection == "fileSearchStores":
            return self._create_store(request)
        if collection in _NAMED_BY_ID:
            return self._create_by_id(collection, request)
        return _ENTITY_GONE

    def _create_by_id(self, collection: str, request: FakeRequest) -> dict[str, Any]:
        name = request.body.get("id") or secrets.token_hex(8)
        value = {**request.body, "id": name}
        self._resources.put(f"{collection}/{name}", _project(request), value)
        return value

    def keep_interaction(self, value: dict[str, Any], request: FakeRequest) -> dict[str, Any]:
        """Store an interaction; return it as it is now, which may be in progress."""
        name = f"interactions/{value['id']}"
        if request.body.get("background"):
            self._results[name] = {"status": value.pop("status"), **_pop(value, _RESULT)}
            value["status"] = "in_progress"
        self._resources.put(name, _project(request), value)
        return value

    def _create_store(self, request: FakeRequest) -> dict[str, Any]:
        name = self._resources.new_name("fileSearchStores")
        label = get_field(request.body, "displayName") or ""
        value = {"name": name, "displayName": label, "createTime": timestamp(request.now)}
        self._resources.put(name, _project(request), value)
        return value

    def _create_cache(self, request: FakeRequest) -> Any:
        if request.free:
            return Reply.CACHE_STORAGE  # The free tier stores no tokens.
        ttl = str(request.body.get("ttl", f"{_CACHE_LIFE_S}s")).rstrip("s")
        name = self._resources.new_name("cachedContents")
        value = {
            "name": name,
            "model": request.body.get("model", ""),
            "displayName": get_field(request.body, "displayName") or "",
            "createTime": timestamp(request.now),
            "updateTime": timestamp(request.now),
            "expireTime": timestamp(request.now + float(ttl)),
            "usageMetadata": {"totalTokenCount": request.tokens},
        }
        self._resources.put(name, _project(request), value)
        return value

    def _create_batch(self, request: FakeRequest) -> Any:
        most = self.max_batches.get(_project(request))
        if most is not None:
            jobs = self._resources.of("batches", _project(request))
            if sum(job["metadata"]["state"] in _PENDING for job in jobs) >= most:
                return _BATCHES_FULL
        name = self._resources.new_name("batches")
        metadata = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "model": f"models/{request.route.model}",
            "displayName": get_field(request.body.get("batch"), "displayName") or "",
            "name": name,
            "state": "BATCH_STATE_PENDING",
            "createTime": timestamp(request.now),
            "updateTime": timestamp(request.now),
        }
        value = {"name": name, "metadata": metadata}
        self._resources.put(name, _project(request), value)
        return value

    def operation(self, request: FakeRequest) -> dict[str, Any]:
        """Start a long-running operation of a model."""
        name = f"models/{request.route.model}/{self._resources.new_name('operations')}"
        ended = {} if self.holds_operations else {"done": True, "response": {}}
        self._resources.put(name, _project(request), {"name": name, **ended})
        return {"name": name}

    def _upload_start(self, request: FakeRequest, http: HttpRequest) -> Scripted:
        mime = http.value("x-goog-upload-header-content-type") or "application/octet-stream"
        file = request.body.get("file") or {}
        upload_id = self._resources.begin(Upload(_project(request), request.label, file, mime))
        version = request.route.version or "v1beta"
        where = f"{self._url()}/upload/{version}/files?upload_id={upload_id}"
        headers = {
            "X-Goog-Upload-Status": "active",
            "X-Goog-Upload-URL": f"{where}&upload_protocol=resumable",
            "X-Goog-Upload-Chunk-Granularity": "262144",
        }
        return Reply.custom(200, b"", headers=headers, content_type="text/plain; charset=utf-8")

    def _chunk(self, request: FakeRequest, http: HttpRequest) -> Scripted:
        upload_id = request.route.query["upload_id"]
        upload = self._resources.upload(upload_id)
        if upload is None:
            return _ENTITY_GONE
        upload.data += http.body
        if "finalize" not in http.value("x-goog-upload-command"):
            return Reply.custom(200, b"", headers={"X-Goog-Upload-Status": "active"})
        self._resources.finish(upload_id)
        file = self._finished(upload, request)
        return Reply.custom(200, {"file": file}, headers={"X-Goog-Upload-Status": "final"})

    def _finished(self, upload: Upload, request: FakeRequest) -> dict[str, Any]:
        name = upload.file.get("name") or self._resources.new_name("files")
        digest = hashlib.sha256(upload.data).hexdigest().encode()
        version = request.route.version or "v1beta"
        value = {
            "name": name,
            "displayName": get_field(upload.file, "displayName") or "",
            "mimeType": upload.mime,
            "sizeBytes": str(len(upload.data)),
            "createTime": timestamp(request.now),
            "updateTime": timestamp(request.now),
            "expirationTime": timestamp(request.now + _FILE_LIFE_S),
            "sha256Hash": base64.b64encode(digest).decode(),
            "uri": f"{self._url()}/{version}/{name}",
            "state": "ACTIVE",
            "source": "UPLOADED",
        }
        self._resources.put(name, upload.project, value, bytes(upload.data))
        return value

    def _download(self, request: FakeRequest) -> Scripted:
        name = request.route.name.partition(":")[0]
        data = self._resources.data(name)
        if data is None or self._resources.get(name, _project(request)) is None:
            return Reply.FILE_DENIED
        # The bytes are at another path (docs/gemini-api.md#stored-things).
        if request.route.verb == "files.download":
            where = f"/download/{request.route.version}/{name}:download?alt=media"
            return Reply.custom(302, b"", headers={"Location": where})
        return Reply.custom(200, data, content_type="application/octet-stream")


def _project(request: FakeRequest) -> str:
    return request.key.project if request.key else ""
