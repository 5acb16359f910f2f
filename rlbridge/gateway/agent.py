"""Plays a whole rollout for a row: asks the policy, answers its tool calls, has it judged.

The policy is asked as any agent asks it, through the gateway's own `/v1/responses` in a session,
so every call is bridged and captured. The environment's tools and verdict come from the Gym the
gateway was started with; a row can't name another one. A reward nobody computed stays invalid.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import orjson
from pydantic import Field

from rlbridge.config import StrictModel
from rlbridge.contracts.codecs.messages import items_from_message
from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward
from rlbridge.contracts.wire import RESPONSES_CREATE_PARAMS
from rlbridge.errors import ContractError, GymError
from rlbridge.evaluators.evaluator import Evaluator
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.exchange import Caller, Reply, StreamedReply
from rlbridge.gym import GymClient
from rlbridge.gym.failures import invalid_reward
from rlbridge.gym.session import GymSession
from rlbridge.gym.tools import answer_calls

_USAGE: Final = ("input_tokens", "output_tokens", "total_tokens")


class AgentConfig(StrictModel):
    """How `/run` and `/generate` play a rollout."""

    names: tuple[str, ...] = ("policy_agent",)
    """Names the gateway answers to as a Gym agent; rows say one in `agent_ref.name`."""
    max_steps: int = Field(default=32, ge=1)
    """Model calls a rollout at most; a rollout that reaches it is judged as it stands."""
    parallel_tools: bool = False
    """Send a turn's tool calls at once; false sends one after another."""
    max_tool_output_chars: int = Field(default=8192, ge=1)
    """A longer tool answer is cut, and says so."""
    on_invalid: Literal["error", "mark"] = "error"
    """What `/run` answers where there is no valid reward. error: a status of 503 (may be sent
    again) or 422 (the row's fault). mark: 200 with `reward: null`, `_ng_failure_class` and
    `mask_sample`, which Gym's collector writes to its failures file."""


@dataclass(frozen=True, slots=True)
class Played:
    """A rollout that came to its end.

    Attributes:
        session: the gateway's session, whose calls were captured.
        response: a Responses object with the output of all calls and all tool answers; token
            fields on the last item of each call.
        reward: None where nobody was asked to judge.
        steps: model calls.
        tool_failures: tool calls that went wrong, by class.
    """

    session: str
    response: dict[str, Any]
    reward: Reward | None
    steps: int
    tool_failures: Mapping[str, int] = field(default_factory=dict)


class Policy(Protocol):
    """What an agent asks: a `Gateway` in process, or one behind a URL."""

    async def open_session(
        self, session: str = "", *, group_id: str = "", metadata: Mapping[str, Any] | None = None
    ) -> str:
        """See `Gateway.open_session`."""
        ...

    async def responses(
        self, body: Mapping[str, Any], caller: Caller = ...
    ) -> Reply | StreamedReply:
        """See `Gateway.responses`."""
        ...

    async def score(self, session: str, reward: Reward) -> None:
        """See `Gateway.score`."""
        ...

    async def end_session(self, session: str) -> None:
        """See `Gateway.end_session`."""
        ...


class Agent:
    """Plays rollouts against one policy and, where there is one, one Gym.

    Args:
        gateway: asked for every answer.
        gym: answers tool calls, and judges unless there is an evaluator; whoever made it closes it.
        evaluator: judges; likewise.
        config: see `AgentConfig`.
    """

    def __init__(
        self,
        gateway: Policy,
        *,
        gym: GymClient | None = None,
        evaluator: Evaluator | None = None,
        config: AgentConfig | None = None,
    ) -> None:
        self._gateway = gateway
        self._gym = gym
        self._evaluator = evaluator
        self.config = config or AgentConfig()

    @property
    def judges(self) -> bool:
        """Whether a played rollout gets a reward."""
        return self._gym is not None or self._evaluator is not None

    async def play(self, row: Mapping[str, Any], session: str = "") -> Played:
        """Play one rollout of `row`.

        Args:
            row: a Gym row.
            session: play in this session of the gateway's and leave it open; empty opens one
                and ends it.

        Raises:
            ApiError: the row is none, or the policy could not be asked.
        """
        params = row.get(RESPONSES_CREATE_PARAMS)
        if not isinstance(params, Mapping) or not isinstance(params.get("input"), str | list):
            raise ApiError(
                "a row has responses_create_params with an input: a text or a list of items",
                status=422,
                param=RESPONSES_CREATE_PARAMS,
            )
        own = await self._gateway.open_session(session, metadata=_labels(row))
        try:
            played = await self._played(row, params, own)
            if played.reward is not None:
                await self._gateway.score(own, played.reward)
        finally:
            if not session:
                await self._gateway.end_session(own)
        return played

    async def _played(
        self, row: Mapping[str, Any], params: Mapping[str, Any], session: str
    ) -> Played:
        episode = _Episode(self._gateway, self.config, params, session)
        if self._gym is None:
            await episode.converse(None)
            return episode.played(await self._judged(row, episode.response, None))
        tools = self._gym.session(row)
        try:
            async with tools:
                await episode.converse(tools)
                reward = await self._judged(row, episode.response, tools)
        except GymError as error:
            # The environment's state is unknown: what the policy did in it can't be judged.
            reward = invalid_reward(error, lost=tools.lost)
        return episode.played(reward)

    async def _judged(
        self, row: Mapping[str, Any], response: dict[str, Any], tools: GymSession | None
    ) -> Reward | None:
        try:
            if self._evaluator is not None:
                return await self._evaluator.verify(row, response)
            return None if tools is None else await tools.verify(response)
        except ContractError as error:
            return InvalidReward(FailureClass.BAD_ROW, str(error))


