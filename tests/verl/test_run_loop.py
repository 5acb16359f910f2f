"""Gym's own agent through `/run`, with verl's server manager behind our gateway."""

import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl imports what Ray has deprecated
    from rlbridge_verl.run_loop import NeMoGymRunAgentLoop
    from rlbridge_verl.scoring import InvalidRewardError

from benchmarks.engine import free_port
from rlbridge.errors import EngineError
from rlbridge.testing.real_servers import (
    running_nemo_gym,
    running_simple_agent,
    running_vllm_model,
    why_unavailable,
)
from tests.verl.compacting import CompactingAgent
from tests.verl.dialogues import call, counter_row
from tests.verl.test_agent_loop import TOKENIZER, ScriptedManager, ids, loop_of

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]
SAMPLING = {"temperature": 0.7, "top_p": 1.0, "logprobs": True}


@pytest.fixture(scope="module")
def stack() -> Iterator[tuple[str, int]]:
    """A real simple_agent's URL, and the port at which its model server asks."""
    port = free_port()
    with (
        running_nemo_gym("example_session_state_mgmt") as resources,
        running_vllm_model(f"http://127.0.0.1:{port}/v1", "policy") as (model, _),
        running_simple_agent(resources, model) as agent,
    ):
        yield agent, port


def run_loop(manager: Any, stack: tuple[str, int]) -> NeMoGymRunAgentLoop:
    agent, port = stack
    made: Any = loop_of(
        manager,
        "http://127.0.0.1:9",
        cls=NeMoGymRunAgentLoop,
        agents=[{"url": agent, "gateway_port": port}],
    )
    return made


def fields_of(sample: int) -> dict[str, Any]:
    text = orjson.dumps(counter_row(2, 3)).decode()
    return {"extra_info": {"gym_row": text}, "uid": "u", "session_id": sample, "index": 3}


@pytest.mark.nemo_gym
@pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())
async def test_calls_of_a_real_agent_become_a_trajectory_of_the_very_tokens_sampled(
    stack: tuple[str, int],
) -> None:
    answers = [ids(call(2)), ids(call(3)), ids("Done.")]
    manager = ScriptedManager(answers)
    loop = run_loop(manager, stack)
    (output,) = await loop.run(SAMPLING, **fields_of(0))

    assert output.reward_score == 1.0  # the counter's state outlived the agent's calls
    for before, answer, after in zip(manager.prompts, answers, manager.prompts[1:], strict=False):
        assert after[: len(before) + len(answer)] == before + answer
    assert output.prompt_ids + output.response_ids == manager.prompts[-1] + answers[-1]
    trained = [t for t, m in zip(output.response_ids, output.response_mask, strict=True) if m]
    assert trained == [token for answer in answers for token in answer]
    assert {asked["temperature"] for asked in manager.sampling} == {0.7}
    assert len(manager.request_ids) == 1
    info = output.extra_fields["reward_extra_info"]
    assert (info["gym/turns"], info["gym/trajectories"]) == (3.0, 1.0)
    assert '{"success":true}' in TOKENIZER.decode(output.response_ids)

    # A second rollout in the same process, whose engine dies on the way: no reward is invented.
    loop.server_manager = ScriptedManager([ids(call(2)), RuntimeError("the replica died")])
    with pytest.raises((InvalidRewardError, EngineError)):
        await loop.run(SAMPLING, **fields_of(1))


async def test_an_agent_that_compacts_its_history_gives_several_trajectories() -> None:
    port = free_port()
    answers = [ids(call(2)), ids(call(3))]
    manager = ScriptedManager(answers)
    async with CompactingAgent(port, [(2, 0.5)]) as agent:
        outputs = await run_loop(manager, (agent.url, port)).run(SAMPLING, **fields_of(0))
    assert [output.response_ids for output in outputs] == answers
    assert [output.prompt_ids for output in outputs] == manager.prompts
    assert {output.reward_score for output in outputs} == {0.5}
    for output in outputs:
        assert output.extra_fields["reward_extra_info"]["gym/trajectories"] == 2.0


async def test_a_dead_agent_gives_no_reward_and_a_stranger_no_answer() -> None:
    port = free_port()
    loop = run_loop(ScriptedManager([]), (f"http://127.0.0.1:{free_port()}", port))
    with pytest.raises(InvalidRewardError, match="no reward"):
        await loop.run(SAMPLING, **fields_of(0))
    body = {"model": "policy", "messages": [{"role": "user", "content": "Add 2."}]}
    async with httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        for metadata in ({}, {"rlbridge_session": "unknown"}):
            reply = await client.post(url, json={**body, "metadata": metadata})
            assert reply.status_code in (400, 404)
