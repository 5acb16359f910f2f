"""TLS, HTTP/2 and proxies: what lies between the client and a server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypercorn.asyncio
import pytest
import trustme

from rlbridge.contracts.reward import FailureClass
from rlbridge.evaluators.arithmetic import SPEC
from rlbridge.gym import GymClient
from rlbridge.gym.embedded.server import evaluator_app
from rlbridge.testing import GymServer, make_row
from rlbridge.testing.exchange import read_request

ROW = make_row(expected_answer="4")


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    return authority


@asynccontextmanager
async def https_gym(certificates: Path) -> AsyncIterator[tuple[str, list[str]]]:
    """The embedded Gym behind TLS: its URL, and the HTTP version of each request."""
    app, versions = evaluator_app(SPEC, SPEC.make({})), []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            versions.append(scope["http_version"])
            await app(scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = hypercorn.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.certfile = str(certificates / "server.pem")
    config.keyfile = str(certificates / "server.key")
    config.errorlog = None
    stop = asyncio.Event()
    serving = asyncio.create_task(
        hypercorn.asyncio.serve(noting, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
    )
    yield f"https://127.0.0.1:{port}", versions
    stop.set()
    await serving


@pytest.mark.parametrize(
    ("library", "http2", "version"),
    [("aiohttp", False, "1.1"), ("httpx", False, "1.1"), ("httpx", True, "2")],
)
async def test_an_authority_of_ones_own_is_trusted_and_http2_spoken_where_asked(
    library: str,
    http2: bool,
    version: str,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with (
        https_gym(tmp_path) as (url, versions),
        GymClient(url=url, transport=library, http2=http2) as gym,
    ):
        await gym.check_alive()
        rewards = await gym.verify_batch([(ROW, str(n)) for n in range(8)])
        async with gym.session(ROW) as session:
            kept = await session.verify("4")
    assert [reward.valid and reward.value for reward in rewards] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert kept.valid
    assert set(versions) == {version}
    assert len(versions) == 1 + 8 + 2


async def test_a_server_nobody_vouches_for_is_not_believed(
    authority: trustme.CA, tmp_path: Path, quick_config: Any
) -> None:
    async with (
        https_gym(tmp_path) as (url, versions),
        GymClient(quick_config(url, max_attempts=1)) as gym,
    ):
        reward = await gym.verify(ROW, "4")
    assert not reward.valid
    assert reward.failure is FailureClass.CONNECTION
    assert "certificate" in reward.detail
    assert versions == []


class Proxy:
    """A forward proxy on 127.0.0.1; `through` holds method and URL of what it passed on."""

    def __init__(self) -> None:
        self.through: list[tuple[str, str]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await read_request(reader)) is not None:
            method, url, headers, body = request
            self.through.append((method, url))
            writer.write(await self._pass_on(method, url, headers, body))
        writer.close()

    async def _pass_on(self, method: str, url: str, headers: dict[str, str], body: bytes) -> bytes:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        lines = [f"{method} {parts.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
        answer = head + await reader.readexactly(int(length))
        writer.close()
        return answer


async def test_every_request_goes_through_the_proxy(
    gym_server: GymServer, quick_config: Any
) -> None:
    proxy = Proxy()
    async with (
        proxy.running() as address,
        GymClient(quick_config(gym_server.url, proxy=address)) as gym,
    ):
        await gym.check_alive()
        assert (await gym.verify(ROW, "4")).valid
        async with gym.session(ROW) as session:
            assert (await session.verify("4")).valid
    verify = ("POST", f"{gym_server.url}/verify")
    seed = ("POST", f"{gym_server.url}/seed_session")
    assert proxy.through == [("GET", f"{gym_server.url}/"), verify, seed, verify]
    assert gym_server.behaviour.verifies == 2


async def test_a_proxy_that_is_gone_is_no_reason_to_go_around_it(
    gym_server: GymServer, quick_config: Any
) -> None:
    async with Proxy().running() as address:
        pass
    async with GymClient(quick_config(gym_server.url, proxy=address, max_attempts=2)) as gym:
        reward = await gym.verify(ROW, "4")
    assert not reward.valid
    assert reward.failure is FailureClass.CONNECTION
    assert gym_server.behaviour.requests == []
