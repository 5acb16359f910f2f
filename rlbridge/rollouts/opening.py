"""Opens the player that a config asks for, with everything it is made of."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from rlbridge.config import GymConfig
from rlbridge.gateway.agent import AgentConfig
from rlbridge.gym import GymClient
from rlbridge.plugins import Plugins
from rlbridge.rollouts.config import PlayConfig
from rlbridge.rollouts.player import AgentPlayer, Player, PolicyPlayer
from rlbridge.rollouts.policy import LoadTokenizer, open_policy


@asynccontextmanager
async def open_player(
    config: PlayConfig, load_tokenizer: LoadTokenizer, *, concurrency: int, timeout_s: float
) -> AsyncIterator[Player]:
    """A player that is ready to play `concurrency` rollouts at once; closed on leaving.

    Args:
        config: who plays.
        load_tokenizer: from a folder or a hub name.
        concurrency: rollouts at once.
        timeout_s: the longest a rollout may take, seconds.

    Raises:
        ConfigError: the config names what isn't there.
        GymError: the environment doesn't answer.
        EngineError: the policy doesn't.
    """
    async with AsyncExitStack() as stack:
        gym = None
        url = config.agent or config.gym
        if url is not None:
            fields = GymConfig(url=url, run_timeout_s=timeout_s, max_concurrency=concurrency)
            gym = await stack.enter_async_context(GymClient(fields))
            await gym.check_alive()
        if gym is not None and config.agent is not None:
            yield AgentPlayer(gym, config.agent_name)
            return
        evaluator = None
        if config.evaluator is not None:
            evaluator = Plugins().evaluator(config.evaluator, config.evaluator_options)
            stack.push_async_callback(evaluator.aclose)
        found = await stack.enter_async_context(
            open_policy(config, load_tokenizer, concurrency=concurrency, timeout_s=timeout_s)
        )
        limits = AgentConfig(
            max_steps=config.max_turns, max_tool_output_chars=config.max_tool_output_chars
        )
        yield PolicyPlayer(
            found.policy, gym, evaluator, limits, config.overrides(), config.agent_name, found.words
        )
