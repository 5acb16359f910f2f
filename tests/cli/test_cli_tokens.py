"""`rlbridge tokens`: drift is counted against a budget, a template is told its faults."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.templates import CHATML, COUNTING, INST, THINK
from benchmarks.tokenizers import byte_bpe
from rlbridge.cli.tokens import app
from rlbridge.contracts.codecs import files, gym
from rlbridge.errors import ConfigError, ContractError

GOLDEN = Path(__file__).parents[1] / "golden" / "cases"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for style in (CHATML, THINK, INST, COUNTING):
        byte_bpe(style).save_pretrained(folder / style.name)
    return {style.name: folder / style.name for style in (CHATML, THINK, INST, COUNTING)}


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    names = ("drift_merge", "clean_byte_bpe_chatml", "drift_whitespace", "captured_twice")
    documents = [json.loads((GOLDEN / f"{name}.json").read_text())["rollout"] for name in names]
    file = tmp_path / "rollouts.jsonl"
    file.write_text("\n".join(json.dumps(document) for document in documents) + "\n\n")
    return file


def test_drift_is_counted_by_kind_and_drawn(models, rollouts) -> None:
    result = run("drift", rollouts, "--model", models["chatml"])
    assert result.exit_code == 0, result.output
    for words in ("merge", "whitespace", "all drift", "22.22%", "rollout drift_merge, turn 1", "»"):
        assert words in result.output


def test_drift_over_the_budget_is_a_failure(models, rollouts) -> None:
    over = run("drift", rollouts, "--model", models["chatml"], "--budget", "20%", "--json")
    assert over.exit_code == 1
    document = json.loads(over.stdout)
    assert document["turns"] == 9
    assert document["drifted"] == 2
    assert document["kinds"] == {"merge": 1, "whitespace": 1}
    assert run("drift", rollouts, "--model", models["chatml"], "--budget", "0.25").exit_code == 0


@pytest.mark.parametrize("suffix", ["npz", "gym"])
def test_drift_reads_npz_and_gyms_rows_too(models, rollouts, tmp_path, suffix) -> None:
    lines = rollouts.read_text().split("\n")
    read = [files.rollout_from_json(json.loads(line)) for line in lines if line]
    file = tmp_path / f"other.{'npz' if suffix == 'npz' else 'jsonl'}"
    if suffix == "npz":
        file.write_bytes(files.rollouts_to_npz(read))
    else:
        rows = [
            {"response": {"output": [gym.fields_from_turn(turn) for turn in rollout.turns]}}
            for rollout in read
        ]
        rows.append({"response": {"output": [{"type": "message"}]}})
        file.write_text("\n".join(json.dumps(row) for row in rows))
    document = json.loads(run("drift", file, "--model", models["chatml"], "--json").stdout)
    assert (document["turns"], document["drifted"]) == (9, 2)


def test_a_bad_line_is_named(models, tmp_path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"response": {"output": []}}\n{"turns": []}\n')
    result = run("drift", file, "--model", models["chatml"])
    assert isinstance(result.exception, ContractError)
    assert f"{file}:2: $.version is None" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("drift", "nowhere.jsonl", "--model", "chatml"), "no file nowhere.jsonl"),
        (("drift", __file__, "--model", "/nowhere/at/all"), "no tokenizer at '/nowhere/at/all'"),
        (("drift", __file__, "--model", "chatml", "--budget", "much"), "--budget must be a share"),
        (("drift", __file__, "--model", "chatml", "--budget", "150%"), "--budget must be a share"),
    ],
)
def test_wrong_arguments_are_told_what_is_wrong(models, arguments, why) -> None:
    named = [models.get(argument, argument) for argument in arguments]
    result = run(*named)
    assert isinstance(result.exception, ConfigError)
    assert why in str(result.exception)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("think", "rendering anew drifts; the bridge does not"),
        ("inst", "rendering anew drifts; the bridge does not"),
        ("counting", "some roles can't be bridged"),
    ],
)
def test_lint_tells_what_breaks_the_prefix(models, name: str, verdict: str) -> None:
    document = json.loads(run("lint", models[name], "--json").stdout)
    assert document["verdict"] == verdict
    assert document["turn_end"] == {"inst": "</s>"}.get(name, "<|im_end|>")
    broken = [f for f in document["findings"] if f["renders"] and not f["fine"]]
    assert broken
    assert all(finding["mend"] for finding in broken)


def test_lint_prints_the_mend_for_stripped_reasoning(models) -> None:
    result = run("lint", models["think"])
    assert result.exit_code == 0, result.output
    assert "thinking" in result.output
    assert "Mend:" in result.output
