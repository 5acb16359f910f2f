"""Deletes captures: whole segments, as `rlbridge.gateway.prune_plan` finds them.

What goes is said in one step (`Pruned`), then deleted: killed in between, the rest counts as
deleted for every reader, and the next pruning finishes it. Refuses folders that hold no captures,
and file systems where nobody can tell who is at work.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlbridge.durable import sync_folder
from rlbridge.errors import ConfigError
from rlbridge.gateway.locks import GATEWAYS, PRUNING, is_locked, try_lock
from rlbridge.gateway.prune_plan import Plan, Rule, Track, plan
from rlbridge.gateway.segments import (
    PRUNED,
    Pruned,
    contents_of,
    delete,
    number_of,
    read_pruned,
    segments_in,
    write_pruned,
)


def prune(folder: Path, before_s: float, *, dry_run: bool = False, track: Track = iter) -> Plan:
    """Delete a folder's captures from before a moment; may run beside a gateway, and be killed.

    A session that hasn't ended goes with its segments if no gateway is at work in the folder.

    Args:
        folder: of a gateway's captures.
        before_s: segments last written to before it may go, seconds since 1970.
        dry_run: delete nothing, write nothing.
        track: is given the segments to be read, for a progress bar.

    Returns:
        What was, or would be, deleted.

    Raises:
        ConfigError: it is no folder of captures, or another pruning is at work there.
    """
    if not (folder / PRUNED).exists() and not any(folder.glob("calls-*.jsonl")):
        raise ConfigError(f"{folder} holds no captures of a gateway; nothing was deleted")
    try:
        if dry_run:
            rule = Rule.by_age(before_s, gateway=is_locked(folder / GATEWAYS))
            return plan(folder, rule, track, keep_index=False)
        with locked(folder):
            for path in track(segments_in(folder)[0]):
                contents_of(path, keep_index=True)  # the slow part, while gateways may still start
            with _alone(folder) as gateway:
                found = plan(folder, Rule.by_age(before_s, gateway=gateway))
                carry_out(folder, found)
                return found
    except OSError as error:
        raise ConfigError(f"{folder}: {error}; run the same again once that is mended") from error


def carry_out(folder: Path, found: Plan) -> None:
    """Delete what a plan says, and what an earlier pruning left behind.

    Raises:
        OSError: a file can't be written or deleted; what is left counts as deleted.
    """
    before = read_pruned(folder)
    names = (*before.segments, *(segment.path.name for segment in found.goes))
    if not names:
        return
    newest = max(before.newest, *(number_of(name) for name in names))
    write_pruned(folder, Pruned(names, newest, found.cuts))
    for name in names:
        delete(folder / name)
    sync_folder(folder)
    write_pruned(folder, Pruned((), newest, found.cuts))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else deletes from the folder.

    Raises:
        ConfigError: somebody does now.
    """
    lock = try_lock(folder / PRUNING)
    if lock is None:
        raise ConfigError(f"captures in {folder} are being deleted by another process; wait for it")
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether a gateway is at work in the folder; if not, none begins."""
    lock = try_lock(folder / GATEWAYS)
    try:
        yield lock is None
    finally:
        if lock is not None:
            os.close(lock)
