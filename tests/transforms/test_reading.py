"""Every form a row comes in, and lines that are no rows."""

import gzip
import json
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from rlbridge.errors import ConfigError
from rlbridge.transforms.conversation import Prompts, conversation_of, reward_of, why_invalid
from rlbridge.transforms.messages import Style
from rlbridge.transforms.reading import Reader, read_row
from rlbridge.transforms.rejects import BadRowError, Rejects

ROWS: list[dict[str, Any]] = [
    {
        "responses_create_params": {"input": [{"role": "user", "content": f"Q{n}?"}]},
        "response": {"output": [{"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": f"A{n} é", "annotations": []}]}]},
        "reward": n / 10,
    }
    for n in range(200)
]  # fmt: skip


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(_lines(rows)))
    elif path.suffix == ".zst":
        half = len(rows) // 2  # two frames, as a file appended to has
        pack = zstandard.ZstdCompressor().compress
        path.write_bytes(pack(_lines(rows[:half])) + pack(_lines(rows[half:])))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(_lines(rows))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_rows_are_read_the_same_however_the_file_is_packed(tmp_path: Path, name: str) -> None:
    seen: list[int] = []
    reader = Reader([_write(tmp_path / name, ROWS)], progress=seen.append)
    rows = [line.row for line in reader]
    said = [conversation_of(row, Prompts(Style())) for row in rows]
    assert [c.completion[0]["content"] for c in said] == [f"A{n} é" for n in range(200)]
    assert [reward_of(row) for row in rows] == [n / 10 for n in range(200)]
    assert reader.bytes_read == sum(seen) == (tmp_path / name).stat().st_size


def test_an_offset_finds_its_row_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + _lines(ROWS[:2]) + b"\r\n  \n" + _lines(ROWS[2:5]))
    lines = list(Reader([path]))
    assert [line.number for line in lines] == [1, 2, 5, 6, 7]
    for line in lines:
        assert read_row(path, line.offset) == line.row


def test_a_bad_line_is_kept_with_its_place_and_the_work_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = [b"<PLACEHOLDER ROW>\n", b"[1]\n", b"null\n", b'{"a": 1']
    path.write_bytes(_lines(ROWS) + b"".join(bad[:3]) + _lines(ROWS[:1]) + bad[3])
    with Rejects(tmp_path / "rejects.jsonl", allowed_share=0.5) as rejects:
        reader = Reader([path], rejects=rejects)
        assert len(list(reader)) == 201
    kept = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [row["line"] for row in kept] == [201, 202, 203, 205]
    assert [row["text"] for row in kept] == ["<PLACEHOLDER ROW>", "[1]", "null", '{"a": 1']
    assert [row["kind"] for row in kept] == ["not JSON", "no object", "no object", "not JSON"]
    assert "cut short" in kept[3]["reason"]
    raw = path.read_bytes()
    assert all(raw[row["offset"] :].startswith(row["text"].encode()) for row in kept)
    assert reader.lines == 205


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_line_nested_too_deep_to_read_is_a_bad_line(tmp_path: Path, opening: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(opening * 200_000 + b"\n" + _lines(ROWS[:1]))
    rejects = Rejects(allowed_share=0.5)
    assert [line.number for line in Reader([path], rejects=rejects)] == [2]
    assert rejects.kinds == {"not JSON": 1}


def test_more_bad_lines_than_allowed_are_fatal_and_say_how_many_and_where(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_lines(ROWS[:8]) + b"x\ny\n")
    with pytest.raises(ConfigError, match=r"2 of 10 .*allowed 1.00%.*a\.jsonl:9.*--max-bad"):
        list(Reader([path], rejects=Rejects(allowed_share=0.01)))
    assert len(list(Reader([path], rejects=Rejects(allowed_share=0.2)))) == 8


def test_a_wrong_file_is_given_up_early(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"no\n" * 30_000)
    reader = Reader([path], rejects=Rejects(allowed_share=0.01))
    with pytest.raises(ConfigError, match="10000 of 10000"):
        list(reader)


@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_packed_file_cut_short_is_an_error_with_its_place(tmp_path: Path, keep: float) -> None:
    path = _write(tmp_path / "a.jsonl.gz", ROWS)
    packed = path.read_bytes()
    path.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(ConfigError, match=r"a\.jsonl\.gz after line \d+"):
        list(Reader([path], rejects=Rejects(allowed_share=1.0)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*gone\.jsonl"):
        list(Reader([tmp_path / "gone.jsonl"]))


def test_parquet_columns_of_json_text_are_read(tmp_path: Path) -> None:
    text = [
        {key: orjson.dumps(value).decode() if isinstance(value, dict) else value
         for key, value in row.items()}
        for row in ROWS
    ]  # fmt: skip
    path = _write(tmp_path / "a.parquet", text)
    assert [line.row for line in Reader([path])] == ROWS


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", '"1.0"', "true", "null"])
def test_a_reward_that_is_no_finite_number_is_absent_and_not_zero(
    tmp_path: Path, value: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"reward": {value}}}\n')
    (line,) = Reader([path])
    assert reward_of(line.row) is None
    assert why_invalid(line.row)


def test_failed_and_masked_rows_have_no_reward() -> None:
    assert reward_of({"reward": 0.0, "_ng_failure_class": "timeout"}) is None
    assert reward_of({"reward": 0.0, "mask_sample": True}) is None
    assert reward_of({"reward": 0, "mask_sample": False, "_ng_failure_class": None}) == 0.0


def test_a_missing_field_is_named_with_the_nearest_one() -> None:
    with pytest.raises(
        BadRowError, match=r"no prompt; the nearest field is \$\.response_create"
    ) as e:
        conversation_of(
            {"response_create_params": {}, "response": {"output": []}}, Prompts(Style())
        )
    assert e.value.at == "$.responses_create_params"