class _Episode:
    """The conversation of one rollout."""

    def __init__(
        self, gateway: Policy, config: AgentConfig, params: Mapping[str, Any], session: str
    ) -> None:
        self._gateway = gateway
        self._config = config
        self._params = {name: value for name, value in params.items() if name != "stream"}
        given = params["input"]
        self._input = [{"role": "user", "content": given}] if isinstance(given, str) else given
        self._output: list[dict[str, Any]] = []
        self._usage: dict[str, int] = {}
        self._last: dict[str, Any] = {}
        self._session = session
        self._steps = 0
        self._failures: Counter[str] = Counter()

    @property
    def response(self) -> dict[str, Any]:
        """The last answer, with the output of all and their usage together."""
        usage = {**(self._last.get("usage") or {}), **self._usage} or None
        return {**self._last, "output": self._output, "usage": usage}

    def played(self, reward: Reward | None) -> Played:
        """What became of it."""
        return Played(self._session, self.response, reward, self._steps, self._failures)

    async def converse(self, tools: GymSession | None) -> None:
        """Ask the policy until it calls no tool, is cut off, or has used its steps.

        Raises:
            ApiError: the policy could not be asked, or the first prompt is too long.
            GymError: the environment's session was lost.
        """
        offered = _names(self._params.get("tools"))
        while self._steps < self._config.max_steps:
            try:
                answer = await self._ask()
            except ApiError as error:
                if self._steps and error.code == "context_length_exceeded":
                    self._last["status"] = "incomplete"
                    self._last["incomplete_details"] = {"reason": "max_output_tokens"}
                    return  # the conversation has outgrown the context: an end like a length limit
                raise
            self._take(answer)
            calls = [_chat_call(item) for item in answer["output"] if _is_call(item)]
            if not calls or tools is None or answer.get("incomplete_details"):
                return
            if self._steps == self._config.max_steps:
                return
            messages = await answer_calls(
                tools,
                calls,
                max_output_chars=self._config.max_tool_output_chars,
                parallel=self._config.parallel_tools,
                tools=offered,
                failures=self._failures,
            )
            for message in messages:
                self._output += items_from_message(message)

    async def _ask(self) -> dict[str, Any]:
        body = {**self._params, "input": [*self._input, *self._output]}
        reply = await self._gateway.responses(body, Caller(session=self._session))
        if not isinstance(reply, Reply):
            raise TypeError("asked for no stream, got one")
        answer: dict[str, Any] = orjson.loads(reply.body)
        return answer

    def _take(self, answer: dict[str, Any]) -> None:
        self._steps += 1
        self._last = answer
        self._output += answer["output"]
        usage = answer.get("usage") or {}
        for name in _USAGE:
            if name in usage:
                self._usage[name] = self._usage.get(name, 0) + usage[name]


def _labels(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row is small and says which one it is: Gym's own bookkeeping."""
    return {
        name: value
        for name, value in row.items()
        if name.startswith("_") and isinstance(value, str | int | float)
    }


def _is_call(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "function_call"


def _chat_call(item: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _names(tools: object) -> set[str] | None:
    """The names of the tools a row offers; None leaves it to the server."""
    if not isinstance(tools, list) or not tools:
        return None
    return {str(tool.get("name")) for tool in tools if isinstance(tool, Mapping)}
