"""Shared by all tests: no test reaches a model hub, and Ray stays on loopback."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Without it Ray turns _node_ip_address="127.0.0.1" into the node's address and listens everywhere.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# A shell starts what it puts into the background with SIGINT ignored, and all children inherit it:
# tests that press Ctrl-C would wait for nothing.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
