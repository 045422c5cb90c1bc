"""docs/sdk-methods.md names every public method of the installed SDK, and the key that it uses."""

import asyncio
import inspect
import re
from collections.abc import Iterator
from itertools import cycle, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google import genai
from google.genai import chats, live, live_music
from google.oauth2.credentials import Credentials
from support.json_server import JsonServer, Request, Response

from keyrot_middleware.core.model import Lease

PAGE = Path(__file__).parents[4] / "docs" / "sdk-methods.md"
ROW = re.compile(r"^\| (`.+?`) \| (\d+\.\d+) \| (.+?) \|", re.MULTILINE)
VERSION = tuple(map(int, genai.__version__.split(".")[:2]))
MODEL = "gemini-3.1-flash-lite"


class Row(NamedTuple):
    method: str
    since: tuple[int, ...]
    keys: list[tuple[tuple[int, ...], str]]
    """From which version on it uses which key."""

    @property
    def key(self) -> str:
        """The key that it uses in the installed SDK."""
        return [key for since, key in self.keys if since <= VERSION][-1]


def rows() -> list[Row]:
    found = []
    for methods, since, cell in ROW.findall(PAGE.read_text("utf-8")):
        first = _number(since)
        changes = [re.fullmatch(r"(.+?)(?: from (.+))?", part) for part in cell.split(", ")]
        keys = [(_number(change[2]) if change[2] else first, change[1]) for change in changes]
        found += [Row(method, first, keys) for method in re.findall(r"`(.+?)`", methods)]
    return found


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


PRESENT = {row.method: row for row in rows() if row.since <= VERSION}
"""Those that the installed SDK has, as the page says."""

# The methods of the SDK -------------------------------------------------------------------------

NO_RESOURCE = {"parent_ref", "sdk_configuration", "with_raw_response", "with_streaming_response"}
INHERITED = {"do_request", "do_request_async"}
"""The transport's own method, on every resource of a generated client."""
OBJECTS = (chats.Chat, live.AsyncSession, live_music.AsyncMusicSession)
"""What methods of a client return, with methods that send."""


def public_methods(of: Any, path: str = "") -> Iterator[str]:
    """Yield the methods of a client and of its resources, without `client.`."""
    for name in sorted({*dir(type(of)), *vars(of)}):
        if name.startswith("_") or name in NO_RESOURCE | INHERITED | {"aio"}:
            continue
        value = getattr(of, name)
        if callable(value) and not isinstance(value, type):
            yield path + name
        elif type(value).__module__.startswith("google.genai"):
            yield from public_methods(value, f"{path}{name}.")


def sdk_methods() -> set[str]:
    client = genai.Client(api_key="FAKE")
    sync, asynchronous = set(public_methods(client)), set(public_methods(client.aio))
    client.close()
    objects = {
        f"{cls.__name__}.{name}"
        for cls in OBJECTS
        for name in dir(cls)
        if not name.startswith("_") and callable(getattr(cls, name))
    }
    return sync | {f"aio.{name}" for name in asynchronous - sync} | objects


@pytest.mark.filterwarnings("ignore")
def test_the_page_has_the_methods_of_this_sdk() -> None:
    """A method that is new in the SDK, or gone from it, is noticed here."""
    found = sdk_methods()
    assert sorted(found - PRESENT.keys()) == [], (
        f"google-genai {genai.__version__} has methods that {PAGE.name} does not name: read what "
        f"they send, add a row with the key that the pool gives them, and arguments below"
    )
    assert sorted(PRESENT.keys() - found) == [], (
        f"{PAGE.name} names methods that google-genai {genai.__version__} has not got: remove "
        "them, or name the first version that has them"
    )


# The keys that they use -------------------------------------------------------------------------

