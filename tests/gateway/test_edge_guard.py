"""What stands before the gateway's routes, against small ASGI apps."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from rlbridge.errors import ConfigError
from rlbridge.gateway.access import Access, is_loopback, read_or_make_token
from rlbridge.gateway.guard import Guard

SECRET = "a-secret-of-the-gateway"
LIMITS = {"max_body_bytes": 1000, "max_header_bytes": 600, "timeout_s": 5.0}


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"path": request.url.path, "bytes": len(await request.body())})


async def broken(_request: Request) -> JSONResponse:
    return JSONResponse({"error": {"message": "upstream knows no key sk-upstream"}}, 502)


async def swallowing(request: Request) -> JSONResponse:
    try:
        await request.body()
    except Exception:  # noqa: BLE001 (as frameworks do)
        return JSONResponse({"detail": "There was an error parsing the body"}, 400)
    return JSONResponse({})


async def slow(_request: Request) -> JSONResponse:
    await asyncio.sleep(30)
    return JSONResponse({})


APP = Starlette(
    routes=[
        Route("/broken", broken),
        Route("/slow", slow),
        Route("/swallowing", swallowing, methods=["POST"]),
        Route("/{path:path}", echo, methods=["GET", "POST"]),
    ]
)


def client(**fields: Any) -> httpx.AsyncClient:
    guard = Guard(APP, **{**LIMITS, **fields})
    transport = httpx.ASGITransport(guard)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/v1/models", SECRET, 200),
        ("/s/r1/v1/models", SECRET, 200),
        ("/v1/models", "", 401),
        ("/v1/models", SECRET[:-1], 401),
        ("/v1/models", SECRET + "x", 401),
        ("/metrics", "", 401),
        ("/health", "", 200),
        ("/ready", "", 200),
        ("/s/r1/v1/models", "SESSION r1", 200),
        ("/s/r%2F1/v1/models", "SESSION r/1", 401),
        ("/s/r2/v1/models", "SESSION r1", 401),
        ("/s/r1", "SESSION r1", 200),
        ("/s/", "SESSION ", 401),
        ("/v1/models", "SESSION r1", 401),
        ("/metrics", "SESSION r1", 401),
        ("/s/r1/../r2/v1", "SESSION r1", 401),
    ],
)
async def test_a_token_opens_what_it_is_for(path: str, token: str, status: int) -> None:
    access = Access(SECRET)
    if token.startswith("SESSION "):
        token = access.session_token(token.removeprefix("SESSION "))
    async with client(access=access) as ask:
        answer = await ask.get(path, headers=bearer(token) if token else {})
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/v1/chat/completions", "r1", 200),
        ("/tokenize", "r1", 200),
        ("/s/r1/v1/models", "r1", 200),
        ("/v1/chat/completions", "r2", 401),
        ("/s/r1/v1/models", "r2", 401),
        ("/s/r2/v1/models", "r1", 401),
        ("/metrics", "r1", 401),
        ("/run", "r1", 401),
    ],
)
async def test_a_session_token_opens_its_session_by_header_too(
    path: str, header: str, status: int
) -> None:
    access = Access(SECRET)
    headers = bearer(access.session_token("r1")) | {"x-rlbridge-session": header}
    async with client(access=access) as ask:
        answer = await ask.get(path, headers=headers)
    assert answer.status_code == status


async def test_a_token_in_another_scheme_or_with_odd_bytes_is_refused() -> None:
    async with client(access=Access(SECRET)) as ask:
        for value in (SECRET, f"Basic {SECRET}", "Bearer", b"Bearer \xff\xfe"):
            assert (await ask.get("/x", headers={"Authorization": value})).status_code == 401


async def test_without_access_everybody_passes() -> None:
    async with client() as ask:
        assert (await ask.get("/v1/models")).status_code == 200


def test_session_tokens_outlive_a_restart_and_differ() -> None:
    one, again, other = Access(SECRET), Access(SECRET), Access(SECRET + "2")
    assert one.session_token("r1") == again.session_token("r1")
    assert len({one.session_token("r1"), one.session_token("r2"), other.session_token("r1")}) == 3


def test_a_token_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_or_make_token(path)
    assert read_or_make_token(path) == token
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("text", "mode", "words"), [
    ("long enough a token\n", 0o644, "chmod 600"),
    ("short\n", 0o600, "characters"),
    ("übermäßig lang, wirklich", 0o600, "can't read"),
])  # fmt: skip
def test_a_token_file_that_gives_no_safety_is_refused(
    tmp_path: Path, text: str, mode: int, words: str
) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=words):
        read_or_make_token(path)


@pytest.mark.parametrize(("host", "loopback"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
    ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("gateway.example", False),
])  # fmt: skip
def test_only_loopback_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


async def test_a_told_length_too_large_is_refused_unread() -> None:
    async with client() as ask:
        answer = await ask.post("/x", content=b"x" * 1001)
        fits = await ask.post("/x", content=b"x" * 1000)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert fits.json()["bytes"] == 1000


@pytest.mark.parametrize("path", ["/x", "/swallowing"])
async def test_a_body_that_hides_its_length_is_cut_off(path: str) -> None:
    async def pieces() -> Any:
        for _ in range(11):
            yield b"x" * 100

    async with client() as ask:
        answer = await ask.post(path, content=pieces())
    assert answer.status_code == 413


async def test_too_many_headers_are_refused() -> None:
    async with client() as ask:
        answer = await ask.get("/x", headers={"X-Long": "y" * 600})
    assert answer.status_code == 431


async def test_a_request_past_its_deadline_is_a_504() -> None:
    async with client(timeout_s=0.05) as ask:
        answer = await ask.get("/slow")
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "server_error"


async def test_a_stream_past_its_deadline_is_cut_and_not_answered_twice() -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        async def pieces() -> Any:
            yield b"data: 1\n\n"
            await asyncio.sleep(30)

        await StreamingResponse(pieces())(scope, receive, send)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.sleep(30)

    guard = Guard(endless, **{**LIMITS, "timeout_s": 0.05})  # type: ignore[arg-type]
    scope = {"type": "http", "path": "/x", "headers": [], "asgi": {"spec_version": "2.4"}}
    with pytest.raises(TimeoutError):
        await guard(scope, receive, send)
    assert [message["type"] for message in sent].count("http.response.start") == 1


async def test_an_upstream_secret_never_leaves_in_an_error() -> None:
    async with client(secrets=["sk-upstream"]) as ask:
        answer = await ask.get("/broken")
    assert answer.status_code == 502
    assert "sk-upstream" not in answer.text
    assert "[secret]" in answer.json()["error"]["message"]
