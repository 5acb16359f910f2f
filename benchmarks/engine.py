"""A real vLLM server on this machine's CPU, for the time of a `with` block."""

import asyncio
import contextlib
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

SETTINGS = {
    "TORCHDYNAMO_DISABLE": "1",  # without it the first request with logprobs compiles for 52 s
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",  # two threads on shared cores wait for each other most of the time
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@dataclass(frozen=True)
class Server:
    """A server that may not be up yet."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, timeout_s: float = 600) -> None:
        """Return once it answers; raise with the end of its log if it never will."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                end = self.log.read_text()[-2000:]
                raise RuntimeError(f"vLLM ended with {self.process.returncode}: {end}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):  # noqa: S310
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise TimeoutError(f"vLLM did not answer within {timeout_s:.0f} s; see {self.log}")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now.

    Below those that the kernel gives to whoever asks for any: Ray and vLLM take dozens of these
    while they start, and one may be taken between this and its use.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port of 127.0.0.1 from 20000 to 32767 is free")


@contextmanager
def serve(model: Path, log: Path, *arguments: str, context: int = 2048) -> Iterator[Server]:
    """Serve `model` as `tiny` on a free port of 127.0.0.1; stops it at the end.

    The model need not be there yet: vLLM imports for many seconds before it looks.
    """
    port = free_port()
    command = [
        sys.executable, "-m", "benchmarks.engine", "--model", str(model),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max-model-len", str(context), "--enforce-eager",
        "--kv-cache-memory-bytes", "256M", "--max-num-batched-tokens", "8192",
        *arguments,
    ]  # fmt: skip
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | SETTINGS | {"PYTHONPATH": str(Path(__file__).parents[1])},
            cwd=log.parent,
            start_new_session=True,
        )
        try:
            yield Server(f"http://127.0.0.1:{port}", server, log)
        finally:
            stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its engine process: they share a session of their own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
        except ProcessLookupError:
            break
        try:
            server.wait(timeout=15)
        except subprocess.TimeoutExpired:
            continue
    server.wait()


async def post(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], tries: int = 3
) -> tuple[int, dict[str, Any]]:
    """Status and body; a connection the server had closed is opened again."""
    for left in reversed(range(tries)):
        try:
            async with session.post(url, json=body) as reply:
                return reply.status, await reply.json()
        except aiohttp.ClientConnectionError:
            if not left:
                raise
            await asyncio.sleep(0.1)
    raise AssertionError  # the loop returns or raises


def _main() -> None:
    """Import vLLM, wait for the model, serve it."""
    import vllm.entrypoints.openai.api_server  # noqa: F401 # seconds, while the model is trained

    model = Path(sys.argv[sys.argv.index("--model") + 1])
    while not (model / "tokenizer_config.json").exists():
        time.sleep(0.1)
    sys.argv[0] = "api_server"
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
