"""The golden corpus through NeMo-RL's own postprocessing: equal bit by bit, and no assert."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlbridge.contracts import wire
from rlbridge.contracts.codecs import files
from rlbridge.contracts.sequence import TrainingSequence
from rlbridge.onpolicy.build import build
from rlbridge_nemo_rl.sequences import UNTRAINED_TOKENS, contiguous, output_items, representative
from tests.nemo_rl.conftest import ROOT, Section

CASES = sorted((ROOT / "tests" / "golden" / "cases").glob("*.json"))
GOLDEN = pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)


def rollout_of(path: Path) -> Any:
    return files.rollout_from_json(json.loads(path.read_text())["rollout"])


def result_of(items: list[dict[str, Any]], reward: float = 1.0) -> dict[str, Any]:
    params = {"input": [{"role": "user", "content": "q"}]}
    return {"responses_create_params": params, "response": {"output": items}, "reward": reward}


def as_gym_gave_it(rollout: Any) -> dict[str, Any]:
    """Every call's fields on an item of its own, in the order of the calls."""
    return result_of(
        [
            {
                "type": "message",
                "content": [{"type": "output_text", "text": str(number)}],
                wire.PROMPT_TOKEN_IDS: turn.prompt.token_ids.tolist(),
                wire.GENERATION_TOKEN_IDS: turn.sampled_ids.tolist(),
                wire.GENERATION_LOG_PROBS: turn.logprobs.tolist(),
            }
            for number, turn in enumerate(rollout.turns)
        ]
    )


