"""The golden corpus through the adapter: verl gets the same tokens, masks, logprobs and owners."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl imports what Ray has deprecated
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

    from rlbridge_verl.trajectory import outputs_of

from rlbridge.contracts.codecs import files
from rlbridge.onpolicy.build import build

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

CASES = sorted((Path(__file__).parents[1] / "golden" / "cases").glob("*.json"))


def _outputs(case: dict[str, Any], response_length: int = 100_000) -> list[AgentLoopOutput]:
    built = build(files.rollout_from_json(case["rollout"]))
    return outputs_of(
        built.sequences,
        response_length=response_length,
        num_turns=2,
        metrics=AgentLoopMetrics(),
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_golden_rollout_reaches_verl_bit_equal(path: Path) -> None:
    case = json.loads(path.read_text())
    expected = [sequence for sequence in case["sequences"] if any(sequence["mask"])]
    expected.sort(key=lambda sequence: sequence["token_ids"])
    made = sorted(_outputs(case), key=lambda output: output.prompt_ids + output.response_ids)
    assert len(made) == len(expected)
    for output, wanted in zip(made, expected, strict=True):
        at = len(output.prompt_ids)
        assert output.prompt_ids + output.response_ids == wanted["token_ids"]
        assert [0] * at + output.response_mask == wanted["mask"]
        # What verl makes of it: float32 next to a mask, 0.0 only where the mask hides it.
        tensors = output.as_dict()
        logprobs = tensors["rollout_log_probs"].numpy()
        mask = np.array(wanted["mask"][at:], dtype=bool)
        given = np.array(wanted["logprobs"][at:], dtype=np.float32)
        assert np.array_equal(logprobs[mask], given[mask])
        assert not np.isnan(logprobs).any()
        assert _owners(output) == wanted["owners"][at:]


def _owners(output: AgentLoopOutput) -> list[int]:
    owners = [-1] * len(output.response_ids)
    for start, stop, turn, _version in output.extra_fields["parts"]:
        owners[start:stop] = [turn] * (stop - start)
    return owners


def test_what_does_not_fit_is_cut_off_and_counted() -> None:
    case = json.loads((CASES[0].parent / "clean_byte_bpe_chatml.json").read_text())
    (whole,) = _outputs(case)
    (cut,) = _outputs(case, response_length=len(whole.response_ids) - 1)
    assert cut.response_ids == whole.response_ids[:-1]
    assert cut.extra_fields["cut_tokens"] == 1
