"""What GRPO, SFT and DPO data hold, what is left out, and what an empty result says."""

import errno
import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from made_rows import TOOL, answered, called, group, read, row, said, thought, write

from rlbridge.errors import ConfigError, RunError
from rlbridge.transforms import dpo, grpo, sft
from rlbridge.transforms.messages import Style
from rlbridge.transforms.pairs import Pairing
from rlbridge.transforms.pipeline import Report, transform
from rlbridge.transforms.rejects import Rejects
from rlbridge.transforms.selection import Selection
from rlbridge.transforms.spool import full_disk_explained

ROWS = [one for task in range(40) for one in group(task, [0.0, 0.5, 1.0, 1.0])]


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    return write(tmp_path / "rollouts.jsonl", ROWS)


def run_dpo(source: Path, out: Path, how: Pairing, form: Any = "simple", **more: Any) -> Report:
    selection = Selection(**more)
    return dpo.transform(dpo.job((source,), out, selection, how, format=form), how, form)


def test_sft_keeps_the_prompt_and_the_rows_above_the_threshold(
    rollouts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sft.jsonl"
    report = transform(sft.job((rollouts,), out, Selection(min_reward=0.95)))
    assert read(out)[0] == {
        "messages": [
            {"role": "user", "content": "What is 0?"},
            {"role": "assistant", "content": "0, says 2"},
        ]
    }
    assert report.written == {str(out): 80}
    assert report.outside == 80


def test_sft_tools_reasoning_and_results_go_in_and_a_last_word_of_the_tool_goes_out(
    tmp_path: Path,
) -> None:
    one = row("Q?", [thought("hm"), called(), answered()])
    one["responses_create_params"]["tools"] = [TOOL]
    out = tmp_path / "sft.jsonl"
    transform(sft.job((write(tmp_path / "in.jsonl", [one]),), out, Selection()))
    (made,) = read(out)
    assert [m["role"] for m in made["messages"]] == ["user", "assistant"]
    assert made["messages"][1]["reasoning_content"] == "hm"
    assert made["tools"][0]["function"]["name"] == "weather"


def test_sft_simple_takes_single_answers_and_counts_the_others(tmp_path: Path) -> None:
    rows = [
        row("Q?", [thought("hm"), said("A")]),
        row("Q?", [called(), answered(), said("A")]),
        row("Q?", [thought("cut")]) | {"reward": 1.0},
        row("Q?", []),
    ]
    out = tmp_path / "sft.jsonl"
    source = write(tmp_path / "in.jsonl", rows)
    job = sft.job((source,), out, Selection(), format="simple", style=Style("drop"))
    report = transform(job)
    assert read(out) == [{"input": "Q?", "output": "A"}]
    assert sum(report.skipped.values()) == 3
    assert report.skipped["with an empty answer"] == 2


def test_invalid_rewards_are_absent_and_not_zero(tmp_path: Path) -> None:
    rows = [row("Q?", "A", 0.0), row("Q?", "B", None), row("Q?", "C", 0.0, mask_sample=True),
            row("Q?", "D", 0.0, _ng_failure_class="timeout")]  # fmt: skip
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", rows)
    report = transform(sft.job((source,), out, Selection(max_reward=0.5)))
    assert len(read(out)) == 1
    assert report.invalid == {
        "no reward": 1, "masked by the environment": 1, "failed: timeout": 1
    }  # fmt: skip


def test_grpo_gives_one_row_a_prompt_with_its_ground_truth(rollouts: Path, tmp_path: Path) -> None:
    out = tmp_path / "grpo.jsonl"
    transform(grpo.job((rollouts,), out, Selection(max_per_prompt=1)))
    made = read(out)
    assert len(made) == 40
    assert Counter(one["input"] for one in made).most_common(1)[0][1] == 1
    assert all(one["input"] == f"What is {one['ground_truth']}?" for one in made)


def test_grpo_names_the_missing_ground_truth_its_line_and_the_nearest_field(tmp_path: Path) -> None:
    rows = [*group(1, [1.0]), row("Q?", "A", expected_anwser="x")]
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(ConfigError) as error:
        transform(grpo.job((source,), tmp_path / "out.jsonl", Selection()))
    for words in ("in.jsonl:2: $.expected_answer: is missing", "transform grpo", "--ground-truth",
                  "nearest field is $.expected_anwser"):  # fmt: skip
        assert words in str(error.value)
    assert not list(tmp_path.glob("*out*"))


def test_grpo_takes_a_nested_ground_truth_and_writes_other_values_as_json(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("Q?", "A", verifier={"answers": [1, 2]})])
    out = tmp_path / "out.jsonl"
    transform(grpo.job((source,), out, Selection(), ground_truth="verifier.answers"))
    assert read(out)[0]["ground_truth"] == "[1,2]"


