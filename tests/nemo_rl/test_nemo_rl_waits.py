"""Waits that end, and data that don't; nothing here needs NeMo-RL."""

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlbridge_nemo_rl.epochs import Epochs
from rlbridge_nemo_rl.stall import StalledError, StallWatch


def test_a_long_update_is_no_stall(tmp_path: Path) -> None:
    watch = StallWatch(tmp_path, 0.05)
    with watch.training():
        time.sleep(0.5)


def test_processes_that_start_are_no_stall(tmp_path: Path) -> None:
    watch = StallWatch(tmp_path, 0.05)
    with watch.training(), watch.waiting(tmp_path / "begun"):
        time.sleep(0.5)


def watch_of(folder: Path, release: Callable[[], None] = lambda: None) -> StallWatch:
    """One that leaves this process alive, whatever happens."""
    return StallWatch(folder, 0.05, release, abandon=lambda _: None)


def test_waiting_without_progress_is_one_and_releases_what_is_waited_for(tmp_path: Path) -> None:
    released: list[str] = []
    waited_out: list[bool] = []
    watch = watch_of(tmp_path, lambda: released.append("released"))
    with (
        pytest.raises(StalledError, match=r"trainer\.stall_timeout_s=0\.05"),
        watch.training(),
        watch.waiting(),
        watch.rollout(),
    ):
        waited_out.append(threading.Event().wait(60))
    assert released == ["released"]
    assert not waited_out


def test_a_process_in_the_background_is_interrupted_too(tmp_path: Path) -> None:
    waited_out: list[bool] = []
    watch = watch_of(tmp_path)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts one
    try:
        with pytest.raises(StalledError), watch.training(), watch.waiting():
            waited_out.append(threading.Event().wait(60))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not waited_out


def wait_deaf(until: Callable[[], bool]) -> None:
    """A wait that no interruption ends, as a thread's or a library's."""
    while not until():
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait(0.01)


def test_a_loop_that_swallows_the_interruption_still_ends_as_stalled(tmp_path: Path) -> None:
    released: list[bool] = []
    watch = watch_of(tmp_path, lambda: released.append(True))
    with pytest.raises(StalledError), watch.training(), watch.waiting():
        wait_deaf(lambda: bool(released))


def test_where_no_interruption_reaches_the_process_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlbridge_nemo_rl.stall._GRACE_S", 0.05)
    given_up: list[str] = []
    watch = StallWatch(tmp_path, 0.05, abandon=given_up.append)
    with pytest.raises(StalledError), watch.training(), watch.waiting():
        wait_deaf(lambda: bool(given_up))
    assert "no reward was recorded" in given_up[0]


def test_a_loader_starts_over(tmp_path: Path) -> None:
    assert list(itertools.islice(Epochs([1, 2, 3], tmp_path / "begun"), 7)) == [1, 2, 3, 1, 2, 3, 1]


def test_a_loader_resumed_at_the_end_of_an_epoch_begins_the_next(tmp_path: Path) -> None:
    class Resumed(list[int]):
        passes = itertools.count()

        def __iter__(self) -> Iterator[int]:
            return iter(()) if next(self.passes) == 0 else super().__iter__()

    assert list(itertools.islice(Epochs(Resumed([1, 2]), tmp_path / "begun"), 4)) == [1, 2, 1, 2]


def test_a_loader_without_a_whole_batch_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rollout\.prompts_per_step"):
        next(iter(Epochs([], tmp_path / "begun")))
