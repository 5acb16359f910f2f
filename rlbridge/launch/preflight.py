"""Checks that cost seconds, before the part that costs minutes. Nothing is loaded for real."""

import asyncio
import json
from pathlib import Path
from typing import Any

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import Fault, InvalidReward
from rlbridge.errors import ConfigError
from rlbridge.gym import GymClient
from rlbridge.prompts import PromptConfig
from rlbridge.rows import agent_of, messages_of, read_rows, tools_of
from rlbridge.run_config import AgentSection, GymSection, RunConfig

PROBED_ROWS = 3
_START_AGENT = "Start Gym's agent there, or name in agent.servers one that runs."


def check_policy(folder: Path) -> None:
    """See that a policy folder is whole: config, weights, tokenizer, chat template.

    Raises:
        ConfigError: something is missing or cut short; the message names it.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"policy.path: {folder} is no folder; it must hold a model in Hugging Face format "
            "(the demo's is made by: python examples/tiny_policy.py)"
        )
    _check_json(folder / "config.json", "the model's config")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not list(folder.glob("*.bin")):
        raise ConfigError(f"policy.path: {folder} holds no weights (*.safetensors or *.bin)")
    for path in weights:
        _check_safetensors(path)
    tokenizer = _check_json(folder / "tokenizer_config.json", "the tokenizer's config")
    templates = list(folder.glob("chat_template*"))
    if not tokenizer.get("chat_template") and not templates:
        raise ConfigError(
            f"policy.path: {folder} has no chat template; GRPO needs one to render prompts "
            "(chat_template.jinja, or chat_template in tokenizer_config.json)"
        )


def _check_json(path: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"policy.path: {what} is missing: {path}") from error
    except ValueError as error:
        raise ConfigError(f"policy.path: {what} is not JSON: {path}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"policy.path: {what} must be a JSON object: {path}")
    return data


def _check_safetensors(path: Path) -> None:
    """Compare the size a safetensors header promises with the file's own."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if length < size else None
        except ValueError:
            header = None
    if header is None:
        raise ConfigError(f"policy.path: {path} is no safetensors file, or is cut short")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if size != 8 + length + max(ends, default=0):
        raise ConfigError(f"policy.path: {path} is cut short; copy or download it again")


def check_rows(config: RunConfig) -> list[dict[str, Any]]:
    """Read every row and its prompt; return the training rows, with their prompts.

    Raises:
        ConfigError: a file, a line, a prompt or a prompt config is wrong; the message names file
            and line. Or there are fewer rows than a step takes: frameworks would train on none.
    """
    data = config.data
    train = [(data.train, data.prompt), *((mixed.path, mixed.prompt) for mixed in data.mix)]
    rows = [row for path, prompt in train for row in _rows(config, path, prompt)]
    if data.validation is not None:
        _rows(config, data.validation, data.prompt)
    if len(rows) < config.rollout.prompts_per_step:
        raise ConfigError(
            f"rollout.prompts_per_step: a step takes {config.rollout.prompts_per_step} rows, and "
            f"the training data hold {len(rows)}; lower it or add rows"
        )
    return rows


def _rows(config: RunConfig, path: Path, prompt: str | None) -> list[dict[str, Any]]:
    found = read_rows(path, prompt=PromptConfig.load(prompt) if prompt else None)
    for where, row in found:
        messages_of(row, where)
        agent_of(row, where)
        _check_tools(config, where, row)
    return [row for _, row in found]


def _check_tools(config: RunConfig, where: str, row: dict[str, Any]) -> None:
    if tools_of(row, where) and config.agent.loop == "single_turn":
        raise ConfigError(
            f"{where}: the row offers tools, and agent.loop is single_turn: nobody would call "
            "them; set agent.loop=tools (or run, for Gym's own agents)"
        )


def check_gym(config: GymSection, rows: list[dict[str, Any]]) -> list[str]:
    """See that each reward server is alive and can judge its first rows; return warnings.

    Raises:
        GymError: nobody answers at a URL.
        ConfigError: a server can judge none of its first rows, with its words.
    """
    by_url: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_url.setdefault(config.url_for(agent_of(row, "a row") or ""), []).append(row)
    warnings = []
    for url, theirs in by_url.items():
        fields = {name: getattr(config, name) for name in GymConfig.model_fields}
        here = fields | {"url": url, "urls": config.urls if url == config.url else ()}
        warnings += asyncio.run(_check_gym(GymConfig(**here), theirs[:PROBED_ROWS]))
    return warnings


def check_agents(gym: GymSection, agent: AgentSection) -> None:
    """See that Gym's agents are alive. What they can judge shows in the first step.

    Raises:
        GymError: nobody answers at an agent's URL.
    """

    async def check() -> None:
        fields = {name: getattr(gym, name) for name in GymConfig.model_fields}
        for server in agent.servers:
            async with GymClient(GymConfig(**fields | {"url": server.url, "urls": ()})) as client:
                await client.check_alive(advice=_START_AGENT)

    asyncio.run(check())


async def _check_gym(config: GymConfig, rows: list[dict[str, Any]]) -> list[str]:
    warnings = []
    async with GymClient(config) as gym:
        await gym.check_alive()
        rewards = await gym.verify_batch([(row, "") for row in rows])
    for index, reward in enumerate(rewards):
        if isinstance(reward, InvalidReward):
            warnings.append(f"row {index}: {config.url}/verify: {reward.failure}: {reward.detail}")
    if rewards and all(isinstance(reward, InvalidReward) for reward in rewards):
        data = all(
            isinstance(reward, InvalidReward) and reward.fault is Fault.DATA for reward in rewards
        )
        advice = "are these rows for another server?" if data else "is this a resources server?"
        raise ConfigError(
            f"the Gym at {config.url} can judge none of the first {len(rows)} rows; {advice} "
            + "; ".join(warnings)
        )
    return warnings