def test_grpo_gym_rows_are_what_they_were_before_the_rollout(tmp_path: Path) -> None:
    tokens = {"prompt_token_ids": [1], "generation_token_ids": [2], "generation_log_probs": [-1.0]}
    history = [
        {"role": "user", "content": "Q?"},
        said("A") | tokens,
        {"role": "user", "content": "R?"},
    ]
    one = row(history, [said("B") | tokens], None, expected_answer="B", agent_ref={"name": "a"},
              reward_components={"x": 1.0}, _ng_task_index=3)  # fmt: skip
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", [one])
    transform(grpo.job((source,), out, Selection(), format="gym"))
    (made,) = read(out)
    assert set(made) == {"responses_create_params", "expected_answer", "agent_ref"}
    assert made["responses_create_params"]["input"][1] == said("A")


def test_prompts_with_roles_are_flattened_only_where_a_format_has_no_roles(tmp_path: Path) -> None:
    given = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q?"}]
    turns = [*given, {"role": "assistant", "content": "A"}, {"role": "user", "content": "R?"}]
    rows = [row(given, "A", expected_answer="A"), row(turns, "B", expected_answer="B")]
    out = tmp_path / "out.jsonl"
    transform(grpo.job((write(tmp_path / "in.jsonl", rows),), out, Selection()))
    assert [one["input"] for one in read(out)] == [
        "Be brief.\n\nQ?", "system: Be brief.\n\nuser: Q?\n\nassistant: A\n\nuser: R?"
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["sft", "grpo", "dpo"])
def test_no_prompt_is_both_in_training_and_validation(how: str, tmp_path: Path) -> None:
    rows = [one for task in range(200) for one in group(task, [0.0, 1.0])]
    # The same prompt in another form must not slip to the other side.
    for one in rows[::3]:
        params = one["responses_create_params"]
        params["input"] = params["input"][0]["content"]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    selection = Selection(validation=0.2, seed=3)
    if how == "dpo":
        run_dpo(source, out, Pairing(), validation=0.2, seed=3)
    else:
        transform((sft if how == "sft" else grpo).job((source,), out, selection))

    def prompts(path: Path) -> set[str]:
        return {json.dumps(one.get("prompt") or one.get("input") or one["messages"][0]["content"])
                for one in read(path)}  # fmt: skip

    train, held_out = prompts(out), prompts(tmp_path / "out.validation.jsonl")
    assert not train & held_out
    assert len(train | held_out) == 200
    assert 15 <= len(held_out) <= 70


def test_the_same_seed_gives_the_same_files_and_another_one_others(
    rollouts: Path, tmp_path: Path
) -> None:
    files = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.jsonl"
        transform(sft.job((rollouts,), out, Selection(max_per_prompt=1, validation=0.1, seed=seed)))
        files.append((out.read_bytes(), (tmp_path / f"{number}.validation.jsonl").read_bytes()))
    assert files[0] == files[1]
    assert files[0][0] != files[2][0]
    assert files[0][1] != files[2][1]


def test_best_keeps_the_highest_rewards_of_a_prompt(rollouts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    report = transform(sft.job((rollouts,), out, Selection(max_per_prompt=2, keep="best")))
    assert all(one["messages"][1]["content"][-1] in "23" for one in read(out))
    assert report.over_limit == 80


def test_random_choice_of_a_prompts_rows_does_not_favour_the_first(tmp_path: Path) -> None:
    rows = [one for task in range(400) for one in group(task, [1.0] * 4)]
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", rows)
    transform(sft.job((source,), out, Selection(max_per_prompt=1)))
    places = Counter(one["messages"][1]["content"][-1] for one in read(out))
    assert min(places[place] for place in "0123") > 60  # of 100 expected each


def test_duplicates_go_and_can_be_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [row("Q?", "A"), row("Q?", "A"), row("R?", "A")])
    out = tmp_path / "out.jsonl"
    assert transform(sft.job((source,), out, Selection())).duplicates == 1
    assert len(read(out)) == 2
    transform(sft.job((source,), out, Selection(dedupe=False)))
    assert len(read(out)) == 3


