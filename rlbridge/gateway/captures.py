"""Rollouts out of a folder of captures, without a gateway."""

from collections.abc import Iterator
from pathlib import Path

from rlbridge.contracts.rollout import Rollout
from rlbridge.gateway.capture import CaptureLog
from rlbridge.gateway.config import CaptureConfig
from rlbridge.gateway.records import restored


def captured_rollouts(folder: Path) -> Iterator[Rollout]:
    """Every session in a gateway's capture folder, the oldest first, one at a time.

    A gateway may be writing there: what it has answered so far is read. Sessions that their
    clients ended are read too. One that is deleted (`captures prune`) before its turn is left out.

    Raises:
        ConfigError: the folder can't be read, or holds captures of another version.
        ContractError: a session's records are garbled; says whose.
    """
    log = CaptureLog(folder, CaptureConfig(folder=folder), read_only=True)
    log.recover()
    for session in log.sessions():
        try:
            records = log.records(session)
        except FileNotFoundError:  # deleted meanwhile
            continue
        yield restored(session, records).rollout()
