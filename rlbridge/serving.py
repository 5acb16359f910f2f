"""Runs an ASGI app until a signal, or until the process that started it is gone.

Knows nothing of what it serves. Refuses an address it can't bind before anything else starts.
Needs uvicorn (extra `gateway`), and uses uvloop where it is installed.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

from rlbridge.errors import ConfigError

PARENT_POLL_S: Final = 0.5
# Above the client's own keep-alive, so that the client is the one to close idle connections.
KEEP_ALIVE_S: Final = 30
_BACKLOG: Final = 8192


def serve(
    opening: AbstractAsyncContextManager[Any],
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    parent: int | None = None,
    drain_s: float = 1.0,
    draining: Callable[[], None] = lambda: None,
) -> None:
    """Serve an ASGI app until SIGTERM, SIGINT or the end of `parent`; then return.

    The address is taken first, then the app is opened, then connections are accepted. Requests
    in flight at the end have `drain_s` seconds; a second signal cuts them off at once. The app is
    closed after them.

    Args:
        opening: gives the app on the server's event loop; `contextlib.nullcontext(app)` for one
            that needs no opening.
        host: address to bind; anything but loopback is the caller's explicit choice.
        port: 0 for any free one.
        ready: called with the base URL once connections are accepted.
        parent: process ID whose end ends the server too.
        drain_s: how long requests in flight may take after the signal, seconds.
        draining: called when the end begins.

    Raises:
        ConfigError: the address can't be bound.
    """
    listener = _bind(host, port)
    bound = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    running = _Running(opening, lambda: ready(f"http://{shown}:{bound}"), drain_s, draining)
    with listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(running.until_stopped(listener, parent))


def announce(ready_file: Path | None, words: Callable[[str], str]) -> Callable[[str], None]:
    """What to do when the server is ready: write the file if one is asked, then print `words`.

    The file holds `{"url": ..., "pid": ...}` and appears whole or not at all.

    Args:
        ready_file: where to write; None writes nothing.
        words: what to print, from the base URL.
    """

    def ready(url: str) -> None:
        if ready_file is not None:
            draft = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
            draft.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
            draft.replace(ready_file)
        sys.stdout.write(words(url) + "\n")
        sys.stdout.flush()

    return ready


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop  # type: ignore[no-any-return, unused-ignore]


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Told that it is TCP: for no other does asyncio turn Nagle's delay off, 40 ms a call.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on {host}:{port}: {error.strerror}; choose another --port, or 0 "
            "for any free one"
        ) from error
    return listener


class _Running:
    """One server's life: opening, serving, draining, closing."""

    def __init__(
        self,
        opening: AbstractAsyncContextManager[Any],
        ready: Callable[[], None],
        drain_s: float,
        draining: Callable[[], None],
    ) -> None:
        self._opening = opening
        self._ready = ready
        self._drain_s = drain_s
        self._draining = draining
        self._server: Any = None
        self._main: asyncio.Task[None] | None = None

    async def until_stopped(self, listener: socket.socket, parent: int | None) -> None:
        """Serve; return when all is closed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        main = self._main = asyncio.create_task(self._serve(listener))
        while parent is not None and not main.done():
            await asyncio.wait({main}, timeout=PARENT_POLL_S)
            if os.getppid() != parent:
                self._stop()
                break
        await asyncio.wait({main})
        if not main.cancelled():
            main.result()

    def _stop(self) -> None:
        if self._server is None:
            if self._main is not None:
                self._main.cancel()  # still opening
            return
        self._server.force_exit = self._server.should_exit
        self._server.should_exit = True
        self._draining()

    async def _serve(self, listener: socket.socket) -> None:
        async with self._opening as app:
            self._server = _server(app, self._drain_s, self._ready)
            await self._server.serve(sockets=[listener])


def _server(app: Any, drain_s: float, ready: Callable[[], None]) -> Any:
    import uvicorn

    class Server(uvicorn.Server):  # type: ignore[misc,unused-ignore]
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:  # ours return, uvicorn's raise again
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            ready()

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
    )
    return Server(config)
