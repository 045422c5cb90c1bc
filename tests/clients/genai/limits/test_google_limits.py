"""Limits that are read from Cloud Quotas, before a first 429 can teach them."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.certificate_authority import CertificateAuthority
from support.json_server import JsonServer, Request, Response
from support.modes import MODEL, calls
from support.pool import key
from support.servers import closed_port, wait_for
from support.states import settle
from support.unreachable import SilentServer

import keyrot_middleware
from keyrot_middleware import ConfigError
from keyrot_middleware.core.model import Limits
from keyrot_middleware.core.windows import HOUR_S
from keyrot_middleware.runtime.google_limits import GoogleLimits
from keyrot_middleware.runtime.pool import Pool
from keyrot_middleware.secrets import remote
from keyrot_middleware.testing import FakeGemini

VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDQUOTAS"
PROJECTS = [f"team-{number}" for number in range(1, 5)]


@pytest.fixture
def make(gemini: FakeGemini, pool: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pool]:
    """Install a pool with a free key in each project, and limits that Google has."""

    def made(of: Limits, projects: list[str] = PROJECTS, url: str = "", **settings: Any) -> Pool:
        for project in projects:
            label = project.replace("-", "_")
            gemini.add_key(label, project=project, tier="free")
            gemini.limit(project, MODEL, rpm=of.rpm, tpm=of.tpm, rpd=of.rpd)
        monkeypatch.setenv(VARIABLE, url or gemini.url)
        keys = [{"key_id": p.replace("-", "_"), "project": p, "tier": "free"} for p in projects]
        return pool(*keys, **settings)

    return made


def read(pool: Pool, url: str) -> None:
    GoogleLimits({VARIABLE: url}).read(pool)


def is_reading() -> bool:
    return any(one.name.startswith("keyrot-limits-") for one in threading.enumerate())


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if "cannot be read" in one.getMessage()]


def test_a_cold_pool_gets_no_429(make, gemini, connect) -> None:
    """Four projects of 5 RPM, 200 calls: ten minutes, in which nothing is refused."""
    make(Limits(rpm=5), limits_from="google")
    wait_for(lambda: len(gemini.quota_reads) == 4 * 12 and not is_reading())
    answers = calls("sync", connect(), 200)
    assert [one for one in answers if isinstance(one, Exception)] == []
    assert (gemini.count(), gemini.count(status=429)) == (200, 0)
    used = keyrot_middleware.status()["keys"]["team_1"]["used"][MODEL]
    assert (used["sources"], used["learned"]) == ({"rpm": "google"}, {"rpm": 5})


def test_limits_are_read_again_each_hour(make, gemini, clock) -> None:
    """So that those that Google changes are in force, and none that it no longer lists."""
    one = key("team_1", project="team-1")
    state = make(Limits(rpm=5), ["team-1"], limits_from="google").state
    wait_for(lambda: len(gemini.quota_reads) == 12 and not is_reading())
    gemini.limit("team-1", MODEL, rpm=2)
    clock.advance(HOUR_S)
    wait_for(lambda: len(gemini.quota_reads) == 24 and not is_reading())
    settle(state, one)
    assert state.snapshot([one])["team_1"].used[0].read == Limits(rpm=2)


@pytest.mark.parametrize("factor", [10, 0.1])
@pytest.mark.parametrize(
    "limits", [Limits(rpm=10), Limits(tpm=100), Limits(10, rpd=50)], ids=["rpm", "tpm", "rpd"]
)
def test_limits_that_are_ten_times_off_fail_no_call(
    factor: float, limits: Limits, make, gemini, connect
) -> None:
    """Too high: a 429 of each project names the true one. Too low: calls wait for a minute."""
    pool = make(Limits(*(n and int(n * factor) for n in limits)))
    read(pool, gemini.url)
    for project in PROJECTS:
        gemini.limit(project, MODEL, rpm=limits.rpm, tpm=limits.tpm, rpd=limits.rpd)
    answers = calls("sync", connect(), 100)
    assert [one for one in answers if isinstance(one, Exception)] == []
    assert gemini.count(status=429) <= (4 if factor > 1 else 0)


def test_every_project_and_page_is_read(make, gemini) -> None:
    """The fake lists one quota on each page, of both tiers; a limit of a day is shown too."""
    pool = make(Limits(5, 100, 20))
    read(pool, gemini.url)
    for one in pool.selector.keys.values():
        settle(pool.state, one)
    found = pool.state.snapshot(pool.selector.keys.values())
    assert {health.used[0].read for health in found.values()} == {Limits(5, 100, 20)}
    assert [gemini.quota_reads.count(project) for project in PROJECTS] == [12] * 4


def odd(request: Request) -> Response:
    return {
        "/odd": Response(200, [1]),
        "/html": Response(200, b"<html>"),
        "/empty": Response(200, {}),
        "/none": Response(200, {"quotaInfos": None}),
        "/loop": Response(200, {"quotaInfos": [], "nextPageToken": "a"}),
        "/refused": Response(403, {"error": {"status": "PERMISSION_DENIED"}}),
        "/moved": Response(302, b"", {"Location": "/empty"}),
    }[request.path[: request.path.index("/v1/")]]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/odd", "no JSON object"),
        ("/html", "JSONDecodeError"),
        ("/empty", "no limits"),
        ("/none", "no limits"),
        ("/loop", "too many pages"),
        ("/refused", "403 PERMISSION_DENIED"),
        ("/moved", "302"),
        ("closed", "ConnectionError"),
        ("silent", "ConnectionError"),
    ],
)
def test_where_nothing_can_be_read_limits_are_learned(
    path: str,
    reason: str,
    make,
    gemini,
    connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning says what to do, however often it fails, and a 429 teaches the limits."""
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.1)
    server, silent = JsonServer(odd), SilentServer()
    urls = {"closed": f"http://127.0.0.1:{closed_port()}", "silent": silent.url}
    pool = make(Limits(rpm=5))
    limits = GoogleLimits({VARIABLE: urls.get(path, server.url + path)})
    for _ in range(2):
        limits.read(pool)
    (warning,) = warnings_in(caplog)
    assert f"the limits of 4 projects cannot be read (team-1: {reason})" in warning
    assert "roles/cloudquotas.viewer" in warning
    answers = calls("sync", connect(), 20)
    assert [one for one in answers if isinstance(one, Exception)] == []
    assert 20 <= gemini.count() <= 20 + len(PROJECTS), "each project refuses one call at the most"
    server.close()
    silent.close()


