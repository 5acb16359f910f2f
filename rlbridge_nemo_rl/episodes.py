"""The rollouts of one environment actor: one turn, or several with tools in a Gym session.

A session lives in this process and nowhere else. If the process was restarted in between, its
rollouts are lost and say so; they are never seeded anew in the middle. NeMo-RL doesn't tell of
rollouts that it cuts (at its context, say), so a session that nobody goes on with is forgotten.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward
from rlbridge.errors import ConfigError
from rlbridge.gym import GymClient, GymSession
from rlbridge.gym.tools import answer_calls
from rlbridge.rows import agent_of, tools_of
from rlbridge_nemo_rl.dialogue import Dialogue
from rlbridge_nemo_rl.processor import ROW

if TYPE_CHECKING:
    from rlbridge_nemo_rl.environment import EnvironmentConfig

SESSION, TURN = "session", "turn"
_IDLE_S = 7200.0
"""How long a session waits for the policy's next turn; generating one takes minutes at most."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a turn led to.

    Attributes:
        reward: None while the rollout goes on.
        observation: text behind the sampled tokens; empty at the end.
        state: metadata to carry to the next turn.
    """

    reward: Reward | None
    observation: str = ""
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Episode:
    """A rollout under way: its session, and what was said since the prompt, in Chat's form."""

    session: GymSession
    heard: float
    """When its last turn came, by the monotonic clock."""
    said: list[dict[str, Any]] = field(default_factory=list)


class Gyms:
    """The actor's clients: one for each reward server.

    Args:
        config: of all of them; its URL is the server of agents that have none of their own.
        servers: base URLs by `agent_ref.name`.
    """

    def __init__(self, config: GymConfig, servers: Mapping[str, str]) -> None:
        self._first = GymClient(config)
        by_url = {
            url: GymClient(config.model_copy(update={"url": url, "urls": ()}))
            for url in sorted(set(servers.values()))
        }
        self._by_agent = {agent: by_url[url] for agent, url in servers.items()}
        self._clients = [self._first, *by_url.values()]

    def of(self, row: Mapping[str, Any]) -> GymClient:
        """The client of the server that judges `row`."""
        return self._by_agent.get(agent_of(row, "a row") or "", self._first)

    @property
    def requests(self) -> int:
        """Requests sent so far."""
        return sum(sum(client.stats.attempts.values()) for client in self._clients)

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.aclose()


class Episodes:
    """Judges turns.

    Args:
        gyms: the actor's clients.
        config: limits, and the policy where rows have tools.
        clock: seconds that only grow.
    """

    def __init__(
        self, gyms: Gyms, config: "EnvironmentConfig", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._gyms = gyms
        self._config = config
        self._clock = clock
        self._open: dict[str, _Episode] = {}  # by their last turns, the oldest first
        self._dialogue: Dialogue | None = None
        self._loading = asyncio.Lock()

    async def turn(self, log: Sequence[Mapping[str, Any]], info: Mapping[str, Any]) -> Outcome:
        """Judge the last message of `log`, or answer its tool calls.

        Raises:
            GymError: the session couldn't be opened, or was lost.
            ConfigError: rows have tools, and this policy can't be used with them.
        """
        row = info[ROW]
        text = str(log[-1]["content"])
        tools = tools_of(row)
        if not tools:
            return Outcome(await self._gyms.of(row).verify(row, text))
        dialogue = await self._speak()
        found = self._episode(info)
        if isinstance(found, InvalidReward):
            return Outcome(found)
        key, episode = found
        if episode is None:
            session = self._gyms.of(row).session(row)
            await session.__aenter__()
            self._forget_idle()
            episode = _Episode(session, self._clock())
        else:
            episode.heard = self._clock()
            del self._open[key]
        self._open[key] = episode
        turn = int(info.get(TURN, 0)) + 1
        try:
            outcome = await self._go_on(dialogue, episode, text, tools, last=self._is_last(turn))
        except BaseException:
            self._open.pop(key, None)
            raise
        if outcome.reward is not None:
            self._open.pop(key, None)
            return outcome
        return Outcome(None, outcome.observation, {SESSION: key, TURN: turn})

    def _is_last(self, turn: int) -> bool:
        return turn >= self._config.max_turns

    def _episode(self, info: Mapping[str, Any]) -> tuple[str, _Episode | None] | InvalidReward:
        key = info.get(SESSION)
        if key is None:
            return uuid.uuid4().hex, None
        if key not in self._open:
            return InvalidReward(
                FailureClass.LOST_SESSION,
                "the environment was restarted in the middle of this rollout, or waited "
                f"{_IDLE_S / 3600:g} hours for its next turn; its session is gone",
            )
        return str(key), self._open[key]

    def _forget_idle(self) -> None:
        """Drop the sessions that nobody goes on with."""
        for key in list(self._open):
            if self._clock() - self._open[key].heard < _IDLE_S:
                return
            del self._open[key]

    async def _go_on(
        self,
        dialogue: Dialogue,
        episode: _Episode,
        text: str,
        tools: Sequence[dict[str, Any]],
        *,
        last: bool,
    ) -> Outcome:
        message = dialogue.parse(text, tools).as_chat(seed=f"{id(episode)}/{len(episode.said)}")
        episode.said.append(message)
        calls = message.get("tool_calls") or []
        if not calls or last:
            return Outcome(await episode.session.verify(_spoken(episode.said, text)))
        results = await answer_calls(
            episode.session,
            calls,
            max_output_chars=self._config.max_tool_output_chars,
            parallel=self._config.parallel_tool_calls,
            tools=[tool["function"]["name"] for tool in tools],
        )
        episode.said += results
        return Outcome(None, dialogue.observation(results, tools))

    async def _speak(self) -> Dialogue:
        """The tokenizer's template, proven once, off the event loop: it takes a second."""
        async with self._loading:
            if self._dialogue is None:
                self._dialogue = await asyncio.to_thread(_load, self._config.policy)
            return self._dialogue


def _spoken(said: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The dialogue as a verifier reads it; a turn that says nothing is the text it was."""
    if said[-1].get("content") or said[-1].get("tool_calls") or said[-1].get("reasoning"):
        return said
    return [*said[:-1], {"role": "assistant", "content": text}]


def _load(policy: str | None) -> Dialogue:
    if policy is None:
        raise ConfigError(
            "rows have tools: set env.rlbridge_gym.policy to the policy's folder, so that tool "
            "calls can be read and results written in its chat template"
        )
    from transformers import AutoTokenizer

    return Dialogue(AutoTokenizer.from_pretrained(policy))
