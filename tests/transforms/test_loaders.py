"""The files load in the real loaders: datasets, TRL, verl, and NeMo-RL where it can be imported."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from made_rows import TOOL, answered, called, group, row, said, thought, write

from benchmarks.templates import THINK
from benchmarks.tokenizers import byte_bpe
from rlbridge.transforms import dpo, grpo, sft
from rlbridge.transforms.configs import write_configs
from rlbridge.transforms.messages import Style
from rlbridge.transforms.pairs import Pairing
from rlbridge.transforms.pipeline import transform
from rlbridge.transforms.selection import Selection

HELD_OUT = Selection(validation=0.25)


def _tool_row(task: int, reward: float) -> dict[str, Any]:
    """A row whose arguments and schema differ from other rows'."""
    name = f"field_{task % 3}"
    schema = {"type": "object", "properties": {name: {"type": "string"}}}
    output = [
        thought("hm"),
        called(json.dumps({name: "Rome"})),
        answered(),
        said(f"Done {reward}."),
    ]
    one = row(f"Look at {task}?", output, reward, expected_answer="x")
    one["responses_create_params"]["tools"] = [TOOL | {"parameters": schema}]
    return one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loaders")


@pytest.fixture(scope="module")
def rollouts(folder: Path) -> Path:
    rows = [one for task in range(12) for one in group(task, [0.0, 1.0])]
    rows += [_tool_row(task, reward) for task in range(12) for reward in (0.0, 1.0)]
    return write(folder / "rollouts.jsonl", rows)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    rows = [one for task in range(12) for one in group(task, [0.0, 1.0])]
    return write(folder / "plain.jsonl", rows)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_bpe(THINK)