def test_a_key_without_project_or_tier_keeps_learning(pool, gemini, caplog) -> None:
    """And no project is asked that is only a name."""
    keys = [{"key_id": "A"}, {"key_id": "B", "project": "team-1"}]
    keys.append({"key_id": "C", "project": "The Team", "tier": "free"})
    made = pool(*keys, {"key_id": "D", "project": "1234567", "tier": "paid"})
    gemini.limit("1234567", MODEL, rpm=5)
    limits = GoogleLimits({VARIABLE: gemini.url})
    for _ in range(2):
        limits.read(made)
    (warning,) = warnings_in(caplog)
    assert "3 keys cannot be read (A, B, C)" in warning
    assert "A key needs a `project`" in warning
    assert set(gemini.quota_reads) == {"1234567"}


# The login ---------------------------------------------------------------------------------------


def test_the_token_goes_to_the_endpoint_alone(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not to where that redirects; and no value of a key goes there."""
    from google.oauth2.credentials import Credentials

    other = JsonServer(lambda _: Response(200, {}))
    authority = CertificateAuthority(tmp_path, "127.0.0.1")
    server = JsonServer(lambda _: Response(307, b"", {"Location": other.url}), authority.context())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    login: Any = Credentials
    monkeypatch.setattr("google.auth.default", lambda **_: (login(token="FAKE-token"), None))
    pool = make(Limits(rpm=5), ["team-1"])
    read(pool, server.url)
    (request,) = server.requests
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["authorization"] == "Bearer FAKE-token"
    assert pool.secrets.value("team_1").reveal() not in f"{request.path} {headers}"
    assert request.path.startswith("/v1/projects/team-1/locations/global/services/")
    assert other.requests == []
    assert ": 307)" in warnings_in(caplog)[0]
    server.close()
    other.close()


def test_another_endpoint_must_be_safe(pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "http://quotas.example")
    with pytest.raises(ConfigError, match=VARIABLE):
        pool("A", limits_from="google")


# The state ---------------------------------------------------------------------------------------