ID = "x1"
COLLECTIONS = (
    *("agents", "batches", "cachedContents", "credentials", "environments", "fileSearchStores"),
    *("files", "interactions", "operations", "triggers", "tunedModels", "voices", "webhooks"),
)
OWNED = tuple(f"{collection}/{ID}" for collection in COLLECTIONS)
TEXT: Any = {"model": MODEL, "contents": "hello"}
INLINE: Any = {"model": MODEL, "src": [{"contents": [{"parts": [{"text": "hello"}]}]}]}
EMBED: Any = {"model": MODEL, "src": {"inlined_requests": {"contents": [{"parts": []}]}}}
HOOK: Any = {"subscribed_events": ["batch.succeeded"], "uri": "https://example.com/hook"}
QUESTIONS: Any = {"cat": {"type": "noul", "instructions": "Is it a cat?"}}
STORE = f"fileSearchStores/{ID}"


ARGUMENTS: dict[str, Any] = {
    "models.generate_content": TEXT,
    "models.generate_content_stream": TEXT,
    "models.count_tokens": TEXT,
    "models.compute_tokens": TEXT,
    "models.embed_content": TEXT,
    "models.generate_images": {"model": "imagen-4.0-generate-001", "prompt": "a cat"},
    "models.generate_videos": {"model": "veo-3.0-generate-001", "source": {"prompt": "a cat"}},
    "models.get": {"model": MODEL},
    "caches.create": {"model": MODEL},
    "models.update": {"model": f"tunedModels/{ID}", "config": {"display_name": "x"}},
    "models.delete": {"model": f"tunedModels/{ID}"},
    "models.edit_image": {"model": MODEL, "prompt": "a cat", "reference_images": []},
    "models.recontext_image": {"model": MODEL, "source": {"prompt": "a cat"}},
    "models.segment_image": {"model": MODEL, "source": {"prompt": "a cat"}},
    "models.upscale_image": {
        "model": MODEL,
        "image": {"image_bytes": b"x"},
        "upscale_factor": "x2",
    },
    "files.upload": {"file": __file__, "config": {"mime_type": "text/plain"}},
    "files.register_files": {"auth": Credentials(token="FAKE"), "uris": ["gs://bucket/x"]},
    "files.download": {"file": f"files/{ID}"},
    "caches.update": {"name": f"cachedContents/{ID}", "config": {"ttl": "60s"}},
    "file_search_stores.import_file": {"file_search_store_name": STORE, "file_name": f"files/{ID}"},
    "file_search_stores.upload_to_file_search_store": {
        "file_search_store_name": STORE,
        "file": __file__,
        "config": {"mime_type": "text/plain"},
    },
    "file_search_stores.download_media": {"media_id": f"{STORE}/media/m1"},
    "file_search_stores.documents.list": {"parent": STORE},
    "file_search_stores.documents.get": {"name": f"{STORE}/documents/d1"},
    "file_search_stores.documents.delete": {"name": f"{STORE}/documents/d1"},
    "batches.create": INLINE,
    "batches.create_embeddings": EMBED,
    "operations.get": {"operation": genai.types.GenerateVideosOperation(name=f"operations/{ID}")},
    "tunings.tune": {
        "base_model": "models/gemini-1.5-flash-001-tuning",
        "training_dataset": {"examples": [{"text_input": "1", "output": "2"}]},
    },
    "tunings.validate_reward": {
        "parent": "projects/p/locations/l",
        "sample_response": {"parts": []},
        "example": {"contents": []},
    },
    "interactions.create": {"model": MODEL, "input": "hello"},
    "interactions.auth_tokens.create": {"interaction_id": ID},
    "interactions.auth_tokens.delete": {"interaction_id": ID, "auth_token": "t1"},
    "decisions.create": {"model": MODEL, "input": "hello", "questions": QUESTIONS},
    "agents.create": {"id": "mine", "base_agent": "antigravity-preview"},
    "environments.files.list": {"environment": ID, "path": "/"},
    "environments.files.download": {"environment_id": ID, "path": "a.txt"},
    "environments.files.upload": {"environment_id": ID, "path": "a.txt", "file": __file__},
    "credentials.create": {"type": "bearer_token", "token": "FAKE", "id": "c"},
    "credentials.update": {"id": ID, "type": "bearer_token"},
    "voices.create": {"voice": {"type": "prompted"}},
    "triggers.create": {
        "interaction": {"agent": "antigravity-preview", "input": "hello"},
        "schedule": "0 0 * * *",
        "time_zone": "UTC",
    },
    "triggers.list_executions": {"trigger_id": ID},
    "triggers.run": {"trigger_id": ID},
    "webhooks.create": HOOK,
}
"""Of each method whose arguments do not follow from its name."""


