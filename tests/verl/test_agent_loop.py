"""The agent loop on a scripted server manager, a real tokenizer and a Gym on a real socket."""

import warnings
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl imports what Ray has deprecated
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, DictConfigWrap
    from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient
    from verl.workers.rollout.replica import TokenOutput

    from rlbridge_verl.agent_loop import NeMoGymAgentLoop
    from rlbridge_verl.scoring import InvalidRewardError

from rlbridge.errors import ContractError, EngineError
from rlbridge.testing import Faults, GymServer
from rlbridge.testing.server import gym_server
from tests.verl.dialogues import call, counter_row, tokenizer_of

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

TOKENIZER = tokenizer_of()
END = TOKENIZER.eos_token_id


def ids(text: str, *, end: bool = True) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False) + ([END] if end else [])


class ScriptedManager:
    """verl's server manager with scripted answers; keeps what it was asked."""

    def __init__(self, answers: Sequence[Any], *, stop_reason: str = "completed") -> None:
        self._answers = iter(answers)
        self._stop_reason = stop_reason
        self.prompts: list[list[int]] = []
        self.sampling: list[dict[str, Any]] = []
        self.request_ids: set[str] = set()

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> Any:
        self.request_ids.add(request_id)
        self.prompts.append(prompt_ids)
        self.sampling.append(sampling_params)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        token_ids, reason, version = answer if isinstance(answer, tuple) else (answer, None, 7)
        token_ids = token_ids[: sampling_params["max_tokens"]]
        return SimpleNamespace(
            token_ids=token_ids,
            log_probs=[-0.5 - 0.01 * n for n in range(len(token_ids))],
            stop_reason=reason or self._stop_reason,
            num_preempted=0,
            extra_fields={"global_steps": version},
        )


def loop_of(
    manager: Any,
    url: str,
    *,
    cls: type[AgentLoopBase] = NeMoGymAgentLoop,
    agents: Sequence[dict[str, Any]] = (),
    **rollout: Any,
) -> Any:
    section = {"url": url, "outage_patience_s": 0, "max_attempts": 1, "agents": list(agents)}
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {
                "model": {"path": "nowhere"},
                "rollout": {
                    "response_length": 256,
                    "prompt_length": 64,
                    "max_model_len": 512,
                    "multi_turn": {
                        "max_assistant_turns": 4,
                        "max_tool_response_length": 200,
                        "max_parallel_calls": 1,
                        **rollout.pop("multi_turn", {}),
                    },
                    **rollout,
                },
            },
            "data": {},
            "reward": {"nemo_gym": section},
        }
    )
    return cls(
        trainer_config=DictConfigWrap(config),
        server_manager=manager,
        tokenizer=TOKENIZER,
        processor=None,
        dataset_cls=None,
        data_config=DictConfigWrap(config.data),
        tools=None,
    )


def fields_of(row: dict[str, Any]) -> dict[str, Any]:
    text = orjson.dumps(row).decode()
    return {"extra_info": {"gym_row": text}, "uid": "u", "session_id": 0, "index": 3}


def counter(counts: dict[str, int]) -> dict[str, Any]:
    def increment(session: str, body: dict[str, Any]) -> dict[str, Any]:
        counts[session] = counts.get(session, 0) + int(body["count"])
        return {"success": True}

    return {"increment_counter": increment}


@pytest.fixture
async def gym() -> AsyncIterator[GymServer]:
    counts: dict[str, int] = {}
    # Only the session's own state decides, as in NeMo Gym's example_session_state_mgmt.
    reward = lambda body: float(body["expected_count"] in counts.values())  # noqa: E731
    async with gym_server(tools=counter(counts), rewards=reward) as server:
        yield server


def run(loop: NeMoGymAgentLoop, row: dict[str, Any]) -> Any:
    return loop.run({"temperature": 1.0, "logprobs": True}, **fields_of(row))


