"""Settings that are refused: an error for every wrong value, and no secret in any."""

import re
from pathlib import Path

import pytest
from support.fake_settings import AUTH, A, B, write_keys, wrong

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.settings import ARGUMENTS, ENV_NAMES, GOOGLE_HOST, doubtful_variables, load

SECONDS = [name for name in ENV_NAMES.values() if name.endswith("_S")]


@pytest.mark.parametrize(
    ("variable", "value", "found", "allowed"),
    [
        ("ENABLE_KEY_ROTATION", "maybe", '"maybe"', "Input should be a valid boolean"),
        ("SECRET_STORE_TYPE", "valt", '"valt"', 'gcp, file. Did you mean "vault"?'),
        ("KEYROT_SECRETS_TTL_S", "-1", '"-1"', "greater than or equal to 0"),
        ("KEYROT_STATE_URL", "mysql://u:hunter2@h", '"mysql://[redacted]@h"', "memory://, sqlite"),
        ("KEYROT_STATE_URL", "redis:/u:hunter2@h", '"redis:/[redacted]@h"', "redis://"),
        ("KEYROT_STATE_URL", "redis://u:h/2@h/0", '"redis://[redacted]@h/0"', "with / as %2F"),
        ("KEYROT_STATE_URL", "memory://x", '"memory://x"', "memory://"),
        ("KEYROT_STATE_URL", "redis://", '"redis://"', "redis+sentinel://"),
        ("KEYROT_STATE_URL", "sqlite://x.db", '"sqlite://x.db"', "sqlite:///var/lib"),
        ("KEYROT_STATE_URL", "sqlite:///", '"sqlite:///"', "sqlite:///var/lib"),
        ("KEYROT_STATE_URL", "memory", '"memory"', "memory://"),
        ("KEYROT_USE", "0", '"0"', "greater than 0"),
        ("KEYROT_USE", "90%", '"90%"', "valid number"),
        ("KEYROT_POOL", "a{b}", '"a{b}"', "letters, digits and _ . -"),
        ("KEYROT_TRACE_URL", "https://x.test/trace", '"https://x.test/trace"', "{trace_id}"),
        ("KEYROT_TRACE_URL", "javascript:{trace_id}", '"javascript:{trace_id}"', "{trace_id}"),
        ("KEYROT_TRACE_URL", "https://u:FAKE@x/{trace_id}", '"https://[redacted]@x', "{trace_id}"),
        ("KEYROT_ALLOWED_HOSTS", f"{GOOGLE_HOST},x.test/v1", '"x.test/v1"', "host or host:port"),
        ("KEYROT_ALLOWED_HOSTS", "x.test:99999", '"x.test:99999"', "host or host:port"),
        ("KEYROT_ALLOWED_HOSTS", "*.test", '"*.test"', "in full"),
        ("KEYROT_ALLOWED_HOSTS", ",", "found none", "."),
        ("KEYROT_ALLOWED_HOSTS", "hunter2@x.test", '"[redacted]@x.test"', "host or host:port"),
        ("KEYROT_ALLOWED_HOSTS", "https://u:a/b@x", '"https://[redacted]@x"', "host or host:port"),
        ("KEYROT_STRATEGY", "sprad", '"sprad"', "'sticky'. Did you mean \"spread\"?"),
        ("KEYROT_CLIENTS", "httpx,request", '"request"', 'Did you mean "requests"?'),
        ("KEYROT_MAX_ATTEMPTS", "-1", '"-1"', "greater than or equal to 0"),
        ("KEYROT_MAX_RETRIES", "1.5", '"1.5"', "valid integer"),
        ("KEYROT_MAX_WAIT_S", "nan", '"nan"', "finite number"),
        *((variable, "31622401", '"31622401"', "or equal to 31622400") for variable in SECONDS),
        ("KEYROT_WORKLOADS", "chat", "Expecting value", "line 1 column 1"),
        ("KEYROT_WORKLOADS", "[1]", "found a list", "Input should be a valid dictionary"),
        ("KEYROT_WORKLOADS", '{"a": {"share": 0}}', '"a.share": found 0', "greater than 0"),
        ("KEYROT_WORKLOADS", '{"a": {"usd": {"week": 1}}}', "week", "'10m', 'day' or 'month'"),
        ("KEYROT_WORKLOADS", '{"a": {"frist": true}}', "a.frist", 'Did you mean "first"?'),
        ("KEYROT_WORKLOADS", '{"a": {"usd": "5"}}', '"a.usd": found "5"', 'such as {"day": 5}'),
        ("KEYROT_WORKLOADS", '{"a\\nb": {}}', "found", "none of them a control character"),
        ("KEYROT_FALLBACK_MODELS", "a->b", '"a->b"', "chains of up to"),
        ("KEYROT_KEYS_FILE", "gone.json", "no such file", "keys_example.json"),
    ],
)
def test_the_error_for_a_wrong_value_has_the_value_and_what_is_allowed(
    variable, value, found, allowed, monkeypatch
) -> None:
    """The error names the variable, the value and what is allowed."""
    monkeypatch.setenv(variable, value)
    text = wrong()
    assert variable in text
    assert found in text
    assert allowed in text
    assert "\n" not in text


def test_the_error_names_the_layer_of_the_wrong_value(here, monkeypatch) -> None:
    """An argument, a variable and a line of .env are distinguished."""
    (here / ".env").write_text("KEYROT_STRATEGY=x\n")
    assert wrong().startswith("KEYROT_STRATEGY in .env: ")
    monkeypatch.setenv("KEYROT_STRATEGY", "y")
    assert wrong().startswith("KEYROT_STRATEGY: ")
    assert wrong(strategy="z").startswith("install(strategy=…): ")


def test_all_problems_come_in_one_error(here, monkeypatch) -> None:
    """Settings and keys.json are both read to the end before anything is raised."""
    write_keys(here / "keys.json", {"key_id": "a", "rpm": 0})
    monkeypatch.setenv("KEYROT_STRATEGY", "x")
    text = wrong(max_retries=-1)
    assert text.startswith("3 things are wrong:\n  - ")
    for part in ("KEYROT_STRATEGY", "install(max_retries=…)", "key a, field rpm"):
        assert part in text


def test_unknown_variables_are_one_warning(here, monkeypatch) -> None:
    """Those of the environment and of .env are reported by name, never by value; ours are not."""
    monkeypatch.setenv("KEYROT_STRATGY", "FAKE-value")
    monkeypatch.setenv("KEYROT_VAULT_PLACE", "secret/x")
    monkeypatch.setenv("KEYROT_STRATEGY", "fill")
    monkeypatch.setenv("GOOGLE_API_KEYS", "FAKE-value")
    (here / ".env").write_text(f"keyrot_zzzzzzzzzz=FAKE-value\nKEYROT_{A}=\n")
    (text,) = load().warnings
    assert text.startswith("ignored, since there is no such variable: KEYROT_STRATGY. Did you mean")
    assert '"KEYROT_STRATEGY"? keyrot_zzzzzzzzzz. KEYROT_AIza…[redacted].' in text
    assert text.endswith('GOOGLE_API_KEYS. Did you mean "GEMINI_API_KEYS"?')
    assert "FAKE" not in text


def test_every_variable_that_is_read_is_known() -> None:
    """Variables that a store reads itself are not reported."""
    package = Path(__file__).parents[1] / "keyrot_middleware"
    texts = [path.read_text("utf-8") for path in package.rglob("*.py")]
    read = {name for text in texts for name in re.findall(r'"(KEYROT_[A-Z_]+)"', text)}
    assert len(read) > 3
    found = doubtful_variables(dict.fromkeys(read))
    assert [text for text in found if "no such variable" in text] == []


def test_with_rotation_off_no_setting_is_wrong(here, monkeypatch) -> None:
    """With rotation off nothing else is checked: the switch must work on a bad day."""
    (here / "keys.json").write_text("[")
    monkeypatch.setenv("KEYROT_STRATEGY", "x")
    monkeypatch.setenv("ENABLE_KEY_ROTATION", "False")
    assert not load(max_retries="x").settings.enabled
    assert load().keys == ()
    assert "KEYROT_STRATEGY" in wrong(enabled=True)


def test_no_secret_is_ever_shown(here, monkeypatch) -> None:
    """Whatever is wrong and wherever a key is, no text of ours contains it."""
    write_keys(here / "keys.json", {"key_id": A, "secret": "hunter2"}, {"key_id": "b", "rpm": B})
    for name in ENV_NAMES.values():
        monkeypatch.setenv(name, f"{A},redis://:hunter2@h,{AUTH}")
    monkeypatch.setenv("ENABLE_KEY_ROTATION", "true")
    monkeypatch.setenv("KEYROT_KEYS_FILE", "keys.json")
    texts = wrong() + wrong(keys=[1, A], google_api_key=2, pool=AUTH, keys_file=A) + wrong(**{A: 1})
    for secret in (A, B, AUTH, "hunter2"):
        assert secret.lower() not in texts.lower()


def test_a_file_of_another_encoding_is_an_error(here) -> None:
    """A .env that is not UTF-8 is an error of ours, not a UnicodeDecodeError."""
    (here / ".env").write_bytes(b"KEYROT_POOL=\xff\xfe\n")
    assert ".env cannot be read: 'utf-8' codec" in wrong()


WRONG: tuple[object, ...] = (3, 1.5, object(), [3], {"a": 1}, (None,), {1}, "\ud800")
"""Of these each setting takes at most numbers, booleans or text."""


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_of_a_wrong_type_is_named(name) -> None:
    for value in WRONG:
        try:
            load(**{name: value})
        except ConfigError as error:
            assert f"install({name}=…)" in str(error), value
