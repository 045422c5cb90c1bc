"""Settings: precedence, defaults, and the keys that they define."""

import copy
import pickle
import re
from pathlib import Path

import pytest
from support.fake_settings import AUTH, A, B, C, write_keys

from keyrot_middleware.core.model import LAST_RESORT, POOL_KEY, RetryPolicy
from keyrot_middleware.hosts import is_loopback, origin_from_url, origins
from keyrot_middleware.secrets.stores import open_secret_cache
from keyrot_middleware.settings import ENV_NAMES, Settings, load

ROOT = Path(__file__).parent.parent
DEFAULTS = Settings.model_construct().model_dump(exclude={"keys_file"})


def test_an_argument_beats_the_environment_beats_the_file_beats_the_default(
    here, monkeypatch
) -> None:
    """Each layer of settings hides the ones below it."""
    (here / ".env").write_text("KEYROT_POOL=from-file\nKEYROT_MAX_RETRIES=7\nOTHER=1\n")
    assert load().settings.pool == "from-file"
    monkeypatch.setenv("KEYROT_POOL", "from-environment")
    assert load().settings.pool == "from-environment"
    assert load(pool="from-argument").settings.pool == "from-argument"
    assert load(pool=None).settings.pool == "from-environment"
    assert load().policy.max_retries == 7


def test_an_empty_value_means_the_default_and_hides_the_layers_below(here, monkeypatch) -> None:
    """`KEYROT_POOL=` in the environment switches off what .env says."""
    (here / ".env").write_text(f"KEYROT_POOL=from-file\nGEMINI_API_KEYS={A}\n")
    for name in ENV_NAMES.values():
        monkeypatch.setenv(name, " ")
    config = load()
    assert (config.keys, config.warnings, config.policy) == ((), (), RetryPolicy())
    assert config.settings.pool == "default"


def test_hosts_are_compared_in_lower_case_and_once() -> None:
    """Hosts may be a list or comma-separated, with ports, also IPv6."""
    expected = ("x.test", "localhost:8080", "[::1]:443")
    assert load(
        allowed_hosts="X.test, localhost:8080,,x.test,[::1]:443"
    ).settings.allowed_hosts == (expected)
    assert load(allowed_hosts=list(expected)).settings.allowed_hosts == expected


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("[::1]:8080", "http://[::1]:8080/v1"),
        ("localhost:8080", "http://LOCALHOST:8080/"),
        ("127.0.0.1", "http://127.0.0.1"),
        ("http://proxy.test:8080", "http://proxy.test:8080/v1"),
        ("http://proxy.test", "http://proxy.test:80"),
        ("[::1]", "https://[::1]"),
        ("[::1]:443", "https://[::1]:443"),
        ("proxy.test:443", "https://proxy.test:443/"),
        ("proxy.test:443", "https://proxy.test"),
        ("proxy.test:80", "https://proxy.test:80"),
        ("proxy.test", "https://proxy.test:443"),
        ("proxy.test:8443", "https://proxy.test:8443"),
    ],
)
def test_every_host_that_is_accepted_can_match(host, url) -> None:
    """Addresses in brackets and a scheme's own port match those of the base URL."""
    names = origins(load(allowed_hosts=[host]).settings.allowed_hosts)
    assert origin_from_url(url) in names
    assert origin_from_url("https://proxy.test:444") not in names


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("proxy.test:443", "http://proxy.test:80"),
        ("proxy.test:443", "http://proxy.test:443"),
        ("proxy.test", "http://proxy.test"),
        ("proxy.test:8080", "http://proxy.test:8080"),
        ("http://proxy.test", "https://proxy.test"),
        ("http://proxy.test", "http://proxy.test:8080"),
        ("127.0.0.1:8080", "http://127.0.0.1:8081"),
        ("localhost", "http://localhost.proxy.test"),
        ("127.0.0.1.test", "http://127.0.0.1.test"),
        ("proxy.test", "ftp://proxy.test"),
        ("proxy.test", "proxy.test"),
    ],
)
def test_only_written_hosts_and_ports_are_allowed(host, url) -> None:
    """Plain HTTP is allowed for loopback, or where it is written; a port is that port alone."""
    names = origins(load(allowed_hosts=[host]).settings.allowed_hosts)
    assert origin_from_url(url) not in names


@pytest.mark.parametrize(
    ("name", "is_sent_plain"),
    [("*", True), ("127.0.0.1", True), ("example.test, 127.0.0.1", True), ("", False)],
)
def test_plain_http_on_this_host_needs_no_proxy(name, is_sent_plain, monkeypatch) -> None:
    """Where HTTP_PROXY would get the key, unless NO_PROXY names the host, or all of them."""
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, name)
    allowed = origins(load(allowed_hosts=["127.0.0.1:8080"]).settings.allowed_hosts)
    assert ("http://127.0.0.1:8080" in allowed) is is_sent_plain


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("localhost", True), ("127.9.8.7", True), ("::1", True), ("::ffff:127.0.0.1", True)),
        *(("::ffff:192.0.2.1", False), ("192.0.2.1", False), ("localhost.test", False)),
    ],
)
def test_which_hosts_are_this_machine(host, expected) -> None:
    """An IPv4 address that is written as one of IPv6 is the same one."""
    assert is_loopback(host) is expected


def test_the_end_of_an_address_is_no_port() -> None:
    """An IPv6 address that ends in 80 is not another one with a port."""
    assert origins(["[2001:db8::1:80]"]) == {"https://[2001:db8::1:80]:443"}