async def test_tools_act_in_the_session_that_is_verified_and_no_token_is_encoded_twice(
    gym: GymServer,
) -> None:
    answers = [ids(call(2)), ids(call(3)), ids("Done.")]
    manager = ScriptedManager(answers)
    output = await run(loop_of(manager, gym.url), counter_row(2, 3))

    assert output.reward_score == 1.0
    assert len(manager.request_ids) == 1
    # Each prompt begins with the one before and the very tokens sampled after it.
    for before, answer, after in zip(manager.prompts, answers, manager.prompts[1:], strict=False):
        assert after[: len(before) + len(answer)] == before + answer
    whole = output.prompt_ids + output.response_ids
    assert whole == manager.prompts[-1] + answers[-1]
    trained = [t for t, m in zip(output.response_ids, output.response_mask, strict=True) if m]
    assert trained == [token for answer in answers for token in answer]
    logprobs = [p for p, m in zip(output.response_logprobs, output.response_mask, strict=True) if m]
    assert logprobs == pytest.approx(
        [-0.5 - 0.01 * n for answer in answers for n in range(len(answer))]
    )
    # What the template would have written for the whole conversation.
    assert '{"success":true}' in TOKENIZER.decode(output.response_ids)
    info = output.extra_fields["reward_extra_info"]
    assert (info["gym/turns"], info["gym/tool_calls"], info["gym/truncated"]) == (3.0, 2.0, 0.0)
    assert output.num_turns == 6
    assert output.extra_fields["min_global_steps"] == 7
    assert [part[2:] for part in output.extra_fields["parts"]] == [[0, 7], [1, 7], [2, 7]]


async def test_an_answer_cut_at_the_limit_is_truncated_though_the_engine_says_completed(
    gym: GymServer,
) -> None:
    long = ids("Done. " * 40, end=False)
    manager = ScriptedManager([long])
    output = await run(loop_of(manager, gym.url, response_length=20), counter_row(2, 3))
    assert len(output.response_ids) == 20
    assert output.extra_fields["reward_extra_info"]["gym/truncated"] == 1.0
    # An answer that ends with its last allowed token is whole.
    whole = ids("Done.")
    manager = ScriptedManager([whole])
    loop = loop_of(manager, gym.url, response_length=len(whole))
    output = await run(loop, counter_row(2, 3))
    assert output.extra_fields["reward_extra_info"]["gym/truncated"] == 0.0


async def test_turns_and_tokens_are_limited(gym: GymServer) -> None:
    manager = ScriptedManager([ids(call(1))] * 9)
    loop = loop_of(manager, gym.url, multi_turn={"max_assistant_turns": 2})
    output = await run(loop, counter_row(2, 3))
    assert len(manager.prompts) == 2
    assert output.extra_fields["reward_extra_info"]["gym/max_turns"] == 1.0

    one = ids(call(1))
    manager = ScriptedManager([one] * 9)
    output = await run(loop_of(manager, gym.url, response_length=len(one) + 3), counter_row(2, 3))
    assert len(output.response_ids) == len(one)  # the observation doesn't fit and is left out
    assert output.extra_fields["reward_extra_info"]["gym/truncated"] == 1.0


async def test_a_call_that_is_wrong_is_answered_and_the_policy_may_mend_it(gym: GymServer) -> None:
    wrong = ids('<tool_call>{"name": "verify", "arguments": {}}</tool_call>')
    manager = ScriptedManager([wrong, ids(call(5)), ids("Done.")])
    output = await run(loop_of(manager, gym.url), counter_row(2, 3))
    assert output.reward_score == 1.0
    assert output.extra_fields["reward_extra_info"]["gym/tool_failures"] == 1.0
    assert "no tool named" in TOKENIZER.decode(output.response_ids)


async def test_several_calls_of_a_turn_are_all_answered(gym: GymServer) -> None:
    manager = ScriptedManager([ids(call(2) + call(3)), ids("Done.")])
    loop = loop_of(manager, gym.url, multi_turn={"max_parallel_calls": 2})
    output = await run(loop, counter_row(2, 3))
    assert output.reward_score == 1.0
    assert output.extra_fields["reward_extra_info"]["gym/tool_calls"] == 2.0


async def test_a_rollout_without_a_reward_raises_with_the_reason() -> None:
    async with gym_server(faults=Faults(rate=1.0, kinds=["status_500"])) as server:
        with pytest.raises(InvalidRewardError, match=r"row 3 has no reward \(server_error"):
            await run(loop_of(ScriptedManager([ids("Done.")]), server.url), counter_row(2, 3))


