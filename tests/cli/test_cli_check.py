"""`keyrot check`: what it shows, what it finds wrong, its exit code; and `--version`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.servers import PATIENT, closed_port, server

from keyrot_middleware.settings import GOOGLE_HOST, VERTEX_HOST
from keyrot_middleware.testing import FakeGemini, Reply

Keyrot = Callable[..., Any]


KEYS = [
    {
        "key_id": "flash_01",
        "model": "gemini-3.1-flash-lite",
        "workload": "interactive",
        "tier": "free",
        "project": "my-project",
        "rpm": 10,
        "tpm": 250_000,
    },
    {"key_id": "pro_01", "priority": 3, "secret": "env://TEAM_KEY", "max_concurrency": 8},
]


@pytest.fixture
def keys_file(tmp_path: Path, clean_environment: None) -> Path:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(KEYS))
    return file


def test_the_table_shows_where_each_value_is(keyrot: Keyrot, keys_file: Path) -> None:
    """With the key's id, its service and its project."""
    ran = keyrot("check", GEMINI_KEY_flash_01="value-one", TEAM_KEY="value-two")
    assert ran.returncode == 0, ran.stderr
    table = ran.stdout[ran.stdout.index("Keys (2)") :]
    texts = ("flash_01", "gemini_api", "my-project", "env://GEMINI_KEY_flash_01")
    texts += ("pro_01", "env://TEAM_KEY")
    assert [text for text in texts if text not in table] == []
    assert table.count("found #") == 2
    assert ran.stdout.endswith("\nOK: 2 of 2 keys found.\n")
    assert "KEYROT_MAX_WAIT_S" not in ran.stdout, "which has its default"


def test_settings_show_where_they_come_from_and_no_secret(keyrot, keys_file, tmp_path) -> None:
    """Each setting in force is listed with its source; keys and passwords never are."""
    secrets = {
        "GEMINI_API_KEYS": "value-three,value-four",
        "GEMINI_API_KEY": "value-five",
        "REDIS_URL": "redis://user:value-six@host",
        "KEYROT_STRATEGY": "fill",
    }
    (tmp_path / ".env").write_text("GEMINI_KEY_flash_01=value-one\nKEYROT_MAX_RETRIES=5\n")
    for given in (("check",), ("check", "--json")):
        ran = keyrot(*given, **secrets)
        assert "value-" not in ran.stdout + ran.stderr
    found = json.loads(ran.stdout)["settings"]
    assert found["KEYROT_STRATEGY"] == {"value": "fill", "source": "environment"}
    assert found["KEYROT_MAX_RETRIES"] == {"value": 5, "source": ".env"}
    assert found["KEYROT_MAX_WAIT_S"] == {"value": 65.0, "source": "default"}
    assert found["GEMINI_API_KEYS"]["value"] == "2 (not shown)"
    assert found["KEYROT_KEYS_FILE"]["value"] == "keys.json"
    assert found["GEMINI_API_KEY"]["value"] == "set (not shown)"
    assert found["GOOGLE_API_KEY"]["value"] is None
    assert found["ENABLE_KEY_ROTATION"]["value"] is True
    assert found["KEYROT_ALLOWED_HOSTS"]["value"] == [GOOGLE_HOST, VERTEX_HOST]


def test_json_has_the_same_content(keyrot: Keyrot, keys_file: Path) -> None:
    """`--json` has each key's fields, whether it resolves, and why not."""
    ran = keyrot("check", "--json", GEMINI_KEY_flash_01="value-one", GOOGLE_API_KEY="value-one")
    found = json.loads(ran.stdout)
    keys = {key["key_id"]: key for key in found["keys"]}
    assert (ran.returncode, found["ok"], list(keys)) == (
        1,
        False,
        ["flash_01", "pro_01", "GOOGLE_API_KEY"],
    )
    assert keys["flash_01"]["resolved"]
    assert keys["flash_01"]["rpm"] == 10
    assert keys["pro_01"]["problem"].startswith("key pro_01: the variable TEAM_KEY")
    assert keys["GOOGLE_API_KEY"]["same_as"] == "flash_01"
    assert keys["GOOGLE_API_KEY"]["problem"] is None
    ran = keyrot(
        "check", "--json", GEMINI_KEY_flash_01="one", TEAM_KEY="two", GEMINI_API_KEYS="two"
    )
    again = "GEMINI_API_KEYS has the values of other keys again (key_1): unset it"
    assert again in json.loads(ran.stdout)["warnings"]


