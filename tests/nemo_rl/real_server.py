"""NeMo-RL's own vLLM worker and HTTP server, on a CPU and on loopback.

Its class, its `load_model`, `_create_engine` and `_setup_vllm_server` run as they are. Ours: the
port is reserved on loopback; no sleep mode, which a CPU has not; and its patches of vLLM's files,
which are for executors on GPUs, are left out, because they would write into the installed vLLM.

NeMo-RL's test environment has no vLLM, so the server runs in `.venv`, behind whose packages come
those of this environment that `.venv` lacks.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
TEMPERATURE = 0.8
CONTEXT = 768
WAIT_S = 600  # 40 s on two idle cores


@dataclass(frozen=True)
class Server:
    """A server that is up.

    Attributes:
        url: its base URL, with `/v1`, as NeMo-RL reports it.
        folder: of the model and its tokenizer; it serves it as `tiny`.
        message_fields: whether it is one of those that put token fields on the message.
    """

    url: str
    folder: Path
    message_fields: bool

    @property
    def root(self) -> str:
        """Its base URL without `/v1`."""
        return self.url.removesuffix("/v1")


def checkout() -> Path:
    """The NeMo-RL that is importable here."""
    spec = importlib.util.find_spec("nemo_rl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]).parent


def _generation_code(name: str) -> str:
    return (checkout() / "nemo_rl" / "models" / "generation" / "vllm" / name).read_text()


def why_unavailable() -> str:
    """Why the server can't be started here, or empty."""
    has_vllm = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", has_vllm], check=False).returncode:
        return "no .venv with vLLM beside this one: make setup"
    if "async def preprocess_chat(" not in _generation_code("vllm_worker_async.py"):
        return "NeMo-RL before v0.7.0 wants a vLLM that differs too much from the one in .venv"
    return ""


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """The server of a tiny model that knows `benchmarks.lessons`; its processes end with us."""
    from benchmarks.engine import SETTINGS, stop

    home, log = folder / "tiny", folder / "server.log"
    paths = [str(ROOT), str(checkout())]  # a clone has a package `tests` too
    settings = SETTINGS | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    given = [sysconfig.get_path("purelib"), str(folder / "url")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PYTHON, "-m", "tests.nemo_rl.real_server", *given],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            cwd=folder, start_new_session=True,
            env=os.environ | settings,
        )  # fmt: skip
    try:
        make = "from benchmarks.lessons import LESSONS, STEPS\n"
        make += "from benchmarks.tiny_model import make\nfrom pathlib import Path\n"
        make += f"make(Path({str(home)!r}), steps=STEPS, lessons=LESSONS)"
        subprocess.run([PYTHON, "-c", make], check=True, cwd=ROOT, capture_output=True)
        url = _wait(process, folder / "url", log)
        fields = "attach_token_information_to_chat_response_choices"
        yield Server(url, home, fields in _generation_code("utils.py"))
    finally:
        stop(process)
        assert process.stdin is not None
        process.stdin.close()


def _wait(process: "subprocess.Popen[bytes]", url: Path, log: Path) -> str:
    deadline = time.monotonic() + WAIT_S
    while not url.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"NeMo-RL's server didn't come up: {log.read_text()[-3000:]}")
        time.sleep(0.2)
    return url.read_text()


def config(model: str) -> dict[str, Any]:
    """A generation config as NeMo-RL's `configure_generation_config` leaves it."""
    parsers = {"enable_auto_tools": True, "tool_parser": "hermes", "reasoning_parser": "qwen3"}
    vllm_cfg = {
        "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "expert_parallel_size": 1,
        "gpu_memory_utilization": 0.5, "max_model_len": CONTEXT, "skip_tokenizer_init": False,
        "async_engine": True, "expose_http_server": True, "load_format": "auto",
        "precision": "float32", "kv_cache_dtype": "auto", "enforce_eager": True,
        "enable_prefix_caching": True, "logprobs_mode": "processed_logprobs",
        "http_server_serving_chat_kwargs": parsers,
    }  # fmt: skip
    sampling = {"temperature": TEMPERATURE, "top_p": 1.0, "top_k": None}
    later = {"val_temperature": TEMPERATURE, "val_top_p": 1.0}
    engine = {"kv_cache_memory_bytes": 1 << 28}
    return {"model_name": model, **sampling, **later, "vllm_cfg": vllm_cfg, "vllm_kwargs": engine}


def _end_with_parent() -> None:
    """End this process and those it made once whoever started it is gone."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def _main() -> None:
    """Serve the model in `tiny` once it is there, and write the URL to a file."""
    behind, url = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path.append(behind)  # what NeMo-RL imports and .venv has not
    if sys.version_info < (3, 12):  # pydantic refuses typing's own TypedDict there
        import typing

        import typing_extensions

        typing.__dict__.update(
            TypedDict=typing_extensions.TypedDict, NotRequired=typing_extensions.NotRequired
        )
    from nemo_rl.models.generation.vllm import vllm_worker
    from nemo_rl.models.generation.vllm.vllm_worker_async import VllmAsyncGenerationWorkerImpl

    from tests.nemo_rl import vllm_names

    class OnLoopback(VllmAsyncGenerationWorkerImpl):  # type: ignore[misc]
        def _reserve_port(self) -> None:
            self._reserved_socket = socket.create_server(("127.0.0.1", 0))
            self._reserved_socket.setblocking(False)
            self._reserved_node_ip, self._reserved_port = self._reserved_socket.getsockname()

        def _create_engine(self, llm_kwargs: dict[str, Any]) -> None:
            super()._create_engine(llm_kwargs | {"enable_sleep_mode": False})

        def _setup_vllm_openai_api_server(self, app: Any) -> Any:
            @app.get("/unfinished")  # type: ignore[untyped-decorator]
            async def unfinished() -> int:
                count: int = self.llm.output_processor.get_num_unfinished_requests()
                return count

            return super()._setup_vllm_openai_api_server(app)

    vllm_worker._apply_vllm_patches = lambda *_, **__: None
    if "OpenAIServingRender" in _generation_code("vllm_worker_async.py"):
        vllm_names.provide()
    while not Path("tiny/tokenizer_config.json").exists():
        time.sleep(0.1)
    # No bundle: its own would be bound to the NUMA node of a GPU.
    worker = OnLoopback(config("tiny"), bundle_indices=[], seed=0, defer_model_load=True)
    worker.load_model()
    ready = Path(url + ".part")
    ready.write_text(str(worker.base_url))
    ready.rename(url)
    worker.server_thread.join()


if __name__ == "__main__":
    _main()