async def test_a_server_that_dies_between_seed_and_tool_invents_nothing(gym: GymServer) -> None:
    class Killing(ScriptedManager):
        async def generate(self, *args: Any, **kwargs: Any) -> Any:
            await gym.stop()
            return await super().generate(*args, **kwargs)

    with pytest.raises(InvalidRewardError, match="no reward"):
        await run(loop_of(Killing([ids(call(2))]), gym.url), counter_row(2, 3))
    assert gym.behaviour.verifies == 0


@pytest.mark.parametrize(
    "answer", [RuntimeError("the replica died"), ([], "aborted", 7), (ids("Do"), "aborted", 7)]
)
async def test_a_generation_that_failed_raises_and_asks_for_no_reward(
    gym: GymServer, answer: Any
) -> None:
    loop = loop_of(ScriptedManager([answer]), gym.url)
    with pytest.raises((EngineError, RuntimeError)):
        await run(loop, counter_row(2, 3))
    assert gym.behaviour.verifies == 0


@pytest.mark.parametrize(("logprob", "taken"), [(3e-7, True), (0.2, False)])
async def test_a_logprob_above_zero_is_a_rounding_or_refused(
    gym: GymServer, logprob: float, taken: bool
) -> None:
    class Rounding(ScriptedManager):
        async def generate(self, *args: Any, **kwargs: Any) -> Any:
            output = await super().generate(*args, **kwargs)
            output.log_probs[0] = logprob
            return output

    loop = loop_of(Rounding([ids("Done.")]), gym.url)
    if taken:
        output = await run(loop, counter_row(0, 0))
        assert output.response_logprobs[0] == 0.0
    else:
        with pytest.raises(ContractError, match="not the log of a probability"):
            await run(loop, counter_row(0, 0))


class ScriptedReplica:
    """A vLLM server of verl's as its client sees it: `generate.remote(...)`."""

    def __init__(self, outputs: Sequence[TokenOutput]) -> None:
        self._outputs = iter(outputs)
        self.prompts: list[list[int]] = []
        self.generate = SimpleNamespace(remote=self._generate)

    async def _generate(self, *, prompt_ids: list[int], **_: Any) -> TokenOutput:
        self.prompts.append(list(prompt_ids))
        return next(self._outputs)


async def test_a_call_aborted_by_a_weight_sync_goes_on_and_each_token_keeps_its_version(
    gym: GymServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlbridge_verl.calls.RESUME_WAIT_S", 0.01)
    answer = ids("Done.")

    def output(token_ids: list[int], reason: str, version: int) -> TokenOutput:
        logprobs = [-0.1 * version] * len(token_ids)
        extra = {"global_steps": version}
        return TokenOutput(
            token_ids=token_ids, log_probs=logprobs, stop_reason=reason, extra_fields=extra
        )

    replica = ScriptedReplica(
        [
            output(answer[:1], "aborted", 3),
            output([], "aborted", 3),
            output(answer[1:], "completed", 4),
        ]
    )

    class Client(FullyAsyncLLMServerClient):
        async def _acquire_server(self, request_id: str, **_: Any) -> Any:
            return "one", replica

        def _release_server(self, *_: Any, **__: Any) -> None:
            pass

    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"name": "vllm"}}})
    result = await run(loop_of(Client(config), gym.url), counter_row(2, 3))
    assert result.response_ids == answer
    assert replica.prompts[2] == replica.prompts[0] + answer[:1]
    assert result.response_logprobs == pytest.approx([-0.3] + [-0.4] * (len(answer) - 1))
    assert result.extra_fields["parts"] == [[0, 1, 0, 3], [1, len(answer), 0, 4]]
    steps = (result.extra_fields["min_global_steps"], result.extra_fields["max_global_steps"])
    assert steps == (3, 4)


def test_the_yaml_names_classes_that_exist() -> None:
    import hydra

    import rlbridge_verl

    path = Path(rlbridge_verl.__file__).with_name("agent_loops.yaml")
    for entry in OmegaConf.load(path):
        assert issubclass(hydra.utils.get_class(entry._target_), AgentLoopBase)
