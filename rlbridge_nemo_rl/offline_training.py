"""SFT and DPO as NeMo-RL's `examples/run_sft.py` and `run_dpo.py` do them, in their order.

Every row is rendered once before the workers start, so that what can't be trained on is refused
while nothing is lost; NeMo-RL would mask it and go on.
"""

from collections.abc import Iterable
from typing import Any

from rlbridge.errors import ConfigError
from rlbridge_nemo_rl import versions
from rlbridge_nemo_rl.backend import METRICS
from rlbridge_nemo_rl.offline_keys import CONVERSATIONS, PAIRS
from rlbridge_nemo_rl.record import Record
from rlbridge_nemo_rl.training import Training, tokenizer_of

_SHOWN_ROWS = 3


def train_sft(config: Any, run: Training) -> None:
    """Train on conversations to the end.

    Raises:
        ConfigError: rows can't be trained on.
    """
    from nemo_rl.algorithms import sft

    example = _example("run_sft")
    tokenizer = tokenizer_of(config)
    data = versions.section(config, "data")
    names = _dataset_names(data)
    dataset, val_dataset = example.setup_data(tokenizer, data)
    if names == {CONVERSATIONS}:
        check_rows([dataset] if val_dataset is None else [dataset, val_dataset], run)
    made = sft.setup(config, tokenizer, dataset, val_dataset)
    _train(run, made, tokenizer, sft.sft_train)


def train_dpo(config: Any, run: Training) -> None:
    """Train on preference pairs to the end.

    Raises:
        ConfigError: rows can't be trained on.
    """
    from nemo_rl.algorithms import dpo
    from nemo_rl.data.utils import setup_preference_data

    tokenizer = tokenizer_of(config)
    data = versions.section(config, "data")
    names = _dataset_names(data)
    dataset, val_datasets = setup_preference_data(tokenizer, data)
    if names == {PAIRS}:
        for made in (dataset, *val_datasets.values()):
            _process_by_ours(made)
        check_rows([dataset, *val_datasets.values()], run)
    _train(run, dpo.setup(config, tokenizer, dataset, val_datasets), tokenizer, dpo.dpo_train)


def _dataset_names(data: Any) -> set[str]:
    """What trains, by name: NeMo-RL's SFT takes a list too, and its own may stand in `default`."""
    sections = data["train"] if isinstance(data["train"], list) else [data["train"]]
    default = (data.get("default") or {}).get("dataset_name", "")
    names = {str(section.get("dataset_name", default)) for section in sections}
    for name in names:
        versions.name_dataset(name)
    return names


def _process_by_ours(dataset: Any) -> None:
    """NeMo-RL gives every preference dataset its own processor; this one's items are ours."""
    from rlbridge_nemo_rl.offline_dataset import process_pair

    specs = dataset.task_data_processors
    dataset.task_data_processors = {name: (spec, process_pair) for name, (spec, _) in specs.items()}


def check_rows(datasets: Iterable[Any], run: Training) -> None:
    """Process every row once, and warn of turns that are context only.

    Raises:
        ConfigError: how many can't be trained on, and the first few.
    """
    from rlbridge_nemo_rl.offline_dataset import CHANGED

    refused, rows, changed = [], 0, 0
    for dataset in datasets:
        for index in range(len(dataset)):
            rows += 1
            try:
                changed += dataset[index].get(CHANGED, 0)
            except ConfigError as error:
                refused.append(str(error))
    if refused:
        raise ConfigError(
            f"data: {len(refused)} of {rows} rows can't be trained on; raise the limits or drop "
            "these rows: " + "; ".join(refused[:_SHOWN_ROWS])
        )
    if changed:
        run.warn(
            f"data: {changed} assistant's turns are context only: the chat template renders them "
            "otherwise once more turns follow (reasoning left out of the history, say)"
        )


def _train(run: Training, made: tuple[Any, ...], tokenizer: Any, train: Any) -> None:
    policy, _, dataloader, val_dataloader, loss_fn, logger, checkpointer, state, config = made
    run.note("workers_ready")
    record = Record(logger, run.folder / METRICS)
    run.note("training")
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
