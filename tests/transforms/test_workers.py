"""Several processes make the files that one makes, byte for byte, and say the same of bad lines."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from made_rows import row

from rlbridge.errors import ConfigError
from rlbridge.transforms import dpo, grpo, sft
from rlbridge.transforms.pairs import Pairing
from rlbridge.transforms.pipeline import Report, transform
from rlbridge.transforms.rejects import Rejects
from rlbridge.transforms.selection import Selection
from rlbridge.transforms.workers import worthwhile_workers


def write_inputs(folder: Path) -> tuple[Path, ...]:
    """Two files: a byte order mark, blank and bad lines, a last line without an end."""
    lines = [
        orjson.dumps(
            row(
                f"Question {n // 4}?",
                f"Answer {n * 7 % 31}.",
                reward=n % 5 / 4,
                expected_answer="7",
            )
        )
        for n in range(400)
    ]
    lines[37], lines[200] = b"", b"   "
    for number in (50, 51, 333):
        lines[number] = b'{"cut'
    lines[120] = orjson.dumps({"reward": 1.0})
    first, second = folder / "a.jsonl", folder / "b.jsonl"
    first.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines[:250]) + b"\n")
    second.write_bytes(b"\n".join(lines[250:]))
    return first, second


def run_grpo(inputs: tuple[Path, ...], out: Path, rejects: Rejects, workers: int) -> Report:
    chosen = Selection(max_per_prompt=1, validation=0.2)
    return transform(grpo.job(inputs, out, chosen, rejects=rejects, workers=workers))


def run_verl(inputs: tuple[Path, ...], out: Path, rejects: Rejects, workers: int) -> Report:
    job = grpo.job(inputs, out, Selection(), format="verl", rejects=rejects, workers=workers)
    return transform(job)


def run_sft(inputs: tuple[Path, ...], out: Path, rejects: Rejects, workers: int) -> Report:
    chosen = Selection(min_reward=0.5)
    return transform(sft.job(inputs, out, chosen, rejects=rejects, workers=workers))


def run_dpo(inputs: tuple[Path, ...], out: Path, rejects: Rejects, workers: int) -> Report:
    how = Pairing()
    job = dpo.job(inputs, out, Selection(), how, rejects=rejects, workers=workers)
    return dpo.transform(job, how)


@pytest.mark.parametrize("work", [run_grpo, run_verl, run_sft, run_dpo])
def test_files_rejects_and_counts_are_those_of_one_process(
    work: Callable[[tuple[Path, ...], Path, Rejects, int], Report], tmp_path: Path
) -> None:
    inputs = write_inputs(tmp_path)
    made = {}
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        rejects = Rejects(folder / "rejects.jsonl", allowed_share=0.02)
        report = work(inputs, folder / "out.jsonl", rejects, workers)
        report.written = {Path(path).name: rows for path, rows in report.written.items()}
        files = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
        made[workers] = (report, files, rejects.first)
    assert made[1] == made[3]
    assert made[1][0].read == 398
    bad = [orjson.loads(line) for line in made[3][1]["rejects.jsonl"].splitlines()]
    assert [(Path(one["file"]).name, one["line"]) for one in bad if one["text"] == '{"cut'] == [
        ("a.jsonl", 51),
        ("a.jsonl", 52),
        ("b.jsonl", 84),
    ]


def test_too_many_bad_lines_are_the_same_error_with_several_processes(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    said = []
    for workers in (1, 2):
        with pytest.raises(ConfigError) as error:
            run_sft(inputs, tmp_path / "out.jsonl", Rejects(allowed_share=0.001), workers)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_file_is_named_with_several_processes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*gone\.jsonl"):
        run_sft((tmp_path / "gone.jsonl",), tmp_path / "out.jsonl", Rejects(), 2)


def test_small_and_packed_files_are_for_one_process(tmp_path: Path) -> None:
    small = tmp_path / "small.jsonl"
    small.write_bytes(b"{}\n")
    large, packed = tmp_path / "large.jsonl", tmp_path / "large.jsonl.gz"
    for path in (large, packed):
        with path.open("wb") as file:
            file.truncate(1 << 30)  # a hole, no bytes on the disk
    assert worthwhile_workers([small]) == worthwhile_workers([large, packed]) == 1
    assert worthwhile_workers([large]) == min(4, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_transform(how: signal.Signals, tmp_path: Path) -> None:
    (source,) = write_inputs(tmp_path)[1:]
    large = tmp_path / "large.jsonl"
    large.write_bytes((source.read_bytes() + b"\n") * 1500)
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "rlbridge", "transform", "sft", str(large),
               "-o", str(out), "--workers", "2", "--max-bad", "5%"]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob(".rlbridge-*/*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does: to all of them
        else:
            process.kill()
        _, complaints = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in complaints
    assert not out.exists()
    while time.monotonic() < deadline and group_lives(process.pid):
        time.sleep(0.05)
    assert not group_lives(process.pid)
    if how == signal.SIGINT:
        assert not list(tmp_path.glob(".rlbridge-*"))


def group_lives(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False
