"""Parent and forked child use one sync client: `python fork_script.py URL TRANSPORT`.

A script, so that no thread of pytest's is in the process that forks.
"""

import gc
import os
import sys

from rlbridge.config import GymConfig
from rlbridge.gym.sync import SyncGymClient
from rlbridge.testing import make_row


def main(url: str, transport: str) -> None:
    config = GymConfig.parse({"url": url, "transport": transport})
    shared, own = SyncGymClient.shared(config), SyncGymClient(config)
    ask(shared, own, "parent, before")
    child = os.fork()
    if child == 0:
        ask(SyncGymClient.shared(config), own, "child")
        assert SyncGymClient.shared(config) is not shared
        ask(shared, own, "child, by what it inherited")
        gc.collect()
        return
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    ask(shared, own, "parent, after")


def ask(shared: SyncGymClient, own: SyncGymClient, who: str) -> None:
    for name, gym in (("shared", shared), ("own", own)):
        assert gym.verify(make_row(), f"{who}, {name}").valid
    sys.stdout.write(f"{who}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
