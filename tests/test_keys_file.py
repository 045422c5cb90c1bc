"""keys.json: its fields, and an error for every mistake in it."""

import json
from pathlib import Path

import pytest

from keyrot_middleware.core.model import NANO, Budget, Candidate, Limits
from keyrot_middleware.keys_file import KeySpec, read_keys

KEY = "AIza" + "FAKE" + "k" * 31
AUTH = "AQ." + "FAKE" + "z" * 46
ROOT = Path(__file__).parent.parent


@pytest.fixture
def path(tmp_path) -> Path:
    """Return the path of a keys.json that does not exist yet."""
    return tmp_path / "keys.json"


def load_keys(path: Path) -> tuple[KeySpec, ...]:
    keys, problems = read_keys(path)
    assert problems == []
    return keys


def refusal(path: Path, content: object) -> str:
    """Write a wrong keys.json; return what is wrong."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    problems = read_keys(path)[1]
    assert problems
    assert all(line.startswith(str(path)) for line in problems)
    return "\n".join(problems).replace(str(path), "FILE")


def test_the_example_has_three_keys_of_different_kinds() -> None:
    """keys_example.json shows flash_01, flash_02 and pro_01, each of its own kind."""
    keys = load_keys(ROOT / "keys_example.json")
    assert [key.key_id for key in keys] == ["flash_01", "flash_02", "pro_01"]
    assert len({key.workload for key in keys}) == 3
    assert len({key.tier for key in keys}) == 3


def test_every_field_is_used(path) -> None:
    """A full entry becomes the candidate that selection and quota see."""
    entry = {
        "key_id": "a",
        "model": "models/gemini-x",
        "workload": "batch",
        "tier": "tier1",
        "project": "p",
        "billing_account": "b",
        "priority": -1,
        "weight": 2,
        "rpm": 1,
        "tpm": 2,
        "rpd": 3,
        "max_concurrency": 4,
        "usd": {"day": 5, "month": 6.0},
        "active": False,
        "secret": "env://NAME",
    }
    path.write_text(json.dumps([entry]))
    (key,) = load_keys(path)
    assert key.secret == "env://NAME"
    assert key.candidate == Candidate(
        "a",
        "p",
        "b",
        Limits(1, 2, 3, 4),
        "gemini-x",
        "batch",
        "tier1",
        -1,
        2.0,
        "active=false",
        usd=Budget(10 * NANO, 5 * NANO, 6 * NANO),
    )


@pytest.mark.parametrize("content", ["[]", "\ufeff[]"])
def test_an_empty_list_is_no_key(path, content) -> None:
    """An empty list is allowed, also after a byte order mark."""
    path.write_text(content, encoding="utf-8")
    assert load_keys(path) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"key_id": "a",}\n]', "FILE: this is no JSON that can be read: "),
        (
            '[\n  {"key_id" "a"}\n]',
            "delimiter: line 2 column 13",
        ),
        ("", "can be read: Expecting value: line 1 column 1"),
        ({"key_id": "a"}, "FILE: found an object; allowed: a list of keys"),
        ("7", "FILE: found 7; allowed: a list of keys"),
        ("[" * 100_000, "this is no JSON that can be read: "),
        (["a"], 'FILE, entry 1: found "a"; allowed: an object'),
        ([{}], "FILE, entry 1, field key_id: Field required"),
        ([{"key_id": "flash-01"}], 'field key_id: found "flash-01". Allowed: letters'),
        ([{"key_id": "GEMINI_API_KEY"}], "field key_id: GEMINI_API_KEY is taken"),
        ([{"key_id": "a"}, {"key_id": "a"}], "FILE, key a, field key_id: found in 2 entries"),
        ([{"key_id": "a", "project": "key:b"}], 'field project: found "key:b"; no project begins'),
        ([{"key_id": "a", "modle": "x"}], 'FILE, key a, field "modle": there is no such field.'),
        ([{"key_id": "a", "modle": "x"}], 'Did you mean "model"?'),
        ([{"key_id": "a", "api_key": "x"}], "no such field. the value of a key does not belong"),
        ([{"key_id": "a", "rpm": -3}], "FILE, key a, field rpm: found -3. Input should be greater"),
        ([{"key_id": "a", "rpd": "10"}], 'field rpd: found "10". Input should be a valid integer'),
        ([{"key_id": "a", "max_concurrency": True}], "field max_concurrency: found true. Input"),
        ('[{"key_id": "a", "weight": NaN}]', "field weight: found NaN. Input should be a finite"),
        ([{"key_id": "a", "use": 1.1}], "field use: found 1.1. Input should be less than or equal"),
        ([{"key_id": "a", "usd": "5"}], 'field usd: found "5". Allowed: dollars by window'),
        ([{"key_id": "a", "tier": "fre"}], "field tier: found \"fre\". Input should be 'free', "),
        ([{"key_id": "a", "project": " "}], 'field project: found " ". String should have at'),
        ([{"key_id": "a", "model": {}}], "field model: found an object. Input should be a valid"),
        ('[{"key_id": "a", "model": "\\ud800"}]', "field model: found "),
        ([{"key_id": "a", "secret": "hunter2"}], "field secret: found no place (not shown here)"),
        *(
            ([{"key_id": "a", "secret": secret}], "field secret: found no place (not shown here)")
            for secret in ("vault://", "x://k", "file://k", "env://a b")
        ),
        ([{"key_id": "a", "secret": 12345}], "field secret: Input should be a valid string"),
        ([{"key_id": "a", "secret": f"env://{AUTH}"}], "field secret: found an API key itself"),
        ([{"key_id": KEY}], "FILE, entry 1, field key_id: found an API key itself"),
    ],
)
def test_a_mistake_is_reported_by_file_key_and_field(path, content, message) -> None:
    """The error names the place, the value and what is allowed, and shows no secret."""
    text = refusal(path, content)
    assert message in text
    for secret in (KEY, AUTH, "hunter2", "12345"):
        assert secret not in text


def test_all_mistakes_are_reported_at_once(path) -> None:
    text = refusal(path, [{"key_id": "a", "rpm": 0, "tpm": 0}, 7, {"key_id": "a", KEY: 1}])
    assert len(text.splitlines()) == 4
    assert KEY not in text


def test_an_unreadable_file_is_an_error(path) -> None:
    """A missing file, a directory and another encoding are errors of ours."""
    assert "no such file" in str(read_keys(path))
    assert "no such file" in str(read_keys(path.parent))
    path.write_bytes(b'[{"key_id": "\xff"}]')
    assert "decode byte 0xff in position 13" in str(read_keys(path))


def test_a_project_has_quotas_of_its_own_on_each_platform() -> None:
    """Its billing account is the same, its windows and its budget are not."""
    made = [
        KeySpec(key_id="a", project="p").candidate,
        KeySpec(key_id="b", project="p", platform="vertex_express").candidate,
        KeySpec(key_id="c", platform="vertex_express").candidate,
    ]
    assert [one.project for one in made] == ["p", "p/vertex_express", "key:c"]
    assert [one.billing_account for one in made] == ["project:p", "project:p", "project:key:c"]
    assert [one.platform for one in made] == ["gemini_api", "vertex_express", "vertex_express"]
