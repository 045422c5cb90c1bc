"""The traces in a real Jaeger after examples/jaeger has run."""

import json
import re

import pytest
from support.jaeger import SERVICE, draw, root_of

from keyrot_middleware.testing import FakeGemini

ASYNC = ", async"
KEY = re.compile(r"AIza|AQ\.|FAKE")
# A line for each span: name, kind, status, attributes; `!` is an event of the span.
TREES = (
    """
1 the first key serves  internal
  generate_content gemini-flash-latest  client  count=1
    attempt free_1  internal  number=1  outcome=success
""",
    """
2 the second key serves  internal
  generate_content gemini-flash-latest  client  count=2
    attempt free_1  internal  ERROR 429 quota_minute  number=1  outcome=failure  error.type=429
      ! keyrot.cooldown free_1 quota_minute project_model
    attempt free_2  internal  number=2  outcome=success
""",
    """
3 the third key serves  internal
  generate_content gemini-flash-latest  client  count=3
    attempt free_1  internal  ERROR 429 quota_day  number=1  outcome=failure  error.type=429
      ! keyrot.cooldown free_1 quota_day project_model
    attempt free_2  internal  ERROR 400 key_invalid  number=2  outcome=failure  error.type=400
      ! keyrot.key.retired free_2 key_invalid key
    attempt paid_1  internal  number=3  outcome=success
""",
    """
4 a stream  internal
  generate_content gemini-flash-latest  client  stream=True  count=2
    attempt free_1  internal  ERROR 429 quota_minute  number=1  outcome=failure  error.type=429
      ! keyrot.cooldown free_1 quota_minute project_model
    attempt free_2  internal  number=2  outcome=success
""",
    """
5 every key is busy for a second  internal
  generate_content gemini-flash-latest  client  count=4
    ! keyrot.wait key
    attempt free_1  internal  ERROR 429 rate_limit  number=1  outcome=failure  error.type=429
      ! keyrot.cooldown free_1 rate_limit project_model
    attempt free_2  internal  ERROR 429 rate_limit  number=2  outcome=failure  error.type=429
      ! keyrot.cooldown free_2 rate_limit project_model
    attempt paid_1  internal  ERROR 429 rate_limit  number=3  outcome=failure  error.type=429
      ! keyrot.cooldown paid_1 rate_limit project_model
    attempt free_1  internal  number=4  outcome=success
""",
    """
6 a tool call  internal
  generate_content gemini-flash-latest  client  count=2
    ! keyrot.wait retry
    attempt free_1  internal  ERROR 503 overloaded  number=1  outcome=failure  error.type=503
    attempt free_1  internal  number=2  outcome=success
  get_weather  internal
  generate_content gemini-flash-latest  client  count=1
    attempt free_1  internal  number=1  outcome=success
""",
    """
7 no key can serve  internal
  generate_content gemini-flash-latest  client  ERROR no key can serve  count=3  error.type=429
    ! keyrot.pool.exhausted free_1: quota_day, free_2: key_leaked, …, paid_1: credit_depleted
    attempt free_1  internal  ERROR 429 quota_day  number=1  outcome=failure  error.type=429
      ! keyrot.cooldown free_1 quota_day project_model
    attempt free_2  internal  ERROR 403 key_leaked  number=2  outcome=failure  error.type=403
      ! keyrot.key.retired free_2 key_leaked key
    attempt paid_1  internal  ERROR 402 credit_depleted  number=3  outcome=failure  error.type=402
      ! keyrot.cooldown paid_1 credit_depleted billing
  generate_content gemini-flash-latest  client  ERROR no key can serve  count=0  error.type=429
    ! keyrot.pool.exhausted free_1: quota_day, free_2: key_leaked, …, paid_1: credit_depleted
""",
    """
8 a bad request  internal
  generate_content gemini-flash-latest  client  ERROR 400 bad_request  count=1  error.type=400
    attempt free_1  internal  ERROR 400 bad_request  number=1  outcome=failure  error.type=400
""",
)


def name_of(tree: str) -> str:
    return tree.strip().partition("  ")[0]


@pytest.mark.parametrize("way", ["", ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("tree", TREES, ids=name_of)
def test_a_case_is_traced_completely(roots, tree, way) -> None:
    """Names, kinds, parents, attempts in order, status and events are those of the case."""
    name = name_of(tree)
    drawn = re.sub(r"rejected; [^,]*Z", "…", draw(roots[name + way]))
    drawn = re.sub("; tried again at [^,Z]*Z", "", drawn)
    assert drawn == tree.strip().replace(name, name + way)


def test_there_is_one_trace_for_each_case(traces) -> None:
    assert len(traces) == 2 * len(TREES)
    spans = [span["spanID"] for trace in traces for span in trace["spans"]]
    assert len(spans) == len(set(spans))


def test_a_failed_call_can_be_found_by_its_tags(jaeger, roots) -> None:
    """The searches in the example's README find their traces."""
    for tags, case in (
        ({"keyrot.failure.class": "key_leaked"}, "7 no key can serve"),
        ({"keyrot.attempt.count": "4"}, "5 every key is busy for a second"),
        ({"error.type": "503"}, "6 a tool call"),
    ):
        found = jaeger.query("/api/traces", service=SERVICE, tags=json.dumps(tags))["data"]
        assert {root_of(trace).name for trace in found} == {case, case + ASYNC}


def test_jaeger_has_no_key_and_no_text(traces) -> None:
    """No key of the pool, prompt, answer or server's message was exported."""
    with FakeGemini() as gemini:
        for style in ("standard", "auth"):
            assert KEY.search(gemini.add_key(style, style=style).value)
    held = json.dumps(traces)
    assert "attempt free_1" in held
    assert KEY.search(held) is None
    for text in ("Say hello", "Rome", "ok from", "exceeded", "leaked. Please", "not valid"):
        assert text not in held
