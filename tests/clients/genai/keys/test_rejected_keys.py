"""A rejected key: what is created meanwhile, when it is tried again, and reset()."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from google.genai import errors, types
from support.modes import MODEL, ask_sync, run, spread

import keyrot_middleware
from keyrot_middleware.testing import Reply

pytestmark = pytest.mark.usefixtures("v1beta")
PLAIN = types.UploadFileConfig(mime_type="text/plain")
CACHE = types.CreateCachedContentConfig(contents="a long text " * 500)
CREATES: dict[str, Callable[[Any], Any]] = {
    "file": lambda api: api.files.upload(file=io.BytesIO(b"hello"), config=PLAIN),
    "cache": lambda api: api.caches.create(model=MODEL, config=CACHE),
    "batch": lambda api: api.batches.create(
        model=MODEL, src=[{"contents": [{"parts": [{"text": "hello"}]}]}]
    ),
    "video": lambda api: api.models.generate_videos(
        model="veo-3.0-generate-001", source={"prompt": "a cat"}
    ),
}


def skip_where_unsupported(kind: str) -> None:
    """Skip calls that this SDK refuses before it sends anything."""
    if kind == "video":
        from google.genai import version

        if version.__version__.startswith("3."):
            pytest.skip("this SDK makes no videos with the Gemini API (make sdk-versions)")


@pytest.mark.parametrize(
    ("kind", "mode", "reply", "known"),
    spread(CREATES, ["sync", "async"], [Reply.KEY_INVALID, Reply.QUOTA_MINUTE], [True, False]),
)
def test_another_key_creates_it(kind, mode, reply, known, gemini, pool, connect) -> None:
    """No error, one request with the first key, and what was created is found where it is."""
    skip_where_unsupported(kind)
    pool("A", "B", "C", strategy="fill", max_wait_s=0)
    gemini.always("A", reply)
    client = connect()
    if known:
        ask_sync("sync", client)

    async def create() -> Any:
        return await CREATES[kind](client.aio)

    for _ in range(3):
        made = CREATES[kind](client) if mode == "sync" else run(client, create)
    assert made.name
    assert {request.key for request in gemini.log if request.key} == {"A", "B"}
    other_model = kind == "video" and known and reply is Reply.QUOTA_MINUTE
    assert gemini.sent("A") == 1 + other_model
    if kind == "file":
        assert client.files.get(name=made.name).name == made.name


@pytest.mark.parametrize("kind", ["file", "cache"])
def test_an_exhausted_key_of_the_client_is_not_replaced(kind, gemini, pool, connect) -> None:
    """Its program may expect the new resource in that project."""
    pool("A", "B", strategy="fill", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_MINUTE)
    client = connect(gemini.key("A").value)
    with pytest.raises(errors.ClientError, match="429"):
        CREATES[kind](client)
    assert gemini.sent("B") == 0


def test_reset_repeats_no_value(pool, gemini) -> None:
    """Who gives a value instead of an id gets an error without it."""
    pool("A")
    for reset in (keyrot_middleware.reset, keyrot_middleware.get_key_manager().report_success):
        with pytest.raises(KeyError, match=r"no key '\[a key\]' in pool"):
            reset(gemini.key("A").value)


def test_reset_names_the_keys_that_there_are(pool) -> None:
    """An unknown id is a KeyError; without a pool there is nothing to reset."""
    pool("A", "B")
    with pytest.raises(KeyError, match="no key 'C' in pool 'default'; there are: A, B"):
        keyrot_middleware.reset("C")
    keyrot_middleware.uninstall()
    with pytest.raises(keyrot_middleware.KeyrotError, match="no pool is installed"):
        keyrot_middleware.reset("A")