def test_dpo_pairs_the_best_with_the_worst_of_a_group_of_any_size(
    rollouts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dpo.jsonl"
    assert run_dpo(rollouts, out, Pairing()).written == {str(out): 40}
    first = read(out)[0]
    assert first["prompt"] == "What is 0?"
    assert first["chosen"] in ("0, says 2", "0, says 3")
    assert first["rejected"] == "0, says 0"


@pytest.mark.parametrize(
    ("pairs", "gap", "count"), [("all", 0.2, 5), ("all", 0.6, 2), (3, 0.2, 3), (9, 0.2, 5)]
)
def test_dpo_makes_all_pairs_above_the_gap_or_so_many(
    rollouts: Path, tmp_path: Path, pairs: Any, gap: float, count: int
) -> None:
    out = tmp_path / "dpo.jsonl"
    run_dpo(rollouts, out, Pairing(pairs=pairs, min_gap=gap))
    by_prompt = Counter(one["prompt"] for one in read(out))
    assert set(by_prompt.values()) == {count}
    assert len({json.dumps(one) for one in read(out)}) == 40 * count


def test_dpo_stratified_uses_each_rollout_once_and_one_prompt_a_pair(tmp_path: Path) -> None:
    rows = [one for task in range(9) for one in group(task, [0.1, 0.2, 0.5, 0.8, 0.9, 1.0])]
    out = tmp_path / "dpo.jsonl"
    source = write(tmp_path / "in.jsonl", rows)
    run_dpo(source, out, Pairing("stratified", high=0.7, low=0.3))
    made = read(out)
    assert len(made) == 18
    told = [one[side] for one in made for side in ("chosen", "rejected")]
    assert len(set(told)) == len(told)
    for one in made:
        task = one["prompt"].removeprefix("What is ").removesuffix("?")
        assert one["chosen"].startswith(f"{task},")
        assert one["rejected"].startswith(f"{task},")
        assert one["chosen"][-1] in "345"
        assert one["rejected"][-1] in "01"


def test_dpo_prompts_are_messages_where_one_of_them_has_a_system_message(tmp_path: Path) -> None:
    given = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q?"}]
    rows = [*group(1, [0.0, 1.0]), row(given, "A", 1.0), row(given, "B", 0.0)]
    out = tmp_path / "dpo.jsonl"
    run_dpo(write(tmp_path / "in.jsonl", rows), out, Pairing())
    prompts = [one["prompt"] for one in read(out)]
    assert prompts == [[{"role": "user", "content": "What is 1?"}], given]


def test_dpo_text_survives_being_cut_out_of_its_message(tmp_path: Path) -> None:
    question = 'Say "x", \\ and \n \u00e9 \U0001f600 [{"role":"user"}]'
    rows = [row(question, "A", 1.0), row(question, "B", 0.0)]
    out = tmp_path / "dpo.jsonl"
    run_dpo(write(tmp_path / "in.jsonl", rows), out, Pairing())
    assert read(out) == [{"prompt": question, "chosen": "A", "rejected": "B"}]


def test_dpo_message_formats_keep_tools_and_pair_only_rows_with_the_same_ones(
    tmp_path: Path,
) -> None:
    with_tools = [row("Q?", [called(), answered(), said(text)], r)
                  for text, r in (("A", 1.0), ("B", 0.0))]  # fmt: skip
    for one in with_tools:
        one["responses_create_params"]["tools"] = [TOOL]
    source = write(tmp_path / "in.jsonl", [*with_tools, row("Q?", "C", 0.5)])
    out = tmp_path / "dpo.jsonl"
    run_dpo(source, out, Pairing(), "openai")
    (made,) = read(out)
    assert made["tools"][0]["function"]["name"] == "weather"
    assert [m["role"] for m in made["chosen"]] == ["assistant", "tool", "assistant"]
    assert made["rejected"][-1]["content"] == "B"
    run_dpo(source, out, Pairing(), "preference")
    (made,) = read(out)
    assert [c["rank"] for c in made["completions"]] == [0, 1]
    assert made["completions"][0]["completion"][-1]["content"] == "A"
    assert made["context"] == [{"role": "user", "content": "Q?"}]


def test_an_empty_result_says_which_threshold_would_keep_how_many(
    rollouts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        transform(sft.job((rollouts,), tmp_path / "out.jsonl", Selection(min_reward=1.5)))
    for words in ("160 outside", "0 (40 times), 0.5 (40 times), 1 (80 times)",
                  "--reward-threshold 1 keeps 80", "--reward-threshold 0.5 keeps 120"):  # fmt: skip
        assert words in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rollouts.jsonl"]


def test_no_pairs_says_the_gaps_that_were_seen(rollouts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match=r"1 \(40 times\).*\n--min-gap 1 keeps 40 prompts$"):
        run_dpo(rollouts, out, Pairing(min_gap=1.1))
    equal = write(tmp_path / "equal.jsonl", group(1, [0.5, 0.5]))
    with pytest.raises(ConfigError, match="same reward; no threshold"):
        run_dpo(equal, out, Pairing())
    single = write(tmp_path / "single.jsonl", group(1, [0.5]))
    with pytest.raises(ConfigError, match="collect with --repeats 2"):
        run_dpo(single, out, Pairing())
    with pytest.raises(ConfigError, match="Move --high-threshold"):
        run_dpo(rollouts, out, Pairing("stratified", high=2.0, low=0.1))


def test_the_sidecar_says_of_what_and_how_the_files_were_made(
    rollouts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    transform(sft.job((rollouts,), out, Selection(min_reward=0.9, validation=0.5)))
    told = json.loads((tmp_path / "out.jsonl.meta.json").read_text())
    assert told["inputs"][0]["sha256"] == hashlib.sha256(rollouts.read_bytes()).hexdigest()
    assert told["options"]["min_reward"] == 0.9
    assert told["counts"]["outside"] == 80
    for made in told["outputs"]:
        path = Path(made["path"])
        assert made["bytes"] == path.stat().st_size
        assert made["rows"] == len(read(path))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_what_is_written_can_be_read_again(rollouts: Path, tmp_path: Path, suffix: str) -> None:
    from rlbridge.transforms.reading import Reader

    plain, packed = tmp_path / "plain.jsonl", tmp_path / f"packed.{suffix}"
    for out in (plain, packed):
        transform(sft.job((rollouts,), out, Selection(min_reward=0.9), format="simple"))
    assert [line.row for line in Reader([packed])] == read(plain)


def test_equal_rows_make_equal_gzip_files(rollouts: Path, tmp_path: Path) -> None:
    made = []
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        transform(sft.job((rollouts,), tmp_path / name, Selection()))
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    assert gzip.decompress(made[0]).count(b"\n") == 160


def test_verls_parquet_has_its_columns_whatever_the_rows_lack(
    rollouts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "train.parquet"
    transform(grpo.job((rollouts,), out, Selection(max_per_prompt=1), format="verl"))
    table = pq.read_table(out)
    assert table.num_rows == 40
    first = table.to_pylist()[0]
    assert first["reward_model"] == {"style": "rule", "ground_truth": "0"}
    assert json.loads(first["gym_row"])["expected_answer"] == "0"


def test_a_failure_leaves_earlier_outputs_and_no_unfinished_files(
    rollouts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    transform(sft.job((rollouts,), out, Selection()))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with rollouts.open("ab") as file:
        file.write(b"no json\n" * 10)
    before[rollouts] = rollouts.read_bytes()
    with pytest.raises(ConfigError, match="--max-bad"):
        transform(sft.job((rollouts,), out, Selection(), rejects=Rejects(allowed_share=0.01)))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"is full .*run the same command again") as error,
        full_disk_explained(tmp_path),
        Path("/dev/full").open("wb") as file,
    ):
        file.write(b"x" * 10_000)
    cause = error.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC


def test_bad_rows_are_kept_beside_and_the_others_converted(tmp_path: Path) -> None:
    rows = [row("Q?", "A"), row("R?", [{"type": "web_search_call"}]), row("S?", "B")]
    out = tmp_path / "out.jsonl"
    rejects = Rejects(tmp_path / "rejects.jsonl", allowed_share=0.5)
    source = write(tmp_path / "in.jsonl", rows)
    report = transform(sft.job((source,), out, Selection(), rejects=rejects))
    assert len(read(out)) == 2
    assert report.rejected == {"web_search_call item": 1}
    (kept,) = read(tmp_path / "rejects.jsonl")
    assert kept["at"] == "$.response.output[0]"
    assert json.loads(kept["text"]) == rows[1]
