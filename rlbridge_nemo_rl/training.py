"""One training run in the launching process: what every algorithm's loop is started with."""

import sys
import time
from pathlib import Path
from typing import Any

from rlbridge import jsonl
from rlbridge_nemo_rl import versions

STARTED = time.time()
STOPPED_ON_PURPOSE = 3
"""Exit status of a run that we stopped."""


class Training:
    """A run's settings that are ours, its folder and its events.

    Args:
        container: the whole config as plain data; its `rlbridge` section is ours.
    """

    def __init__(self, container: dict[str, Any]) -> None:
        self.ours = dict(container["rlbridge"])
        self.folder = Path(self.ours["run_dir"])
        self.folder.mkdir(parents=True, exist_ok=True)

    def note(self, event: str, **details: Any) -> None:
        """Append one event to `events.jsonl`, for whoever watches."""
        line = {"event": event, "after_s": round(time.time() - STARTED, 3), **details}
        jsonl.append(self.folder / "events.jsonl", line)

    def warn(self, text: str) -> None:
        """Tell the user what doesn't stop the run, here and on the screen of `rlbridge run`."""
        print(f"warning: {text}", file=sys.stderr, flush=True)
        self.note("warning", text=text)


def tokenizer_of(config: Any) -> Any:
    """The policy's tokenizer, as NeMo-RL makes it."""
    from nemo_rl.algorithms.utils import get_tokenizer

    return get_tokenizer(versions.section(config, "policy")["tokenizer"])
