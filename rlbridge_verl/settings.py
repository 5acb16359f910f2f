"""What a verl config says to rlbridge: the section `reward.nemo_gym`. Refuses what verl ignores.

verl 0.9 still has the reward keys of 0.7 in its YAML and reads none of them; a run would go on
with another scorer than the config names. They are refused here with their new spelling.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import orjson
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from rlbridge.config import GymConfig, StrictModel
from rlbridge.errors import ConfigError
from rlbridge.rows import agent_of

GYM_ROW = "gym_row"
"""Key of a row's JSON text in verl's column `extra_info`."""
SPLIT = "gym_split"
"""Key of "train" or "validation" there."""

VERL_CHECKED = "0.9."
VERL_ELSEWHERE = {
    "0.8.": "its reward hooks are spelled alike, but nobody has run this adapter with it",
    "0.7.": "there rewards are configured by custom_reward_function.* and reward_model.*, and "
    "a reward that raises ends the run instead of leaving the batch",
}

_RENAMED = {
    "custom_reward_function.path": "reward.custom_reward_function.path",
    "custom_reward_function.name": "reward.custom_reward_function.name",
    "reward_model.num_workers": "reward.num_workers",
    "reward_model.reward_manager": "reward.reward_manager.name",
    "reward_model.reward_loop_source": "reward.reward_manager.source",
    "reward_model.reward_loop_module_path": "reward.reward_manager.module.path",
    "reward_model.reward_loop_class_name": "reward.reward_manager.name",
    "reward_model.enable": "reward.reward_model.enable",
    "reward_model.model.path": "reward.reward_model.model_path",
    "sandbox_fusion.url": "reward.sandbox_fusion.url",
}


class AgentAddress(StrictModel):
    """A Gym agent, and the port at which its model server looks for the policy."""

    url: str
    """Base URL of the agent, without /run."""
    gateway_port: int = Field(ge=1, le=65535)
    """A worker's gateway listens here, on loopback."""


class GymSection(GymConfig):
    """The keys of `reward.nemo_gym`: those of the Gym client, and where outcomes go."""

    servers: dict[str, str] = Field(default_factory=dict)
    """Other reward servers by `agent_ref.name`; rows of other agents go to `url`."""
    ledger: Path | None = None
    """Folder for the record of every outcome; none keeps no record."""
    headers_file: Path | None = None
    """JSON file of request headers, for keys that must not stand in a config."""
    components: tuple[str, ...] = ()
    """Reward components to report for every sample, null where an environment has none; by
    default each sample reports what its environment sent."""

    agents: tuple[AgentAddress, ...] = ()
    """Gym's agents, for the agent loop `nemo_gym_run`; one for each agent loop worker."""

    def client_config(self, environment: str) -> GymConfig:
        """The client's config for the rows of one environment (`agent_ref.name`)."""
        fields = {name: getattr(self, name) for name in GymConfig.model_fields}
        url = self.servers.get(environment)
        if url is not None:
            fields |= {"url": url, "urls": ()}
        if self.headers_file is not None:
            fields["headers"] = orjson.loads(self.headers_file.read_bytes())
        return GymConfig.parse(fields, where="reward.nemo_gym")


def gym_section(config: Any) -> GymSection:
    """The section of a whole verl config.

    Raises:
        ConfigError: a key is unknown or its value is wrong; a key of verl 0.7 is set; verl has
            a version this adapter was not run with.
    """
    require_verl()
    refuse_legacy(config)
    section = config.reward.get("nemo_gym")
    plain: Any = OmegaConf.to_container(section, resolve=True) if section else {}
    return GymSection.parse(plain, where="reward.nemo_gym")


def require_verl() -> None:
    """Refuse a verl this adapter was not run with.

    Raises:
        ConfigError: with what differs there.
    """
    found = importlib.metadata.version("verl")
    if found.startswith(VERL_CHECKED):
        return
    why = next((words for prefix, words in VERL_ELSEWHERE.items() if found.startswith(prefix)), "")
    raise ConfigError(
        f"rlbridge_verl runs with verl {VERL_CHECKED}x, found {found}"
        + (f": {why}" if why else "")
        + "; pip install 'verl>=0.9,<0.10'"
    )


def refuse_legacy(config: DictConfig) -> None:
    """Refuse reward keys of verl 0.7, which 0.9 takes and ignores.

    Raises:
        ConfigError: lists each with its new spelling.
    """
    found = [
        f"{old} is now {new}"
        for old, new in _RENAMED.items()
        if OmegaConf.select(config, old) not in (None, False)
    ]
    if found:
        raise ConfigError(f"verl 0.9 ignores reward keys of 0.7: {'; '.join(found)}")


def environment_of(row: dict[str, Any]) -> str:
    """The environment a row belongs to: its agent's name, or "nemo_gym"."""
    return agent_of(row, "a row") or "nemo_gym"
