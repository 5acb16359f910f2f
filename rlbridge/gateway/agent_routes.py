"""`/run` for Gym's and NeMo-RL's callers, `/generate` for data sets: a row in, a rollout out.

`/run` answers what Gym's `SimpleAgentVerifyResponse` is read from; a rollout without a valid
reward is no such answer and gets an error status (or a mark, see `AgentConfig.on_invalid`), never
the number 0.0. `/generate` gives the row back with what was generated and, if anybody judges, the
verdict: there a missing reward is null with its reason beside it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from rlbridge.contracts.reward import Fault, InvalidReward, Reward
from rlbridge.contracts.wire import (
    FAILURE_CLASS,
    GENERATION_TOKEN_IDS,
    INSTANCE_CONFIG,
    MASK_SAMPLE,
    RESPONSE,
    RESPONSES_CREATE_PARAMS,
    REWARD,
    REWARD_COMPONENTS,
)
from rlbridge.evaluators.answers import answer_text
from rlbridge.gateway.agent import Agent, Played
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.guard import SESSION_HEADER

Prepare = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_ROW = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": [RESPONSES_CREATE_PARAMS],
                    "properties": {
                        RESPONSES_CREATE_PARAMS: {
                            "type": "object",
                            "required": ["input"],
                            "properties": {
                                "input": {"anyOf": [{"type": "string"}, {"type": "array"}]}
                            },
                        }
                    },
                }
            }
        },
    }
}
_POINT = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


def agent_router(agent: Agent, prepare: Prepare | None = None) -> APIRouter:
    """The routes.

    Args:
        agent: plays the rollouts.
        prepare: makes a Gym row of what came in (a prompt config, applied once); None takes rows
            as they are.
    """
    router = APIRouter()

    async def run(request: Request) -> Response:
        """Play a rollout of a Gym row and have it judged."""
        row = await _row(request, prepare)
        if not agent.judges:
            raise ApiError(
                "this gateway judges nothing: start it with a gym or an evaluator",
                status=501,
                code="no_judge",
            )
        return _answer(run_document(row, await agent.play(row, _session(request)), agent))

    async def generate(request: Request) -> Response:
        """Generate for a data point; give it back with the generation and the verdict."""
        row = _with_params(await _row(request, prepare))
        return _answer(generate_document(row, await agent.play(row, _session(request))))

    for prefix in ("", "/s/{session}"):
        hidden = {"include_in_schema": not prefix}
        router.add_api_route(f"{prefix}/run", run, methods=["POST"], openapi_extra=_ROW, **hidden)
        router.add_api_route(
            f"{prefix}/generate", generate, methods=["POST"], openapi_extra=_POINT, **hidden
        )
    return router


def run_document(row: Mapping[str, Any], played: Played, agent: Agent) -> dict[str, Any]:
    """What `/run` answers.

    Raises:
        ApiError: there is no valid reward.
    """
    reward = played.reward
    if isinstance(reward, InvalidReward):
        if agent.config.on_invalid == "error":
            raise _no_reward(reward)
        marks = {REWARD: None, FAILURE_CLASS: reward.failure.value, MASK_SAMPLE: True,
                 INSTANCE_CONFIG: {**_mapping(row.get(INSTANCE_CONFIG)), MASK_SAMPLE: True},
                 "failure_detail": reward.detail}  # fmt: skip
        return {**row, RESPONSE: played.response, **marks}
    return {**row, RESPONSE: played.response, **_verdict(reward, row)}


def generate_document(row: Mapping[str, Any], played: Played) -> dict[str, Any]:
    """What `/generate` answers."""
    sampled = sum(len(item.get(GENERATION_TOKEN_IDS) or ()) for item in played.response["output"])
    usage = played.response.get("usage") or {}
    document = {
        **row,
        "generation": answer_text(played.response),
        "num_generated_tokens": sampled or usage.get("output_tokens"),
        "num_model_calls": played.steps,
        RESPONSE: played.response,
    }
    if isinstance(played.reward, InvalidReward):
        failure = {"class": played.reward.failure.value, "detail": played.reward.detail}
        return {**document, REWARD: None, "reward_failure": failure}
    return document if played.reward is None else {**document, **_verdict(played.reward, row)}


def _verdict(reward: Reward | None, row: Mapping[str, Any]) -> dict[str, Any]:
    if reward is None or isinstance(reward, InvalidReward):
        raise TypeError(f"no verdict to write: {reward}")
    fields: dict[str, Any] = {REWARD: reward.value}
    if reward.components:
        fields[REWARD_COMPONENTS] = dict(reward.components)
    if reward.mask_sample:
        fields[MASK_SAMPLE] = True
        fields[INSTANCE_CONFIG] = {**_mapping(row.get(INSTANCE_CONFIG)), MASK_SAMPLE: True}
    return fields


def _no_reward(reward: InvalidReward) -> ApiError:
    infrastructure = reward.fault is Fault.INFRASTRUCTURE
    return ApiError(
        f"the rollout has no valid reward ({reward.failure.value}): {reward.detail}",
        status=503 if infrastructure else 422,
        code=f"invalid_reward_{reward.failure.value}",
        retry_after_s=1.0 if infrastructure else None,
    )


async def _row(request: Request, prepare: Prepare | None) -> Mapping[str, Any]:
    try:
        row = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise ApiError(f"the body is not JSON: {error}", status=400, code="bad_json") from error
    if not isinstance(row, dict):
        raise ApiError("the body is a JSON object: a row", status=422)
    return row if prepare is None else prepare(row)


def _with_params(point: Mapping[str, Any]) -> Mapping[str, Any]:
    """A data point as a row: its `messages` are the input where it has no other."""
    if RESPONSES_CREATE_PARAMS in point or not isinstance(point.get("messages"), list):
        return point
    return {**point, RESPONSES_CREATE_PARAMS: {"input": point["messages"]}}


def _session(request: Request) -> str:
    named = request.path_params.get("session")
    return str(named or request.headers.get(SESSION_HEADER.decode(), ""))


def _answer(document: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
