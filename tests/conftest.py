"""Shared by all tests: no model hub, Ray on loopback, the same examples on each run."""

import os
import signal

from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Without it Ray turns _node_ip_address="127.0.0.1" into the node's address and listens everywhere.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# The same examples on every run and however slow the machine; those of the day are found with
# --hypothesis-profile=explore.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", _PATIENT)
settings.register_profile("same", _PATIENT, derandomize=True)
settings.load_profile("same")

# A shell starts what it puts into the background with SIGINT ignored, and all children inherit it:
# tests that press Ctrl-C would wait for nothing.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
