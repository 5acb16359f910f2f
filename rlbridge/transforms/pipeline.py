"""Read, convert, choose, write: what all transforms share. Refuses to write an empty file.

One pass over the input fills a spool with converted rows; the choice is made on columns; a second
pass copies what was chosen. Memory is that of the columns, whatever the rows hold.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlbridge.errors import ConfigError
from rlbridge.transforms.fields import read_fields
from rlbridge.transforms.harvest import Convert, Progress, Rule, harvested
from rlbridge.transforms.rejects import Rejects
from rlbridge.transforms.rewards import Spread
from rlbridge.transforms.selection import Selection, choose
from rlbridge.transforms.spool import Index, Spool, full_disk_explained
from rlbridge.transforms.workers import harvested_in_workers, is_plain
from rlbridge.transforms.writing import (
    Outputs,
    check_output,
    fingerprint,
    metadata,
    named_beside,
    write_text,
)


@dataclass(frozen=True, slots=True)
class Job:
    """One transform of some files.

    Attributes:
        name: the transform's, as on the command line.
        inputs: rollout files.
        output: the training file.
        convert: row to record.
        selection: which rows are kept.
        needs_reward: whether a row without a valid reward is left out even without thresholds.
        keeps_prompts: whether prompts are wanted apart from what `convert` makes of a row.
        load: reads a line; `orjson.loads` where `convert` looks at more than the usual fields.
        numbers_rows: whether `convert` numbers the rows, so that one process must see all.
        workers: processes that convert plain JSON lines; one does where a file is packed. More
            than 1 start anew and import the main module, which so must do its work under
            `if __name__ == "__main__"`.
        schema: of a Parquet output; None infers one.
        options: everything else worth noting in the sidecar.
        rejects: takes bad rows.
        progress: called with the bytes read since the last call.
    """

    name: str
    inputs: tuple[Path, ...]
    output: Path
    convert: Convert
    selection: Selection
    needs_reward: bool = True
    keeps_prompts: bool = False
    load: Callable[[bytes], Any] = read_fields
    numbers_rows: bool = False
    workers: int = 1
    schema: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    rejects: Rejects = field(default_factory=Rejects)
    progress: Progress | None = None


@dataclass(slots=True)
class Report:
    """What a transform did.

    Attributes:
        read: rows read, bad ones included.
        rejected: bad rows by kind.
        invalid: rows without a valid reward, by reason.
        skipped: rows with nothing for this transform, by reason.
        outside: rows that the reward thresholds left out.
        duplicates: rows left out since an earlier one says the same.
        over_limit: rows left out since their prompt had enough.
        prompts: prompts among the converted rows.
        written: records by file.
    """

    read: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    invalid: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    duplicates: int = 0
    over_limit: int = 0
    prompts: int = 0
    written: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {
            one.name: dict(value)
            if isinstance(value := getattr(self, one.name), Counter)
            else value
            for one in fields(self)
        }


def transform(job: Job) -> Report:
    """Convert the rows, choose, and write them line for line.

    Raises:
        ConfigError: too many bad lines, or no row is left; the message says which threshold
            would keep how many.
        RunError: the disk is full.
    """

    def lines(spool: Spool, index: Index, report: Report) -> dict[Path, Iterable[bytes]]:
        chosen = choose(index, job.selection)
        report.duplicates, report.over_limit = chosen.duplicates, chosen.over_limit
        files = {job.output: chosen.train}
        if job.selection.validation:
            files[named_beside(job.output, "validation")] = chosen.validation
        report.written = {str(path): len(rows) for path, rows in files.items()}
        return {path: spool.runs(index, rows) for path, rows in files.items()}

    return run(job, lines)


Plan = Callable[[Spool, Index, Report], dict[Path, Iterable[bytes]]]


def run(job: Job, plan: Plan) -> Report:
    """Fill a spool, let `plan` say what goes into which file, write the files and the sidecar."""
    check_output(job.output)
    report = Report()
    folder = job.output.parent
    with (
        full_disk_explained(folder),
        ThreadPoolExecutor(1, thread_name_prefix="rlbridge-hash") as pool,
        Spool(folder) as spool,
        job.rejects,
    ):
        # Hashing leaves the interpreter lock alone, so it costs no time where there are two cores.
        hashes = [pool.submit(fingerprint, path) for path in job.inputs if path.exists()]
        rewards = harvest(job, spool, report)
        index = spool.index()
        report.prompts = len(np.unique(index.prompt))
        if not len(index):
            raise ConfigError(_nothing_left(job, report, rewards))
        with Outputs() as outputs:
            files = plan(spool, index, report)
            for path, chunks in files.items():
                outputs.write(path, chunks, job.schema)
        made = [
            {"path": str(path), "bytes": path.stat().st_size, "rows": report.written[str(path)]}
            for path in files
        ]
        text = metadata(
            made_by=f"rlbridge transform {job.name}",
            inputs=[future.result() for future in hashes],
            options=asdict(job.selection) | job.options,
            counts=report.to_json(),
            outputs=made,
        )
        write_text(job.output.with_name(job.output.name + ".meta.json"), text)
    return report


def harvest(job: Job, spool: Spool, report: Report) -> npt.NDArray[np.float64]:
    """Read and convert every row into the spool; the valid rewards of all rows come back."""
    workers = 1 if job.numbers_rows else job.workers
    lasting = job.selection.validation > 0
    rule = Rule(job.convert, job.selection, job.needs_reward, lasting, job.keeps_prompts, job.load)
    rewards = array("d")
    args = (job.inputs, rule, spool.folder, job.rejects, job.progress)
    several = workers > 1 and all(map(is_plain, job.inputs))
    with closing(harvested_in_workers(*args, workers) if several else harvested(*args)) as parts:
        for part in parts:
            spool.add(part.stretch)
            rewards.extend(part.rewards)
            report.invalid.update(part.invalid)
            report.skipped.update(part.skipped)
            report.outside += part.outside
            report.read += part.lines
    job.rejects.finish(report.read)
    report.rejected = dict(job.rejects.kinds)
    return np.frombuffer(rewards, dtype=np.float64)


def _nothing_left(job: Job, report: Report, rewards: npt.NDArray[np.float64]) -> str:
    why = [f"{report.read} rows read"]
    why += [f"{count} {kind}" for kind, count in sorted(report.rejected.items())]
    why += [f"{count} {reason}" for reason, count in report.invalid.most_common()]
    why += [f"{count} {reason}" for reason, count in report.skipped.most_common()]
    if report.outside:
        why.append(f"{report.outside} outside the reward thresholds")
    text = f"no rows are left for `transform {job.name}`: " + ", ".join(why) + "."
    if len(rewards) and report.outside:
        spread = Spread(rewards)
        text += f"\nRewards: {spread.words()}.\n" + spread.advice(job.selection.max_reward)
    return text
