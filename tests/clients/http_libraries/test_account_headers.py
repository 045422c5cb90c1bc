"""A request that names an account: with a key of the pool it goes out without that name."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from support.http_modes import BODY, HEADERS, PATH
from support.json_server import JsonServer, Request, Response

import keyrot_middleware
from keyrot_middleware import providers

NAME = "x-goog-user-project"
DENIED = {
    "error": {
        "code": 403,
        "message": "Caller does not have required permission to use project theirs.",
        "status": "PERMISSION_DENIED",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "USER_PROJECT_DENIED",
                "domain": "googleapis.com",
            }
        ],
    }
}


def denied(request: Request) -> Response:
    """Refuse each request that names a project, whatever its key."""
    return Response(403, DENIED) if NAME in request.headers else Response(200, {"candidates": []})


@pytest.fixture
def google() -> Iterator[JsonServer]:
    with JsonServer(denied) as server:
        yield server


def _sync(library: Any, url: str, mine: dict[str, str], theirs: dict[str, str]) -> Any:
    with library.Session() if library is requests else library.Client() as client:
        client.headers.update(mine)
        return client.post(url, json=BODY, headers=theirs)


def _async(library: Any, url: str, mine: dict[str, str], theirs: dict[str, str]) -> Any:
    async def go() -> Any:
        async with library.AsyncClient(headers=mine) as client:
            return await client.post(url, json=BODY, headers=theirs)

    return asyncio.run(go())


def _aiohttp(_: Any, url: str, mine: dict[str, str], theirs: dict[str, str]) -> Any:
    async def go() -> Any:
        async with (
            aiohttp.ClientSession(headers=mine) as session,
            session.post(url, json=BODY, headers=theirs) as response,
        ):
            return SimpleNamespace(
                status_code=response.status, request=response.request_info, url=response.url
            )

    return asyncio.run(go())


Post = Callable[[Any, str, dict[str, str], dict[str, str]], Any]
SENDERS = pytest.mark.parametrize(
    ("library", "post"),
    [
        (requests, _sync),
        *((one, way) for one in (httpx, httpx2) for way in (_sync, _async)),
        (aiohttp, _aiohttp),
    ],
)


@SENDERS
@pytest.mark.parametrize("is_of_client", [True, False])
@pytest.mark.parametrize("name", [NAME, "X-Goog-User-Project", NAME.upper()])
def test_no_project_of_a_program_goes_out_with_a_key_of_the_pool(
    name: str, is_of_client: bool, library: Any, post: Post, google: JsonServer, pool: Any
) -> None:
    """No key is blamed for it, and the program's own request shows it as it was."""
    pool("A", allowed_hosts=[google.host])
    mine = {name: "theirs"} if is_of_client else {}
    response = post(library, google.url + PATH, mine, HEADERS | ({} if mine else {name: "theirs"}))
    assert (response.status_code, len(google.requests)) == (200, 1)
    assert response.request.headers[name] == "theirs"
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "available"


@SENDERS
def test_a_project_with_a_key_of_the_programs_own_stays(
    library: Any, post: Post, google: JsonServer, pool: Any
) -> None:
    """Such a request is none of the pool's."""
    pool("A", allowed_hosts=[google.host])
    given = {"x-goog-api-key": "FAKE-own", NAME: "mine"}
    assert post(library, google.url + PATH, {}, given).status_code == 403
    assert google.requests[0].headers[NAME] == "mine"


@SENDERS
@pytest.mark.parametrize("query", ["$userProject=theirs", "%24userProject=theirs&alt=json"])
def test_no_project_in_the_address_goes_out_either(
    query: str, library: Any, post: Post, gemini: Any, pool: Any
) -> None:
    """`quotaUser` names no account, and stays."""
    pool("A")
    url = f"{gemini.url}{PATH}?quotaUser=u&{query}#part"
    response = post(library, url, {}, HEADERS)
    assert response.status_code == 200
    [sent] = gemini.log
    assert "serProject" not in sent.path
    assert "quotaUser=u" in sent.path
    assert ("alt=json" in sent.path) == ("alt=json" in query)
    assert "serProject=theirs" in str(response.url)


