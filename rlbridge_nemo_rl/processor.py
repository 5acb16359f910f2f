"""A Gym row to NeMo-RL's `DatumSpec`: rendered and encoded once. Imports no other part of rlbridge.

NeMo-RL unpickles its data loader in workers of other environments (async GRPO does), where only
this module has to be importable. So rows are read and checked in the launching process
(`dataset`), and travel as JSON text: a table would put nulls into nested data.
"""

import json
from typing import Any

import torch

PROCESSOR = "rlbridge_gym"
"""Its name in NeMo-RL's processor registry."""

# Keys of an item of `GymDataset.dataset`.
MESSAGES, TOOLS, ROW, INDEX, SPLIT = "messages", "tools", "row", "row_index", "split"
WHERE = "where"  # file and line
OVERLONG = "overlong"
# NeMo-RL's own processors keep so many tokens of a prompt that is too long; its loss is masked.
_KEPT_TOKENS = 4


class RefusedPromptError(ValueError):
    """A prompt file or the chat template can't be applied to a row; says to which, and why."""


def process_row(
    datum_dict: dict[str, Any],
    task_data_spec: Any,
    tokenizer: Any,
    max_seq_length: int | None,
    idx: int,
) -> dict[str, Any]:
    """Render and encode one row.

    Args:
        datum_dict: an item of `GymDataset.dataset`.
        task_data_spec: NeMo-RL's; `system_prompt` comes first if the row has no system message,
            `prompt` is a format string for the last user message.
        tokenizer: with a chat template; renders with the row's tools.
        max_seq_length: longest prompt in tokens. A longer one is cut to a few tokens, masked
            (`loss_multiplier` 0), and not shown to the verifier.
        idx: the item's index.

    Returns:
        A `DatumSpec`; `extra_env_info` holds the whole row, its index, its place and its split.

    Raises:
        RefusedPromptError: the template refuses the prompt, or a prompt file doesn't fit.
    """
    tools = json.loads(datum_dict[TOOLS]) or None
    try:
        messages = _prompted(json.loads(datum_dict[MESSAGES]), task_data_spec)
        text = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates raise what they like
        raise RefusedPromptError(
            f"{datum_dict[WHERE]}: the prompt can't be rendered: {type(error).__name__}: {error}"
        ) from error
    token_ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    token_ids = token_ids.to(torch.int64)
    overlong = max_seq_length is not None and len(token_ids) > max_seq_length
    if overlong:
        # `length` is that of what is left: NeMo-RL finds the prompt's messages by it.
        token_ids = token_ids[:_KEPT_TOKENS]
    info = {key: datum_dict[key] for key in (INDEX, WHERE, SPLIT)}
    info[ROW] = json.loads(datum_dict[ROW])
    return {
        "message_log": [{"role": "user", "content": text, "token_ids": token_ids}],
        "length": len(token_ids),
        "extra_env_info": info | ({OVERLONG: True} if overlong else {}),
        "loss_multiplier": 0.0 if overlong else 1.0,
        "idx": idx,
        "task_name": datum_dict["task_name"],
    }


def _prompted(messages: list[dict[str, Any]], spec: Any) -> list[dict[str, Any]]:
    """The messages with NeMo-RL's prompt files applied, which most configs leave empty."""
    system, prompt = getattr(spec, "system_prompt", None), getattr(spec, "prompt", None)
    if prompt:
        last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
        if last is not None:
            text = prompt.format(messages[last]["content"])
            messages[last] = {**messages[last], "content": text}
    if system and not any(message["role"] == "system" for message in messages):
        messages = [{"role": "system", "content": system}, *messages]
    return messages
