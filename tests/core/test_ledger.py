"""The record of rewards: appended, followed while it grows, summed without inventing."""

from pathlib import Path

from rlbridge.contracts.reward import FailureClass, InvalidReward, ValidReward
from rlbridge.jsonl import Follower, append
from rlbridge.ledger import LedgerReader, RewardLedger


def test_the_reader_sums_what_the_writer_recorded(tmp_path: Path) -> None:
    ledger = RewardLedger(tmp_path / "rewards")
    reader = LedgerReader(tmp_path / "rewards")
    ledger.record(ValidReward(0.5, attempts=2), step=1, row=4, uid="u", sample=0)
    (line,) = reader.poll()
    assert (line["reward"], line["row"], line["valid"]) == (0.5, 4, True)
    bad = InvalidReward(FailureClass.TIMEOUT, "no answer", attempts=3)
    ledger.record(bad, step=1, row=5, uid="v", sample=1)
    (line,) = reader.poll()
    assert "reward" not in line
    assert (line["failure"], line["fault"]) == ("timeout", "infrastructure")
    totals = reader.totals
    assert (totals.attempts, totals.valid, totals.invalid) == (5, 1, 1)
    assert reader.poll() == []
    ledger.close()


def test_a_line_being_written_is_left_for_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    follower = Follower(path)
    assert follower.poll() == []
    append(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2')
    assert follower.poll() == [{"a": 1}]
    with path.open("ab") as file:
        file.write(b"}\n")
    assert follower.poll() == [{"a": 2}]