def test_each_key_has_its_store_and_reference(keyrot: Keyrot, tmp_path: Path) -> None:
    """Stores may be mixed; a default reference is written out, a value in a setting is marked."""
    (tmp_path / "mounted").write_text("value-one\n")
    entries = [{"key_id": "a", "secret": f"file://{tmp_path}/mounted"}, {"key_id": "b"}]
    (tmp_path / "keys.json").write_text(json.dumps(entries))
    given = {"SECRET_STORE_TYPE": "file", "CREDENTIALS_DIRECTORY": "/none"}
    given |= {
        "GEMINI_API_KEYS": "value-two",
        "GEMINI_API_KEY": "x-three",
        "XAI_API_KEYS": "value-four",
    }
    ran = keyrot("check", "--json", **given)
    keys = {key["key_id"]: key for key in json.loads(ran.stdout)["keys"]}
    assert {key_id: (key["store"], key["secret"]) for key_id, key in keys.items()} == {
        "a": ("file", f"file://{tmp_path}/mounted"),
        "b": ("file", "file:///none/b"),
        "key_1": ("setting", "GEMINI_API_KEYS (key_1)"),
        "GEMINI_API_KEY": ("env", "env://GEMINI_API_KEY"),
        "xai_1": ("setting", "XAI_API_KEYS (xai_1)"),
    }
    assert [key["resolved"] for key in keys.values()] == [True, False, True, True, True]
    assert keys["b"]["problem"] == "key b: the file /none/b: FileNotFoundError"
    assert ran.returncode == 1


def test_the_state_is_shown_and_checked(keyrot: Keyrot, keys_file: Path) -> None:
    """A shared state that does not answer is wrong; its password is not shown."""
    values = {"GEMINI_KEY_flash_01": "value-one", "TEAM_KEY": "value-two"}
    ran = keyrot("check", **values)
    assert "State: memory://, not shared: each process counts by itself\n" in ran.stdout
    url = f"redis://user:hunter2@127.0.0.1:{closed_port()}/0"
    ran = keyrot("check", KEYROT_STATE_URL=url, **values)
    assert ran.returncode == 1
    assert "State: redis://[redacted]@127.0.0.1:" in ran.stdout
    assert "cannot be used" in ran.stdout
    assert ran.stdout.endswith("Not OK: 1 problem; 2 of 2 keys found.\n")
    report = json.loads(keyrot("check", "--json", KEYROT_STATE_URL=url, **values).stdout)
    assert (report["state"]["shared"], report["state"]["reachable"]) == (True, False)
    assert "hunter2" not in ran.stdout + ran.stderr + json.dumps(report)
    ran = keyrot("check", KEYROT_STATE_URL=server("valkey").url, **values)
    assert ran.returncode == 0
    assert f"/0?{PATIENT}, shared, reachable\n" in ran.stdout


def test_no_key_and_only_disabled_keys_are_errors(keyrot: Keyrot, tmp_path: Path) -> None:
    """At least one key must be usable."""
    ran = keyrot("check")
    assert ran.returncode == 1
    assert "set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json" in ran.stdout
    (tmp_path / "keys.json").write_text('[{"key_id": "a", "active": false}]')
    ran = keyrot("check", GEMINI_KEY_a="value-one")
    assert ran.returncode == 1
    assert "warning: disabled by active=false: a" in ran.stdout


def test_a_wrong_setting_is_reported_without_a_traceback(keyrot: Keyrot, tmp_path: Path) -> None:
    """A broken file is named with what is wrong in it, as text and as JSON; exit code 1."""
    (tmp_path / "keys.json").write_text('[{"key_id": "a", "rpm": -1}]')
    ran = keyrot("check")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("keyrot: keys.json, key a, field rpm: found -1. Input should be")
    ran = keyrot("check", "--json")
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "field rpm" in json.loads(ran.stdout)["error"]


