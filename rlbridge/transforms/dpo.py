"""Rollout rows to preference pairs of one prompt. Refuses to write a file without a pair.

Formats:

- `simple`: `{prompt, chosen, rejected}` with text answers, for NeMo-RL's
  `BinaryPreferenceDataset`; the prompt is text, or messages where one of the file has more than
  a user's message;
- `openai`: the same with message lists and `tools`, for TRL's `DPOTrainer`;
- `preference`: `{context, completions: [{rank, completion}]}`, for NeMo-RL's `PreferenceDataset`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import orjson

from rlbridge.errors import ConfigError
from rlbridge.transforms.conversation import Prompts, conversation_of, plain_text
from rlbridge.transforms.harvest import SkippedRowError
from rlbridge.transforms.messages import Style
from rlbridge.transforms.pairs import Groups, Pairing, groups_of, pairs_of
from rlbridge.transforms.pipeline import Job, Report, run
from rlbridge.transforms.reading import Row
from rlbridge.transforms.rewards import Spread
from rlbridge.transforms.selection import Selection, choose
from rlbridge.transforms.spool import Index, Piece, Places, Spool
from rlbridge.transforms.texts import says_something, single_answer
from rlbridge.transforms.writing import named_beside

Format = Literal["simple", "openai", "preference"]

_PAIRS_AT_ONCE: Final = 4096


def job(
    inputs: tuple[Path, ...],
    output: Path,
    selection: Selection,
    pairing: Pairing,
    *,
    format: Format = "simple",  # noqa: A002 # the option's name
    style: Style | None = None,
    **more: Any,
) -> Job:
    """The job that makes DPO data; `more` are `Job`'s other attributes."""
    style = style or Style(reasoning="think" if format == "simple" else "field")
    prompts = Prompts(style)
    convert = partial(_simple if format == "simple" else _messages, prompts)
    options = {"format": format, "style": asdict(style)} | asdict(pairing)
    return Job(
        "dpo", inputs, output, convert, selection, keeps_prompts=True, options=options, **more
    )


def transform(job: Job, pairing: Pairing, format: Format = "simple") -> Report:  # noqa: A002
    """Make the pairs and write them.

    Raises:
        ConfigError: too many bad lines, or no pair can be made; the message says which gaps
            were seen.
        RunError: the disk is full.
    """

    def plan(spool: Spool, index: Index, report: Report) -> dict[Path, Iterable[bytes]]:
        chosen = choose(index, job.selection)
        report.duplicates, report.over_limit = chosen.duplicates, chosen.over_limit
        plain = format == "simple" and bool(index.plain.all())
        files: dict[Path, Iterable[bytes]] = {}
        found = 0
        sets = [(job.output, chosen.train)]
        if job.selection.validation:
            sets.append((named_beside(job.output, "validation"), chosen.validation))
        for path, rows in sets:
            groups = groups_of(index, rows)
            pairs = pairs_of(index, groups, pairing, seed=job.selection.seed)
            first = next(pairs, None)
            found += first is not None
            all_pairs = chain([first] if first else [], pairs)
            report.written[str(path)] = 0
            files[path] = _records(spool, index, all_pairs, format, plain, report, path)
        if not found:
            everything = np.concatenate([rows for _, rows in sets])
            raise ConfigError(_no_pairs(index, groups_of(index, everything), pairing))
        return files

    return run(job, plan)


def _simple(prompts: Prompts, row: Row) -> Piece:
    said = conversation_of(row, prompts)
    answer = orjson.dumps(single_answer(said.completion))
    return said.prompt.written, answer, said.prompt.plain


def _messages(prompts: Prompts, row: Row) -> Piece:
    said = conversation_of(row, prompts)
    if not says_something(said.completion):
        raise SkippedRowError("with an empty answer")
    messages = said.completion
    while messages[-1]["role"] != "assistant":
        messages.pop()
    tools = b',"tools":' + orjson.dumps(said.tools) if said.tools else b""
    return said.prompt.written + tools, orjson.dumps(messages), False


def _records(
    spool: Spool,
    index: Index,
    pairs: Iterable[tuple[int, int]],
    format: Format,  # noqa: A002
    plain: bool,
    report: Report,
    path: Path,
) -> Iterator[bytes]:
    """A line for each pair, put together from the spool's bytes."""
    first, before, middle, after = (b'{"prompt":', b',"chosen":', b',"rejected":', b"}\n")
    if format == "preference":
        first, before, middle, after = (
            b'{"context":', b',"completions":[{"rank":0,"completion":',
            b'},{"rank":1,"completion":', b"}]}\n",
        )  # fmt: skip
    written = 0
    while some := list(islice(pairs, _PAIRS_AT_ONCE)):
        texts = spool.pieces(*_places(index, np.array(some, dtype=np.int64)))
        for prompt, better, worse in zip(texts, texts, texts, strict=True):
            asked = plain_text(prompt) if plain else prompt
            yield b"".join((first, asked, before, better, middle, worse, after))
        written += len(some)
        report.written[str(path)] = written


def _places(index: Index, pairs: npt.NDArray[np.int64]) -> tuple[Places, Places]:
    """Where each pair's prompt, chosen and rejected completion are, and their sizes: [3 n]."""
    chosen, rejected = pairs.T
    starts = (index.head[chosen], index.start[chosen], index.start[rejected])
    sizes = (index.cut[chosen], index.size[chosen], index.size[rejected])
    return np.stack(starts, axis=1).ravel(), np.stack(sizes, axis=1, dtype=np.int64).ravel()


def _no_pairs(index: Index, groups: Groups, how: Pairing) -> str:
    sizes, gaps = groups.sizes, groups.gaps
    several = gaps[sizes > 1]
    text = (
        f"no pairs for `transform dpo`: {len(sizes)} prompts, {len(several)} of them with two or "
        "more different scored rollouts"
    )
    if not len(several):
        return (
            text + ". A pair needs two: collect with --repeats 2 or more. Rollouts that say the "
            "same, and those without a valid reward, don't count"
        )
    spread = Spread(several)
    text += f".\nGaps between a prompt's best and worst reward: {spread.words()}.\n"
    if not float(several.max()):
        return text + "All rollouts of every prompt have the same reward; no threshold makes a pair"
    if how.strategy == "stratified" and float(several.max()) >= how.min_gap:
        rewards = Spread(index.reward[groups.rows])
        return text + (
            f"No prompt has a reward of at least {how.high:g} and one of at most {how.low:g}. "
            f"Rewards: {rewards.words()}. Move --high-threshold and --low-threshold"
        )
    return text + spread.advice(option="--min-gap") + " prompts"
