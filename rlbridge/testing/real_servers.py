"""Real NeMo Gym servers for tests: `with running_nemo_gym("mcqa") as url:`.

nemo-gym wants Python 3.12 or later and brings Ray, so it lives in an environment of its own:
`.venv-gym` under the working directory, or wherever RLBRIDGE_GYM_PYTHON points.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlbridge.errors import RunError

# Module, class and further config of the servers that need nothing but themselves.
SERVERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mcqa": ("resources_servers.mcqa.app", "MCQAResourcesServer", {}),
    "math_with_judge": (
        "resources_servers.math_with_judge.app",
        "LibraryJudgeMathResourcesServer",
        {
            "should_use_judge": False,
            # A busy machine needs longer than its default, and a late verdict is scored 0.0.
            "library_verifier_timeout_seconds": 120.0,
            "judge_model_server": {"type": "responses_api_models", "name": "none"},
            "judge_responses_create_params": {"input": []},
        },
    ),
    "example_session_state_mgmt": (
        "resources_servers.example_session_state_mgmt.app",
        "StatefulCounterResourcesServer",
        {},
    ),
    "example_single_tool_call": (
        "resources_servers.example_single_tool_call.app",
        "SimpleWeatherResourcesServer",
        {},
    ),
    "workplace_assistant": (
        "resources_servers.workplace_assistant.app",
        "WorkbenchResourcesServer",
        {},
    ),
}


def nemo_gym_python() -> Path:
    """The Python that has nemo-gym, whether or not it exists."""
    return Path(os.environ.get("RLBRIDGE_GYM_PYTHON", ".venv-gym/bin/python")).absolute()


def why_unavailable() -> str:
    """Why no real server can be started, or empty."""
    python = nemo_gym_python()
    if python.exists():
        return ""
    return f"no nemo-gym at {python}; `make setup` builds it where Python 3.12+ is installed"


@contextlib.contextmanager
def running_nemo_gym(name: str) -> Iterator[str]:
    """Base URL of the resources server `name` of `SERVERS`; its process is gone on leaving.

    Raises:
        RunError: it didn't start; with the end of what it said.
    """
    module, class_name, extra = SERVERS[name]
    with _running(module, class_name, name, extra, {}) as (url, _):
        yield url


@contextlib.contextmanager
def running_vllm_model(upstream: str, model: str) -> Iterator[tuple[str, int]]:
    """Base URL and process ID of NeMo Gym's `vllm_model` in training mode.

    Args:
        upstream: base URL of the OpenAI-compatible server behind it, with /v1.
        model: the name it asks that server for.
    """
    extra = {
        "base_url": upstream,
        "api_key": "none",
        "model": model,
        "return_token_id_information": True,
        "uses_reasoning_parser": False,
    }
    module = "responses_api_models.vllm_model.app"
    with _running(module, "VLLMModel", "policy_model", extra, {}) as running:
        yield running


@contextlib.contextmanager
def running_simple_agent(resources: str, model: str, *, max_steps: int = 6) -> Iterator[str]:
    """Base URL of NeMo Gym's `simple_agent`.

    Args:
        resources: base URL of the resources server whose tools and verdicts it uses.
        model: base URL of the model server it asks.
        max_steps: model calls a rollout at most.
    """
    extra = {
        "max_steps": max_steps,
        "resources_server": {"type": "resources_servers", "name": "resources"},
        "model_server": {"type": "responses_api_models", "name": "policy_model"},
    }
    peers = {"resources": resources, "policy_model": model}
    module = "responses_api_agents.simple_agent.app"
    with _running(module, "SimpleAgent", "simple_agent", extra, peers) as (url, _):
        yield url


@contextlib.contextmanager
def _running(
    module: str, class_name: str, name: str, extra: Mapping[str, Any], peers: Mapping[str, str]
) -> Iterator[tuple[str, int]]:
    script = Path(__file__).with_name("serve_nemo_gym.py")
    known = {peer: {"servers": {peer: _address(url)}} for peer, url in peers.items()}
    server = [module, class_name, name, json.dumps(extra), json.dumps(known)]
    command = [str(nemo_gym_python()), str(script), *server]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None  # noqa: S101 (a pipe was asked for)
        try:
            port = next((line[5:] for line in process.stdout if line.startswith("PORT ")), "")
            if not port:
                errors.seek(0)
                raise RunError(f"nemo-gym's {name} didn't start: {errors.read()[-2000:]}")
            # What a server prints must not fill the pipe.
            reading = threading.Thread(target=process.stdout.read, daemon=True)
            reading.start()
            try:
                yield f"http://127.0.0.1:{int(port)}", process.pid
            finally:
                _end(process)
                reading.join(5)  # closing what it reads from would be an error in it
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None  # noqa: S101 (a pipe was asked for)
    process.stdin.close()  # it watches for that
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()


def _address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {"host": parts.hostname, "port": parts.port}
