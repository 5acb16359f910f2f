"""Serve one of NeMo Gym's own environments on loopback, without Ray, until Ctrl-C.

    python examples/verl/gym_server.py example_session_state_mgmt

prints the URL to give to `rlbridge run --gym-url`. Needs nemo-gym 0.4.0 in an environment of its
own: `.venv-gym`, which `make setup` builds, or wherever RLBRIDGE_GYM_PYTHON points.
"""

import argparse
import contextlib
import signal

from rlbridge.testing.real_servers import SERVERS, running_nemo_gym


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(SERVERS))
    with (
        running_nemo_gym(parser.parse_args().name) as url,
        contextlib.suppress(KeyboardInterrupt),
    ):
        print(url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
