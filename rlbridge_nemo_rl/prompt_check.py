"""Looks at every prompt of a run once, as NeMo-RL will encode it, before anything is loaded.

Refuses prompts that are too long: NeMo-RL would sample for them and train on nothing. Tells which
rows share a prompt that their verifiers judge differently: NeMo-RL knows a group of samples by the
prompt's tokens, so that such rows share a baseline when they meet in a step.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.prompts import MARK
from rlbridge.rows import Row
from rlbridge_nemo_rl.processor import OVERLONG, ROW, SPLIT, WHERE, RefusedPromptError

_SHOWN = 5
_NO_VERIFIERS = (wire.RESPONSES_CREATE_PARAMS, MARK)


def check_prompts(train: Any, validation: Any = None) -> str | None:
    """Check the prompts of a run's datasets.

    Args:
        train: what `setup_response_data` made of `data.train`: a dataset, or several by name;
            rows of others' datasets are left alone.
        validation: likewise of `data.validation`; has no baselines.

    Returns:
        What the user should know, if anything.

    Raises:
        ConfigError: a prompt can't be rendered, with file and line; or prompts are too long, with
            the first one's, and how many.
    """
    print("\n▶ Looking at every prompt...", flush=True)  # in NeMo-RL's words, among its lines
    prompts: dict[bytes, list[tuple[Any, int]]] = defaultdict(list)
    overlong = []
    total = 0
    for dataset in [*_datasets(train), *_datasets(validation)]:
        for index in range(len(dataset)):
            item = _rendered(dataset, index)
            info = item["extra_env_info"] or {}
            total += 1
            if OVERLONG in info:
                overlong.append(info[WHERE])
            elif info.get(SPLIT) == "train":
                tokens = item["message_log"][0]["token_ids"].numpy().tobytes()
                prompts[tokens].append((dataset, index))
    if overlong:
        raise ConfigError(
            f"data: {len(overlong)} of {total} prompts are longer than data.max_prompt_tokens "
            f"(NeMo-RL's data.max_input_seq_length), the first at {overlong[0]}; raise it or drop "
            "these rows"
        )
    return _told(list(_unlike(prompts)))


def _rendered(dataset: Any, index: int) -> Any:
    try:
        return dataset[index]
    except RefusedPromptError as error:
        raise ConfigError(str(error)) from error


def _datasets(made: Any) -> list[Any]:
    if made is None:
        return []
    return list(made.values()) if isinstance(made, Mapping) else [made]


def _unlike(prompts: Mapping[bytes, list[tuple[Any, int]]]) -> Iterator[dict[str, Row]]:
    """For each prompt of rows with unlike fields, these rows by their places."""
    for found in prompts.values():
        if len(found) < 2:
            continue
        rows: dict[str, Row] = {}
        for dataset, index in found:
            info = dataset[index]["extra_env_info"]
            rows[info[WHERE]] = info[ROW]  # a mixed file's rows come several times
        if len(rows) > 1 and _differing(rows):
            yield rows


def _differing(rows: Mapping[str, Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return [
        name
        for name in names
        if name not in _NO_VERIFIERS
        and len({json.dumps(row.get(name), sort_keys=True) for row in rows.values()}) > 1
    ]


def _told(groups: list[dict[str, Row]]) -> str | None:
    if not groups:
        return None
    shown = [
        f"{' and '.join(list(rows)[:3])}{' ...' if len(rows) > 3 else ''} "
        f"(other {', '.join(_differing(rows)[:3])})"
        for rows in groups[:_SHOWN]
    ]
    more = f"; and {len(groups) - _SHOWN} more prompts" if len(groups) > _SHOWN else ""
    prompts = "a prompt" if len(groups) == 1 else f"{len(groups)} prompts"
    return (
        f"data: {sum(map(len, groups))} rows share {prompts} with rows whose fields differ: "
        f"{'; '.join(shown)}{more}. Where such rows meet in a step, NeMo-RL takes their samples "
        "for one group, with one baseline; make the prompts distinct, or drop rows"
    )
