"""A grading process: `python -m rlbridge.evaluators.worker MODULE:FUNCTION MEMORY_MB`.

One line of JSON with keywords in, one with the function's value out. Running out of memory or
of stack is an answer too. Ends when its input does, or when its parent is gone.
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from typing import Final

from rlbridge.evaluators.local import UngradableError

_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Load the function, say so, then answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":  # a busy one doesn't see that its input ended
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # a library's prints must not end up among the answers
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    memory = int(sys.argv[2]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sink.write(b'{"ready": true}\n')
    for line in source:
        try:
            answer = {"value": function(**json.loads(line))}
        except UngradableError as error:
            answer = {"raised": str(error), "known": True}
        except (MemoryError, RecursionError) as error:
            detail = f"the answer is too large to grade ({type(error).__name__})"
            answer = {"raised": detail, "known": True}
        except Exception as error:  # noqa: BLE001 (told to who asked)
            answer = {"raised": f"{type(error).__name__}: {error}"[:300], "known": False}
        sink.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