@pytest.fixture(scope="module")
def tiny(folder: Path, tokenizer: Any) -> Path:
    """A model of a few thousand random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.set_num_threads(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return folder / "tiny"


@pytest.fixture(autouse=True)
def _cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")


def _made(kind: str, form: str, source: Path, out: Path) -> Path:
    if kind == "dpo":
        how = Pairing()
        dpo.transform(dpo.job((source,), out, Selection(), how, format=form), how, form)
    else:
        maker: Any = grpo if kind == "grpo" else sft
        style = Style(arguments="string") if out.suffix == ".parquet" and kind == "sft" else None
        transform(maker.job((source,), out, Selection(), format=form, style=style))
    return out


FORMS = [("grpo", "simple"), ("grpo", "verl"), ("sft", "openai"), ("sft", "simple"),
         ("dpo", "simple"), ("dpo", "openai"), ("dpo", "preference")]  # fmt: skip


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_datasets_reads_every_format_row_for_row(
    kind: str, form: str, rollouts: Path, folder: Path
) -> None:
    import datasets

    out = _made(kind, form, rollouts, folder / f"{kind}-{form}.jsonl")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    loaded = datasets.load_dataset("json", data_files=str(out))["train"]
    assert len(loaded) == len(lines)
    for one, line in zip(loaded, lines, strict=True):
        for key, value in line.items():
            assert one[key] == value or key in ("messages", "tools", "chosen", "rejected",
                                                "completions", "prompt")  # fmt: skip
    if (kind, form) == ("sft", "openai"):
        calls = [m["tool_calls"][0]["function"]["arguments"]
                 for one in loaded for m in one["messages"] if m.get("tool_calls")]  # fmt: skip
        assert {tuple(call) for call in calls} == {("field_0",), ("field_1",), ("field_2",)}


def _arguments(config: Any, out: Path, **more: Any) -> Any:
    return config(
        output_dir=str(out), max_steps=1, per_device_train_batch_size=2, use_cpu=True,
        report_to=[], save_strategy="no", bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, **more,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch's, transformers' and TRL's own
@pytest.mark.parametrize("form", ["openai", "simple"])
def test_trl_takes_a_step_of_sft(
    form: str, rollouts: Path, folder: Path, tiny: Path, tokenizer: Any
) -> None:
    import datasets
    from trl import SFTConfig, SFTTrainer

    out = _made("sft", form, rollouts, folder / f"trl-{form}.jsonl")
    data = datasets.load_dataset("json", data_files=str(out))["train"]
    if form == "simple":  # TRL's names for the same two columns
        data = data.rename_columns({"input": "prompt", "output": "completion"})
    trainer = SFTTrainer(
        model=str(tiny), args=_arguments(SFTConfig, folder / "trl", max_length=256),
        train_dataset=data, processing_class=tokenizer,
    )  # fmt: skip
    assert trainer.train().training_loss > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["simple", "openai"])
def test_trl_takes_a_step_of_dpo(
    form: str, plain: Path, folder: Path, tiny: Path, tokenizer: Any
) -> None:
    import datasets
    from trl import DPOConfig, DPOTrainer

    out = _made("dpo", form, plain, folder / f"trl-dpo-{form}.jsonl")
    data = datasets.load_dataset("json", data_files=str(out))["train"]
    trainer = DPOTrainer(
        model=str(tiny), args=_arguments(DPOConfig, folder / "trl", max_length=256),
        train_dataset=data, processing_class=tokenizer,
    )  # fmt: skip
    assert trainer.train().training_loss > 0


@pytest.mark.filterwarnings("ignore")
def test_verls_rl_dataset_reads_the_parquet(plain: Path, folder: Path, tokenizer: Any) -> None:
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    out = _made("grpo", "verl", plain, folder / "verl.parquet")
    config = OmegaConf.create(
        {"cache_dir": str(folder / "verl"), "max_prompt_length": 128, "prompt_key": "prompt",
         "filter_overlong_prompts_workers": 1, "return_raw_chat": True}
    )  # fmt: skip
    data = RLHFDataset([str(out)], tokenizer, config)
    assert len(data) == 24
    assert data[0]["raw_prompt"] == [{"role": "user", "content": "What is 0?"}]
    assert data[0]["reward_model"]["ground_truth"] == "0"
    assert json.loads(data[0]["gym_row"])["expected_answer"] == "0"


@pytest.mark.filterwarnings("ignore")
def test_verls_sft_dataset_trains_the_answers_only(
    plain: Path, folder: Path, tokenizer: Any
) -> None:
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    out = _made("sft", "openai", plain, folder / "verl-sft.parquet")
    config = OmegaConf.create({"max_length": 128, "truncation": "right"})
    data = MultiTurnSFTDataset([str(out)], tokenizer, config)
    item = data[1]
    trained = tokenizer.decode(item["input_ids"][item["loss_mask"].bool()])
    assert trained.startswith("0, says 1")
    assert "What is" not in trained


@pytest.mark.parametrize(("kind", "form", "suffix"), [
    ("grpo", "gym", "jsonl"), ("grpo", "verl", "parquet"), ("sft", "openai", "parquet")
])  # fmt: skip
def test_verls_hydra_composes_the_config(
    kind: str, form: str, suffix: str, plain: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("verl")
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    monkeypatch.setenv("GYM_URL", "http://127.0.0.1:1")
    out = folder / f"config-{kind}.{suffix}"
    maker: Any = grpo if kind == "grpo" else sft
    job = maker.job((plain,), out, HELD_OUT, format=form)
    transform(job)
    paths = [path for path in write_configs(job, 9, "m") if path.name.endswith(".verl.yaml")]
    with initialize_config_dir(config_dir=str(folder), version_base=None):
        config = compose(config_name=paths[0].stem)
    assert config.data.train_files == str(out)
    assert config.data.val_files.endswith(f".validation.{suffix}")
    assert OmegaConf.select(config, "trainer.total_epochs") is not None
    if kind == "grpo":
        from verl.utils.config import validate_config

        assert config.reward.nemo_gym.url == "http://127.0.0.1:1"
        validate_config(config, use_reference_policy=False, use_critic=False)


def _nemo_rl() -> Path:
    """The clone that nemo_rl is imported from."""
    if importlib.util.find_spec("nemo_rl") is None:
        pytest.skip("nemo_rl is not importable: put a clone of NeMo-RL v0.7.0 on PYTHONPATH")
    import nemo_rl

    return Path(str(nemo_rl.__file__)).parents[1]


@pytest.mark.nemo_rl
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "form"), [
    ("grpo", "simple"), ("grpo", "gym"), ("sft", "openai"), ("sft", "simple"), ("dpo", "simple"),
    ("dpo", "preference"),
])  # fmt: skip
def test_nemo_rl_loads_the_config_and_the_data_it_names(
    kind: str, form: str, rollouts: Path, folder: Path, tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("NEMO_RL_DIR", str(_nemo_rl()))
    from nemo_rl.data.datasets import load_preference_dataset, load_response_dataset
    from nemo_rl.utils.config import load_config
    from omegaconf import OmegaConf

    out = folder / f"nemo-{kind}-{form}.jsonl"
    selection = Selection(validation=0.25)
    how = Pairing()
    if kind == "dpo":
        job = dpo.job((rollouts,), out, selection, how, format=form)
        dpo.transform(job, how, form)
    else:
        maker: Any = grpo if kind == "grpo" else sft
        job = maker.job((rollouts,), out, selection, format=form)
        transform(job)
    (path, *_) = [p for p in write_configs(job, 9, "tiny") if p.name.endswith(".nemo_rl.yaml")]
    if not OmegaConf.has_resolver("mul"):
        OmegaConf.register_new_resolver("mul", lambda a, b: a * b)
    config = OmegaConf.to_container(load_config(path), resolve=True)
    assert config["policy"]["model_name"] == config["policy"]["tokenizer"]["name"] == "tiny"
    load = load_preference_dataset if kind == "dpo" else load_response_dataset
    for name in ("train", "validation"):
        part = config["data"]["default"] | config["data"][name]
        data = load(part)
        assert len(data.dataset) == len(Path(part["data_path"]).read_text().splitlines())
        first = data.dataset[0]
        if kind == "sft":
            made = data.processor(first, data.task_spec, tokenizer, 256, 0)
            assert made["message_log"][-1]["role"] == "assistant"
        elif kind == "dpo":
            assert [c["rank"] for c in first["completions"]] == [0, 1]
        elif form == "simple":
            assert first["messages"][1]["content"] in [str(n) for n in range(12)] + ["x"]
