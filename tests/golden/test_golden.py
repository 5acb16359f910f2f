"""Every golden rollout becomes exactly the sequences that were said by hand."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from benchmarks.templates import STYLES
from benchmarks.tokenizers import KINDS
from rlbridge.contracts.codecs import files
from rlbridge.contracts.rollout import Rollout
from rlbridge.onpolicy.build import build
from rlbridge.onpolicy.explanation import DriftKind
from rlbridge.onpolicy.survey import survey
from rlbridge.onpolicy.template import ChatTemplate

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


def load(path: Path) -> tuple[dict, Rollout]:
    case = json.loads(path.read_text())
    return case, files.rollout_from_json(case["rollout"])


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_golden_rollout_becomes_its_expected_sequences(path: Path) -> None:
    case, rollout = load(path)
    built = build(rollout)
    assert [drop.turn for drop in built.dropped] == case["dropped"]
    expected = sorted(case["sequences"], key=lambda sequence: sequence["token_ids"])
    made = sorted(built.sequences, key=lambda sequence: sequence.token_ids.tolist())
    assert [s.token_ids.tolist() for s in made] == [e["token_ids"] for e in expected]
    for sequence, wanted in zip(made, expected, strict=True):
        assert sequence.mask.astype(int).tolist() == wanted["mask"]
        assert sequence.turn.tolist() == wanted["owners"]
        logprobs = np.array(wanted["logprobs"], dtype=np.float32)
        assert np.array_equal(sequence.logprobs, logprobs, equal_nan=True)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_golden_rollout_drifts_as_expected(path: Path) -> None:
    case, rollout = load(path)
    tokenizer = KINDS[case["tokenizer"]](
        next(style for style in STYLES if style.name == case["style"])
    )
    end = ChatTemplate(tokenizer).turn_end
    ends = {tokenizer.eos_token_id} | set(tokenizer.encode(end, add_special_tokens=False))
    found = {
        call.turn: call.drift.kind.value for call in survey([rollout], tokenizer, ends=ends).drifted
    }
    assert [found.get(i) for i in range(1, len(rollout.turns))] == case["drift"]


def test_the_corpus_is_what_its_script_makes(tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parent / "make.py"))
    script["main"].__globals__["CASES"] = tmp_path
    script["main"]()
    assert {path.name: path.read_text() for path in tmp_path.glob("*.json")} == {
        path.name: path.read_text() for path in CASES
    }


def test_the_corpus_has_a_case_of_everything_that_goes_wrong() -> None:
    kinds = {kind for path in CASES for kind in load(path)[0]["drift"]}
    assert kinds - {None} == set(DriftKind)
