"""Our gateway between Gym's agents and NeMo-RL's vLLM servers; the launching process owns it.

In a launcher of NeMo-RL's Gym path, behind `setup_nemo_gym_config` and before `setup`::

    register(gateway=GymGateway.of(config, Path("runs/gym")))

A process on loopback that ends with the launcher. Gym gets its URL for the engines', and its actor
is made on the launcher's node. The engines are published to it for the length of a rollout alone:
a colocated vLLM sleeps between rollouts, and one that sleeps must not be asked for a token.
Refuses configs that NeMo-RL's Gym path, or this way into it, can't run.
"""

import contextlib
import json
import logging
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from rlbridge.engines.registry import RegistryEntry, publish, without_nulls
from rlbridge.errors import ConfigError, RunError
from rlbridge_nemo_rl import versions
from rlbridge_nemo_rl.gym_calls import GATEWAY, ask
from rlbridge_nemo_rl.lending import lent_source

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_LOOK_TIMEOUT_S = 10.0
_FOREVER_S = 7 * 24 * 3600.0  # the engines come with the first rollout; its deadline is ours


class GymGateway:
    """A gateway process and what it is told of the engines.

    Args:
        folder: for its config, its log, the engines' URLs and the captured calls.
        model: the name that the engines serve.
        tokenizer: folder or hub name.
        temperature: the one that NeMo-RL's server takes.
        top_p: likewise.
        port: on loopback; 0 for any free one.
        ready_timeout_s: how long a rollout waits for the engines' URLs, and for the gateway.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str,
        tokenizer: str,
        temperature: float = 1.0,
        top_p: float = 1.0,
        port: int = 0,
        ready_timeout_s: float = 600.0,
    ) -> None:
        self.folder = folder.resolve()
        self._engines = self.folder / "engines.json"
        self._log = self.folder / "gateway.log"
        self._model = model
        self._ready_timeout_s = ready_timeout_s
        self._wait_for_all = True
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{port or _free_port()}"
        only = {"temperature": temperature, "top_p": top_p}
        self._config = {
            "policy": {
                "file": str(self._engines),
                "model": model,
                "wire": "nemo_rl",
                "ready_timeout_s": _FOREVER_S,
                "health_interval_s": 0.5,  # how soon it sees that a rollout began
                **only,
            },
            "tokenizer": tokenizer,
            "sampling": {"mode": "trainer", **only},
            "capture": {"folder": str(self.folder / "calls")},
            "port": int(self.url.rpartition(":")[2]),
        }

    @classmethod
    def of(cls, config: Any, folder: Path, **given: Any) -> Self:
        """The gateway that a NeMo-RL config needs.

        Args:
            config: the `MasterConfig`, as it is behind `setup_nemo_gym_config`.
            folder: see above.
            **given: `port`, `ready_timeout_s`.

        Raises:
            ConfigError: a flag that the Gym path needs is missing; by its name.
        """
        check(config)
        policy = versions.section(config, "policy")
        generation = policy["generation"]
        return cls(
            folder,
            model=str(generation.get("model_name") or policy["model_name"]),
            tokenizer=str(policy["tokenizer"]["name"]),
            temperature=float(generation["temperature"]),
            top_p=float(generation["top_p"]),
            **given,
        )

    def start(self) -> None:
        """Start the process; it waits for engines. Started once, whatever the number of calls."""
        if self._process is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._publish(())
        path = self.folder / "gateway.yaml"
        path.write_text(yaml.safe_dump(self._config, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "rlbridge", "gateway", "serve", str(path)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--exit-with-parent"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """End the process; captured calls stay."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
            self._process = None

    @contextlib.contextmanager
    def serving(self, urls: Callable[[], Sequence[str | None]]) -> Iterator[None]:
        """Let the gateway ask the engines until the rollout ends.

        Args:
            urls: gives the engines' base URLs, None for one that has none yet.

        Raises:
            RunError: no engine got a URL in time, or the gateway ended or isn't ready in time.
        """
        deadline = time.monotonic() + self._ready_timeout_s
        self.start()
        self._publish(self._complete(urls, deadline))
        try:
            self._wait_until_ready(deadline)
            yield
        finally:
            self._publish(())

    def around(self, rollout: Callable[..., Any]) -> Callable[..., Any]:
        """NeMo-RL's Gym rollout, with its engines known to the gateway while it runs."""

        def published(policy_generation: Any, *args: Any, **kwargs: Any) -> Any:
            with self.serving(lambda: policy_generation.dp_openai_server_base_urls):
                return rollout(policy_generation, *args, **kwargs)

        return published

    def _publish(self, urls: Sequence[str]) -> None:
        publish(self._engines, RegistryEntry(urls=tuple(urls), model=self._model))

    def _complete(
        self, urls: Callable[[], Sequence[str | None]], deadline: float
    ) -> tuple[str, ...]:
        """The URLs, once none is None; at the deadline those that there are."""
        while None in (found := list(urls())) or not found:
            if not self._wait_for_all and without_nulls(found):
                break  # the others didn't come in the first rollout's time
            if time.monotonic() > deadline:
                self._wait_for_all = False
                _LOG.warning("%d of %d engines have no URL", found.count(None), max(len(found), 1))
                break
            time.sleep(_POLL_S)
        if not (known := without_nulls(found)):
            raise RunError(
                f"policy_generation.dp_openai_server_base_urls had no URL in "
                f"{self._ready_timeout_s:g} s: does vLLM run with async_engine and "
                "expose_http_server?"
            )
        return known

    def _wait_until_ready(self, deadline: float) -> None:
        reason = "it doesn't answer"
        while True:
            if self._process is None or self._process.poll() is not None:
                raise RunError(f"the gateway at {self.url} ended; see {self._log}")
            with contextlib.suppress(OSError):
                ready, reason = _look(f"{self.url}/ready")
                if ready:
                    return
            if time.monotonic() > deadline:
                raise RunError(
                    f"the gateway at {self.url} was not ready in {self._ready_timeout_s:g} s: "
                    f"{reason}; see {self._log}"
                )
            time.sleep(_POLL_S)


