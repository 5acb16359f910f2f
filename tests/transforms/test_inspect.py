"""Statistics, validation and parity: figures that can be checked by hand."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_rows import answered, called, group, row, said, write
from typer.testing import CliRunner

from benchmarks.templates import THINK
from benchmarks.tokenizers import byte_bpe
from rlbridge.cli.main import app
from rlbridge.rollouts.report import html_report
from rlbridge.rollouts.stats import pass_at_k, stats_of
from rlbridge.rollouts.validate import validate
from rlbridge.transforms.reading import Reader


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_share_of_all_draws_of_k_with_a_pass(passed: list[bool], k: int) -> None:
    k = min(k, len(passed))
    draws = [any(draw) for draw in combinations(passed, k)]
    counts = np.array([len(passed)]), np.array([sum(passed)])
    assert math.isclose(pass_at_k(*counts, k), sum(draws) / len(draws), abs_tol=1e-12)


def test_stats_count_groups_environments_and_failures(tmp_path: Path) -> None:
    rows = [*group(1, [1.0, 1.0]), *group(2, [0.0, 0.0]), *group(3, [0.0, 1.0])]
    rows.append(row("Q?", "A", None))
    tools = [called(), answered(), said("A")]
    rows.append(row("Q?", tools, 0.0, _ng_failure_class="timeout"))
    found = stats_of(Reader([write(tmp_path / "a.jsonl", rows)]))
    assert (found.rows, len(found.rewards), found.prompts) == (8, 6, 3)
    assert (found.all_equal, found.all_passed, found.all_failed) == (2, 1, 1)
    assert found.pass_at == {1: 0.5, 2: pytest.approx(2 / 3)}
    assert found.invalid == {"no reward": 1, "failed: timeout": 1}
    assert found.environments["simple_agent"].mean == 0.5
    assert found.environments["(no agent_ref)"].invalid == 2
    assert found.tool_calls == {"weather": 1}


def test_the_report_loads_nothing_and_escapes_what_rows_say(tmp_path: Path) -> None:
    rows = group(1, [0.0, 1.0])
    rows[0]["agent_ref"]["name"] = "<script>alert(1)</script>"
    source = write(tmp_path / "a.jsonl", rows)
    page = html_report(stats_of(Reader([source])), ["<b>a</b>"])
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<b>a</b>" not in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "prefers-color-scheme: dark" in page


def test_stats_prints_charts_and_writes_the_report(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [r for n in range(9) for r in group(n, [0.0, 1.0])])
    result = run("rollouts", "stats", source, "--html", tmp_path / "new" / "r.html")
    assert result.exit_code == 0, result.output
    for words in ("rollouts 18, 18 with a valid reward, 9 prompts", "k=2", "█", "0 of 9 groups"):
        assert words in result.output
    assert (tmp_path / "new" / "r.html").read_text().startswith("<!doctype html>")
    assert json.loads(run("rollouts", "stats", source, "--json").stdout)["pass_at"]["2"] == 1.0


def _tokens(prompt: list[int], sampled: list[int], logprobs: list[float] | None = None) -> Any:
    return {"prompt_token_ids": prompt, "generation_token_ids": sampled,
            "generation_log_probs": logprobs or [-0.5] * len(sampled)}  # fmt: skip


APART = [called(**_tokens([1], [2])), answered(), said("A", **_tokens([1, 9], [3]))]
UNKNOWN: Any = [-0.5, None]
FAULTS: dict[str, dict[str, Any]] = {
    "not contiguous": row("Q?", APART),
    "tokens broken": row("Q?", [said("A", **_tokens([1], [2, 3], [-0.5]))]),
    "logprobs missing": row("Q?", [said("A", **_tokens([1], [2, 3], UNKNOWN))]),
    "function_call incomplete": row("Q?", [called() | {"call_id": None}]),
    "bad item": row("Q?", [3]),
    "no response": {"responses_create_params": {"input": "Q?"}, "reward": 1.0},
    "reward is no finite number": row("Q?", "A", "1.0"),
    "bad index": row("Q?", "A", _ng_task_index="x", _ng_rollout_index=0),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_validate_finds_each_fault_with_its_place(kind: str, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [row("Q?", "A"), FAULTS[kind]])
    result = run("rollouts", "validate", source)
    assert result.exit_code == 1, result.output
    assert f"error    1 {kind}" in result.output
    assert "a.jsonl:2: $." in result.output.replace("\n", "")


def test_validate_passes_sound_rows_and_says_what_formats_can_use(tmp_path: Path) -> None:
    turns = [called(**_tokens([1, 2], [3])), answered(), said("A", **_tokens([1, 2, 3, 4], [5]))]
    source = write(tmp_path / "a.jsonl", [row("Q?", turns), row("Q?", "A")])
    result = run("rollouts", "validate", source, "--for", "sft,dpo")
    assert result.exit_code == 0, result.output
    assert "rows     2, 1 with token IDs (2 calls)" in result.output
    assert "for sft        2 can be used" in result.output
    assert "for dpo        1 can be used" in result.output
    assert validate(Reader([source]), {}).errors == 0


def test_a_result_without_a_call_is_a_warning(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [row("Q?", [answered(), said("A")])])
    found = validate(Reader([source]), {})
    assert found.findings["lone tool result"].severity == "warning"
    assert found.errors == 0


def test_a_row_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    rows = group(1, [1.0])
    found = validate(Reader([write(tmp_path / "a.jsonl", rows + rows)]), {})
    assert found.findings["row twice"].rows == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    byte_bpe(THINK).save_pretrained(path)
    return path


def test_check_tells_equal_tokens_from_a_split_one(model: Path, tmp_path: Path) -> None:
    tokenizer = byte_bpe(THINK)
    user = [{"role": "user", "content": "What is the answer?"}]
    prompt = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=False)
    text = "the answer of the question"
    exact = [*tokenizer.encode(text), tokenizer.eos_token_id]
    letters = [i for letter in text for i in tokenizer.encode(letter)] + [tokenizer.eos_token_id]
    rows = [
        row(user, [said(text, **_tokens(prompt, exact))]),
        row(user, [said(text, **_tokens(prompt, letters))]),
        row(user, [said(text, **_tokens([7, *prompt], exact))]),
        row(user, text),
    ]
    source = write(tmp_path / "a.jsonl", rows)
    result = run("transform", "check", source, "--model", model)
    assert result.exit_code == 0, result.output
    assert "compared 3 rows: 1 train on exactly what was sampled" in result.output
    assert "differ   1 in sampled tokens: " in result.output
    assert "differ   1 in the prompt: " in result.output
    assert "no say   1 rows" in result.output
    assert "»" in result.output
    over = run("transform", "check", source, "--model", model, "--budget", "50%", "--json")
    assert over.exit_code == 1
    assert json.loads(over.stdout)["equal"] == 1


def test_the_models_template_says_where_reasoning_goes(model: Path, tmp_path: Path) -> None:
    from rlbridge.cli.tokenizers import style_of

    style = style_of(str(model))
    assert (style.reasoning, style.reasoning_field, style.arguments) == (
        "field", "reasoning_content", "object"
    )  # fmt: skip


def test_the_command_line_makes_data_and_a_config_and_says_what_it_left_out(
    tmp_path: Path,
) -> None:
    rows = [*group(1, [0.0, 1.0]), row("R?", "A", None)]
    source = write(tmp_path / "a.jsonl", rows)
    source.write_bytes(source.read_bytes() + b"broken\n")
    out = tmp_path / "made" / "sft.jsonl"
    result = run("transform", "sft", source, "-o", out, "--max-bad", "25%", "--model-name", "m")
    assert result.exit_code == 2  # no such option
    result = run("transform", "sft", source, "-o", out, "--max-bad", "25%")
    assert result.exit_code == 0, result.output
    for words in ("read     4 rows", "1 bad: not JSON", "1 no reward", "1 outside", "wrote    1",
                  "sft.nemo_rl.yaml", ".rejects.jsonl"):  # fmt: skip
        assert words in result.output
    assert json.loads(out.read_text())["messages"][0]["content"] == "What is 1?"
    failed = run("transform", "sft", source, "-o", source)
    assert "both read and written" in str(failed.exception)


@pytest.mark.parametrize("command", ["grpo", "sft", "dpo", "check"])
def test_help_teaches_with_examples(command: str) -> None:
    text = run("transform", command, "--help").output
    assert f"rlbridge transform {command} rollouts" in " ".join(text.split())
