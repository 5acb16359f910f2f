"""Stands for NeMo-RL's Gym actor class where `setup` makes the actor, and makes ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rlbridge_nemo_rl.lending import lent_source


class Gateways(Protocol):
    """What stands between Gym's agents and the engines; see `GymGateway`, `AgentServers`."""

    folder: Path

    def start(self) -> None:
        """Start; once, whatever the number of calls."""

    def actor_config(self) -> dict[str, Any]:
        """What the actor is told beside NeMo-RL's own config."""


class ActorBehind:
    """Our actor, made with NeMo-RL's options for its own.

    Args:
        gateways: started when the first actor is made.
        actor: a Ray actor class, or one with options.
        more: what the actor is told beside that.
    """

    def __init__(self, gateways: Gateways, actor: Any, more: Mapping[str, Any] | None = None):
        self._gateways = gateways
        self._actor = actor
        self._more = dict(more or {})

    def told(self, **more: Any) -> "ActorBehind":
        """With more in its config."""
        return ActorBehind(self._gateways, self._actor, self._more | more)

    def options(self, **options: Any) -> "ActorBehind":
        """With Ray's options; always on this node, where the gateways are on loopback.

        Its Python environment is NeMo-RL's for Gym, so our packages go along by PYTHONPATH.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        runtime = dict(options.get("runtime_env") or {})
        source = {"PYTHONPATH": lent_source(self._gateways.folder)}
        runtime["env_vars"] = {**runtime.get("env_vars", {}), **source}
        ours = {"scheduling_strategy": here, "runtime_env": runtime}
        return ActorBehind(self._gateways, self._actor.options(**options | ours), self._more)

    def remote(self, config: Mapping[str, Any]) -> Any:
        """The actor, which knows the gateways alone and no engine."""
        self._gateways.start()
        return self._actor.remote({**config, **self._gateways.actor_config(), **self._more})
