"""Our gateway between Gym's agents and NeMo-RL's vLLM servers; the launching process owns it.

In a launcher of NeMo-RL's Gym path, behind `setup_nemo_gym_config` and before `setup`::

    register(gateway=GymGateway.of(config, Path("runs/gym")))

A process on loopback that ends with the launcher. Gym gets its URL for the engines', and its actor
is made on the launcher's node. The engines are published to it for the length of a rollout alone:
a colocated vLLM sleeps between rollouts, and one that sleeps must not be asked for a token. Those
of async GRPO never sleep, and it rolls out all the time in another process: they are published for
as long as it trains.
Refuses configs that NeMo-RL's Gym path, or this way into it, can't run (`gym_flags.check`).
"""

import contextlib
import json
import logging
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from rlbridge.engines.registry import RegistryEntry, publish, without_nulls
from rlbridge.errors import RunError
from rlbridge_nemo_rl import logprobs, versions
from rlbridge_nemo_rl.actor_behind import ActorBehind
from rlbridge_nemo_rl.agent_rewards import LEDGER
from rlbridge_nemo_rl.gym_calls import GATEWAY, ask
from rlbridge_nemo_rl.gym_flags import check
from rlbridge_nemo_rl.refits import refitting

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
        logprobs_mode: what its logprobs are of, `raw` or `processed`.
        max_tokens: most tokens of an answer, whatever an agent asks for; None for the context's.
        ledger: folder of the record of every reward; None for `rewards` in `folder`.
        called: the name that agents call the model by; None for the engines'.
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
        logprobs_mode: str = "processed",
        max_tokens: int | None = None,
        ledger: Path | None = None,
        called: str | None = None,
        port: int = 0,
        ready_timeout_s: float = 600.0,
    ) -> None:
        self.folder = folder.resolve()
        self.ledger = (ledger or folder / "rewards").resolve()
        self._engines = self.folder / "engines.json"
        self._log = self.folder / "gateway.log"
        self._model = model
        self._ready_timeout_s = ready_timeout_s
        self._wait_for_all = True
        self._process: subprocess.Popen[bytes] | None = None
        self._urls: tuple[str, ...] = ()
        self.weights: int | None = None
        """The version of the weights that the engines serve; None where nobody counts them."""
        self.url = f"http://127.0.0.1:{port or _free_port()}"
        only = {"temperature": temperature, "top_p": top_p}
        self._config = {
            "policy": {
                "file": str(self._engines),
                "model": model,
                "wire": "nemo_rl",
                "logprobs_mode": logprobs_mode,
                "ready_timeout_s": _FOREVER_S,
                "health_interval_s": 0.5,  # how soon it sees that a rollout began
                "salt_by_version": False,  # whether old weights' caches are used is NeMo-RL's say
                **only,
            },
            "tokenizer": tokenizer,
            "model": called,
            "sampling": {"mode": "trainer", "max_tokens": max_tokens, **only},
            "capture": {"folder": str(self.folder / "calls")},
            "port": int(self.url.rpartition(":")[2]),
        }

    @classmethod
    def of(cls, config: Any, folder: Path, **given: Any) -> Self:
        """The gateway that a NeMo-RL config needs.

        Args:
            config: the `MasterConfig`, as it is behind `setup_nemo_gym_config`.
            folder: see above.
            **given: `ledger`, `called`, `port`, `ready_timeout_s`.

        Raises:
            ConfigError: a flag that the Gym path needs is missing, or logprobs would be of another
                distribution than the one sampled from; by the key's name.
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
            logprobs_mode=logprobs.mode_of(generation),
            max_tokens=int(generation["max_new_tokens"]),
            **given,
        )

    def start(self) -> None:
        """Start the process; it waits for engines. Started once, whatever the number of calls."""
        if self._process is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.serve(None)
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
    def serving(
        self, urls: Callable[[], Sequence[str | None]], weights: int | None = None
    ) -> Iterator[None]:
        """Let the gateway ask the engines while this is open. Inside another, that one counts.

        Args:
            urls: gives the engines' base URLs, None for one that has none yet.
            weights: version of the weights that they serve, which `refitting` counts on.

        Raises:
            RunError: no engine got a URL in time, or the gateway ended or isn't ready in time.
        """
        if self._urls:
            self._see_that_it_runs()
            yield
            return
        deadline = time.monotonic() + self._ready_timeout_s
        self.start()
        self._urls = self._complete(urls, deadline)
        self.serve(weights)
        try:
            self._wait_until(self._why_not_ready, deadline)
            yield
        finally:
            self._urls = ()
            self.serve(None)

    @contextlib.contextmanager
    def refitting(self) -> Iterator[None]:
        """Around a change of the weights while agents play; see `refits.refitting`."""
        with refitting([self]):
            yield

    def serve(self, weights: int | None) -> None:
        """Tell the gateway which engines there are, and the version of what they serve."""
        self.weights = weights
        publish(
            self._engines,
            RegistryEntry(urls=self._urls, model=self._model, policy_version=weights),
        )

    def wait_until_unlabelled(self) -> None:
        """Wait until no answer gets a version any more.

        Raises:
            RunError: the gateway ended, or doesn't say so in time.
        """
        self._wait_until(self._why_labelled, time.monotonic() + self._ready_timeout_s)

    def actor(self) -> Any:
        """What `setup` is to make in the place of NeMo-RL's Gym actor: ours, before this gateway.

        Gym is started by NeMo-RL, and told this gateway's URL in the place of the engines'.
        """
        from rlbridge_nemo_rl.gym_agents import TolerantGym

        return ActorBehind(self, TolerantGym)

    def actor_config(self) -> dict[str, Any]:
        """What that actor is told beside NeMo-RL's own config."""
        return {"base_urls": [f"{self.url}/v1"], GATEWAY: self.url, LEDGER: str(self.ledger)}

    def around(self, rollout: Callable[..., Any]) -> Callable[..., Any]:
        """NeMo-RL's Gym rollout, with its engines known to the gateway while it runs."""

        def published(policy_generation: Any, *args: Any, **kwargs: Any) -> Any:
            with self.serving(lambda: policy_generation.dp_openai_server_base_urls):
                return rollout(policy_generation, *args, **kwargs)

        return published

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

    def _see_that_it_runs(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise RunError(f"the gateway at {self.url} ended; see {self._log}")

    def _wait_until(self, why_not: Callable[[], str], deadline: float) -> None:
        while True:
            self._see_that_it_runs()
            reason = "it doesn't answer"
            with contextlib.suppress(OSError):
                reason = why_not()
            if not reason:
                return
            if time.monotonic() > deadline:
                raise RunError(
                    f"the gateway at {self.url} was not ready in {self._ready_timeout_s:g} s: "
                    f"{reason}; see {self._log}"
                )
            time.sleep(_POLL_S)

    def _why_not_ready(self) -> str:
        """Why a call wouldn't be answered now; empty if it would."""
        try:
            ready = json.loads(ask("GET", f"{self.url}/ready", _LOOK_TIMEOUT_S)).get("ready")
        except urllib.error.HTTPError as error:
            return error.read().decode(errors="replace")[:300]
        return "" if ready else "it isn't ready"

    def _why_labelled(self) -> str:
        """Which engines' answers get a version; empty if none do."""
        status = json.loads(ask("GET", f"{self.url}/status", _LOOK_TIMEOUT_S))
        labelled = [one["url"] for one in status["replicas"] if one["version"] is not None]
        return f"it doesn't see that weights change at {', '.join(labelled)}" if labelled else ""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