@SENDERS
def test_the_home_key_in_place_of_a_placeholder_goes_alone_too(
    library: Any, post: Post, google: JsonServer, pool: Any
) -> None:
    """Inside `bypass()`, where nothing is judged."""
    pool("A", allowed_hosts=[google.host])
    with keyrot_middleware.bypass():
        url = f"{google.url}{PATH}?$userProject=theirs"
        assert post(library, url, {}, HEADERS | {NAME: "theirs"}).status_code == 200


HOSTS = {
    "openai": ("/v1/chat/completions", "authorization", "Bearer keyrot-pool"),
    "anthropic": ("/v1/messages", "x-api-key", "keyrot-pool"),
    "groq": ("/openai/v1/chat/completions", "authorization", "Bearer keyrot-pool"),
    "azure-openai": ("/openai/v1/chat/completions", "api-key", "keyrot-pool"),
}
"""By provider: a path, and where its key is."""
OF_A_GATEWAY = {
    "cf-aig-authorization": "Bearer FAKE-gateway",
    "ocp-apim-subscription-key": "FAKE-gateway",
    "x-portkey-api-key": "FAKE-gateway",
    "http-referer": "https://app.example",
    "x-title": "app",
    "x-goog-request-params": "model=m",
    "anthropic-user-profile-id": "uprof_x",
}
"""Not of the account: these stay."""


@pytest.mark.parametrize(
    ("provider", "left_out"),
    [
        ("openai", {"openai-organization": "org-x", "openai-project": "proj-x"}),
        ("anthropic", {"anthropic-workspace-id": "wrkspc_x"}),
        ("groq", {}),
        ("azure-openai", {}),
    ],
)
def test_what_names_an_account_of_other_providers_is_left_out(
    provider: str, left_out: dict[str, str], monkeypatch: Any, caplog: Any
) -> None:
    """What belongs to a gateway, or to the program, stays; the log says once what is left out."""
    caplog.set_level(logging.INFO, "keyrot_middleware")
    path, header, value = HOSTS[provider]
    variable = f"{provider.upper().replace('-', '_')}_API_KEYS"
    monkeypatch.setenv(variable, "FAKE-one-of-the-pool,FAKE-two-of-the-pool")
    with JsonServer(lambda _: Response(200, {})) as server:
        keyrot_middleware.install(allowed_hosts=f"{provider}={server.url}")
        given = {**OF_A_GATEWAY, **left_out, header: value}
        for _ in range(2):
            sent = httpx.post(server.url + path, json={"model": "m"}, headers=given)
            assert sent.status_code == 200
        for request in server.requests:
            assert not left_out.keys() & request.headers.keys()
            assert {n: request.headers.get(n) for n in OF_A_GATEWAY} == OF_A_GATEWAY
        lines = [r.getMessage() for r in caplog.records if "is left out" in r.getMessage()]
        assert [line.split()[2] for line in lines] == list(left_out)


def test_a_workspace_stays_where_no_request_is_served_without_it() -> None:
    """On AWS: the key does not name it."""
    anthropic, headers = providers.of("anthropic"), {"anthropic-workspace-id": "wrkspc_x"}
    url = "https://aws-external-anthropic.us-west-2.api.aws/v1/messages"
    assert anthropic.without_account(headers, url) == url
    assert headers
    anthropic.without_account(headers, "https://api.anthropic.com/v1/messages")
    assert not headers


def test_a_plugged_in_provider_says_it_in_the_same_way() -> None:
    """Headers and parameters are attributes of its class."""

    class Acme(providers.OpenAILike):
        account_headers = ("x-acme-bill-to",)
        account_params = ("team",)

    headers = httpx.Headers([("X-Acme-Bill-To", "a"), ("x-acme-bill-to", "b"), ("x-other", "c")])
    url = Acme().without_account(headers, "https://api.acme.example/v1/chat?Team=a&steam=b")
    assert dict(headers) == {"x-other": "c"}
    assert url == "https://api.acme.example/v1/chat?steam=b"
