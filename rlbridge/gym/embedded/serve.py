"""Runs an embedded server until a signal, or until the process that started it is gone."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rlbridge.errors import ConfigError, FrameworkMissingError

PARENT_POLL_S: Final = 0.5
# Above the client's own keep-alive, so that the client is the one to close idle connections.
KEEP_ALIVE_S: Final = 30
SERVERS: Final = ("arithmetic",)


def load_app(name: str) -> Any:
    """The ASGI app of the embedded server `name`.

    Raises:
        ConfigError: there is no such server.
        FrameworkMissingError: the extra `gateway` isn't installed.
    """
    if name not in SERVERS:
        raise ConfigError(f"no embedded Gym named {name!r}; there is {', '.join(SERVERS)}")
    try:
        from rlbridge.gym.embedded.server import arithmetic_app
    except ImportError as error:
        install = "pip install 'rlbridge[gateway]'"
        raise FrameworkMissingError(
            f"the embedded Gym needs {error.name}; install it with `{install}`", install=install
        ) from error
    return arithmetic_app()


def serve(
    app: Any,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    parent: int | None = None,
) -> None:
    """Serve `app` until SIGTERM, SIGINT or the end of `parent`; then return.

    Args:
        app: an ASGI app.
        host: address to bind; anything but loopback is the caller's explicit choice.
        port: 0 for any free one.
        ready: called with the base URL once connections are accepted.
        parent: process ID whose end ends the server too.

    Raises:
        ConfigError: the address can't be bound.
    """
    listener = _bind(host, port)
    bound = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    with listener:
        asyncio.run(_serve(app, listener, lambda: ready(f"http://{shown}:{bound}"), parent))


def announce(name: str, ready_file: Path | None) -> Callable[[str], None]:
    """What to do when the server is ready: write the file if one is asked, then print one line.

    The file holds `{"url": ..., "pid": ...}` and appears whole or not at all.
    """

    def ready(url: str) -> None:
        if ready_file is not None:
            draft = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
            draft.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
            draft.replace(ready_file)
        sys.stdout.write(f"ready: {name} at {url}\n")
        sys.stdout.flush()

    return ready


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on {host}:{port}: {error.strerror}; choose another --port, or 0 "
            "for any free one"
        ) from error
    return listener


async def _serve(
    app: Any, listener: socket.socket, ready: Callable[[], None], parent: int | None
) -> None:
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
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while parent is not None and not serving.done():
        await asyncio.wait({serving}, timeout=PARENT_POLL_S)
        if os.getppid() != parent:
            stop()
            break
    await serving