class ActorBehind:
    """Stands for NeMo-RL's Gym actor class in `setup`: makes ours, which knows the gateway alone.

    Args:
        gateway: started when the first actor is made.
        actor: a Ray actor class, or one with options.
    """

    def __init__(self, gateway: GymGateway, actor: Any) -> None:
        self._gateway = gateway
        self._actor = actor

    def options(self, **options: Any) -> "ActorBehind":
        """With Ray's options; always on this node, where the gateway is on loopback.

        Its Python environment is NeMo-RL's for Gym, so our packages go along by PYTHONPATH.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        runtime = dict(options.get("runtime_env") or {})
        source = {"PYTHONPATH": lent_source(self._gateway.folder)}
        runtime["env_vars"] = {**runtime.get("env_vars", {}), **source}
        ours = {"scheduling_strategy": here, "runtime_env": runtime}
        return ActorBehind(self._gateway, self._actor.options(**options | ours))

    def remote(self, config: Mapping[str, Any]) -> Any:
        """The actor, given the gateway's URL in the place of the engines'."""
        self._gateway.start()
        url = self._gateway.url
        return self._actor.remote({**config, "base_urls": [f"{url}/v1"], GATEWAY: url})


def check(config: Any) -> None:
    """See that a NeMo-RL config can roll out through Gym's agents and our gateway.

    Raises:
        ConfigError: naming the key.
    """
    generation = versions.section(config, "policy")["generation"]
    vllm = generation.get("vllm_cfg") or {}
    grpo, env = versions.section(config, "grpo"), versions.section(config, "env")
    asynchronous = versions.value(grpo, "async_grpo") or {}
    path, generating = "policy.generation", "policy.generation.vllm_cfg"
    rules = (
        (not env.get("should_use_nemo_gym"), "env.should_use_nemo_gym: must be true"),
        (generation.get("backend") != "vllm", f"{path}.backend: must be vllm"),
        (not vllm.get("async_engine"), f"{generating}.async_engine: must be true"),
        (not vllm.get("expose_http_server"), f"{generating}.expose_http_server: must be true"),
        (
            bool(vllm.get("skip_tokenizer_init")),
            f"{generating}.skip_tokenizer_init: must be false, for its server tokenizes; leave it "
            "out, and set expose_http_server before configure_generation_config",
        ),
        (
            bool(generation.get("stop_strings") or generation.get("stop_token_ids")),
            f"{path}.stop_strings, stop_token_ids: must be null; call setup_nemo_gym_config first",
        ),
        (bool(generation.get("top_k")), f"{path}.top_k: must be null"),
        (
            versions.value(grpo, "max_val_samples") is not None,
            "grpo.max_val_samples: must be null; all validation rows are used",
        ),
        (
            bool(versions.value(asynchronous, "enabled")),
            "grpo.async_grpo.enabled: its rollouts run in another process, which can't tell the "
            "gateway when; use the synchronous trainer, or register() without a gateway",
        ),
    )
    for broken, message in rules:
        if broken:
            raise ConfigError(f"{message} (NeMo-RL's Gym path through the gateway)")


def _look(url: str) -> tuple[bool, str]:
    """Whether it says that it is ready, and if not, why."""
    try:
        return bool(json.loads(ask("GET", url, _LOOK_TIMEOUT_S)).get("ready")), ""
    except urllib.error.HTTPError as error:
        return False, error.read().decode(errors="replace")[:300]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