def test_live_sends_one_request_with_each_key(keyrot: Keyrot, service: FakeGemini) -> None:
    """`--live` sends one request per key and names the class of a failure, without the key."""
    keys = [service.add_key(label) for label in ("good", "suspended", "spent")]
    service.always("suspended", Reply.KEY_SUSPENDED)  # Google's body echoes the whole key
    service.always("spent", Reply.QUOTA_DAY)
    given = {
        "GEMINI_API_KEYS": ",".join(key.value for key in keys),
        "GOOGLE_GEMINI_BASE_URL": service.url,
        "KEYROT_ALLOWED_HOSTS": service.host,
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
    }
    ran = keyrot("check", "--live", "--json", **given)
    assert ran.returncode == 1
    live = [key["live"] for key in json.loads(ran.stdout)["keys"]]
    assert [answer["failure"] for answer in live] == [None, "project_suspended", "quota_day"]
    assert sorted(request.key or "" for request in service.log) == ["good", "spent", "suspended"]
    assert all(r.body["generationConfig"]["maxOutputTokens"] == 1 for r in service.log)

    shown = keyrot("check", "--live", "--model", "gemini-x", **given)
    assert "works" in shown.stdout
    assert "project_suspended (403)" in shown.stdout
    assert service.log[-1].model == "gemini-x"
    assert not any(key.value in ran.stdout + shown.stdout for key in keys)


def test_a_busy_key_works(keyrot, service) -> None:
    """A minute's quota says nothing against a key."""
    values = [service.add_key(label).value for label in ("good", "busy")]
    service.always("busy", Reply.QUOTA_MINUTE)
    given = {
        "GEMINI_API_KEYS": ",".join(values),
        "GOOGLE_GEMINI_BASE_URL": service.url,
        "KEYROT_ALLOWED_HOSTS": service.host,
    }
    ran = keyrot("check", "--live", **given)
    assert (ran.returncode, "works; now quota_minute (429)" in ran.stdout) == (0, True)


def test_live_names_the_version_that_lacks_the_model(keyrot, service) -> None:
    """It asks as the program's SDK does; what to set is shown, and then it works."""
    given = {
        "GEMINI_API_KEYS": service.add_key("good").value,
        "GOOGLE_GEMINI_BASE_URL": service.url,
        "KEYROT_ALLOWED_HOSTS": service.host,
    }
    service.remove_model("gemini-new-preview", "v1")
    asked = ("check", "--live", "--model", "gemini-new-preview")
    ran = keyrot(*asked, **given)
    if service.log[0].path.startswith("/v1beta/"):
        pytest.skip("this SDK asks v1beta (make sdk-versions)")
    assert ran.returncode == 1
    assert "is not found for API version v1," in ran.stdout
    assert "set GOOGLE_GENAI_API_VERSION=v1beta" in ran.stdout
    assert keyrot(*asked, **given, GOOGLE_GENAI_API_VERSION="v1beta").returncode == 0


def test_live_follows_no_redirect(keyrot: Keyrot, service: FakeGemini) -> None:
    """The key is not sent to the target of the redirect; the result names the redirect."""
    key = service.add_key("moved").value
    service.always("moved", Reply.custom(307, {}, headers={"location": "/elsewhere"}))
    given = {
        "GEMINI_API_KEYS": key,
        "GOOGLE_GEMINI_BASE_URL": service.url,
        "KEYROT_ALLOWED_HOSTS": service.host,
    }
    ran = keyrot("check", "--live", "--json", **given)
    (found,) = json.loads(ran.stdout)["keys"]
    assert (found["live"]["code"], service.count()) == (307, 1)


def test_live_sends_no_key_to_a_host_that_is_not_allowed(keyrot, service) -> None:
    """A foreign base URL gets no key; that is wrong, and reported."""
    ran = keyrot("check", "--live", GEMINI_API_KEYS="one", GOOGLE_GEMINI_BASE_URL=service.url)
    assert ran.returncode == 1
    assert "--live sent nothing" in ran.stdout
    assert service.count() == 0