def arguments(method: str) -> dict[str, Any]:
    """Give arguments with which a method sends a request."""
    if method in ARGUMENTS:
        return dict(ARGUMENTS[method])
    resource, _, verb = method.rpartition(".")
    if verb in {"list", "create", "create_environment", "list_environments"}:
        return {}
    collection = {
        "caches": "cachedContents",
        "file_search_stores": "fileSearchStores",
        "tunings": "tunedModels",
    }.get(resource, resource)
    if resource in {"batches", "caches", "file_search_stores", "files", "operations", "tunings"}:
        return {"name": f"{collection}/{ID}"}
    return {"id": ID}


UPLOADED = {"file": {"name": f"files/{ID}"}}
ANYTHING = {"id": ID, "name": f"operations/{ID}", "status": "completed", "object": "interaction"}
CHUNKS = b'data: {"candidates": []}\n\n'
REFUSED = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded."}}


class AnyServer:
    """Gives all methods of all resources what they can parse, and refuses one key."""

    def __init__(self, keys: dict[str, str], refused: str) -> None:
        self.sent: list[str] = []
        """Whose key each request had that had one; the chunks of an upload have none."""
        self._keys, self._refused = keys, refused
        self._server = JsonServer(self._answer)
        self.host = f"127.0.0.1:{self._server.port}"
        self.close = self._server.close

    def _answer(self, request: Request) -> Response:
        key = self._keys.get(request.headers.get("x-goog-api-key", ""))
        self.sent += [key] if key else []
        if key == self._refused:
            return Response(429, REFUSED)
        if "x-goog-upload-command" in request.headers:
            session = {"x-goog-upload-url": f"http://{self.host}/chunks"}
            return Response(200, UPLOADED, {**session, "x-goog-upload-status": "final"})
        if request.path.endswith(":streamGenerateContent"):
            return Response(200, CHUNKS, {"content-type": "text/event-stream"})
        return Response(200, ANYTHING)


KEYS_SENT = {"any": "AB", "owner": "B", "home": "C", "Vertex": ""}
"""A is the first of the pool and refused, B owns all that is stored, C is the home key."""
WITH_CHUNKS = {"environments.files.upload": "BC"}
"""The chunks have the client's own key; those of other uploads have none."""
CALLED = [name for name, row in PRESENT.items() if row.key in KEYS_SENT and name[0].islower()]


@pytest.fixture
def server(pool, gemini) -> Iterator[AnyServer]:
    """Serve, with a pool of A, B and C."""
    server = AnyServer({pool.key(name): name for name in "ABC"}, refused="A")
    entries = [{"key_id": name, "project": name} for name in "ABC"]
    installed = pool(*entries, strategy="fill", allowed_hosts=(server.host,))
    installed.state.set_owner(Lease("B", "B", "", "", "", 0, 0, 0.0), OWNED)
    yield server
    server.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "mode"), list(zip(CALLED, cycle(["sync", "async"]), strict=False))
)
def test_a_request_has_the_key_that_the_page_names(method, mode, server, pool, connect) -> None:
    """Whatever becomes of the answer: it is the same for all methods, so not all can read it."""
    client, error = connect(pool.key("C"), base_url=f"http://{server.host}"), None
    try:
        asyncio.run(acall(client, method)) if mode == "async" else call(client, method)
    except Exception as raised:
        error = raised
    sent = [key for key, _ in groupby(server.sent)]
    assert "".join(sent) == WITH_CHUNKS.get(method, KEYS_SENT[PRESENT[method].key]), repr(error)


def call(client: Any, method: str) -> None:
    result = attrgetter(method)(client)(**arguments(method))
    if method.endswith("_stream"):
        list(result)


async def acall(client: Any, method: str) -> None:
    try:
        result = attrgetter(method)(client.aio)(**arguments(method))
        if inspect.isawaitable(result):
            result = await result
        if method.endswith("_stream"):
            assert [chunk async for chunk in result]
    finally:
        await client.aio.aclose()