def postprocess(result: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    from nemo_rl.environments.nemo_gym import NemoGym

    from rlbridge_nemo_rl import versions

    class Actor:
        cfg: Any = {}  # noqa: RUF012
        _postprocess_nemo_gym_to_nemo_rl_result = (
            NemoGym.__ray_metadata__.modified_class._postprocess_nemo_gym_to_nemo_rl_result
        )

    return versions.postprocessed(Actor(), {}, json.loads(json.dumps(result)), tokenizer)


def trained(logs: list[Any], tokenizer: Any) -> Any:
    """What `grpo_train` trains on: the flat batch with masks and logprobs."""
    from nemo_rl.algorithms import grpo
    from nemo_rl.data.llm_message_utils import batched_message_log_to_flat_message

    getattr(grpo, "add_grpo_token_loss_masks_and_generation_logprobs", add_masks_as_0_6)(logs)
    flat, lengths = batched_message_log_to_flat_message(
        logs, pad_value_dict={"token_ids": tokenizer.pad_token_id}
    )
    return flat, lengths


def add_masks_as_0_6(logs: list[Any]) -> None:
    """What v0.6.0 does inside `grpo_train`; later versions have a function for it."""
    import torch

    for message in (message for log in logs for message in log):
        token_ids = message["token_ids"]
        sampled = message["role"] == "assistant"
        message["token_loss_mask"] = torch.full_like(token_ids, int(sampled))
        message.setdefault("generation_logprobs", torch.zeros(len(token_ids)))


def visible(sequence: TrainingSequence) -> slice:
    """Up to the last trained token."""
    return slice(0, int(np.flatnonzero(sequence.mask)[-1]) + 1)


@pytest.mark.nemo_rl
@GOLDEN
def test_nemo_rl_reads_a_golden_sequence_bit_by_bit(path: Path, tokenizer: Any) -> None:
    for sequence in build(rollout_of(path)).sequences:
        items = output_items(sequence)
        assert bool(items) == bool(sequence.trained_tokens)
        if not items:
            continue
        flat, _ = trained([postprocess(result_of(items), tokenizer)["message_log"]], tokenizer)
        seen = visible(sequence)
        assert flat["token_ids"][0].tolist() == sequence.token_ids[seen].tolist()
        assert flat["token_loss_mask"][0].tolist() == sequence.mask[seen].astype(int).tolist()
        where = sequence.mask[seen]
        logprobs = flat["generation_logprobs"][0].numpy()
        assert logprobs.dtype == np.float32
        assert logprobs[where].tobytes() == sequence.logprobs[seen][where].tobytes()


@pytest.mark.nemo_rl
def test_rollouts_that_made_nemo_rl_assert_pass_once_they_are_contiguous(tokenizer: Any) -> None:
    asserted = []
    for path in CASES:
        rollout = rollout_of(path)
        given = as_gym_gave_it(rollout)
        if np.isnan(np.concatenate([turn.logprobs for turn in rollout.turns])).any():
            continue  # lost logprobs have no JSON number; Gym drops such fields itself
        try:
            postprocess(given, tokenizer)
        except AssertionError as error:
            assert "Non-contiguous messages" in str(error)  # noqa: PT017
            asserted.append(path.stem)
        mended = contiguous(given)
        assert mended is not None
        log = postprocess(mended.result, tokenizer)["message_log"]
        # Gym's items don't say which calls a client made twice.
        turns = tuple(replace(turn, call_id="") for turn in rollout.turns)
        built = build(replace(rollout, turns=turns))
        count = sum(len(m["token_ids"]) for m in log if m["role"] == "assistant")
        if rollout.masked is None:
            assert count == representative(built).trained_tokens
            assert mended.result[UNTRAINED_TOKENS] == built.trained_tokens - count
    assert {"branches", "compaction", "retried", "sub_agent", "drift_merge"} <= set(asserted)


def test_a_contiguous_result_is_left_as_it_is() -> None:
    path = next(path for path in CASES if path.stem == "clean_byte_bpe_chatml")
    given = as_gym_gave_it(rollout_of(path))
    mended = contiguous(given)
    assert mended is not None
    assert mended.result[wire.RESPONSE] == given[wire.RESPONSE]
    assert mended.result[UNTRAINED_TOKENS] == 0


def call(prompt: list[int], sampled: list[int]) -> dict[str, Any]:
    return {
        "type": "message",
        wire.PROMPT_TOKEN_IDS: prompt,
        wire.GENERATION_TOKEN_IDS: sampled,
        wire.GENERATION_LOG_PROBS: [-1.0] * len(sampled),
    }


def test_a_rollout_is_in_its_group_by_its_first_prompt_whatever_a_sub_agent_wrote() -> None:
    given = result_of([call([1, 2], [3]), call([7], [8] * 9)])
    mended = contiguous(given, every=True)
    assert mended is not None
    own = mended.result[wire.RESPONSE]["output"][-1]
    assert (own[wire.PROMPT_TOKEN_IDS], own[wire.GENERATION_TOKEN_IDS]) == ([1, 2], [3])
    assert [other.token_ids.tolist() for other in mended.others] == [[7] + [8] * 9]


def test_of_answers_to_the_first_prompt_the_one_that_went_on_is_the_row() -> None:
    given = result_of([call([1, 2], [3]), call([1, 2], [4]), call([1, 2, 4, 5], [6, 6])])
    mended = contiguous(given)
    assert mended is not None
    runs = mended.result[wire.RESPONSE]["output"][-2:]
    assert [run[wire.GENERATION_TOKEN_IDS] for run in runs] == [[4], [6, 6]]
    assert mended.result[UNTRAINED_TOKENS] == 1


def test_a_call_that_generated_nothing_is_no_turn() -> None:
    empty = {
        wire.PROMPT_TOKEN_IDS: [1],
        wire.GENERATION_TOKEN_IDS: [],
        wire.GENERATION_LOG_PROBS: [],
    }
    assert contiguous(result_of([{"type": "message", **empty}])) is None


TRAINED = [path for path in CASES if representative(build(rollout_of(path)))]
REWARDS = [float(number % 3) for number in range(len(TRAINED))]
GROUPS = [number // 4 for number in range(len(TRAINED))]


@pytest.fixture(scope="module")
def on_verl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What our verl adapter and verl's GRPO make of the same rollouts."""
    python = ROOT / ".venv" / "bin" / "python"
    if subprocess.run([python, "-c", "import verl"], check=False, capture_output=True).returncode:
        pytest.skip("no .venv with verl beside this one: make setup")
    script = Path(__file__).with_name("verl_side.py")
    answer = tmp_path_factory.mktemp("verl") / "verl.json"
    given = json.dumps([[str(path) for path in TRAINED], REWARDS, GROUPS, str(answer)])
    subprocess.run([python, script], input=given, text=True, check=True, cwd=ROOT, timeout=300)
    return json.loads(answer.read_text())


@pytest.mark.nemo_rl
def test_both_adapters_train_the_same_tokens_masks_logprobs_and_advantages(
    tokenizer: Any, on_verl: Any
) -> None:
    import torch
    from nemo_rl.algorithms.advantage_estimator import GRPOAdvantageEstimator

    sequences = [representative(build(rollout_of(path))) for path in TRAINED]
    logs = [
        postprocess(result_of(output_items(sequence)), tokenizer)["message_log"]
        for sequence in sequences
    ]
    flat, lengths = trained(logs, tokenizer)
    estimator = GRPOAdvantageEstimator(
        Section(use_leave_one_out_baseline=False, normalize_rewards=True), None
    )
    advantages = estimator.compute_advantage(
        torch.tensor(GROUPS)[:, None], torch.tensor(REWARDS), flat["token_loss_mask"]
    )
    for number, other in enumerate(on_verl):
        n = int(lengths[number])
        mask = flat["token_loss_mask"][number][:n].bool()
        assert other["token_ids"][:n] == flat["token_ids"][number][:n].tolist()
        assert other["mask"][:n] == mask.int().tolist()
        assert not any(other["mask"][n:])
        ours = flat["generation_logprobs"][number][:n][mask]
        assert ours.tolist() == [
            x for x, on in zip(other["logprobs"], other["mask"], strict=True) if on
        ]
        expected = torch.tensor(other["advantages"])[:n][mask]
        assert torch.allclose(advantages[number][:n][mask], expected, atol=1e-5)


@pytest.mark.nemo_rl
def test_both_adapters_train_all_sequences_of_a_rollout_alike(tokenizer: Any, on_verl: Any) -> None:
    several = 0
    for path, theirs in zip(TRAINED, on_verl, strict=True):
        rollout = rollout_of(path)
        mended = contiguous(as_gym_gave_it(rollout), rollout, every=True)
        assert mended is not None
        log = postprocess(mended.result, tokenizer)["message_log"]
        flat, _ = trained([log], tokenizer)
        names = ("token_ids", "token_loss_mask", "generation_logprobs")
        own = tuple(flat[name][0].numpy() for name in names)
        ours = [
            [ids.tolist(), mask.astype(int).tolist(), logprobs[mask.astype(bool)].tolist()]
            for ids, mask, logprobs in [own, *mended.others]
        ]
        several += len(ours) > 1
        assert sorted(ours) == sorted(cut(one) for one in theirs["all"])
        prompt = rollout.turns[0].prompt.token_ids.tolist()  # by which NeMo-RL tells groups
        assert log[0]["token_ids"].tolist()[: len(prompt)] == prompt
    assert several >= 4


def cut(output: dict[str, Any]) -> list[Any]:
    """verl's sequence up to its last trained token, as NeMo-RL has it."""
    stop = len(output["mask"]) - output["mask"][::-1].index(1)
    mask = output["mask"][:stop]
    sampled = [x for x, on in zip(output["logprobs"], mask, strict=False) if on]
    return [output["token_ids"][:stop], mask, sampled]
