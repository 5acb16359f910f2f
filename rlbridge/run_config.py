"""The config of a training run, the same for every framework. Refuses unknown keys.

A framework's plugin compiles it into the framework's own config; the section named after the
framework (`verl:`, `nemo_rl:`) holds native overrides, which win over everything compiled.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from rlbridge.config import GymConfig, StrictModel
from rlbridge.errors import ConfigError


class PolicySection(StrictModel):
    """The model that is trained."""

    path: Path
    """A folder in Hugging Face format: weights, tokenizer, chat template."""


class GymSection(GymConfig):
    """Where rewards come from."""

    serve: str | None = None
    """Start this embedded reward server for the run (see `rlbridge gym serve`); url is ignored."""
    servers: dict[str, str] = Field(default_factory=dict)
    """Base URLs of other reward servers by `agent_ref.name`; rows of other agents go to url."""

    def url_for(self, agent: str) -> str:
        """The base URL of the server that judges rows of this agent."""
        return self.servers.get(agent, self.url)


class AgentServer(StrictModel):
    """A Gym agent whose model server asks us, and where it asks."""

    url: str
    """Base URL of the agent, without /run."""
    gateway_port: int = Field(ge=1, le=65535)
    """Loopback port at which its model server looks for the policy: /v1 on this port."""


class AgentSection(StrictModel):
    """Who makes a rollout of a row."""

    loop: Literal["single_turn", "tools", "run"] = "single_turn"
    """One answer; an agent of ours that calls the environment's tools; or Gym's own agents,
    through /run."""
    max_turns: int = Field(16, ge=1)
    """Answers of the policy a rollout (loop: tools)."""
    max_tool_output_chars: int = Field(8192, ge=1)
    """Longest answer of a tool; what is longer is cut and says so (loop: tools)."""
    parallel_tool_calls: bool = False
    """Send a turn's tool calls at once instead of in turn (loop: tools)."""
    servers: tuple[AgentServer, ...] = ()
    """Gym's agents (loop: run); one for each worker."""
    workers: int = Field(1, ge=1)
    """Processes that run rollouts."""


class MixedFile(StrictModel):
    """Rows mixed in beside data.train."""

    path: Path
    """A file of Gym rows."""
    weight: float = Field(1.0, gt=0)
    """Its share of the rows drawn, where data.train has 1."""
    prompt: str | None = None
    """Prompt config of this file's rows, as data.prompt; none if they have their prompts."""


class DataSection(StrictModel):
    """Gym rows in JSON lines: responses_create_params, the verifier's fields, agent_ref."""

    train: Path
    """Rows to train on."""
    prompt: str | None = None
    """Prompt config for rows of raw fields: a YAML file, or a built-in such as generic/math. It is
    applied once to each row of data.train and data.validation; a row that has a prompt is refused.
    None if the rows have their prompts."""
    mix: tuple[MixedFile, ...] = ()
    """Rows of other environments, mixed in by weight."""
    validation: Path | None = None
    """Rows to validate on; none means no validation."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longest prompt in tokens; a longer one is refused before training."""
    shuffle: bool = True
    """Shuffle the rows each epoch, by trainer.seed."""


class AlgorithmSection(StrictModel):
    """How rewards become gradients."""

    name: Literal["grpo", "sft", "dpo"] = "grpo"
    """The algorithm; sft and dpo learn from rows that `rlbridge transform` makes, without a Gym,
    and run on NeMo-RL."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    updates_per_step: int = Field(1, ge=1)
    """Optimizer updates a step; the step's prompts are split evenly among them."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the KL loss against the first policy; 0 needs no reference model."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    normalize_by_std: bool = True
    """Divide advantages by their group's standard deviation."""
    rollout_correction: Literal["auto", "none", "token", "sequence"] = "auto"
    """Weigh tokens or whole responses by trainer over sampler probability; auto: tokens where
    rollouts may be older than the weights (async trainers), nothing elsewhere."""
    correction_threshold: float = Field(2.0, gt=0)
    """Those weights are truncated here."""


