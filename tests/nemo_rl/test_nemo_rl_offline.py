"""The real `sft_train` and `dpo_train`, through our driver, on what `rlbridge transform` makes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlbridge.run_config import RunConfig
from tests.nemo_rl.conftest import ROOT
from tests.nemo_rl.offline_rollouts import (
    read_lines,
    save_policy,
    single_answers,
    transformed,
    with_tools,
)

pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("cluster")]

STEPS = 3
END = "<|im_end|>"


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("offline") / "policy")


@pytest.fixture(scope="session")
def its_tokenizer(policy: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture
def train(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compiles a run and lets the driver train it, in this process."""
    monkeypatch.setenv("PYTHONPATH", "")  # the driver sets it
    # This process is connected to the cluster already, and Ray refuses to be asked twice.
    monkeypatch.setattr("nemo_rl.distributed.virtual_cluster.init_ray", lambda: None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(name: str, rows: Path, **sections: Any) -> tuple[int, list[Any], list[Any]]:
        from rlbridge_nemo_rl.backend import METRICS, NemoRLBackend, read_metrics
        from tests.nemo_rl import offline_on_cpu

        config = {
            "policy": {"path": str(policy)},
            "data": {"train": str(rows), "max_prompt_tokens": 200},
            "algorithm": {"name": name, "learning_rate": 5e-3}
            | ({"kl_coef": 0.1} if name == "dpo" else {}),
            "rollout": {"prompts_per_step": 8, "max_response_tokens": 100},
            "trainer": {"steps": STEPS, "output_dir": str(tmp_path / "run")},
            "nemo_rl": {"logger.monitor_gpus": False},
        }
        for section, values in sections.items():
            config[section] = {**config.get(section, {}), **values}
        native = NemoRLBackend().compile(RunConfig.parse(config), tmp_path / "run")
        (tmp_path / "run").mkdir(exist_ok=True)
        path = tmp_path / "run" / "native.yaml"
        path.write_text(yaml.safe_dump(dict(native.config)))
        status = offline_on_cpu.main(["--config", str(path)])
        lines = tmp_path / "run" / METRICS
        steps = [read_metrics(line) for line in read_lines(lines)] if lines.exists() else []
        return status, steps, offline_on_cpu.CpuPolicy.trained

    return run


def texts_of(batch: dict[str, Any], tokenizer: Any) -> list[tuple[str, str]]:
    """Of each row what was fed to the model, and of that what was trained; gaps are |."""
    found = []
    for ids, mask, length in zip(
        batch["input_ids"], batch["token_mask"], batch["input_lengths"], strict=True
    ):
        assert not any(mask[length:])
        marked = [token if on else None for token, on in zip(ids[:length], mask, strict=False)]
        runs: list[list[int]] = [[]]
        for token in marked:
            if token is None:
                runs.append([])
            else:
                runs[-1].append(token)
        trained = "|".join(tokenizer.decode(run) for run in runs if run)
        found.append((tokenizer.decode(ids[:length]), trained))
    return sorted(found)


def rendered(conversations: list[tuple[list[Any], Any]], tokenizer: Any) -> list[str]:
    """As the policy's template renders them, without the newline behind the last turn end."""
    return sorted(
        tokenizer.apply_chat_template(messages, tools=tools, tokenize=False).removesuffix("\n")
        for messages, tools in conversations
    )


def test_sft_trains_every_turn_the_policy_sampled_and_nothing_else(
    tmp_path: Path, policy: Path, its_tokenizer: Any, train: Any
) -> None:
    rows = transformed(
        with_tools(tmp_path / "rollouts.jsonl"), tmp_path / "sft.jsonl",
        "sft", "--model", str(policy),
    )  # fmt: skip
    status, steps, trained = train("sft", rows)
    assert status == 0
    assert [step.step for step in steps] == [1, 2, 3]
    assert steps[0].loss > steps[1].loss > steps[2].loss
    assert all(step.tokens_per_s > 0 and step.step_s > 0 for step in steps)
    assert len(trained) == STEPS
    fed, learned = zip(*texts_of(trained[0], its_tokenizer), strict=True)
    wanted = [(row["messages"], row["tools"]) for row in read_lines(rows)]
    assert list(fed) == rendered(wanted, its_tokenizer)
    calls = "".join(
        f'\n<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
        for city in ("Rome", "Oslo")
    )
    thoughts = "<think>\nBoth cities.\n</think>\n\n"
    assert list(learned) == [
        f"{thoughts}{calls}{END}|Rome {task}, Oslo rain.{END}" for task in range(8)
    ]


def test_sft_trains_plain_inputs_and_outputs_and_validates(
    tmp_path: Path, its_tokenizer: Any, train: Any
) -> None:
    rollouts = single_answers(tmp_path / "rollouts.jsonl")
    rows = transformed(
        rollouts, tmp_path / "sft.jsonl", "sft", "--format", "simple", "--reward-threshold", "0.5"
    )
    status, steps, trained = train(
        "sft", rows, data={"validation": str(rows)}, trainer={"validate_every": 2}
    )
    assert status == 0
    fed, learned = zip(*texts_of(trained[0], its_tokenizer), strict=True)
    said = [
        [{"role": "user", "content": row["input"]}, {"role": "assistant", "content": row["output"]}]
        for row in read_lines(rows)
    ]
    assert list(fed) == rendered([(messages, None) for messages in said], its_tokenizer)
    assert list(learned) == [f"It is {task + 1}.{END}" for task in range(8)]
    # The rows that are validated are those that are trained, after two of three updates.
    assert [step.val_loss is None for step in steps] == [True, False, True]
    assert steps[1].val_loss == pytest.approx(steps[2].loss, rel=1e-4)


@pytest.mark.parametrize(
    ("form", "system"), [("simple", False), ("simple", True), ("preference", True)]
)
def test_dpo_learns_to_prefer_what_was_chosen(
    tmp_path: Path, its_tokenizer: Any, train: Any, form: str, system: bool
) -> None:
    rollouts = single_answers(tmp_path / "rollouts.jsonl", system=system)
    rows = transformed(rollouts, tmp_path / "dpo.jsonl", "dpo", "--format", form)
    status, steps, trained = train(
        "dpo", rows, data={"validation": str(rows)}, trainer={"validate_every": 2}
    )
    assert status == 0
    assert steps[0].margin == pytest.approx(0, abs=1e-4)  # the policy is the first policy still
    assert steps[0].margin < steps[1].margin < steps[2].margin
    assert steps[0].loss > steps[1].loss > steps[2].loss
    assert steps[1].val_loss == pytest.approx(steps[2].loss, rel=1e-4)
    assert steps[2].native["train/accuracy"] == 1.0
    fed, learned = zip(*texts_of(trained[0], its_tokenizer), strict=True)
    head = [{"role": "system", "content": "Be brief."}] if system else []
    wanted = [
        ([*head, {"role": "user", "content": f"What is {task} + 1?"},
          {"role": "assistant", "content": answer}], None)
        for task in range(8)
        for answer in (f"It is {task + 1}.", "I can't tell.")
    ]  # fmt: skip
    assert list(fed) == rendered(wanted, its_tokenizer)
    assert sorted(learned) == sorted(f"{messages[-1]['content']}{END}" for messages, _ in wanted)
    # Each better answer stands before its worse one, as the loss takes them.
    better = [its_tokenizer.decode(ids) for ids in trained[0]["input_ids"][::2]]
    assert all(re.search("It is", text) for text in better)


def test_the_seed_decides_the_order_of_rows(tmp_path: Path, train: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"input": "{n}", "output": "{n}"}}\n' for n in range(32)))
    seen = [
        train("sft", rows, trainer={"seed": seed, "steps": 1}, rollout={"prompts_per_step": 16})[2]
        for seed in (3, 3, 4)
    ]
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def test_rows_that_are_too_long_are_refused_before_the_workers_start(
    tmp_path: Path, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    long = '{"input": "a", "output": "' + "b " * 999 + '"}'
    rows.write_text(f'{{"input": "a", "output": "b"}}\n{long}\n')
    status, steps, _ = train("sft", rows, rollout={"prompts_per_step": 2, "max_response_tokens": 1})
    assert (status, steps) == (2, [])
    error = capsys.readouterr().err
    assert "1 of 2 rows can't be trained on" in error
    assert f"{rows}:2: " in error


def launched(*arguments: str) -> subprocess.Popen[str]:
    """`rlbridge run` or `rlbridge export`, whose driver trains on a CPU."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.nemo_rl.offline_on_cpu", "rlbridge", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_stopped_run_goes_on_and_its_checkpoint_becomes_a_model_for_others(
    tmp_path: Path, policy: Path, its_tokenizer: Any, name: str
) -> None:
    (policy / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    run = tmp_path / "run"
    command = [
        "run", "-f", "nemo_rl", "-c", f"examples/nemo_rl/{name}.yaml", f"policy.path={policy}",
        f"data.validation=examples/nemo_rl/{name}_rows.jsonl", "algorithm.learning_rate=1e-3",
        "trainer.steps=100000", "trainer.save_every=1", "trainer.validate_every=1",
        f"trainer.output_dir={run}", "nemo_rl.logger.monitor_gpus=false",
        "nemo_rl.checkpointing.keep_top_k=2",
    ]  # fmt: skip
    process = launched(*command)
    deadline = time.monotonic() + 240
    while not list(run.glob("checkpoints/step_[3-9]")) and process.poll() is None:
        assert time.monotonic() < deadline, "no third checkpoint"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped on request" in said
    assert re.search(r"step +1/100000  loss \d\.\d+  val loss \d\.\d+ .*tokens/s \d+", said)

    saved = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))
    process = launched(*command, "--resume", f"trainer.steps={saved + 2}")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert re.search(r"loss \d\.\d+ \(first 3 steps\) → \d\.\d+ \(last 3\); validation loss", said)
    steps = read_lines(run / "metrics.jsonl")
    assert [step["step"] for step in steps] == [saved + 1, saved + 2]
    # It goes on from what the stopped run had learned, and not from the first policy.
    (before,) = (run / "earlier").glob("*/metrics.jsonl")
    assert steps[0]["loss"] < read_lines(before)[0]["loss"]
    assert (run / "loss.png").stat().st_size > 0
    assert json.loads((run / "summary.json").read_text())["val_loss_last"] == steps[-1]["val_loss"]

    process = launched("export", str(run), str(tmp_path / "models" / "mine"))
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert_same_model(run / "checkpoints" / f"step_{saved + 2}", tmp_path / "models", its_tokenizer)


def assert_same_model(step: Path, models: Path, tokenizer: Any) -> None:
    """The folder in `models` holds the weights of a checkpoint and what goes with them."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = step / "policy" / "weights"
    dcp = weights if (weights / ".metadata").is_file() else weights / "model"
    dcp_to_torch_save(dcp, models / "wanted.pt")
    wanted = torch.load(models / "wanted.pt")
    made = models / "mine"
    found = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).state_dict()
    wanted = wanted.get("model", wanted)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    theirs = AutoTokenizer.from_pretrained(made)
    assert theirs.chat_template == tokenizer.chat_template
    assert theirs.get_vocab() == tokenizer.get_vocab()
    assert json.loads((made / "generation_config.json").read_text()) == {"eos_token_id": [0, 2]}
    assert [path.name for path in models.iterdir() if path.name.startswith(".")] == []