def test_a_list_of_keys_makes_a_pool(monkeypatch) -> None:
    """GEMINI_API_KEYS alone: key_1, key_2, …; blanks and repeats dropped."""
    monkeypatch.setenv("GEMINI_API_KEYS", f"{A}, {B},,{A} ,{POOL_KEY},{C}")
    config = load()
    assert [key.key_id for key in config.keys] == ["key_1", "key_2", "key_3"]
    cache = open_secret_cache(config)
    assert [cache.value(key_id).reveal() for key_id in cache.resolved] == [A, B, C]


def test_keys_given_as_an_argument_are_the_pool(here, monkeypatch) -> None:
    """Neither keys.json nor the single key of the environment is added, unless it is given too."""
    path = write_keys(here / "keys.json", {"key_id": "paid_01"})
    monkeypatch.setenv("GEMINI_API_KEY", C)
    assert [key.key_id for key in load(keys=[A, B]).keys] == ["key_1", "key_2"]
    assert load(keys=[A]).keys_file is None
    both = load(keys=[A], keys_file=path, gemini_api_key=C)
    assert [key.key_id for key in both.keys] == ["paid_01", "key_1", "GEMINI_API_KEY"]
    assert [key.key_id for key in load(keys=[]).keys] == ["paid_01", "GEMINI_API_KEY"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"GOOGLE_API_KEY": A, "GEMINI_API_KEY": B}, "GOOGLE_API_KEY"),
        ({"GEMINI_API_KEY": B}, "GEMINI_API_KEY"),
        ({"GOOGLE_API_KEY": "", "GEMINI_API_KEY": B}, "GEMINI_API_KEY"),
        ({"GOOGLE_API_KEY": POOL_KEY, "GEMINI_API_KEY": B}, "GEMINI_API_KEY"),
        ({"GEMINI_API_KEY": POOL_KEY}, None),
        ({}, None),
    ],
)
def test_the_single_key_is_chosen_as_the_sdk_does(settings, expected, monkeypatch) -> None:
    """GOOGLE_API_KEY comes first; empty and the placeholder mean none; alone it is a pool."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    config = load()
    assert config.last_resorts == ((expected,) if expected else ())
    assert [key.key_id for key in config.keys] == ([expected] if expected else [])
    assert all(key.priority == LAST_RESORT for key in config.keys)
    if expected:
        assert open_secret_cache(config).value(expected).reveal() == settings[expected]


def test_the_state_url_or_the_redis_url_is_used(monkeypatch) -> None:
    """KEYROT_STATE_URL; with `redis` REDIS_URL; otherwise memory. Passwords are not shown."""
    assert load().state_url == "memory://"
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@cache/0")
    config = load(state_url="redis", pool="mine")
    assert (config.state_url, config.warnings) == ("redis://:hunter2@cache/0", ())
    assert config.state_variable == "REDIS_URL"
    assert load(state_url="memory://").state_url == "memory://"
    monkeypatch.setenv("KEYROT_STATE_URL", "rediss://:hunter2@shared")
    config = load()
    assert (config.state_url, config.state_variable) == (
        "rediss://:hunter2@shared",
        "KEYROT_STATE_URL",
    )
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize("url", ["tcp://:hunter2@cache", "redis://:hunter2@cache"])
def test_a_redis_url_of_the_program_is_not_used(url, monkeypatch) -> None:
    """It may have another purpose: it is no consent, whether it is usable or not."""
    monkeypatch.setenv("REDIS_URL", url)
    assert (load().state_url, load().warnings) == ("memory://", ())


def test_a_shared_state_without_a_pool_name_is_a_warning() -> None:
    """Services without a name share the pool `default`; a memory state is not shared."""
    (warning,) = load(state_url="redis://cache").warnings
    assert "KEYROT_POOL is not set" in warning
    assert load(state_url="redis://cache", pool="mine").warnings == ()
    assert load().warnings == ()


def test_a_good_config_shows_and_pickles_no_secret(monkeypatch) -> None:
    """Neither repr nor warnings nor pickle carry a key; a copy is still possible."""
    monkeypatch.setenv("GEMINI_API_KEYS", f"{A},{A},{AUTH}")
    config = load(gemini_api_key=B)
    for secret in (A, B, AUTH):
        assert secret not in f"{config!r} {config} {config.warnings} {config.inline}"
        assert secret not in f"{config.settings!r} {config.settings.model_dump_json()}"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(config.settings)
    assert copy.copy(config.settings) == config.settings


def test_the_examples_load_together(here, monkeypatch) -> None:
    """.env.example with every line switched on, filled in, loads with keys_example.json."""
    text = re.sub(r"^#(?=[A-Z0-9_]+=)", "", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    for value, name in zip((A, B, C), ("flash_01=", "flash_02=", "TEAM_PRO_KEY="), strict=True):
        text = text.replace(f"{name}\n", f"{name}{value}\n")
    (here / ".env").write_text(text)
    (here / "keys.json").write_text((ROOT / "keys_example.json").read_text())
    config = load()
    shown = {"keys_file"}  # which have an example's value
    defaults = {name: value for name, value in DEFAULTS.items() if name not in shown}
    assert config.settings.model_dump(exclude=shown) == defaults
    assert open_secret_cache(config).resolved == ("flash_01", "flash_02", "pro_01")