class RolloutSection(StrictModel):
    """How responses are sampled."""

    prompts_per_step: int = Field(8, ge=1)
    """Rows drawn for each step."""
    samples_per_prompt: int = Field(8, ge=2)
    """Responses sampled for each row: GRPO's group size."""
    max_response_tokens: int = Field(512, ge=1)
    """Longest response in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling mass."""


class RaySection(StrictModel):
    """The Ray cluster to run on."""

    address: str | None = None
    """Join this cluster ("auto", or host:port of its head); none starts one on this machine."""


class TrainerSection(StrictModel):
    """Where and how long to train."""

    steps: int = Field(30, ge=1)
    """Optimizer steps."""
    device: Literal["cpu", "cuda"] = "cuda"
    """Where the policy runs."""
    gpus_per_node: int = Field(1, ge=1)
    """GPUs a node; 1 logical device on a CPU."""
    nodes: int = Field(1, ge=1)
    """Nodes of the cluster."""
    seed: int = 0
    """Seed of shuffling, sampling and initialisation."""
    output_dir: Path = Path("runs/run")
    """Folder for metrics, logs, checkpoints, summary.json, and reward.png or loss.png."""
    save_every: int | None = Field(None, ge=1)
    """Save a checkpoint every so many steps; none saves only when a run is stopped early."""
    validate_every: int | None = Field(None, ge=1)
    """Validate every so many steps."""
    resume: bool = False
    """Go on from the newest checkpoint in output_dir instead of starting anew."""
    max_invalid_share: float = Field(0.5, gt=0, le=1)
    """Stop when more than this share of the rewards of the last steps is invalid."""
    invalid_window_steps: int = Field(3, ge=1)
    """How many steps that share is taken over."""
    stall_timeout_s: float = Field(1800.0, gt=0)
    """Stop when a step's rollouts make no progress for so long."""
    start_timeout_s: float = Field(1800.0, gt=0)
    """Stop when the first step has not ended after so long."""


class RunConfig(StrictModel):
    """A whole training run."""

    policy: PolicySection
    """The model that is trained."""
    gym: GymSection = GymSection()
    """Where rewards come from."""
    agent: AgentSection = AgentSection()
    """Who makes a rollout of a row."""
    data: DataSection
    """What to train on."""
    algorithm: AlgorithmSection = AlgorithmSection()
    """How rewards become gradients."""
    rollout: RolloutSection = RolloutSection()
    """How responses are sampled."""
    trainer: TrainerSection = TrainerSection()
    """Where and how long to train."""
    ray: RaySection = RaySection()
    """The Ray cluster to run on."""
    verl: dict[str, Any] = Field(default_factory=dict)
    """verl's own keys, which win over what rlbridge compiles."""
    nemo_rl: dict[str, Any] = Field(default_factory=dict)
    """NeMo-RL's own keys, likewise."""


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML) and validate.

    Raises:
        ConfigError: the file is missing or not a mapping, an override has no `=`, or a key or a
            value is wrong.
    """
    try:
        data = _plain(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"can't read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text: {error}") from error
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise ConfigError(
            f"{path} must hold a mapping of sections (policy, data, ...), not {found}"
        )
    for override in overrides:
        _apply(data, override)
    where = f"{path}, with the overrides" if overrides else str(path)
    return RunConfig.parse(data, where=where)


class _Loader(yaml.SafeLoader):
    """YAML with each key once, and floats as people write them (1e-6 is text in YAML 1.1)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; of a key that is there twice YAML drops the first, and nobody hears of it."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _plain(text: str, where: str) -> Any:
    """What a YAML text holds.

    Raises:
        ConfigError: it is no YAML, or has a key twice; with its line.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark if "\n" in text else None
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line} is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must look like key.path=value")
    value = _plain(text, f"override {override!r}: the value")
    *sections, last = key.split(".")
    target: Any = data
    for depth, section in enumerate(sections):
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            where = ".".join(sections[: depth + 1])
            raise ConfigError(f"override {override!r}: {where} is a value, not a section")
    target[last] = value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping of dotted keys; empty mappings stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat
