"""Files, cached contents, batches, operations and interactions; each belongs to one project."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from keyrot_middleware.testing.answers import get_field
from keyrot_middleware.testing.keys import list_page
from keyrot_middleware.testing.replies import Reply, Scripted, plain
from keyrot_middleware.testing.request import FakeRequest
from keyrot_middleware.testing.server import HttpRequest

_NAME = re.compile(r"(?:^|/)((?:files|cachedContents)/[A-Za-z0-9_-]+)(?::|$)")
# The fields in which a request names a resource, in both of the SDK's spellings.
_NAMING = frozenset(
    {"fileUri", "file_uri", "fileName", "file_name", "uri", "cachedContent", "cached_content"}
)
_FILE_LIFE_S, _CACHE_LIFE_S = 48 * 3600, 3600
ENTITY_GONE = Scripted(404, plain(404, "NOT_FOUND", "Requested entity was not found."))
DENIED = {"files": Reply.FILE_DENIED, "cachedContents": Reply.CACHE_DENIED}
_PENDING = frozenset({"BATCH_STATE_PENDING", "BATCH_STATE_RUNNING"})
_NAMED_BY_ID = frozenset(
    {"agents", "credentials", "environments", "triggers", "voices", "webhooks"}
)


@dataclass(slots=True)
class _Resource:
    project: str
    value: dict[str, Any]
    data: bytes = b""


@dataclass(slots=True)
class _Upload:
    project: str
    file: dict[str, Any]
    mime: str
    data: bytearray = field(default_factory=bytearray)


def _timestamp(now: float) -> str:
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


def unknown_interaction(name: str) -> Scripted:
    """Return the reply about an interaction that the project does not have."""
    return Scripted(404, plain(404, "NOT_FOUND", f"Interaction {name} not found."))


def _new_name(collection: str) -> str:
    return f"{collection}/{secrets.token_hex(20 if collection == 'cachedContents' else 6)}"


class StoredThings:
    """The resources, and the verbs that make, read and delete them.

    Args:
        url: Returns the service's address, the prefix of upload and file URIs.
    """

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url
        self._resources: dict[str, _Resource] = {}
        self._uploads: dict[str, _Upload] = {}
        self.holds_operations = False
        """New operations are pending until they are finished; else until the next read."""
        self._results: dict[str, dict[str, Any]] = {}
        """What interactions in the background come to."""

    def put(self, name: str, project: str, value: dict[str, Any], data: bytes = b"") -> Any:
        """Store a resource of a project, and return it."""
        self._resources[name] = _Resource(project, value, data)
        return value

    def get(self, name: str, project: str) -> dict[str, Any] | None:
        """Return a resource; None if it does not exist or belongs to another project."""
        resource = self._resources.get(name)
        return resource.value if resource and resource.project == project else None

    def is_foreign(self, name: str, project: str) -> bool:
        """Return whether a resource exists and belongs to another project."""
        return name in self._resources and self._resources[name].project != project

    def add_file(self, project: str, data: bytes, name: str, now: float) -> str:
        """Store a generated file of a project; return its name."""
        name = name or _new_name("files")
        value = {
            "name": name,
            "mimeType": "application/octet-stream",
            "sizeBytes": str(len(data)),
            "createTime": _timestamp(now),
            "uri": f"{self._url()}/v1beta/{name}",
            "downloadUri": f"{self._url()}/v1beta/{name}:download?alt=media",
            "state": "ACTIVE",
            "source": "GENERATED",
        }
        self.put(name, project, value, data)
        return name

    def finish_operation(self, name: str, data: bytes, now: float) -> str:
        """End an operation with a video; return the name of the video's file.

        Raises:
            KeyError: If there is no such operation.
        """
        operation = self._resources[name]
        file = self.add_file(operation.project, data, "", now)
        uri = f"{self._url()}/v1beta/{file}:download?alt=media"
        samples = {"generatedSamples": [{"video": {"uri": uri}}]}
        operation.value |= {"done": True, "response": {"generateVideoResponse": samples}}
        return file

    def answer(self, request: FakeRequest, http: HttpRequest) -> Any:
        """Return a verb's JSON value, or a `Scripted` if it is an error or needs headers."""
        collection, _, verb = request.route.verb.partition(".")
        if collection == "upload":
            start = verb == "start"
            return self._upload_start(request, http) if start else self._upload_chunk(request, http)
        if request.route.verb == "download" or verb == "download":
            return self._download(request)
        if verb == "create":
            return self._create(collection, request)
        return self._on_one(collection, verb, request)

    def _on_one(self, collection: str, verb: str, request: FakeRequest) -> Any:
        project, name = request.project, request.route.name
        if verb == "list":
            field = "operations" if collection == "batches" else collection
            of = [
                one.value
                for name, one in list(self._resources.items())
                if one.project == project and name.startswith(f"{collection}/")
            ]
            return list_page(field, of, request.route.query)
        resource = self.get(name, project)
        if resource is None and collection == "interactions":
            return unknown_interaction(name.partition("/")[2])
        if resource is None:
            return DENIED.get(collection, ENTITY_GONE)
        if verb == "delete":
            del self._resources[name]
            return {}
        if verb == "patch":
            resource |= request.body
        if verb == "cancel" and collection == "interactions":
            resource["status"] = "cancelled"
        elif verb == "cancel":
            resource["metadata"]["state"], resource["done"] = "BATCH_STATE_CANCELLED", True
            return {}
        if resource.get("status") == "in_progress":  # of a background interaction: done when polled
            resource |= self._results.pop(name)
        return resource

    def _create(self, collection: str, request: FakeRequest) -> Any:
        name, at = _new_name(collection), _timestamp(request.now)
        given = request.body
        if collection in _NAMED_BY_ID:
            value = {**given, "id": given.get("id") or secrets.token_hex(8)}
            return self.put(f"{collection}/{value['id']}", request.project, value)
        value = {"name": name, "displayName": get_field(given, "displayName") or ""}
        if collection == "cachedContents":
            if request.free:
                return Reply.CACHE_STORAGE  # The free tier stores no tokens.
            life_s = float(str(given.get("ttl", _CACHE_LIFE_S)).rstrip("s"))
            value |= {
                "model": given.get("model", ""),
                "updateTime": at,
                "expireTime": _timestamp(request.now + life_s),
                "usageMetadata": {"totalTokenCount": request.tokens},
            }
        elif collection == "batches":
            return self._create_batch(name, request)
        elif collection != "fileSearchStores":
            return ENTITY_GONE
        return self.put(name, request.project, value | {"createTime": at})

    def keep_interaction(self, value: dict[str, Any], request: FakeRequest) -> dict[str, Any]:
        """Store an interaction; return it as it is now, which may be in progress."""
        name = f"interactions/{value['id']}"
        if request.body.get("background"):
            parts = ("status", "outputs", "steps", "usage")
            self._results[name] = {part: value.pop(part) for part in parts}
            value["status"] = "in_progress"
        self.put(name, request.project, value)
        return value

    def _create_batch(self, name: str, request: FakeRequest) -> Any:
        metadata = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "model": f"models/{request.route.model}",
            "displayName": get_field(request.body.get("batch"), "displayName") or "",
            "name": name,
            "state": "BATCH_STATE_PENDING",
            "createTime": _timestamp(request.now),
            "updateTime": _timestamp(request.now),
        }
        return self.put(name, request.project, {"name": name, "metadata": metadata})

    def operation(self, request: FakeRequest) -> dict[str, Any]:
        """Start a long-running operation of a model."""
        name = f"models/{request.route.model}/{_new_name('operations')}"
        ended = {} if self.holds_operations else {"done": True, "response": {}}
        self.put(name, request.project, {"name": name, **ended})
        return {"name": name}

    def _upload_start(self, request: FakeRequest, http: HttpRequest) -> Scripted:
        mime = http.value("x-goog-upload-header-content-type") or "application/octet-stream"
        upload_id = secrets.token_urlsafe(24)
        self._uploads[upload_id] = _Upload(request.project, request.body.get("file") or {}, mime)
        version = request.route.version or "v1beta"
        where = f"{self._url()}/upload/{version}/files?upload_id={upload_id}"
        headers = {
            "X-Goog-Upload-Status": "active",
            "X-Goog-Upload-URL": f"{where}&upload_protocol=resumable",
            "X-Goog-Upload-Chunk-Granularity": "262144",
        }
        return Reply.custom(200, b"", headers=headers, content_type="text/plain; charset=utf-8")

    def _upload_chunk(self, request: FakeRequest, http: HttpRequest) -> Scripted:
        upload_id = request.route.query["upload_id"]
        upload = self._uploads.get(upload_id)
        if upload is None:
            return ENTITY_GONE
        upload.data += http.body
        if "finalize" not in http.value("x-goog-upload-command"):
            return Reply.custom(200, b"", headers={"X-Goog-Upload-Status": "active"})
        del self._uploads[upload_id]
        file = self._finished(upload, request)
        return Reply.custom(200, {"file": file}, headers={"X-Goog-Upload-Status": "final"})

    def _finished(self, upload: _Upload, request: FakeRequest) -> dict[str, Any]:
        name = upload.file.get("name") or _new_name("files")
        digest = hashlib.sha256(upload.data).hexdigest().encode()
        value = {
            "name": name,
            "displayName": get_field(upload.file, "displayName") or "",
            "mimeType": upload.mime,
            "sizeBytes": str(len(upload.data)),
            "createTime": _timestamp(request.now),
            "updateTime": _timestamp(request.now),
            "expirationTime": _timestamp(request.now + _FILE_LIFE_S),
            "sha256Hash": base64.b64encode(digest).decode(),
            "uri": f"{self._url()}/{request.route.version or 'v1beta'}/{name}",
            "state": "ACTIVE",
            "source": "UPLOADED",
        }
        self.put(name, upload.project, value, bytes(upload.data))
        return value

    def _download(self, request: FakeRequest) -> Scripted:
        name = request.route.name.partition(":")[0]
        if self.get(name, request.project) is None:
            return Reply.FILE_DENIED
        # The bytes are at another path (docs/gemini-api.md#stored-things).
        if request.route.verb == "files.download":
            where = f"/download/{request.route.version}/{name}:download?alt=media"
            return Reply.custom(302, b"", headers={"Location": where})
        data = self._resources[name].data
        return Reply.custom(200, data, content_type="application/octet-stream")
