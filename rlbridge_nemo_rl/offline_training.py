"""SFT and DPO as NeMo-RL's `examples/run_sft.py` and `run_dpo.py` do them, in their order."""

from typing import Any

from rlbridge.errors import ConfigError
from rlbridge_nemo_rl import versions
from rlbridge_nemo_rl.backend import METRICS
from rlbridge_nemo_rl.record import Record
from rlbridge_nemo_rl.training import Training, tokenizer_of


def train_sft(config: Any, run: Training) -> None:
    """Train on conversations to the end."""
    from nemo_rl.algorithms import sft

    example = _example("run_sft")
    tokenizer = tokenizer_of(config)
    data = example.setup_data(tokenizer, versions.section(config, "data"))
    _train(run, sft.setup(config, tokenizer, *data), tokenizer, sft.sft_train)


def train_dpo(config: Any, run: Training) -> None:
    """Train on preference pairs to the end."""
    from nemo_rl.algorithms import dpo
    from nemo_rl.data.utils import setup_preference_data

    tokenizer = tokenizer_of(config)
    data = setup_preference_data(tokenizer, versions.section(config, "data"))
    _train(run, dpo.setup(config, tokenizer, *data), tokenizer, dpo.dpo_train)


def _train(run: Training, made: tuple[Any, ...], tokenizer: Any, train: Any) -> None:
    policy, _, dataloader, val_dataloader, loss_fn, logger, checkpointer, state, config = made
    run.note("training")
    record = Record(logger, run.folder / METRICS)
    train(
        policy, dataloader, val_dataloader, tokenizer, loss_fn, config, record, checkpointer,
        state,
    )  # fmt: skip


def _example(name: str) -> Any:
    """A module of the checkout's examples, which hold code that isn't in the package."""
    import importlib.util

    path = versions.checkout() / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"nemo_rl_examples_{name}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"this NeMo-RL checkout has no {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
