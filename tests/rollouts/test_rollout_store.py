import asyncio
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlbridge.contracts.reward import Fault
from rlbridge.errors import ConfigError, ContractError
from rlbridge.rollouts.failures import RolloutFailure
from rlbridge.rollouts.index import ENTRY_BYTES, Key
from rlbridge.rollouts.store import Store, failures_path
from tests.json_lines import read_lines

ASKED = {"input": "abc", "repeats": 2}
DOWN = RolloutFailure("connection", Fault.INFRASTRUCTURE, "nobody answered")


def row_of(key: Key) -> dict[str, Any]:
    return {"response": {"output": []}, "reward": key.task / 10, "text": "x" * (key.task % 50)}


def keys(count: int) -> list[Key]:
    return [Key(n // 2, n % 2) for n in range(count)]


async def fill(output: Path, todo: list[Key]) -> None:
    async with Store(output, ASKED) as store:
        await asyncio.gather(*(store.put(key, row_of(key)) for key in todo))


def index(output: Path) -> Path:
    return output.with_name(output.name + ".index")


async def test_a_second_store_knows_what_the_first_one_kept(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    await fill(output, keys(40))
    async with Store(output, ASKED) as store:
        assert store.resumed
        assert len(store.done) == 40
        assert Key(19, 1) in store.done
        assert Key(20, 0) not in store.done
        with pytest.raises(ContractError, match="already"):
            await store.put(Key(19, 1), {})


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_cut_off_the_files_whole_rows_stay_and_none_comes_twice(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    output = tmp_path / "out.jsonl"
    await fill(output, keys(30))
    whole = output.read_bytes()
    kept = chance.randrange(len(whole) + 1)
    os.truncate(output, kept)
    os.truncate(index(output), chance.randrange(30 * ENTRY_BYTES + 1))
    rows = whole[:kept].count(b"\n")
    async with Store(output, ASKED) as store:
        assert len(store.done) == rows
        missing = [key for key in keys(30) if key not in store.done]
        for key in missing:
            await store.put(key, row_of(key))
    assert sorted(read_lines(output), key=json.dumps) == sorted(
        map(json.loads, whole.splitlines()), key=json.dumps
    )


@pytest.mark.parametrize("damage", ["flip", "lose", "grow"])
async def test_a_damaged_index_is_made_again_from_the_rows(tmp_path: Path, damage: str) -> None:
    output = tmp_path / "out.jsonl"
    await fill(output, keys(30))
    path = index(output)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[3 * ENTRY_BYTES + 5] ^= 0xFF
        path.write_bytes(data)
    elif damage == "lose":
        path.unlink()
    else:
        path.write_bytes(data + b"\x00" * (ENTRY_BYTES + 3))
    async with Store(output, ASKED) as store:
        assert len(store.done) == 30
    assert path.stat().st_size == 30 * ENTRY_BYTES


async def test_a_row_edited_by_hand_is_read_anew_and_a_broken_one_is_refused(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.jsonl"
    await fill(output, keys(4))
    output.write_bytes(output.read_bytes().replace(b'"reward":0.1', b'"reward":0.11'))
    async with Store(output, ASKED) as store:
        assert len(store.done) == 4
    output.write_bytes(output.read_bytes() + output.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(ConfigError, match="has already"):
        Store(output, ASKED)
    output.write_bytes(b"hello\n")
    with pytest.raises(ConfigError, match="is no rollout row"):
        Store(output, ASKED)


async def test_other_options_are_refused_with_the_difference(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    await fill(output, keys(4))
    with pytest.raises(ConfigError, match="repeats was 2 and is 8"):
        Store(output, {**ASKED, "repeats": 8})
    async with Store(output, {**ASKED, "repeats": 8}, accept_changes=True) as store:
        assert len(store.done) == 4
    async with Store(output, {**ASKED, "repeats": 8}):
        pass


async def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_bytes(b'{"a": 1}\n')
    with pytest.raises(ConfigError, match="nothing was changed"):
        Store(output, ASKED)
    assert output.read_bytes() == b'{"a": 1}\n'


async def test_only_one_process_writes(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    async with Store(output, ASKED):
        with pytest.raises(ConfigError, match=f"process {os.getpid()} writes to out.jsonl"):
            Store(output, ASKED)
    async with Store(output, ASKED):
        pass


async def test_failures_keep_their_attempts_and_go_when_the_rollout_succeeds(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.jsonl"
    async with Store(output, ASKED) as store:
        for attempts in (1, 2):
            await store.put_failure(Key(0, 0), {"a": 1, **DOWN.fields(attempts)})
        await store.put_failure(Key(0, 1), {"a": 1, **DOWN.fields(3)})
        await store.put(Key(1, 0), row_of(Key(1, 0)))
    with failures_path(output).open("ab") as torn:
        torn.write(b'{"_ng_task_index": 7, "_ng_rol')
    async with Store(output, ASKED) as store:
        assert store.failed == {Key(0, 0): 2, Key(0, 1): 3}
        await store.put(Key(0, 0), row_of(Key(0, 0)))
        await store.finish(ordered=False)
        assert [row["_rlbridge_attempts"] for row in read_lines(failures_path(output))] == [3]
        await store.put(Key(0, 1), row_of(Key(0, 1)))
        await store.finish(ordered=True)
    assert not failures_path(output).exists()
    assert [(r["_ng_task_index"], r["_ng_rollout_index"]) for r in read_lines(output)] == [
        (0, 0),
        (0, 1),
        (1, 0),
    ]
    async with Store(output, ASKED) as store:
        assert len(store.done) == 3


async def test_a_row_that_is_no_json_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    async with Store(output, ASKED) as store:
        with pytest.raises(ContractError, match="JSON"):
            await store.put(Key(0, 0), {"a": object()})
        assert Key(0, 0) not in store.done
        await store.put(Key(0, 1), row_of(Key(0, 1)))
    assert len(read_lines(output)) == 1


FILL_A_SMALL_DISK = """
import asyncio, resource, signal, sys
from pathlib import Path
from rlbridge.errors import RunError
from rlbridge.rollouts.index import Key
from rlbridge.rollouts.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
async def main():
    async with Store(Path(sys.argv[1]), {"input": "abc", "repeats": 2}) as store:
        for n in range(100):
            await store.put(Key(n, 0), {"text": "x" * 700, "n": n})
try:
    asyncio.run(main())
except RunError as error:
    print(error)
"""


def test_a_full_disk_stops_with_words_keeps_whole_rows_and_is_resumed(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", FILL_A_SMALL_DISK, str(output)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert "Free some space and run the same command again" in said
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    kept = read_lines(output)
    assert 20 < len(kept) < 30

    async def go_on() -> None:
        async with Store(output, ASKED) as store:
            assert len(store.done) == len(kept)
            for n in range(len(kept), 100):
                await store.put(Key(n, 0), {"n": n})

    asyncio.run(go_on())
    assert [row["n"] for row in read_lines(output)] == list(range(100))
